import pytest

from gradsurgery.results import compare_runs, take_inventory
from gradsurgery.results.selection import select, selected_runs


def searched(written, method, chosen, rates=(0.1, 0.2), seeds=range(6), **options):
    """A search over the learning rate: `chosen` has 90 % validation accuracy, the others 50 %."""
    for rate in rates:
        for seed in seeds:
            path = written(
                method,
                seed=seed,
                best=0.6 if rate == chosen else 0.9,
                folder=f"{method}-{rate}-{options}",
                validation=0.9 if rate == chosen else 0.5,
                configuration__learning_rate=rate,
                **{f"configuration__{name}": value for name, value in options.items()},
            )
    return path


def test_each_method_is_compared_at_its_own_choice(written, tmp_path):
    searched(written, "deep-all", 0.1)
    searched(written, "agr-sum", 0.2)
    runs = take_inventory([tmp_path]).runs
    assert len(compare_runs(runs)) == 2  # two learning rates
    selection = select(runs, "training-domain")
    assert {c.method: c.candidate.hyperparameters["learning_rate"] for c in selection.choices} == {
        "deep-all": 0.1,
        "agr-sum": 0.2,
    }
    (table,) = compare_runs(selected_runs(runs, "training-domain", selection))
    assert table.methods == ("deep-all", "agr-sum")
    assert {cell.mean for cell in table.cells.values()} == {60}
    assert table.tests == 1
    assert table.differences == {}


def test_a_searched_hyperparameter_is_not_in_the_name(written, tmp_path):
    for penalty, validation in ((1, 0.5), (10, 0.9)):
        for seed in (0, 1):
            written(
                "irm",
                seed=seed,
                folder=f"irm{penalty}",
                validation=validation,
                configuration__settings={"irm.penalty": float(penalty), "ema.decay": 0.5},
            )
    runs = take_inventory([tmp_path]).runs
    assert set(runs["method"]) == {
        "irm (ema.decay=0.5, irm.penalty=1)",
        "irm (ema.decay=0.5, irm.penalty=10)",
    }
    kept = selected_runs(runs, "training-domain", select(runs, "training-domain"))
    assert set(kept["method"]) == {"irm (ema.decay=0.5)"}
    assert all("irm10" in record for record in kept["record"])


def test_two_criteria_are_two_tables(written, tmp_path):
    import pandas as pd

    searched(written, "deep-all", 0.1)
    runs = take_inventory([tmp_path]).runs
    both = [selected_runs(runs, "training-domain", select(runs, "training-domain"))]
    runs["last_target_validation_accuracy"] = 0.5
    both.append(selected_runs(runs, "oracle", select(runs, "oracle")))
    tables = compare_runs(pd.concat(both))
    assert [table.differences for table in tables] == [
        {"selection": "oracle"},
        {"selection": "training-domain"},
    ]


@pytest.mark.parametrize("criterion", ["leave-one-domain-out", "oracle"])
def test_where_nothing_can_be_chosen_nothing_is_left(written, tmp_path, criterion):
    searched(written, "deep-all", 0.1)
    runs = take_inventory([tmp_path]).runs
    kept = selected_runs(runs, criterion, select(runs, criterion))
    assert kept.empty
    assert compare_runs(kept) == []


def test_runs_that_leave_out_sources_are_not_kept(written, tmp_path):
    searched(written, "deep-all", 0.1)
    searched(written, "deep-all", 0.1, without=["photo"])
    runs = take_inventory([tmp_path]).runs
    assert set(
        selected_runs(runs, "training-domain", select(runs, "training-domain"))["without"]
    ) == {()}
