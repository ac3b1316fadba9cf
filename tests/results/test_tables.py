import math
from pathlib import Path

import pytest

from gradsurgery.algorithms.names import METHODS
from gradsurgery.documents.plan import PlannedRun
from gradsurgery.report import summary
from gradsurgery.report import tables as paper
from gradsurgery.results import compare_runs, rank_methods, select, take_inventory
from tests.results.records import write_plan


@pytest.fixture
def compared(written, tmp_path):
    def compare(model="best", **options):
        return compare_runs(take_inventory([tmp_path]).runs, model, **options)

    return compare


def test_mean_and_sample_standard_deviation_by_hand(written, compared):
    for seed, accuracy in enumerate((0.2, 0.3, 0.7)):
        written("agr-sum", "sketch", seed, best=accuracy, last=0.5)
    (table,) = compared()
    cell = table.cells["agr-sum", "sketch"]
    assert cell.mean == pytest.approx(40)
    # deviations -20, -10, 30: (400 + 100 + 900) / (3 - 1) = 700
    assert cell.std == pytest.approx(math.sqrt(700))
    assert (cell.runs, cell.complete) == (3, True)
    assert table.seeds == (0, 1, 2)
    (last,) = compared("last")
    assert last.cells["agr-sum", "sketch"].mean == pytest.approx(50)
    assert last.cells["agr-sum", "sketch"].std == pytest.approx(0)


def test_one_run_has_no_standard_deviation(written, compared):
    written(best=0.5)
    (table,) = compared()
    assert table.cells["agr-sum", "sketch"].std is None
    assert "1 seed" in table.title
    assert table.averages == {}


def test_targets_are_in_the_order_of_the_data_and_deep_all_comes_first(written, compared):
    for method in ("agr-sum", "pcgrad", "deep-all"):
        for target in ("sketch", "art_painting", "photo"):
            written(method, target)
    (table,) = compared()
    assert table.targets == ("art_painting", "photo", "sketch")
    assert table.methods == ("deep-all", "agr-sum", "pcgrad")


PLANNED = ("mixup", "agr-rand", "deep-all", "agr-sum")


def test_methods_are_in_the_order_of_the_plan(written, tmp_path):
    for method in sorted(PLANNED):
        written(method, seed=0)
        written(method, "photo", seed=0)
    written("vrex")  # in no plan
    runs = [{"directory": f"sketch/{m}/seed-{s}", "method": m} for s in (0, 1) for m in PLANNED]
    write_plan(tmp_path / "runs", runs)
    inventory = take_inventory([tmp_path / "runs"])
    (table,) = compare_runs(inventory.runs, plans=inventory.plans)
    order = ["deep-all", "mixup", "agr-rand", "agr-sum", "vrex"]
    assert list(table.methods) == order
    assert [method for method, target in table.cells if target == "photo"] == order[:4]
    assert [method for method, target in table.cells if target == "sketch"] == order
    methods = [
        choice.method
        for choice in select(inventory.runs, "oracle", plans=inventory.plans).choices
        if choice.target == "sketch"
    ]
    assert methods == [*PLANNED, "vrex"]
    assert list(dict.fromkeys(inventory.runs["method"])) == [*PLANNED, "vrex"]


def test_without_a_plan_methods_are_in_the_order_of_the_papers_table(written, compared):
    with Path(paper.__file__).with_name("paper_table1.csv").open() as file:
        order = list(dict.fromkeys(line.split(",")[2] for line in [*file][1:]))
    assert list(METHODS) == order
    for method in sorted(order):
        written(method)
    written("cagrad")
    for place, value in enumerate((100.0, 9.0, 20.0)):
        setting = {"configuration__settings": {"irm.penalty": value}}
        written("irm", folder=str(place), **setting)
    (table,) = compared()
    settings = [f"irm (irm.penalty={value})" for value in (9, 20, 100)]
    place = order.index("irm") + 1
    assert list(table.methods) == [*order[:place], *settings, *order[place:], "cagrad"]


