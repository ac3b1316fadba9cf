import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.documents.plan import PlannedRun
from gradsurgery.documents.selection import CRITERIA, Summary
from gradsurgery.errors import ArgumentError
from gradsurgery.results.selection import edges, select
from tests.results.runs import run


def chosen(selection):
    """The hyperparameters chosen, by target and method."""
    return {
        (choice.target, choice.method): choice.candidate and choice.candidate.hyperparameters
        for choice in selection.choices
    }


def of(summary):
    return summary.mean, summary.std, summary.n


def grid(scores, target="a", **options):
    """Runs with `scores[learning_rate]`: one triple of accuracies a seed."""
    return [
        run(target, seed, accuracies=accuracies, learning_rate=rate, **options)
        for rate, of_seeds in scores.items()
        for seed, accuracies in enumerate(of_seeds)
    ]


def test_the_source_domains_validation_decides_and_nothing_of_the_target_does():
    # means over the seeds: 0.7 with std sqrt(0.02), and 0.75; the target would have it otherwise
    runs = grid({0.1: [(0.6, 0.9, 0.9), (0.8, 0.9, 0.9)], 0.2: [(0.7, 0.3, 0.2), (0.8, 0.5, 0.2)]})
    (choice,) = select(pd.DataFrame(runs), "training-domain").choices
    assert choice.candidate.hyperparameters == {"learning_rate": 0.2}
    assert choice.searched == ["learning_rate"]
    assert choice.seeds == [0, 1]
    scores = [candidate.score for candidate in choice.candidates]
    assert of(scores[0]) == pytest.approx((0.7, math.sqrt(0.02), 2))
    assert of(scores[1]) == pytest.approx((0.75, math.sqrt(0.005), 2))
    assert of(choice.target_accuracy) == pytest.approx((0.4, math.sqrt(0.02), 2))
    assert (choice.backbone, choice.needs, choice.unfinished) == ("alexnet", "", 0)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ({0.1: 0.5, 0.2: 0.6, 0.4: 0.7}, [(0.4, True, 3)]),
        ({0.4: 0.5, 0.1: 0.7, 0.2: 0.6}, [(0.1, False, 3)]),
        ({0.1: 0.5, 0.2: 0.7, 0.4: 0.6}, []),
        ({0.1: 0.5, 0.2: 0.7}, []),  # each of two is at an edge
        ({0.1: 0.5}, []),
        ({0: 0.7, 1: 0.6, 2: 0.5}, []),  # nothing is below 0
        ({0: 0.5, 1: 0.6, 2: 0.7}, [(2, True, 3)]),
        ({1: 0.5, 10: 0.6, 9: 0.55}, [(10, True, 3)]),  # by number
        ({"a": 0.5, "b": 0.6, "c": 0.7}, []),
        ({0.1: 0.7, 0.2: 0.5, 0.4: 0.7}, []),  # 0.4 is as good
        ({None: 0.5, 0.1: 0.6, 0.2: 0.7, 0.4: 0.8}, []),  # the default may lie anywhere
    ],
)
def test_a_number_chosen_at_the_edge_of_those_tried(tried, expected):
    runs = grid({value: [(score, 0.5, 0.5)] for value, score in tried.items()})
    (choice,) = select(pd.DataFrame(runs), "training-domain").choices
    assert edges(choice) == [("learning_rate", *edge) for edge in expected]


def test_no_edge_while_a_planned_run_beyond_is_not_finished():
    runs = grid({rate: [(rate, 0.5, 0.5)] for rate in (0.1, 0.2, 0.4)})
    (choice,) = select(pd.DataFrame(runs), "training-domain").choices
    assert edges(choice)
    planned = plan(runs, [run("a", 0, learning_rate=0.8)])
    (choice,) = select(pd.DataFrame(runs), "training-domain", plans=planned).choices
    assert (choice.unfinished, edges(choice)) == (1, [])


def test_the_oracle_sees_the_target_and_takes_the_last_model():
    runs = grid({0.1: [(0.9, 0.6, 0.4)], 0.2: [(0.1, 0.8, 0.5)]})
    (choice,) = select(pd.DataFrame(runs), "oracle").choices
    assert choice.candidate.hyperparameters == {"learning_rate": 0.2}
    assert choice.target_accuracy == Summary(
        mean=0.4, std=None, n=1
    )  # half of the best model's, see run()
    assert not CRITERIA["oracle"].attainable
    assert "not attainable" in CRITERIA["oracle"].label


def test_records_without_the_oracles_accuracy():
    runs = grid({0.1: [(0.9, 0.6, math.nan)], 0.2: [(0.1, 0.8, math.nan)]})
    (choice,) = select(pd.DataFrame(runs), "oracle").choices
    assert choice.candidate is None
    assert "the accuracy on the target's validation images" in choice.needs
    assert choice.target_accuracy is None


