import html
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gradsurgery.errors import ArgumentError, DataError, printable
from gradsurgery.report.figures.pictures import Examples
from gradsurgery.report.report import ReportOptions, file_stems, write_report
from tests.results.records import write_failure, write_plan

FIGURES = {"figure3", "curves", "critical-difference"}


@pytest.fixture
def compared(written, tmp_path):
    """Three methods, two targets, three seeds."""
    for seed, base in enumerate((0.5, 0.52, 0.57)):
        for target, more in (("photo", 0.3), ("sketch", 0.0)):
            written("deep-all", target, seed, best=base + more)
            written("agr-sum", target, seed, best=base + more + 0.02)
            written("pcgrad", target, seed, best=base + more + 0.01)
    return tmp_path / "runs"


def stems(folder):
    return {path.stem for path in folder.iterdir() if path.suffix in (".png", ".svg", ".pdf")}


def test_everything_is_written_into_the_folder(compared):
    report = write_report(compared)
    folder = compared / "report"
    assert report.page == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{stem}.{kind}" for stem in FIGURES for kind in ("png", "svg", "pdf")),
        *(f"table1.{kind}" for kind in ("md", "tex", "csv")),
        *("statistics.md", "statistics.csv", "report.html", "files.json"),
    }
    frame = pd.read_csv(folder / "table1.csv").set_index(["target", "method"])
    assert frame.loc[("sketch", "agr-sum"), "mean_accuracy_percent"] == pytest.approx(55)
    tests = pd.read_csv(folder / "statistics.csv").set_index(["target", "method"])
    assert tests.loc[("photo", "pcgrad"), "difference"] == pytest.approx(1)


def test_the_same_records_give_the_same_bytes(compared, tmp_path):
    for name in ("a", "b"):
        write_report(compared, tmp_path / name)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == first


@pytest.mark.usefixtures("unrendered")
def test_a_report_in_the_folder_changes_nothing_about_the_next(compared):
    page = write_report(compared).page
    before = page.read_bytes()
    assert write_report(compared).page.read_bytes() == before


@pytest.mark.usefixtures("unrendered")
def test_what_an_earlier_report_wrote_under_other_names_is_removed(compared, written):
    folder = write_report(compared).page.parent
    (folder / "figure3-mine.svg").write_text("drawn by hand")
    for seed in range(3):
        written("agr-sum", "sketch", seed, folder="runs/long", configuration__iterations=80)
    write_report(compared)
    assert {stem for stem in stems(folder) if stem.startswith("figure3")} == {
        "figure3-mine",
        "figure3-pacs-iterations-40",
        "figure3-pacs-iterations-80",
    }
    listed = set(json.loads((folder / "files.json").read_text())["files"])
    assert {path.name for path in folder.iterdir()} - listed == {"files.json", "figure3-mine.svg"}


@pytest.mark.parametrize("content", ['{"files": []}', '{"version": 1, "files": ["../a"]}'])
def test_someone_elses_list_of_files_is_left_as_it_is(content, compared):
    (compared / "report").mkdir()
    (compared / "report" / "files.json").write_text(content)
    with pytest.raises(DataError, match=r"files\.json is no list of a report's files"):
        write_report(compared)
    assert [path.name for path in (compared / "report").iterdir()] == ["files.json"]


@pytest.mark.usefixtures("unrendered")
def test_batches_of_one_domain_give_figure_4_and_tables_of_their_own(written, tmp_path):
    for kind in ("multi", "single"):
        for seed in range(2):
            written("agr-sum", seed=seed, folder=kind, configuration__batches=kind)
    write_report([tmp_path / "multi", tmp_path / "single"], tmp_path / "out")
    assert {"figure4", "figure3-pacs-batches-multi", "figure3-pacs-batches-single"} <= stems(
        tmp_path / "out"
    )


def test_examples_give_figure_1(compared):
    images = {("dog", "photo"): np.zeros((14, 14, 3), dtype=np.uint8)}
    examples = [Examples("pacs", ["dog"], ["photo"], images)]
    options = ReportOptions(examples=examples, notes=["A note on the images."])
    page = write_report(compared, options=options).page
    assert "figure1" in stems(page.parent)
    assert "A note on the images." in page.read_text()