def test_the_average_needs_every_target(written, compared):
    written("agr-sum", "photo", best=0.9)
    written("agr-sum", "sketch", best=0.4)
    written("deep-all", "photo", best=0.8)
    (table,) = compared()
    assert set(table.averages) == {"agr-sum"}
    assert table.averages["agr-sum"].mean == pytest.approx(65)
    assert table.averages["agr-sum"].std is None
    assert ("deep-all", "sketch") not in table.cells


def test_the_best_of_a_target_and_ties_as_printed(written, compared):
    written("deep-all", "photo", best=0.70004)
    written("agr-sum", "photo", best=0.70001)  # both are printed as 70.00
    written("pcgrad", "photo", best=0.6)
    written("deep-all", "sketch", best=0.3)
    written("agr-sum", "sketch", best=0.5)
    (table,) = compared()
    best = {key for key, cell in table.cells.items() if cell.best}
    assert best == {("deep-all", "photo"), ("agr-sum", "photo"), ("agr-sum", "sketch")}
    assert [m for m, cell in table.averages.items() if cell.best] == ["agr-sum"]


def test_nothing_is_best_alone(written, compared):
    written()
    assert not compared()[0].cells["agr-sum", "sketch"].best


@pytest.mark.parametrize(
    ("option", "values"), [("average", ("none", "swad")), ("batches", ("multi", "single"))]
)
def test_runs_that_average_or_draw_otherwise_are_tables_of_their_own(
    option, values, written, compared
):
    for value in values:
        written(folder=value, **{f"configuration__{option}": value})
    tables = compared()
    assert [table.differences for table in tables] == [{option: value} for value in values]
    assert all(f"{option} {table.differences[option]}" in table.title for table in tables)


def test_missing_seeds_show(written, compared):
    for seed in (0, 1):
        written("deep-all", seed=seed, best=0.5)
        written("deep-all", "photo", seed=seed, best=0.5)
        written("agr-sum", "photo", seed=seed, best=0.75)
    written("agr-sum", seed=1, best=0.9)
    (table,) = compared()
    assert table.cells["deep-all", "sketch"].complete
    lacking = table.cells["agr-sum", "sketch"]
    assert (lacking.runs, lacking.planned, lacking.complete) == (1, 2, False)
    assert (lacking.mean, lacking.comparison, lacking.best) == (90, None, False)
    assert not table.cells["deep-all", "sketch"].best  # nothing complete to compare with
    assert table.cells["agr-sum", "photo"].best
    assert set(table.averages) == {"deep-all"}
    assert table.tests == 1
    assert any("seeds are missing" in note for note in table.notes)


def test_the_same_number_of_other_seeds_is_not_complete(written, compared):
    for method, seeds in {"deep-all": (0, 1), "agr-sum": (1, 2)}.items():
        for seed in seeds:
            written(method, seed=seed)
    (table,) = compared()
    assert table.seeds == (0, 1, 2)
    assert not any(cell.complete for cell in table.cells.values())


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"configuration__learning_rate": 0.001}, {"learning_rate": 0.001}),
        ({"configuration__batch_norm": "per-domain"}, {"batch_norm": "per-domain"}),
        ({"data__digest": "d2"}, {"data_digest": "d2"}),
        ({"split__digest": "s2"}, {"split_digest": "s2"}),
        ({"model__weights_digest": "f" * 64}, {"weights": "sha256:ffffffffffff"}),
        ({"configuration__precision": "bfloat16"}, {"precision": "bfloat16"}),
    ],
)
def test_runs_that_do_not_compare_have_tables_of_their_own(written, compared, change, setting):
    written("deep-all")
    written("agr-sum", **change)
    first, second = compared()
    assert {first.methods, second.methods} == {("deep-all",), ("agr-sum",)}
    other = next(table for table in (first, second) if table.methods == ("agr-sum",))
    assert other.differences == setting
    assert str(next(iter(setting.values()))) in other.title


