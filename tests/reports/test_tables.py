import math

import pytest

from gradsurgery.errors import DataError
from gradsurgery.reports import compare_runs, read_runs


@pytest.fixture
def compared(written, tmp_path):
    def compare(model="best"):
        return compare_runs(read_runs([tmp_path]), model)

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
    assert [table.settings for table in tables] == [{option: value} for value in values]
    assert all(f"{option} {table.settings[option]}" in table.title for table in tables)


def test_missing_seeds_show(written, compared):
    for seed in (0, 1):
        written("deep-all", seed=seed)
        written("deep-all", "photo", seed=seed)
        written("agr-sum", "photo", seed=seed)
    written("agr-sum", seed=1)
    (table,) = compared()
    assert table.cells["deep-all", "sketch"].complete
    assert not table.cells["agr-sum", "sketch"].complete
    assert (table.averages["agr-sum"].runs, table.averages["agr-sum"].complete) == (1, False)


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
        ({"configuration__new_option": 3}, {"new_option": 3}),
    ],
)
def test_runs_that_do_not_compare_have_tables_of_their_own(written, compared, change, setting):
    written("deep-all")
    written("agr-sum", **change)
    first, second = compared()
    assert {first.methods, second.methods} == {("deep-all",), ("agr-sum",)}
    other = next(table for table in (first, second) if table.methods == ("agr-sum",))
    assert other.settings == setting
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
    assert table.settings == {}
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
    assert all(table.settings == {} for table in compared())


def test_a_run_that_is_there_twice_is_refused(written, compared):
    written()
    written(folder="copy")
    with pytest.raises(DataError, match=r"agr-sum on sketch with seed 0 is there 2 times.*copy"):
        compared()
