"""`select`, and `show` of what was selected, on records with known answers."""

import copy
import json

from gradsurgery.documents.selection import Selections
from tests.results.records import RECORD, save_record, write_plan

DOMAINS = ["photo", "sketch"]


def write(folder, method, rate, seed, *, validation, accuracy, without=()):
    record = copy.deepcopy(RECORD)
    options = {"method": method, "seed": seed, "learning_rate": rate, "without": list(without)}
    record["configuration"] |= options
    record["data"] |= {"domains": DOMAINS, "images": dict.fromkeys(DOMAINS, 20)}
    for name, less in (("best", 0.0), ("last", 0.1)):
        record["result"][name] |= {
            "validation_accuracy": validation,
            "target_accuracy": accuracy - less,
            "target_validation_accuracy": 1 - validation,
            "test_accuracy": dict.fromkeys(DOMAINS, accuracy),
        }
    record["curves"]["validation_accuracy"] = [validation] * 2
    directory = f"pacs/sketch/{method}/seed-{seed}-{rate}"
    save_record(record, folder / directory)
    return {"directory": directory, "method": method, "seed": seed}


def search(folder, *, seeds=6):
    """Deep-All is best validated at 0.1, Agr-Sum at 0.2, where it is 1 … 6 points better."""
    runs = []
    for seed in range(seeds):
        for rate in (0.1, 0.2):
            good = {"validation": 0.9, "accuracy": 0.5}
            bad = {"validation": 0.4, "accuracy": 0.7}
            runs.append(write(folder, "deep-all", rate, seed, **(good if rate == 0.1 else bad)))
            good["accuracy"] += (seed + 1) / 100
            runs.append(write(folder, "agr-sum", rate, seed, **(good if rate == 0.2 else bad)))
    return runs


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_what_a_search_comes_to(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    search(tmp_path / "runs")
    code, out, _ = command("select", "runs")
    assert code == 0
    shown = lines(out)
    row = "agr-sum training-domain learning_rate 0.2 (of 2) 90.00 ± 0.00 53.50 ± 1.87"
    assert row in shown
    assert shown[0] == "pacs, sketch held out"
    assert "It tests the model of the last step" in " ".join(shown)
    assert any("oracle (not attainable) learning_rate 0.1" in r for r in shown)
    assert any("leave-one-domain-out is not available: needs runs that" in r for r in shown)
    assert Selections.load(tmp_path / "runs").criteria.keys() == {
        "training-domain",
        "leave-one-domain-out",
        "oracle",
    }


def test_a_choice_at_the_edge_of_the_grid_is_named(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    search(tmp_path / "runs")
    assert "values tried" not in command("select", "runs")[1]  # of two values each is at an edge
    for seed in range(6):
        write(tmp_path / "runs", "agr-sum", 0.3, seed, validation=0.95, accuracy=0.5)
        write(tmp_path / "runs", "deep-all", 0.05, seed, validation=0.5, accuracy=0.5)
    line = (
        "learning_rate 0.3, chosen for agr-sum on sketch (pacs, training-domain), is the largest "
        "of 3 values tried: widen the grid, for a larger one may do better."
    )
    out = command("select", "runs")[1]
    assert [row for row in lines(out) if "values tried" in row] == [line]
    assert command("report", "runs", "--selected", "training-domain")[0] == 0
    page = (tmp_path / "runs" / "report" / "report.html").read_text()
    assert page.count(f"<li>{line}</li>") == 1


def test_an_oracle_that_is_tested_on_what_it_has_chosen_by_says_so(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    search(tmp_path / "runs")
    line = (
        "With --test-on all the validation images of the target, by which the oracle chooses, "
        "are among the images that its target accuracy is of."
    )
    assert line not in lines(command("select", "runs")[1])
    for path in (tmp_path / "runs").rglob("record.json"):
        record = json.loads(path.read_text())
        record["configuration"]["test_on"] = "all"
        path.write_text(json.dumps(record))
    assert line in lines(command("select", "runs")[1])
    assert line not in lines(command("select", "runs", "--criterion", "training-domain")[1])
    assert command("report", "runs")[0] == 0
    page = (tmp_path / "runs" / "report" / "report.html").read_text()
    assert page.count(line) == 1
    assert (tmp_path / "runs" / "report" / "selection.md").read_text().count(line) == 1


def test_another_selection_is_replaced_and_nothing_else_is(command, tmp_path):
    search(tmp_path / "runs", seeds=1)
    path = tmp_path / "runs" / "selection.json"
    assert command("select", "runs")[0] == 0
    first = path.read_text()
    write(tmp_path / "runs", "agr-sum", 0.3, 0, validation=0.95, accuracy=0.5)
    assert command("select", "runs")[0] == 0
    assert path.read_text() != first
    path.write_text('{"version": 2}')
    code, _, error = command("select", "runs")
    assert (code, error.count("\n")) == (1, 1)
    assert "selection.json is a model selection of version 2, expected 1" in error
    assert path.read_text() == '{"version": 2}'


def test_one_criterion_and_its_candidates(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    search(tmp_path / "runs")
    _, out, _ = command("select", "runs", "--criterion", "training-domain", "--candidates")
    assert "oracle" not in out
    row = "deep-all training-domain learning_rate 0.1 90.00 ± 0.00 6 chosen"
    assert row in lines(out)


def test_the_selected_runs_are_compared(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    search(tmp_path / "runs")
    code, out, _ = command("show", "runs", "--selected", "training-domain", "--statistics")
    assert code == 0
    shown = lines(out)
    # 51 … 56 against 50: six of six up, p = 2/2⁶, a family of one
    assert "agr-sum 53.50 ± 1.87*†" in shown
    assert "deep-all 50.00 ± 0.00" in shown
    assert any("of the best model" in row for row in shown)
    (row,) = (row for row in shown if row.startswith("sketch agr-sum +3.50 ["))
    assert row.endswith("0.031* 0.031† +1.00 6 0")
    _, out, _ = command("show", "runs", "--selected", "oracle")
    assert "of the last model" in out
    assert "agr-sum 60.00 ± 0.00" in lines(out)  # 0.7 − 0.1, the runs that validate badly


def test_what_cannot_be_selected_yet_is_not_shown_as_nothing(command, tmp_path):
    search(tmp_path)
    status, _, err = command("show", ".", "--selected", "leave-one-domain-out")
    assert status == 1
    assert "leave-one-domain-out can choose nothing among the runs in ." in err


def test_the_plan_says_what_is_missing(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "runs"
    runs = search(folder, seeds=2)
    runs.append(runs[-1] | {"seed": 2, "directory": "pacs/sketch/agr-sum/seed-2-0.2"})
    write_plan(folder, runs)
    _, out, _ = command("select", "runs", "--criterion", "training-domain")
    assert "not available: needs every seed of one candidate; 1 planned run is not finished" in out
    _, out, _ = command("show", "runs", "--format", "markdown")
    assert "| agr-sum | 52.00 ± 0.00" not in out
    assert "(n=2 of 3)" in out
    (folder / "plan.json").write_text('{"version": 1, "pl')
    code, _, error = command("show", "runs")
    assert (code, error.count("\n")) == (1, 1)
    assert "plan.json is not JSON" in error


def test_nothing_to_select_from(command, tmp_path):
    code, _, error = command("select", "nowhere")
    assert (code, error) == (1, "error: nowhere is no folder; give a folder of runs\n")
    tmp_path.joinpath("empty").mkdir()
    code, _, error = command("select", "empty")
    assert code == 1
    assert "no record.json under empty" in error
    assert not (tmp_path / "empty" / "selection.json").exists()


def test_the_papers_figures_and_another_baseline(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for seed in range(2):
        for method in ("deep-all", "agr-sum"):
            write(tmp_path / "runs", method, 0.1, seed, validation=0.5, accuracy=0.5)
    _, out, _ = command("show", "runs", "--paper", "--baseline", "agr-sum")
    shown = lines(out)
    assert shown.index("deep-all, paper 54.90 ± 3.28") > shown.index("agr-sum, paper 57.35 ± 3.29*")
    assert any("paired Wilcoxon test against agr-sum" in row for row in shown)
    assert "2 seeds cannot give p < 0.05, only 0.5" in shown


def test_methods_without_the_baseline_are_told_how_to_be_tested(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for method in ("vrex", "irm"):
        write(tmp_path / "runs", method, 0.1, 0, validation=0.5, accuracy=0.5)
    said = "show and report test against another method with, say, --baseline irm"
    assert said in lines(command("show", "runs")[1])
    assert said in lines(command("report", "runs")[1])
    assert said not in lines(command("show", "runs", "--baseline", "irm")[1])
