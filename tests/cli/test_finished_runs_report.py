import copy
import html
import json
import re
import shlex
import shutil
from typing import Literal, get_args, get_origin

import pytest
import yaml

from gradsurgery.cli import finished_runs
from gradsurgery.cli.finished_runs import make_report, recorded_data
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.report.page_sections import repeat_command
from gradsurgery.report.report import Report
from gradsurgery.results import Inventory
from gradsurgery.training import train
from tests.results.records import RECORD


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs, of two methods."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADSURGERY_CACHE", str(folder / "cache"))
        for method in ("deep-all", "agr-sum"):
            options = {"iterations": 2, "batch_size": 4, "device": "cpu", "method": method}
            options["image_size"] = 12
            configuration = RunConfiguration(data="rotated-digits", target="75", **options)
            train(configuration, folder / "runs" / "75" / method / "seed-0")
    return folder / "runs"


@pytest.fixture
def runs(trained, tmp_path):
    """The runs in the folder `runs` of the command's current directory."""
    return shutil.copytree(trained, tmp_path / "runs")


def test_from_finished_runs_to_the_page(command, runs):
    status, out, err = command("report", "runs", "--baseline", "agr-sum")
    assert status == 0, err
    assert "rotated-digits: target accuracy (%) of the best model" in out
    assert out.splitlines()[-1] == "report: runs/report/report.html"
    names = {path.name for path in (runs / "report").iterdir()}
    assert {"figure1.png", "figure3.svg", "curves.png", "table1.tex", "statistics.csv"} <= names
    assert err == ""  # no terminal, no progress
    text = (runs / "report" / "report.html").read_text(encoding="utf-8")
    assert 'href="../75/agr-sum/seed-0/record.json"' in text
    assert "gradsurgery train rotated-digits --target=75 --method=agr-sum --" in text


def other_values(name, value):
    """Values of an option that are not its default, every one of a few."""
    annotation = RunConfiguration.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if each != value]
    if annotation is bool:
        return [not value]
    if get_origin(annotation) is list:
        return [["-90%", "a, b", "Käse \"x\" '$y'"]]
    if name == "columns":
        return [{"domain": "a, b", "label": 'Käse = "x"', "split": "'$y' z"}]
    if get_origin(annotation) is dict:
        return [{"irm.penalty": 1e-7, "some.word": "true", "mypackage:My.name": 2.0}]
    if annotation is str:
        return ["-90%", "a = 'b c'"]
    return [7] if value is None else [64 if isinstance(value, int) else 0.1 + 0.2]


@pytest.mark.parametrize("data", ["pictures", "-pictures", "rotated-digits"])
@pytest.mark.parametrize("name", RunConfiguration.model_fields)
def test_the_command_that_repeats_a_run_gives_its_configuration(name, data, command):
    usual = RunConfiguration(data=data, target="75")
    for value in other_values(name, getattr(usual, name)):
        run = RunConfiguration(**usual.model_dump() | {name: value})
        words = shlex.split(repeat_command(run))
        code, out, _ = command(*words[1:2], "--print-config", *words[2:])
        assert code == 0
        assert RunConfiguration(**yaml.safe_load(out)) == run


def test_what_a_repeated_command_leaves_out_is_the_default():
    for field in RunConfiguration.model_fields.values():
        default = field.default
        assert default is None or type(None) not in get_args(field.annotation)
        assert not isinstance(default, list | dict) or not default


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "no record.json under ."),
    ],
)
def test_errors_are_one_line(command, arguments, message):
    status, _, err = command("report", *arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def record_of(data):
    content = copy.deepcopy(RECORD)
    content["configuration"]["data"] = data
    return Record.model_validate(content)


def test_only_data_that_is_at_hand_is_opened_for_examples(tmp_path):
    (tmp_path / "pictures").mkdir()
    here = ["rotated-digits", f"pacs:{tmp_path}", str(tmp_path / "pictures")]
    away = ["pacs", "hf://owner/name", "pacs:hf://owner/name", str(tmp_path / "gone")]
    assert list(recorded_data([record_of(data) for data in [*here, *away, here[0]]])) == here


@pytest.mark.usefixtures("unrendered")
def test_examples_of_a_folder_of_pictures(runs, make_folder, tmp_path):
    make_folder(tmp_path / "pictures", "ab", ["dog"])
    report = make_report([runs], examples=[str(tmp_path / "pictures")])
    text = report.page.read_text(encoding="utf-8")
    assert "An image of every class (columns) and domain (rows) of pictures." in text


@pytest.mark.usefixtures("unrendered")
def test_data_that_cannot_be_opened_is_an_error_only_if_asked_for(command, runs, tmp_path):
    path = next(runs.rglob("record.json"))
    content = json.loads(path.read_text())
    (tmp_path / "empty").mkdir()
    content["configuration"]["data"] = str(tmp_path / "empty")
    path.write_text(json.dumps(content))
    assert "No example images of" in make_report([runs]).page.read_text(encoding="utf-8")
    status, _, err = command("report", "runs", "--examples", str(tmp_path / "empty"))
    assert status == 1
    assert err.startswith("error: ")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals_and_leaves_nothing(terminal, tmp_path, monkeypatch, capsys):
    def write_report(inventory, out, options, tell):
        tell("drawing figure3")
        return Report(tmp_path, [])

    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(finished_runs, "take_inventory", lambda _: Inventory((), {}, (), False, {}))
    monkeypatch.setattr(finished_runs, "write_report", write_report)
    make_report([tmp_path])
    shown = capsys.readouterr().err
    assert ("drawing figure3" in shown) is terminal
    assert shown.endswith("\x1b[2K" if terminal else "")


@pytest.mark.usefixtures("unrendered")
def test_the_command_of_the_page_repeats_the_run(command, tmp_path):
    """A sweep computes with one thread a run, whatever `train` takes by default."""
    plan = ["--targets=75", "--methods=agr-sum", "--seeds=1", "--iterations=2", "--batch-size=4"]
    plan += ["--image-size=12", "--workers=1"]
    assert command("sweep", "rotated-digits", *plan, "--out=runs")[0] == 0
    page = (tmp_path / "runs" / "report" / "report.html").read_text(encoding="utf-8")
    (given,) = re.findall(r"<code>(gradsurgery train .*?)</code>", page)
    words = shlex.split(html.unescape(given))
    assert "--threads=1" in words
    status, _, err = command(*words[1:], "--out=again")
    assert status == 0, err
    first, again = (
        Record.load(next((tmp_path / folder).rglob("record.json"))) for folder in ("runs", "again")
    )
    for part in ("configuration", "data", "split", "curves", "result"):
        assert getattr(again, part) == getattr(first, part)
