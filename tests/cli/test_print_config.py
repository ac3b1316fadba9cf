"""What --print-config prints is all that decides what the command does, and repeats it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.diagnosis import DiagnosisOptions
from gradsurgery.documents.plan import Plan
from gradsurgery.documents.similarity import SimilarityOptions

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


@pytest.mark.parametrize("name", ["train", "similarity"])
def test_without_a_target_the_domains_are_listed(name: str, command: Command) -> None:
    code, out, err = command(name, "rotated-digits")
    assert (code, out) == (1, "")
    assert err == (
        "error: target is missing; give --target and one of the domains of rotated-digits: "
        "0, 15, 30, 45, 60, 75, or none to train on all\n"
    )
    assert command(name)[2] == "error: data is missing; give one\n"
