"""From records to stars, on twenty seeds whose p-values are known by hand.

Two methods on two targets against Deep-All, a family of four tests. The differences are distinct
or all equal, so that ranks are 1 … n, or all the same:

- agr-sum on sketch: all 20 up: one of 2²⁰ signs is as extreme on either side, p = 2 / 2²⁰.
- agr-sum on photo: the two smallest down, 18 up: W⁻ = 1 + 2 = 3. Sets of ranks with a sum of at
  most 3 are {}, {1}, {2}, {3} and {1, 2}: p = 2 · 5 / 2²⁰.
- irm on sketch: six down by the same, 14 zeros: p = 2 / 2⁶ = 0.03125.
- irm on photo: no difference, p = 1.

Holm: 4 · 2 / 2²⁰, 3 · 10 / 2²⁰, 2 · 2 / 2⁶ = 0.0625, 1. So agr-sum has stars and daggers, irm a
star and no dagger on sketch, and nothing on photo.
"""

import io
import itertools

import pandas as pd
import pytest

from gradsurgery.report.rendering import to_latex, to_markdown
from gradsurgery.report.tables import comparison_csv, comparison_table
from gradsurgery.results import compare_runs, rank_methods, take_inventory

DIFFERENCES = {
    ("agr-sum", "sketch"): [k / 1000 for k in range(1, 21)],
    ("agr-sum", "photo"): [-0.001, -0.002, *(k / 1000 for k in range(3, 21))],
    ("irm", "sketch"): [-0.05] * 6 + [0.0] * 14,
    ("irm", "photo"): [0.0] * 20,
}
P = {
    ("agr-sum", "sketch"): (2 / 2**20, 8 / 2**20),
    ("agr-sum", "photo"): (10 / 2**20, 30 / 2**20),
    ("irm", "sketch"): (2 / 2**6, 4 / 2**6),
    ("irm", "photo"): (1.0, 1.0),
}


@pytest.fixture
def runs(written, tmp_path):
    """The baseline goes up and down with the seed; only pairs have the differences."""
    base = [0.5 + 0.007 * (seed % 5) for seed in range(20)]
    for target, seed in itertools.product(("photo", "sketch"), range(20)):
        written("deep-all", target, seed, base[seed])
    for (method, target), differences in DIFFERENCES.items():
        for seed, difference in enumerate(differences):
            written(method, target, seed, base[seed] + difference)
    return take_inventory([tmp_path]).runs


def test_p_values_and_effects(runs):
    (table,) = compare_runs(runs)
    found = {key: cell.comparison for key, cell in table.cells.items() if key[0] != "deep-all"}
    assert {key: test.p for key, test in found.items()} == {key: p for key, (p, _) in P.items()}
    for key, (_, p_holm) in P.items():
        assert found[key].p_holm == pytest.approx(p_holm, rel=1e-12)
        mean = 100 * sum(DIFFERENCES[key]) / 20
        assert found[key].difference == pytest.approx(mean)
    # W⁺ − W⁻ of W⁺ + W⁻ = 20 · 21 / 2 = 210
    assert {key: test.effect_size for key, test in found.items()} == {
        ("agr-sum", "sketch"): 1,
        ("agr-sum", "photo"): pytest.approx((207 - 3) / 210),
        ("irm", "sketch"): -1,
        ("irm", "photo"): 0,
    }
    assert {key: test.zeros for key, test in found.items()} == {
        ("agr-sum", "sketch"): 0,
        ("agr-sum", "photo"): 0,
        ("irm", "sketch"): 14,
        ("irm", "photo"): 20,
    }


def test_intervals_are_those_of_the_differences_and_not_of_the_accuracies(runs):
    (table,) = compare_runs(runs)
    test = table.cells["agr-sum", "sketch"].comparison
    # mean 1.05, standard error sqrt((20² − 1) / 12) · 0.1 / sqrt(20) = 0.129: ± 1.96 of it
    assert (test.low, test.high) == (pytest.approx(0.797, abs=0.03), pytest.approx(1.303, abs=0.03))
    assert table.cells["irm", "photo"].comparison.low == 0


def marks(text):
    return text.count("*"), text.count("†") + text.count("dagger")


def test_stars_in_every_format(runs):
    tables = compare_runs(runs)
    rows = {
        line.split("|")[1].strip(): line.replace("**", "").replace("\\*", "*").split("|")[2:-1]
        for line in to_markdown(list(map(comparison_table, tables))).splitlines()
        if line.startswith("|")
    }
    assert [marks(cell) for cell in rows["agr-sum"]] == [(1, 1), (1, 1), (0, 0)]
    assert [marks(cell) for cell in rows["irm"]] == [(0, 0), (1, 0), (0, 0)]
    assert [marks(cell) for cell in rows["deep-all"]] == [(0, 0)] * 3
    rows = {
        line.split(" & ")[0]: line.split(" & ")[1:]
        for line in to_latex(list(map(comparison_table, tables))).splitlines()
    }
    assert [marks(cell) for cell in rows["agr-sum"]] == [(1, 1), (1, 1), (0, 0)]
    assert [marks(cell) for cell in rows["irm"]] == [(0, 0), (1, 0), (0, 0)]
    frame = pd.read_csv(io.StringIO(comparison_csv(tables))).set_index(["method", "target"])
    for key, (p, p_holm) in P.items():
        assert frame.loc[key, "p"] == p
        assert frame.loc[key, "p_holm"] == pytest.approx(p_holm)


def test_the_order_of_the_files_does_not_matter(runs):
    shuffled = runs.sample(frac=1, random_state=1)
    assert compare_runs(shuffled) == compare_runs(runs)


def test_a_lost_run_takes_its_cell_out_of_everything(runs):
    lost = (runs["method"] == "agr-sum") & (runs["target"] == "sketch") & (runs["seed"] == 7)
    (table,) = compare_runs(runs[~lost])
    cell = table.cells["agr-sum", "sketch"]
    assert (cell.runs, cell.planned, cell.comparison, cell.best) == (19, 20, None, False)
    assert table.tests == 3
    # the family is one smaller: 10 / 2²⁰ is now the least of three
    assert table.cells["agr-sum", "photo"].comparison.p_holm == pytest.approx(30 / 2**20)
    assert set(table.averages) == {"deep-all", "irm"}
    ranked = rank_methods([table])
    assert (ranked.cells, ranked.left_out) == (("pacs, photo",), ("pacs, sketch",))


def test_a_lost_run_of_the_baseline_takes_the_tests_of_its_target(runs):
    lost = (runs["method"] == "deep-all") & (runs["target"] == "sketch") & (runs["seed"] == 7)
    (table,) = compare_runs(runs[~lost])
    tested = {key for key, cell in table.cells.items() if cell.comparison is not None}
    assert tested == {("agr-sum", "photo"), ("irm", "photo")}
    assert table.cells["agr-sum", "sketch"].complete
