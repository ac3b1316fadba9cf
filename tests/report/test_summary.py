import itertools

import pytest

from gradsurgery.report.summary import summarize
from gradsurgery.results import compare_runs
from gradsurgery.results.ranking import rank_methods
from gradsurgery.results.runs import take_inventory
from tests.results.records import write_plan


@pytest.fixture
def told(tmp_path):
    def tell(baseline="deep-all", model="best"):
        inventory = take_inventory([tmp_path])
        tables = compare_runs(inventory.runs, model, baseline)
        return summarize(inventory, tables, rank_methods(tables))

    return tell


def write_pairs(written, target="sketch", *, seeds=6, gain=0.02, method="agr-sum"):
    """Seeds of the baseline, and of a method that is better by `gain` on each."""
    for seed in range(seeds):
        base = 0.5 + seed / 100
        written("deep-all", target, seed, best=base)
        written(method, target, seed, best=base + gain + seed / 1000)


def test_what_was_compared_and_that_it_is_complete(written, told):
    write_pairs(written, "photo")
    write_pairs(written, "sketch")
    first, second, *_ = told()
    assert first.startswith(
        "2 methods (deep-all and agr-sum) were compared on pacs with photo and sketch held out in "
        "turn, and 6 seeds each."
    )
    assert second == "24 runs are there. Every method has each seed on each target."


def test_on_how_many_images_the_figures_rest(written, told):
    for target, images in (("photo", 21), ("sketch", 1021)):
        size = {"train": 1, "validation": 1, "test": images}
        written("deep-all", target, split__sizes={target: size, "art_painting": size | {"test": 3}})
        shown = "21" if target == "photo" else "21 to 1,021"
        assert f"accuracies on the {shown} test images of the domain held out" in told()[0]


def test_a_comparison_is_called_complete_by_a_plan_alone(written, told, tmp_path):
    runs = []
    for seed in range(2):
        folder = written(seed=seed).parent.relative_to(tmp_path)
        runs.append({"directory": folder.as_posix(), "seed": seed})
    assert told()[1] == "2 runs are there. Every method has each seed on each target."
    write_plan(tmp_path, runs)
    assert told()[1] == "2 of 2 planned runs are finished. The comparison is complete."


def test_many_targets_are_counted_and_not_named(written, told):
    domains = [f"hospital {number}" for number in range(9)]
    counts = dict.fromkeys(domains, 20)
    for target in domains:
        about = {"data__domains": domains, "data__images": counts}
        written("deep-all", target, **about)
    assert " on pacs with 9 domains held out in turn, and 1 seed each." in told()[0]


def test_runs_of_different_settings_are_not_called_a_complete_comparison(written, told):
    written("deep-all", configuration__learning_rate=1e-4)
    written("agr-sum", configuration__learning_rate=1e-3)
    assert told()[1] == (
        "2 runs are there. Runs that differ in learning rate (0.0001 and 0.001) are not "
        "comparable: each has a table of its own."
    )


def test_a_difference_that_stands_the_correction(written, told):
    write_pairs(written)  # six positive differences: p = 2 / 2⁶ = 0.03125, the only test
    text = " ".join(told())
    # differences 2.0, 2.1, …, 2.5 points: 2.25 on average
    assert (
        "the only test (paired Wilcoxon, p < 0.05) shows a difference from deep-all: agr-sum on "
        "sketch (+2.25 points)."
    ) in text
    assert "Holm" not in text
    assert "no significant" not in text


def test_a_difference_that_only_one_test_alone_shows(written, told):
    write_pairs(written, "photo")
    write_pairs(written, "sketch")  # two tests of p = 0.03125: 0.0625 corrected
    text = " ".join(told())
    assert "in a test taken alone and not after the correction, so some may be chance" in text
    assert "agr-sum on photo (+2.25 points) and agr-sum on sketch (+2.25 points)" in text
    assert (
        "6 pairs of runs a cell are too few for a difference to stand Holm's correction over 2 "
        "tests (the least possible p is 0.062)"
    ) in text