@pytest.mark.usefixtures("unrendered")
def test_methods_renamed(compared):
    options = ReportOptions(names={"deep-all": "ERM", "agr-sum": "Ours"})
    page = write_report(compared, options=options).page
    assert r"ERM & " in (page.parent / "table1.tex").read_text()
    assert "deep-all is called ERM and agr-sum is called Ours." in page.read_text()


@pytest.mark.usefixtures("unrendered")
def test_the_last_model_and_another_baseline(compared):
    report = write_report(compared, options=ReportOptions(model="last", baseline="agr-sum"))
    (table,) = report.tables
    assert (table.model, table.methods[0]) == ("last", "agr-sum")


def grid(written, folder="runs", *, plan=None):
    """Two learning rates of two seeds: the higher validates better and tests worse."""
    for rate, validation, best in ((1e-5, 0.6, 0.9), (1e-3, 0.8, 0.3)):
        for seed in range(2):
            path = written(
                folder=f"{folder}/{rate}",
                seed=seed,
                best=best,
                validation=validation,
                configuration__learning_rate=rate,
            )
    root = path.parents[4]
    if plan is not None:
        runs = [
            {
                "directory": file.parent.relative_to(root).as_posix(),
                "seed": int(file.parent.name.removeprefix("seed-")),
            }
            for file in sorted(root.rglob("record.json"))
        ]
        write_plan(root, runs, grid=plan)
    return root


@pytest.mark.usefixtures("unrendered")
def test_of_a_sweep_with_a_grid_the_tables_have_what_validation_chooses(written):
    root = grid(written, plan={"learning_rate": [1e-5, 1e-3]})
    report = write_report(root)
    (table,) = report.tables
    assert table.cells["agr-sum", "sketch"].mean == pytest.approx(30)
    assert (root / "report" / "selection.md").exists()
    assert "Hyperparameters were searched" in report.page.read_text()


@pytest.mark.usefixtures("unrendered")
def test_runs_that_only_differ_are_compared_as_they_are_unless_asked(written):
    root = grid(written)
    assert len(write_report(root).tables) == 2
    chosen = write_report(root, options=ReportOptions(selected="training-domain"))
    assert len(chosen.tables) == 1
    with pytest.raises(ArgumentError, match=r"selected must be one of training-domain, .*'best'"):
        write_report(root, options=ReportOptions(selected="best"))


@pytest.mark.usefixtures("unrendered")
def test_a_choice_without_all_runs_of_a_candidate_is_told(written):
    root = grid(written, plan={"learning_rate": [1e-5, 1e-3]})
    early = "1 of 1 choices of hyperparameters were made while runs of some candidate are missing"
    assert early not in write_report(root).page.read_text()
    (root / "0.001" / "sketch" / "agr-sum" / "seed-1" / "record.json").unlink()
    report = write_report(root)
    assert early in report.page.read_text()
    assert report.tables[0].cells["agr-sum", "sketch"].mean == pytest.approx(90)


@pytest.mark.usefixtures("unrendered")
def test_tables_say_who_chose_and_that_the_oracle_is_not_attainable(written):
    root = grid(written)
    for path in root.rglob("record.json"):
        content = json.loads(path.read_text())
        content["result"]["last"]["target_validation_accuracy"] = 0.5
        path.write_text(json.dumps(content))
    report = write_report(root, options=ReportOptions(selected="oracle"))
    by = "of the last model, hyperparameters by oracle (not attainable)"
    for name in ("table1.md", "table1.tex", "report.html"):
        assert by in (report.page.parent / name).read_text()
    frame = pd.read_csv(report.page.parent / "table1.csv")
    assert set(frame["selection"]) == {"oracle"}


@pytest.mark.usefixtures("unrendered")
def test_the_oracle_tests_the_last_model_where_nothing_was_searched_too(written, tmp_path):
    for seed in range(2):
        changes = {"best": 0.9, "last": 0.4, "folder": "runs"}
        path = written(seed=seed, **changes)
        content = json.loads(path.read_text())
        content["result"]["last"]["target_validation_accuracy"] = 0.5
        path.write_text(json.dumps(content))
    report = write_report(tmp_path / "runs", options=ReportOptions(selected="oracle"))
    assert report.tables[0].cells["agr-sum", "sketch"].mean == pytest.approx(40)
    assert "Hyperparameters were searched" not in report.page.read_text()


