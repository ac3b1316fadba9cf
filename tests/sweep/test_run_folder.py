import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.atomic import claimed
from gradsurgery.data import open_source
from gradsurgery.documents.plan import Plan
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.sweep.run import claim_folder, tidy
from gradsurgery.sweep.runs import SweepRun, finished_record
from gradsurgery.training import train

MakePlan = Callable[..., Plan]
RunsOf = Callable[[Plan], list[SweepRun]]


def written(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return content


def test_a_folder_says_which_runs_belong_in_it(
    plan: MakePlan, runs_of: RunsOf, tmp_path: Path
) -> None:
    asked = plan(seeds="2")
    runs = runs_of(asked)
    claim_folder(asked, runs, tmp_path)
    content = written(tmp_path)
    assert content["version"] == 1
    assert Plan(**content["plan"]) == asked
    assert [run["directory"] for run in content["runs"]] == [run.directory for run in runs]
    assert content["runs"][1] == {
        "directory": runs[1].directory,
        "data": "rotated-digits",
        "target": "75",
        "method": "agr-sum",
        "seed": 0,
        "without": [],
    }


def test_a_plan_that_holds_the_runs_that_are_begun_takes_the_place_of_another(
    plan: MakePlan, runs_of: RunsOf, tmp_path: Path
) -> None:
    small, large = plan(seeds="2"), plan(seeds="3", targets=["75", "0"])
    other = plan(seeds="2", options={**small.options, "iterations": 7})
    claim_folder(small, runs_of(small), tmp_path)
    claim_folder(other, runs_of(other), tmp_path)  # nothing is begun: a first try with a mistake
    failed, begun = (tmp_path / run.directory for run in runs_of(other)[:2])
    for directory, file in ((failed, "failure.json"), (begun, "checkpoint.pt")):
        directory.mkdir(parents=True)
        (directory / file).touch()
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(ArgumentError) as caught:
        claim_folder(small, runs_of(small), tmp_path)
    message = str(caught.value)
    assert "belongs to another plan, with other iterations (7 there, 6 here); choose" in message
    assert f"1 of its runs, as {begun.relative_to(tmp_path)}, are begun" in message
    assert "choose another folder (--out), or add to that plan" in message
    assert (tmp_path / "plan.json").read_bytes() == before
    (begun / "checkpoint.pt").unlink()
    claim_folder(small, runs_of(small), tmp_path)
    assert not (failed / "failure.json").exists()
    claim_folder(large, runs_of(large), tmp_path)
    assert len(written(tmp_path)["runs"]) == 12
    claim_folder(large, runs_of(large), tmp_path)
    assert len(written(tmp_path)["runs"]) == 12
    turned = plan(seeds="3", targets=["75", "0"], methods=large.methods[::-1])
    claim_folder(turned, runs_of(turned), tmp_path)  # the same runs, shown in another order
    assert written(tmp_path)["plan"]["methods"] == large.methods[::-1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "plan": {}}'])
def test_a_plan_file_that_is_none_stops_the_sweep(
    text: str, plan: MakePlan, runs_of: RunsOf, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match=r"plan\.json is .*(delete it|move it)"):
        claim_folder(plan(), runs_of(plan()), tmp_path)
    assert (tmp_path / "plan.json").read_text() == text


def test_a_record_is_as_good_where_the_data_lie_elsewhere(
    plan: MakePlan, runs_of: RunsOf, tmp_path: Path
) -> None:
    run = runs_of(plan(seeds="1"))[0]
    record = train(run.configuration, tmp_path / run.directory)
    moved = run.configuration.model_copy(update={"data": "copy/rotated-digits"})
    assert finished_record(replace(run, configuration=moved), tmp_path) == record
    other = replace(run, configuration=moved, data="other")
    with pytest.raises(ArgumentError, match="data: 'rotated-digits' there, 'copy/rotated-d"):
        finished_record(other, tmp_path)


def test_what_a_killed_process_left_beside_its_record_goes(
    plan: MakePlan, runs_of: RunsOf, tmp_path: Path
) -> None:
    run = runs_of(plan(seeds="1"))[0]
    directory = tmp_path / run.directory
    directory.mkdir(parents=True)
    left = ("checkpoint.pt", "best-3.safetensors", ".lock", ".failure.json.7.tmp")
    for name in (*left, "record.json", "notes"):
        (directory / name).touch()
    with claimed(directory):
        tidy(run, tmp_path)
        assert all((directory / name).exists() for name in left[:3])
    (directory / ".lock").touch()
    tidy(run, tmp_path)
    assert {path.name for path in directory.iterdir()} == {"record.json", "notes"}
    for name in left:  # each may be the last that it left
        (directory / name).touch()
        tidy(run, tmp_path)
        assert {path.name for path in directory.iterdir()} == {"record.json", "notes"}


def test_records_that_cannot_be_used_are_told_and_kept(
    plan: MakePlan, runs_of: RunsOf, tmp_path: Path
) -> None:
    run = runs_of(plan(seeds="1"))[0]
    assert finished_record(run, tmp_path) is None
    directory = tmp_path / run.directory
    record = train(run.configuration, directory, opened=open_source("rotated-digits"))
    assert finished_record(run, tmp_path) == record
    path = directory / "record.json"
    whole = path.read_text()
    later = json.loads(whole) | {"version": 2, "more": 1}
    other = json.loads(whole)
    other["configuration"]["batch_size"] = 7
    for text, words in (
        (whole[: len(whole) // 2], "is not JSON"),
        (json.dumps(later), "of version 2, expected 1"),
        (json.dumps(other), "holds a run with other options (batch_size: 7 there, 8 here)"),
    ):
        path.write_text(text)
        with pytest.raises((DataError, ArgumentError)) as caught:
            finished_record(run, tmp_path)
        assert words in str(caught.value)
        assert str(directory) in str(caught.value)
        assert path.read_text() == text
