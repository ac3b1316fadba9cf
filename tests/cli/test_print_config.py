"""What --print-config prints is all that decides what the command does, and repeats it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.plan import Plan
from gradsurgery.documents.studies import DiagnosisOptions, SimilarityOptions
from gradsurgery.errors import printable

Command = Callable[..., tuple[int, str, str]]
RUN = ["--iterations", "7", "--set", "ema.decay=0.5", "--average", "ema"]


def printed(command: Command, *arguments: str) -> dict[str, Any]:
    code, out, err = command(*arguments, "--print-config")
    assert code == 0, err
    content: dict[str, Any] = yaml.safe_load(out)
    return content


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["train", "rotated-digits", "--target", "75", *RUN], RunConfiguration.model_fields),
        (
            [
                "similarity",
                "rotated-digits",
                "--target",
                "75",
                "--seeds",
                "2-3",
                "--every",
                "5",
                *RUN,
            ],
            {*RunConfiguration.model_fields, *SimilarityOptions.model_fields, "seeds"} - {"seed"},
        ),
        (
            ["diagnose", "rotated-digits", "--target", "75", "--by-layer", *RUN],
            {*RunConfiguration.model_fields, *DiagnosisOptions.model_fields}
            - {"threads", "clip_norm"},
        ),
        (
            ["diagnose", "rotated-digits", "--seed", "4"],
            {*RunConfiguration.model_fields, *DiagnosisOptions.model_fields}
            - {"threads", "clip_norm", "target"},
        ),
        (
            ["sweep", "rotated-digits", "--targets", "75,0", "--threads", "2", *RUN],
            Plan.model_fields,
        ),
        (["compare", "rotated-digits", "--seeds", "2", *RUN], Plan.model_fields),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else "",
)
def test_given_back_it_is_the_same(
    arguments: list[str], fields: Any, command: Command, tmp_path: Path
) -> None:
    first = printed(command, *arguments)
    assert set(first) == set(fields)
    Path("given.yaml").write_text(yaml.safe_dump(first))
    assert printed(command, arguments[0], "--config", "given.yaml") == first
    assert [path.name for path in tmp_path.iterdir()] == ["given.yaml"]


def test_a_plan_lists_every_option_that_all_its_runs_share(command: Command) -> None:
    arguments = ["sweep", "rotated-digits", "--grid", "learning_rate=0.1,0.2", *RUN]
    plan = printed(command, *arguments)
    options = plan["options"]
    assert (options["iterations"], options["backbone"], options["threads"]) == (7, "small-cnn", 1)
    assert options["settings"] == {"ema.decay": 0.5}
    assert not {"learning_rate", "data", "target", "method", "seed", "without"} & set(options)
    # the digit sets have defaults of their own, and each is left to its own
    plan = printed(command, "sweep", "rotated-digits", "pacs")
    assert "backbone" not in plan["options"]
    assert plan["options"]["validate_every"] == 20


def test_the_papers_plans_are_printed_for_a_sweep(command: Command) -> None:
    arguments = ["reproduce", "figure4", "--datasets", "rotated-digits", "--seeds", "2", *RUN]
    plan = printed(command, *arguments)
    assert plan["grid"] == {"batches": ["multi", "single"]}
    assert plan["seeds"] == [0, 1]
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    assert printed(command, "sweep", "--config", "plan.yaml") == plan
    again = ["reproduce", "figure4", "--config", "plan.yaml"]
    assert printed(command, *again) == plan
    assert printed(command, *again, "--seeds", "1", "--targets", "75") == plan | {
        "seeds": [0],
        "targets": ["75"],
    }


def test_figure_2_is_printed_for_similarity(command: Command) -> None:
    figure = ["reproduce", "figure2", "--datasets", "rotated-digits", "--seeds", "2", *RUN]
    options = printed(command, *figure, "--targets", "75")
    assert (options["target"], options["method"], options["seeds"]) == ("75", "deep-all", "0,1,")
    Path("given.yaml").write_text(yaml.safe_dump(options))
    assert printed(command, "similarity", "--config", "given.yaml") == options
    again = ["reproduce", "figure2", "--config", "given.yaml"]
    assert printed(command, *again) == options
    assert printed(command, *again, "--targets", "0")["target"] == "0"
    Path("given.yaml").write_text(yaml.safe_dump(options | {"seeds": [3]}))
    assert printed(command, *again)["seeds"] == "3,"
    assert printed(command, "similarity", "--config", "given.yaml")["seeds"] == "3,"
    Path("given.yaml").write_text(yaml.safe_dump(options | {"seeds": 0}))
    assert "seeds" in command(*again, "--print-config")[2]
    Path("given.yaml").write_text(yaml.safe_dump(options | {"method": "agr-sum"}))
    assert "while deep-all trains, found the method agr-sum" in command(*again)[2]
    _, out, _ = command(*figure, "--targets", "75,0", "--print-config")
    assert [each["target"] for each in yaml.safe_load_all(out)] == ["75", "0"]


@pytest.mark.parametrize("name", ["train", "similarity"])
def test_without_a_target_the_domains_are_listed(name: str, command: Command) -> None:
    code, out, err = command(name, "rotated-digits")
    assert (code, out) == (1, "")
    assert err == (
        "error: target is missing; give --target and one of the domains of rotated-digits: "
        "0, 15, 30, 45, 60, 75, or none to train on all\n"
    )
    assert command(name)[2] == "error: data is missing; give one\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "--target", "75", "--backbone", "os:getcwd"], "os:getcwd"),
        (["train", "--target", "75", "--method", "irm+os:system"], "os:system"),
        (["train", "--target", "a:b", "--method", "irm+torchjd:UPGrad"], ""),
        (
            ["compare", "--methods", "nowhere:F,mgda", "--backbone", "nowhere:B"],
            "nowhere:F, nowhere:B",
        ),
    ],
)
def test_code_of_somebody_is_named_and_not_imported(
    arguments: list[str], names: str, command: Command
) -> None:
    code, _, err = command(arguments[0], "rotated-digits", *arguments[1:], "--print-config")
    note = f"note: {names} is not imported here, and not checked; a run imports it\n"
    assert (code, err) == (0, note if names else "")


@pytest.mark.parametrize("name", ["train", "compare"])
def test_a_preset_with_its_folder_is_no_code_of_somebody(name: str, command: Command) -> None:
    target = ["--target", "sketch"] if name == "train" else ["--methods", "mgda"]
    assert command(name, "pacs:pictures", *target, "--print-config")[::2] == (0, "")


@pytest.mark.parametrize(
    ("command_name", "content", "words"),
    [
        ("train", "lerning_rate: 1", "name in C'lerning_rate'; there is learning_rate"),
        ("diagnose", "betch_size: 1", "name in C'betch_size'; there is batch_size"),
        ("similarity", "sed: 1", "name in C'sed'; there is seed or seeds"),
        ("sweep", "metods: [mgda]", "name in the plan c.yaml: 'metods'; there is methods"),
        ("compare", "options: {lr: 1}", "option in the plan c.yaml: 'lr'; there is learning_rate"),
        ("compare", "options: {zq: 1}", "option in the plan c.yaml: 'zq'; there are"),
        ("train", f"{'q' * 500}: 1", "name in C'qqq"),
    ],
)  # fmt: skip
def test_an_unknown_name_in_a_file_names_the_file_and_the_closest(
    command_name: str, content: str, words: str, command: Command
) -> None:
    Path("c.yaml").write_text(content)
    code, _, err = command(command_name, "rotated-digits", "--config", "c.yaml", "--print-config")
    assert code == 1
    words = words.replace(" in C", " in the configuration c.yaml: ")
    assert err.startswith(f"error: unknown {words}")
    assert len(err) <= 330
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["photos \u202egpj.exe", "\u2066a\u2069", "a\x1b[31mb", "a\x85b"])
def test_marks_that_turn_what_follows_are_escaped(name: str, command: Command) -> None:
    arguments = ["train", "rotated-digits", "--target", "75", "--backbone", name, "--print-config"]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert all(printable(line) == line for line in out.split("\n"))
    assert yaml.safe_load(out)["backbone"] == name


def test_an_option_beside_the_parts_of_a_plan_is_told_its_place(command: Command) -> None:
    Path("plan.yaml").write_text("methods: [mgda]\nprotocol: domainbed\n")
    code, _, err = command("sweep", "photos", "--plan", "plan.yaml", "--print-config")
    said = "error: protocol in the plan plan.yaml is an option of its runs; write it under options"
    assert (code, err) == (1, f"{said}\n")


@pytest.mark.parametrize("protocol", ["paper", "domainbed"])
def test_a_protocol_beside_a_file_that_says_otherwise_is_refused(
    command: Command, tmp_path: Path, protocol: str
) -> None:
    """It would be said to be the run's, and decide nothing."""
    other = {"paper": "domainbed", "domainbed": "paper"}[protocol]
    train, sweep = ["train", "photos", "--target", "a"], ["sweep", "photos"]
    for words, flag in ((train, "--config"), (sweep, "--plan")):
        spelled = printed(command, *words, "--protocol", other)
        file = tmp_path / f"{words[0]}.yaml"
        file.write_text(yaml.safe_dump(spelled))
        told = [*words[1:], flag, str(file), "--print-config", "--protocol"]
        code, _, err = command(words[0], *told, protocol)
        assert code == 1
        assert f"--protocol {protocol} would set backbone, weights, " in err
        assert "the file sets otherwise" in err
        assert command(words[0], *told, other)[0] == 0


def test_a_protocol_fills_in_what_a_file_leaves_open(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    train = ["train", "photos", "--target", "a", "--config", str(file)]
    file.write_text("schedule: cosine\niterations: 5000\n")
    run = printed(command, *train, "--protocol", "domainbed")
    assert (run["schedule"], run["backbone"]) == ("cosine", "resnet50")
    file.write_text("backbone: resnet18\n")
    code, _, err = command(*train, "--print-config", "--protocol", "domainbed")
    assert (code, "would set backbone, which" in err) == (1, True)
    code, out, _ = command(
        *train, "--print-config", "--protocol", "domainbed", "--backbone", "resnet34"
    )
    assert (code, yaml.safe_load(out)["backbone"]) == (0, "resnet34")
    file.write_text("backbone: resnet18\nprotocol: domainbed\n")  # the cure in the message
    run = printed(command, *train)
    assert (run["backbone"], run["iterations"]) == ("resnet18", 5000)
