import json
import subprocess
import sys

import pytest

from gradsurgery.documents.configuration import options_of
from gradsurgery.documents.record import Record
from gradsurgery.errors import DataError
from gradsurgery.results import compare_runs, select, take_inventory
from gradsurgery.results.frame import curves_frame


def runs_in(*paths):
    return take_inventory(paths).runs


def test_one_row_a_run(written, tmp_path):
    written("deep-all", "photo", 1, 0.75, 0.5)
    path = written("agr-sum", "sketch", 0, 0.625, 0.125)
    runs = runs_in(tmp_path)
    assert len(runs) == 2
    row = runs[runs["method"] == "agr-sum"].iloc[0]
    assert row["record"] == str(path)
    assert (row["data"], row["target"], row["seed"]) == ("pacs", "sketch", 0)
    assert (row["best_step"], row["last_step"]) == (20, 40)
    assert (row["best_target_accuracy"], row["last_target_accuracy"]) == (0.625, 0.125)
    assert row["best_validation_accuracy"] == 0.75
    assert row["domains"] == ("art_painting", "photo", "sketch")


def test_what_is_compared_follows_the_roles_of_the_options(written, tmp_path):
    written(
        "irm",
        configuration__settings={"irm.penalty": 10.0},
        configuration__without=["photo"],
        configuration__batches="single",
        configuration__threads=2,
    )
    (row,) = runs_in(tmp_path).to_dict("records")
    assert (row["without"], row["method"]) == (("photo",), "irm (irm.penalty=10)")
    hyperparameters = json.loads(row["hyperparameters"])
    assert hyperparameters["irm.penalty"] == 10
    assert (hyperparameters["iterations"], hyperparameters["optimizer"]) == (40, "adam")
    conditions = json.loads(row["conditions"])
    assert conditions == {
        "backbone": "alexnet",
        "weights": "default",
        "batches": "single",
        "split_seed": 0,
        "split_per_run": False,
        "layout": "",
        "columns": {},
        "classes": "same",
        "drop_duplicates": False,
        "split": "70/10/20",
        "test_on": "test",
        "data_digest": "d1",
        "split_digest": "s1",
    }
    without_settings = {k: v for k, v in hyperparameters.items() if k != "irm.penalty"}
    assert json.loads(row["protocol"]) == conditions | without_settings
    assert not {"data", "device", "threads", "seed", "settings"} & {*conditions, *hyperparameters}


@pytest.mark.parametrize("changes", [{}, {"configuration__threads": 2}])
def test_a_run_that_is_there_twice_is_refused(changes, written, tmp_path):
    written(configuration__without=["photo"])
    written(folder="copy", configuration__without=["photo"], **changes)
    words = r"agr-sum on sketch without photo with seed 0 is there twice: .*copy.* and .*runs"
    with pytest.raises(DataError, match=words):
        runs_in(tmp_path)


@pytest.mark.parametrize("name", options_of("incidental"))
def test_runs_that_differ_in_what_is_recorded_alone_are_one(name, written, tmp_path):
    for seed in (0, 1):
        for method, best in (("deep-all", 0.5), ("agr-sum", 0.75)):
            written(method, seed=seed, best=best)
            written(method, seed=seed, best=best, folder="z", **{f"configuration__{name}": 1})
    inventory = take_inventory([tmp_path])
    assert len(inventory.records) == 8
    assert not any("/z/" in record for record in inventory.runs["record"])
    (table,) = compare_runs(inventory.runs)
    assert {cell.runs for cell in table.cells.values()} == {2}
    (choice, _) = select(inventory.runs, "training-domain").choices
    assert (choice.seeds, len(choice.candidates)) == ([0, 1], 1)
    written("agr-sum", seed=0, best=0.7, folder="other", **{f"configuration__{name}": 1})
    with pytest.raises(DataError, match="is there twice"):  # for it came to something else
        runs_in(tmp_path)


def test_the_oracles_accuracy(record, tmp_path):
    record["result"]["last"]["target_validation_accuracy"] = 0.25
    (tmp_path / "record.json").write_text(json.dumps(record))
    (row,) = runs_in(tmp_path).to_dict("records")
    assert row["last_target_validation_accuracy"] == 0.25


@pytest.mark.parametrize(
    ("classes", "accuracy", "guessing"),
    [(2, 0.54, True), (2, 0.56, False), (10, 0.18, True), (10, 0.2, False)],
)
def test_a_model_guesses_within_a_tenth_of_the_way_from_chance(
    classes, accuracy, guessing, written, tmp_path
):
    # chance is 1 / classes: 0.5 + 0.1 · 0.5 = 0.55 and 0.1 + 0.1 · 0.9 = 0.19
    written(validation=accuracy, data__classes=[f"class {i}" for i in range(classes)])
    (row,) = runs_in(tmp_path).to_dict("records")
    assert (row["best_guessing"], row["last_guessing"]) == (guessing, guessing)


@pytest.mark.parametrize(("accuracy", "guessing"), [(0.81, True), (0.83, False)])
def test_a_model_that_names_the_largest_class_alone_guesses(accuracy, guessing, written, tmp_path):
    # Of the sources' 20 images each, 18 and 14 are dogs: 0.8 + 0.1 · 0.2 = 0.82; the target's are
    # cats.
    counts = {"art_painting": [18, 2], "photo": [14, 6], "sketch": [0, 20]}
    written(validation=accuracy, data__class_images=counts)
    (row,) = runs_in(tmp_path).to_dict("records")
    assert row["best_guessing"] is guessing


def test_curves_are_a_row_a_validation_and_absent_values_are_nan(record, tmp_path):
    record["curves"]["cosine"] = []
    record["curves"]["validation_loss"] = [None, 1.0]
    (tmp_path / "record.json").write_text(json.dumps(record))
    inventory = take_inventory([tmp_path])
    curves = curves_frame(inventory.runs.assign(method="mine"), inventory.records)
    assert list(curves["step"]) == [20, 40]
    assert list(curves.iloc[1][["method", "target", "seed"]]) == ["mine", "sketch", 0]
    assert list(curves.iloc[1][["train_loss", "validation_loss"]]) == [1.0, 1.0]
    assert curves["cosine"].isna().all()
    assert list(curves["validation_loss"].isna()) == [True, False]


def test_what_training_writes_is_read(record, tmp_path):
    Record.model_validate(record).save(tmp_path)
    (row,) = runs_in(tmp_path).to_dict("records")
    assert (row["method"], row["best_target_accuracy"]) == ("agr-sum", 0.5)


def test_reading_needs_no_training():
    code = (
        "import sys, gradsurgery.report, gradsurgery.results, gradsurgery.cli.finished_runs;"
        "heavy = {'torch', 'pandas', 'rich.table', 'gradsurgery.training'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