def test_a_candidate_that_lacks_a_seed_is_not_eligible():
    runs = grid({0.1: [(0.9, 0.9, 0.9)], 0.2: [(0.5, 0.5, 0.5), (0.5, 0.5, 0.5)]})
    (choice,) = select(pd.DataFrame(runs), "training-domain").choices
    assert choice.candidate.hyperparameters == {"learning_rate": 0.2}
    lacking, whole = choice.candidates
    assert (lacking.eligible, lacking.lacks, lacking.score.mean) == (False, "seed 1", 0.9)
    assert whole.eligible


def plan(runs, extra=()):
    """The plans, of one sweep, that have the runs in this order, and others."""
    planned = {}
    for each in [*runs, *extra]:
        directory = each["record"].removesuffix("/record.json")
        about = {name: each[name] for name in ("data", "target", "seed")}
        planned[Path(directory).resolve()] = PlannedRun(
            directory="d", method=each["method_name"], without=list(each["without"]), **about
        )
    return [planned]


def test_the_plans_seeds_are_needed_and_its_runs_counted():
    runs = grid({0.1: [(0.9, 0.9, 0.9)], 0.2: [(0.5, 0.5, 0.5)]})
    extra = [run("a", 1, learning_rate=rate) for rate in (0.1, 0.2)]
    (choice,) = select(pd.DataFrame(runs), "training-domain", plans=plan(runs, extra)).choices
    assert choice.chosen is None
    assert choice.needs == "every seed of one candidate"
    assert choice.unfinished == 2
    assert all(candidate.lacks == "seed 1" for candidate in choice.candidates)


def test_the_seeds_of_another_sweep_are_not_needed():
    """Sweeps in one folder, that differ in the backbone: each has all that it was to have."""
    few = grid({0.1: [(0.9, 0.9, 0.9)], 0.2: [(0.5, 0.5, 0.5)]})
    more = [
        run("a", seed, learning_rate=rate, folder="more", conditions={"backbone": "resnet18"})
        for rate in (0.1, 0.2)
        for seed in (0, 1, 2)
    ]
    plans = [*plan(few), *plan(more, [run("a", 3, learning_rate=0.1, folder="more")])]
    choices = select(pd.DataFrame([*few, *more]), "training-domain", plans=plans).choices
    found = {each.backbone: (each.seeds, each.chosen, each.unfinished) for each in choices}
    assert found == {"alexnet": ([0], 0, 0), "resnet18": ([0, 1, 2, 3], None, 1)}


def test_ties_go_to_the_first_in_the_plan():
    # 0.1 + 0.2 and 0.3 + 0.0 have one mean but for rounding
    runs = grid({0.1: [(0.3, 0, 0), (0.0, 0, 0)], 0.2: [(0.1, 0, 0), (0.2, 0, 0)]})
    assert (0.3 + 0.0) / 2 != (0.1 + 0.2) / 2
    for order in (runs, runs[::-1]):
        selection = select(pd.DataFrame(runs), "training-domain", plans=plan(order))
        first = json.loads(order[0]["hyperparameters"])
        assert chosen(selection) == {("a", "irm"): first}


def test_every_target_method_and_condition_has_its_own_choice():
    runs = [
        *grid({0.1: [(0.9, 0, 0)], 0.2: [(0.1, 0, 0)]}, "a"),
        *grid({0.1: [(0.1, 0, 0)], 0.2: [(0.9, 0, 0)]}, "b"),
        *grid({0.1: [(0.1, 0, 0)], 0.2: [(0.9, 0, 0)]}, "a", method="deep-all"),
        *grid({0.3: [(0.2, 0, 0)]}, "a", conditions={"backbone": "resnet50"}, folder="r"),
    ]
    choices = select(pd.DataFrame(runs), "training-domain").choices
    found = {(c.target, c.method, c.backbone): c.candidate.hyperparameters for c in choices}
    assert found == {
        ("a", "irm", "alexnet"): {"learning_rate": 0.1},
        ("b", "irm", "alexnet"): {"learning_rate": 0.2},
        ("a", "deep-all", "alexnet"): {"learning_rate": 0.2},
        ("a", "irm", "resnet50"): {"learning_rate": 0.3},
    }


def held_out(rate, seed, target, without, **tested):
    return run(target, seed, without=(without,), tested=tested, learning_rate=rate)


