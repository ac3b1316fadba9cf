import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gradsurgery.algorithms import METHODS
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.plan import Plan
from gradsurgery.errors import ArgumentError
from gradsurgery.sweep.runs import OpenedData, SweepRun, identity, plan_runs
from tests.sweep.conftest import OPTIONS

MakePlan = Callable[..., Plan]
RunsOf = Callable[[Plan], list[SweepRun]]


def test_every_combination_is_run_once_and_paired_by_seed(plan: MakePlan, runs_of: RunsOf) -> None:
    runs = runs_of(
        plan(
            data=["rotated-digits", "pacs:place"],
            targets={"rotated-digits": ["75", "0"]},
            methods=["deep-all", "agr-sum", "mixup+agr-sum"],
            seeds="2",
        )
    )
    targets = [("rotated-digits", "75"), ("rotated-digits", "0")]
    targets += [("pacs", each) for each in ("art_painting", "cartoon", "photo", "sketch")]
    expected = itertools.product([0, 1], targets, ["deep-all", "agr-sum", "mixup+agr-sum"])
    found = [
        (r.configuration.seed, (r.data, r.configuration.target), r.configuration.method)
        for r in runs
    ]
    assert found == list(expected)
    assert len({run.directory for run in runs}) == len(runs) == 36
    assert all(run.configuration.iterations == 6 for run in runs)


def test_all_methods_are_the_papers(plan: MakePlan, runs_of: RunsOf) -> None:
    runs = runs_of(plan(methods="all", seeds=1, options={"iterations": 600}))
    assert [run.configuration.method for run in runs] == list(METHODS)


def test_what_was_drawn_is_rounded_in_titles_and_kept_in_runs(
    plan: MakePlan, runs_of: RunsOf
) -> None:
    drawn = [{"learning_rate": 1 / 3e3}, {"learning_rate": 0.0012345678}, {"weight_decay": 1e-5}]
    runs = runs_of(plan(methods=["deep-all"], seeds=1, targets=["75"], grid=drawn))
    usual = RunConfiguration(data="rotated-digits", target="75")
    rates = [1 / 3e3, 0.0012345678, usual.learning_rate]
    assert [run.configuration.learning_rate for run in runs] == rates
    tried = [
        f"learning_rate={shown} weight_decay={decay}"
        for shown, decay in (
            ("0.000333333", usual.weight_decay),
            ("0.00123457", usual.weight_decay),
            (usual.learning_rate, 1e-05),
        )
    ]
    assert [run.tried for run in runs] == tried


def test_a_list_of_grids_runs_each_of_them_and_no_other(plan: MakePlan, runs_of: RunsOf) -> None:
    drawn = [
        {"learning_rate": "1e-3", "group-dro.eta": 0.1},
        {"learning_rate": 2e-3, "group-dro.eta": 0.2, "weight_decay": 0},
        {"learning_rate": 2e-3, "group-dro.eta": [0.2, 0.3]},
    ]
    runs = runs_of(plan(methods=["deep-all", "group-dro"], seeds=1, grid=drawn))
    found = [
        (c.method, c.learning_rate, c.weight_decay, c.settings.get("group-dro.eta"))
        for c in (run.configuration for run in runs)
    ]
    usual = RunConfiguration(data="rotated-digits", target="75").weight_decay
    assert sorted(found, key=str) == sorted(
        [
            ("deep-all", 1e-3, usual, None),
            ("deep-all", 2e-3, 0, None),
            ("deep-all", 2e-3, usual, None),
            ("group-dro", 1e-3, usual, 0.1),
            ("group-dro", 2e-3, 0, 0.2),
            ("group-dro", 2e-3, usual, 0.2),
            ("group-dro", 2e-3, usual, 0.3),
        ],
        key=str,
    )
    assert "learning_rate=0.002 weight_decay=0.0 group-dro.eta=0.2" in {run.tried for run in runs}
    taken = {"grid": [{"iterations": 1}], "options": {"iterations": 2}}
    with pytest.raises(ArgumentError, match="iterations is an option of the plan and in its grid"):
        runs_of(plan(**taken))


