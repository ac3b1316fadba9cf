"""Every document is read and written by its class; folders of the first version are still read."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import yaml

from gradsurgery import documents
from gradsurgery.cli.options import configured
from gradsurgery.documents.configuration import (
    Role,
    RunConfiguration,
    costly_options,
    options_of,
    role_of,
)
from gradsurgery.documents.document import Document, read_mapping
from gradsurgery.documents.plan import Failure, SweepPlan
from gradsurgery.documents.record import Record, SplitFile
from gradsurgery.documents.selection import Selections
from gradsurgery.documents.studies import Diagnosis, SimilarityStudy
from gradsurgery.errors import DataError

FIRST = Path(__file__).parent / "version1"
"""Folders that version 0.1.0 wrote before the documents had classes of their own."""

FILES: list[tuple[type[Document], str]] = [
    (Record, "runs/a/record.json"),
    (Record, "runs/b/record.json"),
    (SweepPlan, "sweep/plan.json"),
    (Failure, "failed/rotated-digits/75/deep-all/seed-0-fb83bd5d/failure.json"),
    (Selections, "sweep/selection.json"),
    (SimilarityStudy, "similarity/similarity.json"),
    (Diagnosis, "diagnosis/diagnosis.json"),
    (SplitFile, "runs/a/split.json"),
]


def test_a_run_of_a_study_of_before_goes_on() -> None:
    path = FIRST / "similarity" / "seed-0" / "similarity.json"
    part = SimilarityStudy.load(path)
    whole = SimilarityStudy.load(FIRST / "similarity")
    assert part.runs == whole.runs[:1]
    assert (part.part, whole.part) == (True, False)
    assert part.missing() == []


def plain(path: Path) -> object:
    content = json.loads(path.read_text())
    if "configuration" in content:
        content["configuration"].pop("passes", None)
    if "measurements" in content:  # of one run, which is a study of one seed now
        seed = content["configuration"]["seed"]
        content["runs"] = [{"seed": seed, "measurements": content.pop("measurements")}]
    return content


def contains(whole: object, part: object) -> bool:
    """Whether everything in `part` is in `whole`, which may have more names."""
    if isinstance(part, dict):
        assert isinstance(whole, dict)
        return all(contains(whole[name], value) for name, value in part.items())
    if isinstance(part, list):
        assert isinstance(whole, list)
        return len(whole) == len(part) and all(map(contains, whole, part))
    return whole == part


@pytest.mark.parametrize(("kind", "name"), FILES, ids=[name for _, name in FILES])
def test_files_of_the_first_version_are_read_whole(
    kind: type[Document], name: str, tmp_path: Path
) -> None:
    document = kind.load(FIRST / name)
    document.save(tmp_path)
    assert contains(json.loads((tmp_path / kind.file_name).read_text()), plain(FIRST / name))
    assert kind.load(tmp_path) == document


@pytest.mark.parametrize(("kind", "name"), FILES, ids=[name for _, name in FILES])
def test_what_a_later_version_adds_is_read_past(
    kind: type[Document], name: str, tmp_path: Path
) -> None:
    content = json.loads((FIRST / name).read_text()) | {"added": {"later": 1}}
    (tmp_path / kind.file_name).write_text(json.dumps(content))
    assert kind.load(tmp_path) == kind.load(FIRST / name)


@pytest.mark.parametrize(("kind", "name"), FILES, ids=[name for _, name in FILES])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "[]", "it has no version"),
        (lambda text: '{"version": 2}', "version 2, expected 1"),
        (lambda text: '{"version": true}', "version True, expected 1"),
        (lambda text: '{"version": 1}', " is missing"),
    ],
    ids=["cut", "list", "later", "boolean", "empty"],
)
def test_a_file_that_is_none_is_one_line_with_its_name_and_the_cure(
    kind: type[Document], name: str, spoil: Callable[[str], str], words: str, tmp_path: Path
) -> None:
    path = tmp_path / kind.file_name
    path.write_text(spoil((FIRST / name).read_text()))
    with pytest.raises(DataError) as caught:
        kind.load(path)
    message = str(caught.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message
    assert kind.cure in message or "move it elsewhere" in message


IMAGES = {domain: [30] * 10 for domain in ("0", "15", "30")}
IMAGES |= {domain: [29] + [30] * 9 for domain in ("45", "60", "75")}
TESTS = {"confusion": ["0:1 1:1", *[""] * 9]}


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("result.best.target_accuracy", 1.5, "less than or equal to 1"),
        ("result.best.target_accuracy", float("nan"), "finite"),
        ("result.best.target_accuracy", None, "in test_accuracy, where the target is '75'"),
        ("result.best.target_accuracy", 0.99, "a target_accuracy is 0.99, and 0."),
        ("result.last.test_accuracy", {}, "and nothing in test_accuracy"),
        ("result.last.validation_accuracy", "0.5", "valid number"),
        ("result.best.test_accuracy.75", -0.1, "greater than or equal to 0"),
        ("curves.train_loss", [1.0], "1 values, expected 2"),
        ("conflict", {"step": [1]}, "conflict: losses has 0 values, expected 1"),
        ("data.class_images", {"75": [1, 2]}, "class_images of 75 has 2 values, expected 10"),
        ("data.class_images", {"75": [299] + [0] * 9}, "counted of other domains"),
        ("data.class_images", IMAGES | {"75": [1] * 10}, "of 75 are 299, and those of its classes"),
        ("data.domains", ["0", "75"], "counted of other domains than 0, 75"),
        ("result.last.test_accuracy.else", 0.5, "test_accuracy is of 'else'"),
        ("result.best.tests", {"75": TESTS}, "tests of 75 are of 2 images, its split's 59"),
        ("result.last.validation_accuracy", 0.5, "is 0.5, and in curves 0.1"),
        ("configuration.iterations", 3, "curves.step ends at 4 of 3 iterations"),
        ("configuration.iterations", 5, "curves.step ends at 4 of 5 iterations"),
        ("configuration.target", "sketch", "names the domain 'sketch'"),
        ("configuration.without", ["sketch"], "names the domain 'sketch'"),
        ("configuration.iterations", 0, "iterations must be greater than or equal to 1"),
        ("configuration.nonsense", 0, "unknown option 'nonsense'"),
        ("cost", None, "cost"),
        ("cost.peak_memory_bytes", -(10**400), "peak_memory_bytes must be a number of up to 18"),
        ("cost.peak_memory_bytes", -1, "greater than or equal to 0"),
        ("cost.seconds", 1e308, "cost.seconds must be finite, up to 1e+100"),
        ("environment.threads", 2**63, "threads must be a number of up to 18 digits"),
        ("data.images.75", -1, "greater than or equal to 0"),
        ("configuration.method", "\ud800", "method must be text in UTF-8, found '\\ud800'"),
        ("version", 10**30, "one of 100 bits"),
        ("version", "1" * 5000, "of version '1111"),
    ],
)
def test_a_record_is_checked_where_it_is_read(
    where: str, value: object, words: str, tmp_path: Path
) -> None:
    content = json.loads((FIRST / "runs/a/record.json").read_text())
    *parts, name = where.split(".")
    place = content
    for part in parts:
        place = place[part]
    place[name] = value
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        Record.load(tmp_path)
    assert words in str(caught.value)
    assert "repeat the run" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("kind", "where", "value", "words"),
    [
        (Diagnosis, "snapshots", [], "snapshots is empty"),
        (Diagnosis, "domains", ["15", "45"], "against_rest has 5 values, expected 2"),
        (Diagnosis, "snapshots.0.total.cosines", [[1.0]] * 5, "cosines has 1 values, expected 5"),
        (Diagnosis, "snapshots.1.most_conflicting", "x", "most_conflicting is no domain, 'x'"),
        (Diagnosis, "logged.cosine", [], "cosine has 0 values"),
        (SimilarityStudy, "runs", [], "at least 1 item"),
        (SimilarityStudy, "runs.0.measurements.0.cosines", [], "cosines has 0 values, expected 5"),
    ],
)
def test_a_study_fits_its_domains(
    kind: type[Document], where: str, value: object, words: str, tmp_path: Path
) -> None:
    content = json.loads(
        (FIRST / kind.file_name.removesuffix(".json") / kind.file_name).read_text()
    )
    *parts, name = (int(part) if part.isdigit() else part for part in where.split("."))
    place = content
    for part in parts:
        place = place[part]
    place[name] = value
    (tmp_path / kind.file_name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        kind.load(tmp_path)


def test_every_option_says_what_it_is_and_what_it_means() -> None:
    for name, field in RunConfiguration.model_fields.items():
        assert role_of(name) in get_args(Role), name
        assert len(field.description or "") > 10, name


def test_the_place_of_a_run_is_no_difference() -> None:
    here = RunConfiguration(data="pacs:here", target="sketch", device="cpu", threads=1)
    there = RunConfiguration(data="pacs:there", target="sketch", device="cuda", threads=8, seed=1)
    assert here.differences(there) == {"seed": (0, 1)}
    computing = ["device", "channels_last", "compile", "cuda_graph", "threads", "keep_checkpoint"]
    assert options_of("place") == ["data", "protocol", *computing]


def test_what_a_step_costs_depends_on_all_but_what_is_free() -> None:
    costly = set(costly_options())
    assert {"method", "backbone", "batch_size", "image_size", "precision", "threads"} <= costly
    assert not {"target", "seed", "split_seed", "learning_rate", "settings"} & costly


def test_a_configuration_given_back_as_yaml_is_the_same(tmp_path: Path) -> None:
    run = RunConfiguration(data="rotated-digits", target="75", learning_rate=1e-5, seed=3)
    run.save(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run.model_dump()))
    for file in (tmp_path / "configuration.json", path):
        assert RunConfiguration(**read_mapping(file, "configuration")) == run


def test_the_record_of_a_run_is_a_file_of_its_options() -> None:
    folder = next(FIRST.glob("runs/*/record.json")).parent
    record = Record.load(str(folder))
    assert RunConfiguration.load(str(folder / "record.json")) == record.configuration
    assert configured(folder / "record.json", {"data": "b"})["data"] == "b"


def test_documents_need_no_torch() -> None:
    names = [file.stem for file in Path(documents.__file__).parent.glob("[a-z]*.py")]
    assert {"configuration", "record", "studies"} <= set(names)
    code = "".join(f"import gradsurgery.documents.{name}\n" for name in names)
    code += "import sys\nassert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