@pytest.mark.parametrize(
    "change",
    [
        {"configuration__device": "cuda"},
        {"configuration__data": "pacs:elsewhere"},
        {"configuration__skip_bad": True},
        {"cost__seconds": 99},
    ],
)
def test_what_cannot_matter_does_not_part_runs(written, compared, change):
    written("deep-all")
    written("agr-sum", **change)
    (table,) = compared()
    assert table.differences == {}
    assert table.methods == ("deep-all", "agr-sum")


def test_one_weights_file_at_two_places_is_one_setting(written, compared):
    digest = {"model__weights_digest": "a" * 64}
    written("deep-all", configuration__weights="/here/w.pth", **digest)
    written("agr-sum", configuration__weights="/there/w.pth", **digest)
    assert len(compared()) == 1


def test_splits_drawn_per_run_are_one_setting(written, compared):
    for seed in (0, 1):
        written(seed=seed, configuration__split_per_run=True, split__digest=f"s{seed}")
    (table,) = compared()
    assert table.cells["agr-sum", "sketch"].runs == 2


def test_a_table_for_each_data_set(written, compared):
    written()
    written(folder="other", data__name="vlcs")
    assert [table.data for table in compared()] == ["pacs", "vlcs"]
    assert all(table.differences == {} for table in compared())


def test_settings_that_were_drawn_are_rounded_in_titles_and_told_apart(written, compared):
    drawn = {
        "configuration__learning_rate": (1 / 3e4, 2 / 3e4),
        "configuration__weight_decay": (0.12345678901, 0.12345678902),
    }
    for i in range(2):
        written(best=0.5, folder=str(i), **{name: values[i] for name, values in drawn.items()})
    tables = compared()
    assert [table.name.partition(", ")[2] for table in tables] == [
        "learning_rate 3.33333e-05, weight_decay 0.12345678901",
        "learning_rate 6.66667e-05, weight_decay 0.12345678902",
    ]
    assert [table.differences["learning_rate"] for table in tables] == [1 / 3e4, 2 / 3e4]
    assert "learning rate (3.33333e-05 and 6.66667e-05)" in summary._apart(tables)


def twenty(written, method, differences, target="sketch", base=0.5):
    """Twenty seeds of Deep-All and of a method that differs from it by `differences`."""
    for seed, difference in enumerate(differences):
        path = f"{method}-{target}"
        written("deep-all", target, seed, best=base, last=0.25, folder=f"base-{path}")
        written(method, target, seed, best=base + difference, last=0.25, folder=path)


def test_twenty_of_twenty(written, compared):
    twenty(written, "agr-sum", [k / 1000 for k in range(1, 21)])
    (table,) = compared()
    test = table.cells["agr-sum", "sketch"].comparison
    assert test.p == test.p_holm == 2 / 2**20
    assert test.effect_size == 1
    assert (test.n, test.zeros) == (20, 0)
    assert test.difference == pytest.approx(1.05)  # points: mean of 0.1 … 2.0
    assert 0.1 < test.low < 1.05 < test.high < 2.0
    assert table.cells["agr-sum", "sketch"].stars == "*†"
    assert table.cells["deep-all", "sketch"].comparison is None
    assert table.title.endswith("mean ± std over 20 seeds; paired Wilcoxon test against deep-all")
    assert table.notes[0] == "*† p < 0.05 in the table's only test, which needs no correction"


def test_sixteen_up_and_four_zeros(written, compared):
    twenty(written, "agr-sum", [0] * 4 + [0.05] * 16)
    (table,) = compared()
    test = table.cells["agr-sum", "sketch"].comparison
    assert (test.p, test.n, test.zeros) == (2 / 2**16, 20, 4)
    assert test.difference == pytest.approx(4)


def test_no_difference_at_all(written, compared):
    twenty(written, "agr-sum", [0] * 20)
    test = compared()[0].cells["agr-sum", "sketch"].comparison
    assert (test.p, test.difference, test.low, test.high) == (1, 0, 0, 0)
    assert test.effect_size == 0