def test_no_difference_is_not_called_equality(written, told):
    for seed in range(6):
        written("deep-all", seed=seed, best=0.5)
        written("agr-sum", seed=seed, best=0.5 + (0.01 if seed % 2 else -0.01))
    text = " ".join(told())
    assert "The only test shows no significant difference from deep-all, which does not" in text


def test_no_p_is_above_one_however_many_tests_there_are(written, told, tmp_path):
    methods = ["deep-all", *(f"irm+rule-{number}" for number in range(33))]
    for method, seed in itertools.product(methods, range(6)):
        written(method, seed=seed)
    # 33 · 2 / 2⁶ = 1.03, and Holm's p is at most 1
    assert "Holm's correction over 33 tests (the least possible p is 1)." in " ".join(told())
    (table,) = compare_runs(take_inventory([tmp_path]).runs)
    assert "6 seeds cannot give † over 33 tests, only p = 1" in table.notes


def test_too_few_seeds_prove_nothing(written, told):
    write_pairs(written, seeds=3)
    text = " ".join(told())
    assert "3 pairs of runs a cell are too few for any test to reach p < 0.05" in text
    assert "0.25" in text
    assert "these differ" not in text


def test_cells_that_lack_seeds_are_counted(written, told):
    write_pairs(written, "photo")
    for seed in range(6):
        written("deep-all", "sketch", seed)
    written("agr-sum", "sketch", 0)
    written("pcgrad", "photo", 0)
    text = " ".join(told())
    assert "The comparison is not complete: 2 cells lack seeds and 1 cell has no run" in text


def test_where_the_sources_and_the_target_say_the_opposite(written, told):
    for seed in range(6):
        written("deep-all", seed=seed, best=0.5 + seed / 100, validation=0.9)
        written("agr-sum", seed=seed, best=0.6 + seed / 50, validation=0.8)
    # 10 points, and on average 2.5 more; 80 % on the sources against 90 %
    said = next(sentence for sentence in told() if "learned what helps there" in sentence)
    assert said == (
        "On pacs, agr-sum is 12.5 points above deep-all on sketch and 10.0 points below it on "
        "validation images of the source domains: deep-all has learned what helps there and not "
        "on sketch, and a choice between the two by validation would take deep-all."
    )


def test_only_the_largest_opposite_is_spelled_out(written, told):
    for seed in range(7):
        written("deep-all", seed=seed, best=0.5, validation=0.9)
        written("agr-rand", seed=seed, best=0.6 + seed / 100, validation=0.8)
        written("agr-sum", seed=seed, best=0.7 + seed / 100, validation=0.8)
    said = next(sentence for sentence in told() if "learned what helps there" in sentence)
    assert said.startswith("On pacs, agr-sum is 23.0 points above deep-all on sketch")
    assert said.endswith("Target and sources also say the opposite of agr-rand on sketch.")


def test_a_worse_method_that_validation_favours_is_named_as_such(written, told):
    for seed in range(6):
        written("deep-all", seed=seed, best=0.6 + seed / 50, validation=0.8)
        written("agr-sum", seed=seed, best=0.5 + seed / 100, validation=0.9)
    assert "On pacs, deep-all is 12.5 points above agr-sum on sketch and 10.0" in "".join(told())


@pytest.mark.parametrize(
    ("seeds", "gain", "validation"),
    [(5, 0.1, 0.6), (6, 0.1, 0.75), (6, 0.1, 0.9)],
    ids=["too few seeds", "the same validation", "the same sign"],
)
def test_no_opposite_is_seen_where_there_is_none(written, told, seeds, gain, validation):
    for seed in range(seeds):
        written("deep-all", seed=seed, best=0.5 + seed / 100, validation=0.75)
        written("agr-sum", seed=seed, best=0.5 + gain + seed / 50, validation=validation)
    assert "learned what helps there" not in "".join(told())