def test_leave_one_domain_out_by_hand():
    runs = grid({0.1: [(0.9, 0.6, 0.4)], 0.2: [(0.1, 0.8, 0.5)]})
    runs += [
        # target a: 0.1 has (0.5 + 0.6) / 2 = 0.55 on b and c, 0.2 has (0.4 + 0.8) / 2 = 0.6
        held_out(0.1, 0, "a", "b", a=0.0, b=0.5, c=0.9),
        held_out(0.1, 0, "a", "c", a=0.0, b=0.9, c=0.6),
        held_out(0.2, 0, "a", "b", a=1.0, b=0.4, c=0.9),
        held_out(0.2, 0, "a", "c", a=1.0, b=0.9, c=0.8),
    ]
    (choice,) = select(pd.DataFrame(runs), "leave-one-domain-out").choices
    assert [c.score.mean for c in choice.candidates] == pytest.approx([0.55, 0.6])
    assert choice.candidate.hyperparameters == {"learning_rate": 0.2}
    assert choice.target_accuracy == Summary(
        mean=0.8, std=None, n=1
    )  # of the run on all source domains


def test_one_run_without_two_domains_serves_both():
    runs = [run(target, learning_rate=0.1) for target in "abc"]
    runs += [
        held_out(0.1, 0, "a", "b", a=0.11, b=0.22),
        held_out(0.1, 0, "a", "c", a=0.33, c=0.44),
        held_out(0.1, 0, "c", "b", c=0.55, b=0.66),
    ]
    choices = select(pd.DataFrame(runs), "leave-one-domain-out").choices
    assert {c.target: c.candidate.score.mean for c in choices} == {
        "a": pytest.approx((0.22 + 0.44) / 2),
        "b": pytest.approx((0.11 + 0.55) / 2),
        "c": pytest.approx((0.33 + 0.66) / 2),
    }


def test_of_two_runs_without_the_same_two_the_own_targets_counts():
    runs = [run(target, learning_rate=0.1) for target in "ab"]
    runs += [
        held_out(0.1, 0, "a", "b", a=0.1, b=0.2),
        held_out(0.1, 0, "b", "a", a=0.3, b=0.4),
        held_out(0.1, 0, "a", "c", c=0.6),
        held_out(0.1, 0, "b", "c", c=0.8),
    ]
    for order in (runs, runs[::-1]):
        choices = select(pd.DataFrame(order), "leave-one-domain-out").choices
        assert {c.target: c.candidate.score.mean for c in choices} == {
            "a": pytest.approx((0.2 + 0.6) / 2),
            "b": pytest.approx((0.3 + 0.8) / 2),
        }


def test_leave_one_domain_out_needs_every_source_and_seed():
    runs = [run("a", seed, learning_rate=0.1) for seed in (0, 1)]
    (choice,) = select(pd.DataFrame(runs), "leave-one-domain-out").choices
    assert choice.needs == "runs that leave out each source domain too (--leave-one-domain-out)"
    runs += [held_out(0.1, 0, "a", "b", b=0.5)]
    (choice,) = select(pd.DataFrame(runs), "leave-one-domain-out").choices
    assert choice.candidate is None
    assert choice.candidates[0].score is None
    assert choice.candidates[0].lacks == "seeds 0, 1"
    runs += [held_out(0.1, 0, "a", "c", c=0.5)]
    (choice,) = select(pd.DataFrame(runs), "leave-one-domain-out").choices
    assert choice.candidates[0].lacks == "seed 1"
    assert "with every seed" in choice.needs


def test_leave_one_domain_out_chooses_before_the_final_runs_are_there():
    runs = [
        held_out(rate, 0, "a", without, **{without: rate})
        for rate in (0.1, 0.2)
        for without in "bc"
    ]
    (choice,) = select(pd.DataFrame(runs), "leave-one-domain-out").choices
    assert choice.candidate.hyperparameters == {"learning_rate": 0.2}
    assert choice.target_accuracy is None
    assert select(pd.DataFrame(runs), "training-domain").choices == []


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=5),
)
def test_the_choice_is_the_first_of_the_highest_mean(scores):
    runs = [
        run("a", seed, accuracies=(count / 7, 0.5, 0.5), learning_rate=position + 1.0)
        for position, of_seeds in enumerate(scores)
        for seed, count in enumerate(of_seeds)
    ]
    (choice,) = select(pd.DataFrame(runs), "training-domain").choices
    sums = [sum(of_seeds) for of_seeds in scores]
    assert choice.candidate.hyperparameters == {"learning_rate": sums.index(max(sums)) + 1.0}


def test_an_unknown_criterion_is_refused():
    with pytest.raises(ArgumentError, match="one of training-domain, leave-one-domain-out, oracle"):
        select(pd.DataFrame([run()]), "test-domain")