def test_a_worse_method_has_its_star_too(written, compared):
    twenty(written, "irm", [-0.1] * 20)
    cell = compared()[0].cells["irm", "sketch"]
    assert "*" in cell.stars
    assert cell.comparison.difference == pytest.approx(-10)
    assert cell.comparison.effect_size == -1


def test_holm_over_the_whole_table(written, compared):
    # Six seeds, all up: p = 2/2⁶ = 0.03125, starred alone; two tests: Holm's 0.0625, no dagger.
    for seed in range(6):
        written("deep-all", seed=seed, best=0.5)
        written("agr-sum", seed=seed, best=0.6)
        written("irm", seed=seed, best=0.5)
    (table,) = compared()
    cell = table.cells["agr-sum", "sketch"]
    assert (cell.comparison.p, cell.comparison.p_holm) == (0.03125, 0.0625)
    assert cell.stars == "*"
    assert any("over the table's 2 tests" in note for note in table.notes)


def test_pairs_are_by_seed(written, compared):
    # The same four accuracies, all up by 0.1 seed by seed, written in another order.
    for seed, accuracy in enumerate((0.1, 0.7, 0.3, 0.5)):
        written("deep-all", seed=seed, best=accuracy)
    for seed in (3, 1, 0, 2):
        written("agr-sum", seed=seed, best=(0.1, 0.7, 0.3, 0.5)[seed] + 0.1)
    test = compared()[0].cells["agr-sum", "sketch"].comparison
    assert test.p == 2 / 2**4
    assert (test.low, test.high) == (pytest.approx(10), pytest.approx(10))


def test_few_seeds_cannot_be_significant_and_it_says_so(written, compared):
    for seed in range(3):
        written("deep-all", seed=seed, best=0.1)
        written("agr-sum", seed=seed, best=0.9)
    (table,) = compared()
    assert table.cells["agr-sum", "sketch"].comparison.p == 0.25
    assert "3 seeds cannot give p < 0.05, only 0.25" in table.notes


def test_another_baseline_comes_first(written, compared):
    for method in ("deep-all", "agr-sum", "pcgrad"):
        for seed in (0, 1):
            written(method, seed=seed)
    (table,) = compared(baseline="pcgrad")
    assert table.methods == ("pcgrad", "deep-all", "agr-sum")
    assert table.cells["deep-all", "sketch"].comparison is not None
    assert table.cells["pcgrad", "sketch"].comparison is None
    assert "against pcgrad" in table.title


def test_without_the_baseline_nothing_is_tested(written, compared):
    for seed in (0, 1):
        written("agr-sum", seed=seed)
        written("pcgrad", seed=seed)
    (table,) = compared()
    assert table.tests == 0
    assert table.title.endswith("no test, for there is no run of deep-all")
    assert compared(baseline="x")[0].title.endswith("no run of x")


def test_one_seed_and_an_incomplete_baseline_are_not_tested(written, compared):
    written("deep-all")
    written("agr-sum")
    assert compared()[0].title.endswith("1 seed; no test of one seed")
    written("agr-sum", seed=1)
    (table,) = compared()
    assert table.tests == 0
    assert "no test, for deep-all or all the others lack seeds" in table.title


def planned(**options):
    usual = {"data": "pacs", "target": "sketch", "method": "agr-sum", "seed": 0}
    return PlannedRun(directory="d", **usual | options)


