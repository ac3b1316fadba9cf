from pathlib import Path
from typing import Any

import pytest

from gradsurgery.documents.document import read_mapping
from gradsurgery.documents.plan import Plan, difference, parse_seeds
from gradsurgery.errors import ArgumentError
from gradsurgery.sweep.runs import PAPER_PLANS, paper_plan


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", [0, 1, 2]),
        ("1", [0]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("7-7", [7]),
        ("0,1,2", [0, 1, 2]),
        ("5,", [5]),
        ("2,2,1", [2, 1]),
        ("0, 4", [0, 4]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "4-1", "-1", "1.5", "a", "1,,2"])
def test_seeds_that_mean_nothing(text: str) -> None:
    with pytest.raises(ArgumentError, match="a count"):
        parse_seeds(text)


def test_a_plan_is_read_from_yaml_as_from_options(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        """
data: [pacs, rotated-digits]
targets: {pacs: all, rotated-digits: [75, 0]}
methods: deep-all, agr-sum
seeds: 2-4
options: {iterations: 40, settings: {irm.penalty: 10}}
grid:
  learning_rate: [1e-5, 1.0e-4]
  backbone: alexnet
"""
    )
    assert Plan(**read_mapping(tmp_path / "plan.yaml", "plan")) == Plan(
        data=["pacs", "rotated-digits"],
        targets={"pacs": "all", "rotated-digits": ["75", "0"]},
        methods=["deep-all", "agr-sum"],
        seeds=[2, 3, 4],
        options={"iterations": 40, "settings": {"irm.penalty": 10}},
        grid={"learning_rate": [1e-5, 1e-4], "backbone": ["alexnet"]},
    )


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "data is missing; give one"),
        ({"data": []}, "data must have at least 1 item"),
        ({"data": ["a"], "method": ["x"]}, "unknown part of a plan 'method'; there is methods"),
        ({"data": ["a"], "seeds": "x"}, "seeds must be a count"),
        ({"data": ["a"], "options": {"seed": 1}}, "seed has a place of its own in the plan, seeds"),
        ({"data": ["a"], "options": {"without": ["x"]}}, "in the plan, leave_one_domain_out"),
        ({"data": ["a"], "options": {"settings": 3}}, "settings of the plan's options are a map"),
        ({"data": ["a"], "options": {"settings": {1: 2}}}, "are a mapping by name, found {1: 2}"),
        ({"data": ["a"], "seeds": [-1.5]}, "seeds.0 must be a valid integer"),
        ({"data": ["a"], "grid": {"method": ["x"]}}, "method has a place of its own"),
        ({"data": ["a"], "grid": {"learning_rate": []}}, "learning_rate has no values"),
        ({"data": ["a"], "grid": {"learning_rate": [1, 1]}}, "one of them twice"),
        ({"data": ["a"], "grid": [{"learning_rate": [1, 1]}]}, "one of them twice"),
        ({"data": ["a"], "grid": [{}, {"method": ["x"]}]}, "method has a place of its own"),
        ({"data": ["a"], "grid": [3]}, "grid is a mapping or a list of mappings, found [3]"),
        ({"data": ["a"], "grid": []}, "grid is a mapping or a list of mappings, found []"),
    ],
)
def test_what_is_no_plan(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Plan(**parts)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("found") <= 1


def test_a_domain_may_be_a_number_and_a_folder_end_in_a_slash() -> None:
    plan = Plan(data=["photos/", "photos"], targets={"photos/": 75}, grid=None)
    assert (plan.data, plan.targets) == (["photos"], {"photos": ["75"]})
    assert Plan(data="rotated-digits", targets=75).targets == ["75"]


def test_in_what_plans_differ_is_told_shortly() -> None:
    drawn = [{"learning_rate": [10.0**-n], "irm.penalty": [2.0**n]} for n in range(1, 9)]
    few = Plan(data="pacs", methods="irm", grid=drawn[:7]).model_dump()
    many = Plan(data="pacs", methods="deep-all,irm", grid=drawn)
    told = "methods (irm there, deep-all,irm here), grid (a list of 7 there, a list of 8 here)"
    assert difference(few, many) == told


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "is no mapping"), ("a: [", "is not YAML"), (None, "cannot read the plan")],
)
def test_files_that_hold_no_plan(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=words):
        read_mapping(tmp_path / "plan.yaml", "plan")


def test_the_papers_experiments_are_plans() -> None:
    for name in PAPER_PLANS:
        assert Plan(**paper_plan(name)).data == ["pacs", "vlcs", "office-home"]
    table1 = Plan(**paper_plan("table1", ["pacs:x"], "2"))
    assert (table1.data, table1.methods, table1.seeds) == (["pacs:x"], ["all"], [0, 1])
    assert len(Plan(**paper_plan("table1")).seeds) == 20
    with pytest.raises(ArgumentError, match="they are table1"):
        paper_plan("table2")