def test_a_set_that_is_made_for_it_says_so(written, told):
    for method in ("deep-all", "agr-sum"):
        written(method, data__name="coded-digits:domains=8")
    assert any("is made for gradient surgery" in sentence for sentence in told())


def test_the_highest_average_is_named_without_a_claim(written, told):
    write_pairs(written, "photo")
    write_pairs(written, "sketch")
    assert (
        "On pacs, the average over 2 targets is highest for agr-sum (54.75 %); deep-all has "
        "52.50 %."
    ) in told()


def test_a_higher_mean_than_a_baseline_that_guesses_is_no_merit(written, told):
    for seed in range(2):
        written("deep-all", seed=seed, best=0.2, validation=0.5)  # of two classes
        written("agr-sum", seed=seed, best=0.5)
    text = " ".join(told())
    assert "highest" not in text
    assert (
        "On pacs, deep-all does hardly better than guessing on its own domains in 2 of 2 runs: "
        "that another method has a higher mean says little."
    ) in text


def test_one_run(written, told):
    written()
    first, second, third = told()
    assert first.startswith(
        "1 method (agr-sum) was trained on pacs with sketch held out, and 1 seed"
    )
    assert second == "1 run is there."
    assert third == "On pacs: no test, for there is no run of deep-all."


def test_the_last_model_is_called_so(written, told):
    written()
    assert "of the model after the last step" in told(model="last")[0]


def test_ranks_that_do_not_differ(written, told):
    for target in ("photo", "sketch"):
        for method in ("deep-all", "agr-sum", "pcgrad"):
            for seed in range(2):
                written(method, target, seed, best=0.5)
    assert "On pacs, the average over 2 targets is the same for all (50.00 %)." in told()
    assert told()[-1] == (
        "Over 2 (data set, target) cells, all methods have the same average rank (2.00); "
        "Friedman's test shows no significant difference of ranks (p = 1)."
    )


def test_ranks_that_differ(written, told):
    # the same order in 4 cells: χ² = 12 · 4 / (3 · 4) · ((1 + 4 + 9) − 3 · 4² / 4) = 8
    for folder, iterations in (("a", 1), ("b", 2)):
        for target in ("photo", "sketch"):
            for place, method in enumerate(("deep-all", "agr-sum", "pcgrad")):
                for seed in range(2):
                    changes = {"folder": folder, "configuration__iterations": iterations}
                    written(method, target, seed, best=0.5 + place / 10, **changes)
    assert told()[-1].startswith(
        "Over 4 (data set, setting, target) cells, the best average rank is that of pcgrad (1.00); "
        "Friedman's test says that ranks differ (p = 0.018), which is a rough guide"
    )


def test_seeds_and_averages_of_tables_that_differ(written, told):
    for seed in range(3):
        written("deep-all", "photo", seed, best=0.8)
        written("deep-all", "sketch", seed, best=0.6)
        written("agr-sum", "photo", seed, best=0.9)
        written("agr-sum", "sketch", seed, best=0.5)
    written("pcgrad", "photo", 0, best=0.99)
    for seed in range(2):
        written("deep-all", "sketch", seed, folder="b", configuration__iterations=7)
    text = " ".join(told())
    assert "and 2 to 3 seeds." in text
    assert (
        "of the 2 methods that are complete, the average over 2 targets is the same for all" in text
    )


def test_runs_that_no_plan_names_do_not_finish_it(written, told, tmp_path):
    path = written()
    written(seed=1)
    directory = path.parent.relative_to(tmp_path).as_posix()
    write_plan(tmp_path, [{"directory": each} for each in (directory, "elsewhere")])
    assert (
        "1 of 2 planned runs is finished; 1 not done. 1 run that no plan names is there too"
    ) in " ".join(told())