def test_a_criterion_that_can_choose_nothing_is_an_error_if_asked_for(written):
    root = grid(written)
    with pytest.raises(DataError, match=r"leave-one-domain-out can choose nothing among the runs"):
        write_report(root, options=ReportOptions(selected="leave-one-domain-out"))
    assert not (root / "report").exists()


@pytest.mark.usefixtures("unrendered")
def test_failed_and_missing_runs_are_told(compared):
    runs = [{"directory": "d", "target": "photo", "method": "irm", "seed": 7}]
    for file in sorted(compared.rglob("record.json")):
        target, method, seed = file.parts[-4:-1]
        where = file.parent.relative_to(compared).as_posix()
        run = {"directory": where, "target": target, "method": method}
        runs.append(run | {"seed": int(seed[-1])})
    failed = {"target": "photo", "method": "irm", "seed": 8}
    write_plan(compared, [*runs, failed | {"directory": "f"}])
    write_failure(compared / "f", "the loss is nan", "Traceback of the nan", **failed)
    text = write_report(compared).page.read_text()
    assert "18 of 20 planned runs are finished; 1 failed and 1 not done" in text
    assert "the loss is nan" in text
    assert "Traceback of the nan" in text
    assert "The comparison is not complete" in text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.write_text(path.read_text()[:100]), r"record\.json is not JSON"),
        (lambda path: path.write_text('{"version": 9}'), "of version 9, expected 1"),
    ],
)
def test_records_that_cannot_be_used_are_named_and_nothing_is_written(break_it, message, compared):
    break_it(next(compared.rglob("record.json")))
    with pytest.raises(DataError, match=message):
        write_report(compared)
    assert not (compared / "report").exists()


def test_a_folder_without_records(tmp_path):
    with pytest.raises(DataError, match=r"no record\.json"):
        write_report(tmp_path)


def test_runs_that_all_hold_out_two_domains(written, tmp_path):
    written(configuration__without=["photo"])
    with pytest.raises(DataError, match="holds out two domains"):
        write_report(tmp_path)


def test_a_baseline_that_nobody_ran(compared):
    with pytest.raises(ArgumentError, match=r"'irm' is no method.*agr-sum, deep-all, pcgrad"):
        write_report(compared, options=ReportOptions(baseline="irm"))


def test_reading_and_drawing_need_no_torch(written, tmp_path):
    written()
    code = (
        "import sys, pathlib; from gradsurgery.report.report import write_report; "
        "write_report(pathlib.Path(sys.argv[1])); "
        "print([m for m in ('torch', 'datasets', 'matplotlib.pyplot') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("name", ["v1.0", "1.5T", 'Käse, "x"=y', "\x1b[31m"])
def test_any_name_of_a_domain(name, record, tmp_path):
    for method in ("deep-all", "agr-sum"):
        domains = [name, "photo"]
        record["configuration"] |= {"method": method, "target": name}
        record["data"] |= {"domains": domains, "images": dict.fromkeys(domains, 20)}
        for result in record["result"].values():
            result["test_accuracy"] = {name: 0.5, "photo": 0.75}
        (tmp_path / method).mkdir()
        (tmp_path / method / "record.json").write_text(json.dumps(record))
    report = write_report(tmp_path)
    assert report.tables[0].targets == (name,)
    assert printable(name) in html.unescape(report.page.read_text())


def test_file_names_are_told_apart():
    assert file_stems("figure3", ["pacs", "a/b"]) == ["figure3-pacs", "figure3-a-b"]
    for names in (
        ["pacs", "a/b", "a b"],
        ["a", "A", "a 1"],
        ["2", "ü"],
        ["ü", "x"],
        ["é", "ü", "1"],
    ):
        stems = file_stems("figure3", names)
        assert len(set(stems)) == len(names)
        assert all(stem.startswith("figure3-") for stem in stems)
    assert all(Path(name).name == name for name in file_stems("f", ["../x", "y"]))
