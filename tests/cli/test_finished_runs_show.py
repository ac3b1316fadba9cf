import copy
import io
import json

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from gradsurgery.cli.finished_runs import show
from gradsurgery.cli.train import methods
from gradsurgery.errors import DataError
from tests.results.records import RECORD, save_record


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    app = typer.Typer()
    app.command()(show)
    app.command()(methods)

    def run(*arguments, **options):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)

    return run


def write(folder, method, seed, accuracy):
    """`[sketch]`, which rich would take for markup, is held out."""
    record = copy.deepcopy(RECORD)
    domains = ["photo", "[sketch]"]
    record["configuration"] |= {"target": "[sketch]", "method": method, "seed": seed}
    record["data"] |= {"domains": domains, "images": dict.fromkeys(domains, 20)}
    record["data"]["skipped"] = [{"identity": "photo/dog/1.png", "reason": "cut off"}]
    record["curves"]["train_loss"] = [None, 1.25]
    for name, factor in (("best", 1), ("last", 2)):
        tested = {"photo": 0.875, "[sketch]": accuracy}
        result = {"test_accuracy": tested, "target_accuracy": accuracy / factor}
        record["result"][name] |= result
    record["curves"]["validation_accuracy"] = [0.75, 0.5]
    record["result"]["last"]["validation_accuracy"] = 0.5
    return save_record(record, folder / method / f"seed-{seed}")


@pytest.fixture
def folder(tmp_path):
    for method, accuracies in {"deep-all": (0.5, 0.7), "agr-sum": (0.6, 0.8)}.items():
        for seed, accuracy in enumerate(accuracies):
            write(tmp_path, method, seed, accuracy)
    return tmp_path


def test_methods_renamed(invoke, folder):
    out = invoke("show", folder, "--format", "csv", "--rename", "erm=ERM").stdout
    assert {line.split(",")[3] for line in out.splitlines()[1:]} == {"ERM", "agr-sum"}
    refused = invoke("show", folder, "--rename", "ERM").exception
    assert str(refused) == "--rename takes METHOD=NAME, e.g. deep-all=ERM, found 'ERM'"


def test_one_record_in_detail(invoke, folder):
    result = invoke("show", folder / "agr-sum" / "seed-0" / "record.json")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["method", "agr-sum"] in lines
    assert ["learning", "rate", "1e-05"] in lines
    assert ["step", "20", "40"] in lines
    assert ["validation", "75.0%", "50.0%"] in lines
    assert ["target", "[sketch]", "60.0%", "30.0%"] in lines
    assert ["test", "photo", "87.5%", "87.5%"] in lines
    assert ["validation", "accuracy", "0.750", "0.500", "█▁"] in lines
    assert ["train", "loss", "–", "1.250", "▁"] in lines
    assert "cost: 12.5 s, 125.0 ms a step, 1024 MiB peak memory, cpu" in result.stdout
    assert "images left out, not decoded: 1" in result.stdout


def test_how_a_run_averaged_and_drew_is_told(invoke, folder):
    path = folder / "agr-sum" / "seed-0" / "record.json"
    record = json.loads(path.read_text())
    options = {"average": "swad", "batches": "single", "settings": {"swad.tolerance_rate": 1.1}}
    record["configuration"] |= options
    record["result"]["best"]["averaged_from"] = 5
    record["result"]["last"]["averaged_from"] = None
    path.write_text(json.dumps(record))
    lines = [line.split() for line in invoke("show", path).stdout.splitlines()]
    assert ["average", "swad"] in lines
    assert ["batches", "single"] in lines
    assert ["settings", "swad.tolerance_rate=1.1"] in lines
    assert ["step", "5–20", "40"] in lines


def test_settings_that_nobody_gave_are_not_shown(invoke, folder):
    path = folder / "agr-sum" / "seed-0" / "record.json"
    record = json.loads(path.read_text())
    record["configuration"]["settings"] = {}
    path.write_text(json.dumps(record))
    assert "settings" not in invoke("show", path).stdout


def test_many_records_as_a_table(invoke, folder):
    result = invoke("show", folder)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    # (50 + 70) / 2 and (60 + 80) / 2, deviation sqrt(2 · 10²) = 14.14
    assert "deep-all 60.00 ± 14.14" in lines
    assert "agr-sum 70.00 ± 14.14" in lines
    assert "method [sketch]" in lines
    assert any("over 2 seeds" in line for line in lines)


def test_the_last_model(invoke, folder):
    result = invoke("show", folder, "--model", "last")
    assert "35.00 ± 7.07" in result.stdout  # (30 + 40) / 2, sqrt(2 · 5²)


def test_other_formats(invoke, folder):
    frame = pd.read_csv(io.StringIO(invoke("show", folder, "--format", "csv").stdout))
    assert sorted(frame["mean_accuracy_percent"].round(9)) == [60, 70]
    assert (
        "| agr-sum  | **70.00 ± 14.14** |" in invoke("show", folder, "--format", "markdown").stdout
    )
    assert r"\textbf{70.00 $\pm$ 14.14}" in invoke("show", folder, "--format", "latex").stdout


def test_one_record_as_a_table_in_other_formats(invoke, folder):
    result = invoke("show", folder / "agr-sum" / "seed-0", "--format", "markdown")
    assert "| agr-sum  |        60.00 |" in result.stdout


def test_figures_are_whole_in_a_narrow_window(invoke, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    text = invoke("show", folder).stdout
    assert "…" not in text
    assert "70.00" in text


def test_a_missing_path_and_an_unknown_format(invoke, tmp_path):
    result = invoke("show", tmp_path / "nowhere")
    assert isinstance(result.exception, DataError)
    assert invoke("show", tmp_path, "--format", "html").exit_code == 2


def test_runs_that_a_study_trained_are_left_out(invoke, folder):
    study = folder / "similarity" / "pacs"
    write(study, "deep-all", 7, 0.1)
    write(study, "fishr", 0, 0.1)
    (study / "similarity.json").write_text("{}")
    result = invoke("show", folder)
    assert "over 2 seeds" in " ".join(result.stdout.split())
    assert "fishr" not in result.stdout
    named = invoke("show", folder, study / "fishr" / "seed-0" / "record.json")
    assert "fishr" in named.stdout


def test_runs_that_all_hold_out_two_domains(invoke, tmp_path):
    for seed in range(2):
        path = write(tmp_path, "deep-all", seed, 0.5)
        record = json.loads(path.read_text())
        record["configuration"]["without"] = ["photo"]
        path.write_text(json.dumps(record))
    assert "holds out two domains" in str(invoke("show", tmp_path).exception)


def test_methods_are_listed(invoke):
    result = invoke("methods")
    assert result.exit_code == 0
    first = {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert {"deep-all", "agr-sum", "agr-rand", "pcgrad"} <= first
    assert {"ema.decay", "swad.optimum_patience"} <= first


@pytest.mark.parametrize("output", ["rich", "csv", "markdown", "latex"])
def test_what_a_record_says_reaches_the_terminal_as_text(invoke, tmp_path, output):
    for seed in (0, 1):
        write(tmp_path / str(seed), "deep-all", seed, 0.5)
        for file in (tmp_path / str(seed)).rglob("record.json"):
            file.write_text(file.read_text().replace("photo", "pho\\u001b[31mto"))
    done = invoke("show", tmp_path, "--format", output)
    assert done.exit_code == 0, done.output
    assert "\x1b[31m" not in done.output
