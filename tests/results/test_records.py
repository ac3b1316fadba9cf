import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsurgery.errors import DataError
from gradsurgery.results import find_records, read_curves, read_record, read_runs


def test_folders_are_searched_and_each_file_is_there_once(written, tmp_path):
    one, two = written(seed=0), written(seed=1)
    found = find_records([tmp_path, one, tmp_path / "runs" / ".." / "runs"])
    assert found == [one, two]


def test_paths_without_records(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_records([tmp_path / "nowhere"])
    (tmp_path / "configuration.json").write_text("{}")
    with pytest.raises(DataError, match=r"no record\.json under .*no run there is finished"):
        find_records([tmp_path])


def test_one_row_a_run(written, tmp_path):
    written("deep-all", "photo", 1, 0.75, 0.5)
    path = written("agr-sum", "sketch", 0, 0.625, 0.125)
    runs = read_runs([tmp_path])
    assert len(runs) == 2
    row = runs[runs["method"] == "agr-sum"].iloc[0]
    assert row["record"] == str(path)
    assert (row["data"], row["target"], row["seed"]) == ("pacs", "sketch", 0)
    assert (row["best_step"], row["last_step"]) == (20, 40)
    assert (row["best_target_accuracy"], row["last_target_accuracy"]) == (0.625, 0.125)
    assert (row["best_validation_accuracy"], row["seconds"]) == (0.75, 12.5)
    assert row["domains"] == ("art_painting", "photo", "sketch")


def test_what_model_selection_needs(written, tmp_path):
    written(
        "irm",
        configuration__settings={"irm.penalty": 10},
        configuration__without=["photo"],
        configuration__batches="single",
    )
    (row,) = read_runs([tmp_path]).to_dict("records")
    assert (row["without"], row["batches"]) == (("photo",), "single")
    assert (row["method"], row["method_name"]) == ("irm (irm.penalty=10)", "irm")
    assert row["best_test_accuracy"] == {"art_painting": 0.75, "photo": 0.875, "sketch": 0.5}
    assert math.isnan(row["last_target_validation_accuracy"])
    assert json.loads(row["hyperparameters"]) == {
        "batch_norm": "frozen",
        "irm.penalty": 10,
        "iterations": 40,
        "learning_rate": 1e-05,
    }
    settings = json.loads(row["settings"])
    assert settings["split_digest"] == "s1"
    assert not {"without", "settings", "method"} & set(settings)


def test_the_oracles_accuracy(record, tmp_path):
    record["result"]["last"]["target_validation_accuracy"] = 0.25
    (tmp_path / "record.json").write_text(json.dumps(record))
    (row,) = read_runs([tmp_path]).to_dict("records")
    assert row["last_target_validation_accuracy"] == 0.25


def test_curves_are_a_row_a_validation(written, tmp_path):
    written("deep-all", seed=1)
    written("agr-sum", seed=0)
    written("agr-sum", seed=2, configuration__without=["photo"])
    curves = read_curves([tmp_path])
    assert list(zip(curves["method"], curves["step"], strict=True)) == [
        ("agr-sum", 20),
        ("agr-sum", 40),
        ("deep-all", 20),
        ("deep-all", 40),
    ]
    assert list(curves.iloc[1][["train_loss", "validation_loss", "validation_accuracy"]]) == [
        1.0,
        1.5,
        0.75,
    ]
    assert list(curves["cosine"]) == [0.25, 0.125] * 2
    assert set(curves["settings"]) == set(read_runs([tmp_path / "runs" / "sketch"])["settings"])


def test_curves_that_are_absent_or_not_finite_are_nan(record, tmp_path):
    del record["curves"]["cosine"]
    record["curves"]["validation_loss"] = [None, 1.0]
    (tmp_path / "record.json").write_text(json.dumps(record))
    curves = read_curves([tmp_path])
    assert curves["cosine"].isna().all()
    assert list(curves["validation_loss"].isna()) == [True, False]


def test_curves_of_other_lengths_are_refused(record, tmp_path):
    record["curves"]["agreeing"] = [0.5]
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(
        DataError, match=r"curves\.agreeing is \[0\.5\], expected a list of 2 numbers"
    ):
        read_curves([tmp_path])


def without(record, name):
    *parts, last = name.split(".")
    inner = record
    for part in parts:
        inner = inner[part]
    del inner[last]
    return record


def changed(record, name, value):
    *parts, last = name.split(".")
    inner = record
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return record


@pytest.mark.parametrize(
    "name",
    [
        "configuration.method",
        "data.domains",
        "split",
        "curves.step",
        "result.best.target_accuracy",
        "result.last",
        "environment",
        "cost.seconds",
    ],
)
def test_a_missing_part_is_named(record, tmp_path, name):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(without(record, name)))
    with pytest.raises(DataError) as raised:
        read_record(path)
    assert str(path) in str(raised.value)
    assert f"it has no {name}" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("version", 2, "version 2, expected 1"),
        ("version", True, "version True, expected 1"),
        ("configuration.seed", "0", "configuration.seed is '0', expected int"),
        ("configuration.seed", True, "configuration.seed is True, expected int"),
        ("configuration.target", "moon", "configuration.target is 'moon', expected one of"),
        ("result.best.target_accuracy", 70.5, "is 70.5, expected a fraction from 0 to 1"),
        ("result.last.validation_accuracy", float("nan"), "is nan, expected a fraction"),
        ("curves.train_loss", ["a"], "curves.train_loss is 'a', expected a list of numbers"),
        ("data", [], "it has no data.name"),
        ("configuration.without", ["moon"], "configuration.without is ['moon'], expected a list"),
        ("configuration.without", "photo", "configuration.without is 'photo', expected a list"),
        ("result.last.target_validation_accuracy", 2, "is 2, expected a fraction from 0 to 1"),
        ("result.best.test_accuracy", {"photo": None}, "test_accuracy.photo is None, expected int"),
    ],
)
def test_an_unusable_value_is_named(record, tmp_path, name, value, words):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(changed(record, name, value)))
    with pytest.raises(DataError) as raised:
        read_record(path)
    assert str(path) in str(raised.value)
    assert words in str(raised.value)


@pytest.mark.parametrize("content", ["[]", '{"title": "a song"}', "3", "null"])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"record\.json is no record of a run: it has no version"):
        read_record(path)


def test_every_truncation_is_refused(record, tmp_path):
    path, text = tmp_path / "record.json", json.dumps(record)
    for length in range(0, len(text), 37):
        path.write_text(text[:length])
        with pytest.raises(DataError, match=r"record\.json is not JSON"):
            read_record(path)


@given(content=st.binary(max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_bytes_give_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("record") / "record.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_record(path)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_cannot_be_read(written):
    path = written()
    path.chmod(0)
    with pytest.raises(DataError, match="cannot read"):
        read_record(path)


def test_what_training_writes_is_read(record, tmp_path):
    from gradsurgery.documents.record import Record

    Record.model_validate(record).save(tmp_path)
    (row,) = read_runs([tmp_path]).to_dict("records")
    assert (row["method"], row["best_target_accuracy"]) == ("agr-sum", 0.5)


def test_reading_needs_no_training():
    code = (
        "import sys, gradsurgery.report, gradsurgery.cli.show, gradsurgery.cli.methods;"
        "heavy = {'torch', 'pandas', 'rich.table', 'gradsurgery.training'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