def test_what_is_planned_is_expected(written, compared):
    runs = [
        planned(target=target, method=method, seed=seed)
        for target in ("photo", "sketch")
        for method in ("deep-all", "agr-sum", "irm")
        for seed in range(3)
    ]
    runs += [planned(data="vlcs", method="mldg", seed=9)]
    runs += [planned(target="art_painting", seed=8, without=["photo"])]
    for seed in (0, 1):
        path = written("deep-all", seed=seed)
        written("agr-sum", seed=seed)
    expected = {Path(str(place)): run for place, run in enumerate(runs)}
    expected[path.parent] = planned(method="deep-all", seed=1)
    other = {Path("other"): planned(method="mldg", seed=7)}  # a sweep with other options
    (table,) = compared(plans=[expected, other])
    assert table.methods == ("deep-all", "agr-sum", "irm")
    assert table.targets == ("photo", "sketch")
    assert table.seeds == (0, 1, 2)
    assert ("irm", "sketch") not in table.cells
    cell = table.cells["agr-sum", "sketch"]
    assert (cell.runs, cell.planned, cell.complete, cell.best) == (2, 3, False, False)
    assert (table.tests, table.averages) == (0, {})
    for method in ("deep-all", "agr-sum"):
        written(method, seed=2)
    (table,) = compared(plans=[expected])
    assert table.tests == 1


def test_runs_that_leave_out_sources_are_in_no_table(written, compared):
    written("deep-all")
    written("agr-sum", folder="two", configuration__without=["photo"])
    (table,) = compared()
    assert table.methods == ("deep-all",)
    assert table.seeds == (0,)


def test_settings_that_change_nothing(written, compared):
    written("deep-all", configuration__passes="separate")
    written("agr-sum", configuration__passes="auto", configuration__log_conflict=5)
    (table,) = compared()
    assert table.differences == {}


def test_models_that_hardly_do_better_than_guessing_are_named(written, compared):
    for seed in (0, 1):
        written("deep-all", seed=seed, validation=0.5)  # of two classes
        written("agr-sum", seed=seed, validation=0.5 if seed else 0.9)
    (table,) = compared()
    assert table.cells["deep-all", "sketch"].guessing == 2
    assert (
        "hardly better than guessing on their own domains: deep-all on sketch (2 of 2 runs), "
        "agr-sum on sketch (1 of 2 runs)"
    ) in table.notes


def test_a_method_that_guesses_on_every_target_is_named_once(written, compared):
    for method, kept in (("deep-all", 0.5), ("agr-sum", 0.9)):  # of two classes
        written(method, validation=0.5, target="photo")
        written(method, validation=kept)
    (table,) = compared()
    assert (
        "hardly better than guessing on their own domains: deep-all on every target (2 of 2 runs), "
        "agr-sum on photo (1 of 1 runs)"
    ) in table.notes


def test_ranks_over_the_cells_of_all_tables(written, compared):
    accuracies = {"deep-all": (0.5, 0.6), "agr-sum": (0.7, 0.6), "irm": (0.4, 0.3)}
    for method, (first, second) in accuracies.items():
        for seed in (0, 1):
            written(method, seed=seed, best=first)
            written(method, seed=seed, best=second, folder="other", data__name="vlcs")
        if method != "irm":
            written(method, "photo")
    found = rank_methods(compared())
    assert found.methods == ("agr-sum", "deep-all", "irm")
    assert found.ranks == (1.25, 1.75, 3)
    assert found.cells == ("pacs, sketch", "vlcs, sketch")
    assert found.left_out == ("pacs, photo",)


def test_nothing_to_rank(written, compared):
    written()
    assert rank_methods(compared()) is None


@pytest.mark.parametrize(
    ("data", "cautioned"), [("coded-digits:domains=8", True), ("rotated-digits", False)]
)
def test_a_set_that_is_made_for_gradient_surgery_is_named_so_below_its_table(
    written, compared, data, cautioned
):
    written(data__name=data)
    (table,) = compared()
    assert ("is made for gradient surgery" in " ".join(table.notes)) == cautioned


def test_the_tables_of_several_rates_are_in_their_order(written, tmp_path):
    for rate in (1e-3, 1e-5, 1e-4):
        written(folder=str(rate), configuration__learning_rate=rate)
    tables = compare_runs(take_inventory([tmp_path]).runs)
    assert [table.differences["learning_rate"] for table in tables] == [1e-5, 1e-4, 1e-3]