def test_a_grid_runs_a_method_once_for_each_value_it_knows(plan: MakePlan, runs_of: RunsOf) -> None:
    runs = runs_of(
        plan(
            methods=["deep-all", "group-dro", "agr-rand"],
            seeds=1,
            grid={
                "learning_rate": ["1e-3", 5e-3],
                "group-dro.eta": [0.1, 0.2, 0.3],
                "agr-rand.zero_agrees": [True, False],
            },
        )
    )
    counts = Counter(run.configuration.method for run in runs)
    assert counts == {"deep-all": 2, "group-dro": 6, "agr-rand": 4}
    assert {run.configuration.learning_rate for run in runs} == {1e-3, 5e-3}
    settings = {str(run.configuration.settings) for run in runs}
    assert "{'agr-rand.zero_agrees': 'false'}" in settings


def test_pairs_of_domains_are_held_out_for_leave_one_domain_out(
    plan: MakePlan, runs_of: RunsOf
) -> None:
    runs = runs_of(
        plan(
            data=["pacs:place"],
            targets=["sketch", "photo"],
            methods=["deep-all"],
            seeds=1,
            leave_one_domain_out=True,
        )
    )
    held_out = [{run.configuration.target, *run.configuration.without} for run in runs]
    assert held_out == [
        {"sketch"},
        {"photo"},
        {"art_painting", "photo"},
        {"art_painting", "sketch"},
        {"cartoon", "photo"},
        {"cartoon", "sketch"},
        {"photo", "sketch"},
    ]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"methods": ["agr"]}, "unknown method 'agr'"),
        ({"methods": ["erm", "deep-all"]}, "erm and deep-all are one method, erm+mean; give one"),
        ({"methods": ["all", "erm+agr-sum"]}, "agr-sum and erm+agr-sum are one method, erm+agr-s"),
        ({"methods": ["cagrad", "erm+cagrad"]}, "cagrad and erm+cagrad are one method"),
        ({"methods": ["irm+mean", "irm"]}, "irm+mean and irm are one method"),
        ({"targets": ["90"]}, "no domain '90'"),
        ({"targets": {"pacs": "all"}}, "targets are given for 'pacs', which is no data set"),
        ({"targets": []}, "no target is named"),
        ({"options": {"iteration": 3}}, "unknown option 'iteration'"),
        ({"options": {"iterations": 0}}, "iterations must be greater"),
        ({"options": {"settings": {"irm.penalty": 1}}}, "no method of this comparison has"),
        ({"grid": {"learning_rat": [1]}}, "unknown option 'learning_rat'"),
        ({"grid": {"irm.penalty": [1]}}, "has the hyperparameter 'irm.penalty'"),
        ({"grid": {"iterations": [1]}}, "iterations is an option of the plan and in its grid"),
        (
            {"options": {"settings": {"irm.penalty": 1}}, "grid": {"irm.penalty": [2]}}
            | {"methods": ["irm"]},
            "irm.penalty is an option of the plan and in its grid",
        ),
    ],
)
def test_unknown_names_are_told_apart(
    parts: dict[str, Any], words: str, plan: MakePlan, runs_of: RunsOf
) -> None:
    with pytest.raises(ArgumentError) as caught:
        runs_of(plan(**parts))
    assert words in str(caught.value)


def test_runs_of_a_grid_are_told_apart(plan: MakePlan, runs_of: RunsOf) -> None:
    grid = {"learning_rate": ["1e-3", 5e-3], "group-dro.eta": [0.1, 0.2], "batch_size": [4]}
    options = {"iterations": 6, "image_size": 12}
    runs = runs_of(plan(methods=["deep-all", "group-dro"], seeds=1, grid=grid, options=options))
    assert [run.title for run in runs][1:3] == [
        "rotated-digits 75 deep-all learning_rate=0.005 seed 0",
        "rotated-digits 75 group-dro learning_rate=0.001 group-dro.eta=0.1 seed 0",
    ]
    assert len({run.title for run in runs}) == len(runs) == 6
    (run,) = runs_of(plan(methods=["deep-all"], seeds=1))
    assert run.title == "rotated-digits 75 deep-all seed 0"


def test_equal_values_are_one_run_however_they_are_written(plan: MakePlan, runs_of: RunsOf) -> None:
    def directory(method: str, name: str, value: Any) -> str:
        options = {"iterations": 600, "settings": {name: value}}
        return runs_of(plan(methods=[method], seeds=1, options=options))[0].directory

    flags = [directory("agr-rand", "agr-rand.zero_agrees", v) for v in (False, "false", "False")]
    assert len(set(flags)) == 1
    assert directory("agr-rand", "agr-rand.zero_agrees", True) not in flags
    assert len({directory("irm", "irm.penalty", v) for v in (100, 100.0, "1e2")}) == 1
    assert directory("irm", "irm.penalty", 10) != directory("irm", "irm.penalty", 100)


def test_a_run_lies_in_the_sweeps_folder_whatever_its_domain_is_called(plan: MakePlan) -> None:
    opened = {"x": OpenedData("photos", ("a/b", "..", "c d", "v1.0"))}
    runs = plan_runs(plan(data=["x"], targets="all", methods=["deep-all"], seeds=1), opened)
    folders = [run.directory.split("/") for run in runs]
    assert [names[:3] for names in folders] == [
        ["photos", name, "deep-all"] for name in ("a%2Fb", "%2E.", "c d", "v1.0")
    ]
    assert all(len(names) == 4 for names in folders)


def test_two_data_sets_of_one_name_are_refused(plan: MakePlan) -> None:
    opened = {place: OpenedData("photos", ("a", "b", "c")) for place in ("x/photos", "y/photos")}
    with pytest.raises(ArgumentError, match="two data sets of the plan are called 'photos'"):
        plan_runs(plan(data=list(opened), targets="all"), opened)


def test_all_methods_that_are_refused_are_named_at_once(plan: MakePlan, runs_of: RunsOf) -> None:
    methods = ["coral", "deep-all", "mmd", "sd", "dann"]
    frozen = {**OPTIONS, "freeze": "all-but-head"}
    refused = r"coral has a penalty on features, .*; mmd, dann are refused too$"
    with pytest.raises(ArgumentError, match=refused):
        runs_of(plan(methods=methods, options=frozen))
    with pytest.raises(ArgumentError, match=r"mmd has .* another method$"):
        runs_of(plan(methods=["mmd", "sd"], targets="all", options=frozen))
    with pytest.raises(ArgumentError, match="warmup 6 never ends in 6 iterations; give more of th"):
        runs_of(plan(methods=methods, options={**OPTIONS, "warmup": 6}))


@pytest.mark.parametrize("key", ["photos", "x/photos"])
def test_targets_are_given_by_the_place_of_a_data_set_or_by_its_name(
    key: str, plan: MakePlan
) -> None:
    opened = {"x/photos": OpenedData("photos", ("a", "b", "c"))}
    runs = plan_runs(plan(data=list(opened), targets={key: ["b"]}), opened)
    assert {run.configuration.target for run in runs} == {"b"}


def test_the_identity_is_that_of_the_options_wherever_data_and_device_are() -> None:
    base: dict[str, Any] = {"data": "pacs:x", "target": "sketch"}
    first = identity(RunConfiguration(**base), "pacs")
    for same in ({"data": "pacs:y"}, {"device": "cpu"}, {"iterations": 1000}, {"without": []}):
        assert identity(RunConfiguration(**base | same), "pacs") == first
    others = [
        {"iterations": 999},
        {"seed": 1},
        {"settings": {"ema.decay": 0.5}},
        {"target": "a"},
        {"without": ["photo"]},
        {"precision": "bfloat16"},
        {"split_seed": 1},
    ]
    found = {identity(RunConfiguration(**base | other), "pacs") for other in others}
    found.add(identity(RunConfiguration(**base), "vlcs"))
    assert len(found | {first}) == len(others) + 2
