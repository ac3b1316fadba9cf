import json
import subprocess
import sys

import pytest

from gradsurgery.algorithms.names import METHODS, OTHER_METHODS, method_parts
from gradsurgery.algorithms.objectives import OBJECTIVES
from gradsurgery.documents.configuration import options_of
from gradsurgery.documents.plan import usual_name
from gradsurgery.documents.record import Record
from gradsurgery.errors import DataError
from gradsurgery.results import compare_runs, select, take_inventory
from gradsurgery.results.runs import curves_frame, find_records, record_files
from gradsurgery.rules import RULES
from tests.results.records import write_failure, write_plan


def test_folders_are_searched_and_each_file_is_there_once(written, tmp_path):
    one, two = written(seed=0), written(seed=1)
    found = find_records([tmp_path, one, tmp_path / "runs" / ".." / "runs"])
    assert found == [one, two]


def test_paths_without_records(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_records([tmp_path / "nowhere"])
    (tmp_path / "configuration.json").write_text("{}")
    with pytest.raises(DataError, match=r"no record\.json under .*no run there is finished"):
        find_records([tmp_path])


def test_planned_runs_in_their_order_and_what_is_missing(written, tmp_path):
    path = written(folder="one", seed=1)
    assert take_inventory([tmp_path]).planned == {}
    place = path.parent.relative_to(tmp_path).as_posix()
    runs = [{"directory": place, "seed": 1}, {"directory": "b", "without": ["photo"]}]
    write_plan(tmp_path, [*runs, {"directory": "c"}])
    write_failure(tmp_path / "c", "the loss is nan")
    found = take_inventory([tmp_path, tmp_path / "one" / ".."])
    assert list(found.planned) == [tmp_path / name for name in (place, "b", "c")]
    assert [run.without for run in found.planned.values()] == [[], ["photo"], []]
    assert list(found.missing) == [tmp_path / "b"]
    assert found.failures[tmp_path / "c"].error == "the loss is nan"
    assert not found.searched
    write_plan(tmp_path, runs, grid={"learning_rate": [0.1, 0.2]})
    assert take_inventory([tmp_path]).searched


def test_the_plans_of_sweeps_in_a_folder_are_read(written, tmp_path):
    for sweep in ("one", "two"):
        place = written(folder=f"all/{sweep}").parent.relative_to(tmp_path / "all" / sweep)
        runs = [{"directory": place.as_posix()}, {"directory": f"of-{sweep}", "seed": 1}]
        write_plan(tmp_path / "all" / sweep, runs)
    (tmp_path / "all" / "one").rename(tmp_path / "all" / "deep")
    found = take_inventory([tmp_path / "all"])
    assert [len(plan) for plan in found.plans] == [2, 2]
    lacking = [tmp_path / "all" / "deep" / "of-one", tmp_path / "all" / "two" / "of-two"]
    assert list(found.missing) == lacking
    (tmp_path / "all" / "mine").mkdir()
    (tmp_path / "all" / "mine" / "plan.json").write_text('{"data": "pacs"}')  # for --plan
    assert list(take_inventory([tmp_path / "all"]).missing) == lacking
    (tmp_path / "all" / "two" / "plan.json").write_text('{"version": 1}')
    with pytest.raises(DataError, match=r"two/plan\.json is no plan of a sweep"):
        take_inventory([tmp_path / "all"])


def test_a_failure_beside_a_record_was_mended_later(written, tmp_path):
    write_failure(written().parent, "the loss is nan")
    assert take_inventory([tmp_path]).failures == {}


@pytest.mark.parametrize("name", ["plan.json", "failure.json", "record.json"])
def test_a_file_that_is_cut_off_is_named(name, written, tmp_path):
    path = written()
    place = path.parent if name == "record.json" else tmp_path
    (place / name).write_text('{"version": 1, "pl')
    with pytest.raises(DataError, match=rf"{name} is not JSON") as raised:
        take_inventory([tmp_path])
    assert "\n" not in str(raised.value)


def test_the_runs_that_a_study_trained_are_not_compared(written, tmp_path):
    apart = written(folder="runs/similarity")
    (tmp_path / "runs" / "similarity" / "similarity.json").write_text("{}")
    own = written(folder="runs/sweep")
    own.with_name("diagnosis.json").write_text("{}")  # of this run, which is the sweep's
    assert record_files([tmp_path / "runs"]) == [own]
    assert record_files([tmp_path / "runs" / "similarity"]) == [apart]
    (tmp_path / "runs" / "sweep" / "diagnosis.json").write_text("{}")
    (tmp_path / "runs" / "sweep" / "plan.json").write_text("{}")
    assert record_files([tmp_path / "runs"]) == [own]


def test_a_folder_of_studies_stands_beside_one_of_runs(written, tmp_path):
    path = written(folder="runs")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "diagnosis.json").write_text("{}")
    assert record_files([tmp_path / "runs", tmp_path / "study"]) == [path]
    with pytest.raises(DataError, match=r"no record\.json under .*study"):
        record_files([tmp_path / "study"])


@pytest.mark.parametrize("name", ["v1.0", "1.5T", "a,b", 'Käse, "x"=y', "a/b", "__", "method"])
def test_any_name_of_a_domain(name, record, tmp_path):
    """A name is never joined into a path or a key and split again."""
    domains = [name, "photo"]
    record["configuration"]["target"] = name
    record["data"] |= {"domains": domains, "images": dict.fromkeys(domains, 20)}
    for result in record["result"].values():
        result["test_accuracy"] = {name: 0.5, "photo": 0.75}
    (tmp_path / "record.json").write_text(json.dumps(record))
    (row,) = take_inventory([tmp_path]).runs.to_dict("records")
    assert (row["target"], row["domains"]) == (name, tuple(domains))
    assert row["best_test_accuracy"] == {name: 0.5, "photo": 0.75}


def runs_in(*paths):
    return take_inventory(paths).runs


def test_one_row_a_run(written, tmp_path):
    written("deep-all", "photo", 1, 0.75, 0.5)
    path = written("agr-sum", "sketch", 0, 0.625, 0.125)
    runs = runs_in(tmp_path)
    assert len(runs) == 2
    row = runs[runs["method"] == "agr-sum"].iloc[0]
    assert row["record"] == str(path)
    assert (row["data"], row["target"], row["seed"]) == ("pacs", "sketch", 0)
    assert (row["best_step"], row["last_step"]) == (20, 40)
    assert (row["best_target_accuracy"], row["last_target_accuracy"]) == (0.625, 0.125)
    assert row["best_validation_accuracy"] == 0.75
    assert row["domains"] == ("art_painting", "photo", "sketch")


def test_what_is_compared_follows_the_roles_of_the_options(written, tmp_path):
    written(
        "irm",
        configuration__settings={"irm.penalty": 10.0},
        configuration__without=["photo"],
        configuration__batches="single",
        configuration__threads=2,
    )
    (row,) = runs_in(tmp_path).to_dict("records")
    assert (row["without"], row["method"]) == (("photo",), "irm (irm.penalty=10)")
    hyperparameters = json.loads(row["hyperparameters"])
    assert hyperparameters["irm.penalty"] == 10
    assert (hyperparameters["iterations"], hyperparameters["optimizer"]) == (40, "adam")
    conditions = json.loads(row["conditions"])
    assert conditions == {
        "backbone": "alexnet",
        "weights": "default",
        "batches": "single",
        "split_seed": 0,
        "split_per_run": False,
        "layout": "",
        "columns": {},
        "classes": "same",
        "drop_duplicates": False,
        "split": "70/10/20",
        "test_on": "test",
        "validation_mean": "images",
        "data_digest": "d1",
        "split_digest": "s1",
    }
    without_settings = {k: v for k, v in hyperparameters.items() if k != "irm.penalty"}
    assert json.loads(row["protocol"]) == conditions | without_settings
    assert not {"data", "device", "threads", "seed", "settings"} & {*conditions, *hyperparameters}


def test_a_method_under_two_names_is_one(written, tmp_path):
    for seed, names in enumerate((("deep-all", "agr-sum"), ("erm", "erm+agr-sum"))):
        for method, best in zip(names, (0.5, 0.75), strict=True):
            path = written(method, seed=seed, best=best)
    written("erm+mean", seed=0, best=0.5)  # the same run again, for its results are the same
    there = {"directory": str(path.parent.relative_to(tmp_path)), "seed": 1}
    write_plan(tmp_path, [there, {"directory": "later", "method": "erm", "seed": 2}])
    inventory = take_inventory([tmp_path])
    assert set(inventory.runs["method"]) == {"deep-all", "agr-sum"}
    (table,) = compare_runs(inventory.runs, baseline="erm+agr-sum", plans=inventory.plans)
    assert (table.methods, table.seeds) == (("agr-sum", "deep-all"), (0, 1, 2))
    assert {cell.values for cell in table.cells.values()} == {(50.0, 50.0), (75.0, 75.0)}
    written("mean", seed=0, best=0.25)
    twice = (
        r"deep-all on sketch with seed 0 is there twice, with other .*target 25.00 %, validation"
    )
    with pytest.raises(DataError, match=twice):
        _ = take_inventory([tmp_path]).runs


def test_a_method_has_one_usual_name():
    """Whatever it is called by: the same objective and rule."""
    singles = [*METHODS, *OTHER_METHODS, *OBJECTIVES, *RULES, "mldg", "torchjd:UPGrad", "a:B"]
    pairs = [f"{o}+{r}" for o in (*OBJECTIVES, "mldg", "a:B") for r in (*RULES, "torchjd:UPGrad")]
    usual: dict = {}
    for name in [*singles, *pairs, "erm+a:B"]:
        parts = method_parts(name) or name
        assert (method_parts(usual_name(name)) or name) == parts
        usual.setdefault(parts, set()).add(usual_name(name))
    several = {parts: names for parts, names in usual.items() if len(names) > 1}
    assert several == {("erm", "a:B"): {"a:B", "erm+a:B"}}  # which may be an objective
    assert set(METHODS) <= {name for names in usual.values() for name in names}


@pytest.mark.parametrize(
    ("changes", "results"),
    [
        ({}, "the same results"),
        ({"configuration__threads": 2}, "the same results"),
        ({"best": 0.125}, "other results"),
    ],
)
def test_a_run_that_is_there_twice_is_refused(changes, results, written, tmp_path):
    written(configuration__without=["photo"])
    written(folder="copy", configuration__without=["photo"], **changes)
    found = f"agr-sum on sketch without photo with seed 0 is there twice, with {results}: "
    with pytest.raises(DataError, match=rf"{found}.*copy.* and .*runs"):
        runs_in(tmp_path)


def test_code_that_was_changed_between_runs_is_told_under_the_table(written, tmp_path):
    def made_with(seed, *digests):
        path = written(seed=seed)
        content = json.loads(path.read_text())
        about = {"object": "mine:Rule", "package": "mine", "version": None}
        content["objects"] = [about | ({"sha256": each} if each else {}) for each in digests]
        path.write_text(json.dumps(content))

    def notes():
        (table,) = compare_runs(runs_in(tmp_path))
        return [note for note in table.notes if "mine:Rule was changed" in note]

    made_with(0, "a" * 64)
    made_with(1, "a" * 64)
    made_with(2, None)  # a record of before has none
    assert notes() == []
    made_with(3, "b" * 64)
    assert len(notes()) == 1


@pytest.mark.parametrize("name", options_of("incidental"))
def test_runs_that_differ_in_what_is_recorded_alone_are_one(name, written, tmp_path):
    for seed in (0, 1):
        for method, best in (("deep-all", 0.5), ("agr-sum", 0.75)):
            written(method, seed=seed, best=best)
            written(method, seed=seed, best=best, folder="z", **{f"configuration__{name}": 1})
    inventory = take_inventory([tmp_path])
    assert len(inventory.records) == 8
    assert not any("/z/" in record for record in inventory.runs["record"])
    (table,) = compare_runs(inventory.runs)
    assert {cell.runs for cell in table.cells.values()} == {2}
    (choice, _) = select(inventory.runs, "training-domain").choices
    assert (choice.seeds, len(choice.candidates)) == ([0, 1], 1)
    written("agr-sum", seed=0, best=0.7, folder="other", **{f"configuration__{name}": 1})
    with pytest.raises(DataError, match="is there twice"):  # for it came to something else
        runs_in(tmp_path)


def test_the_oracles_accuracy(record, tmp_path):
    record["result"]["last"]["target_validation_accuracy"] = 0.25
    (tmp_path / "record.json").write_text(json.dumps(record))
    (row,) = runs_in(tmp_path).to_dict("records")
    assert row["last_target_validation_accuracy"] == 0.25


@pytest.mark.parametrize(
    ("classes", "accuracy", "guessing"),
    [(2, 0.54, True), (2, 0.56, False), (10, 0.18, True), (10, 0.2, False)],
)
def test_a_model_guesses_within_a_tenth_of_the_way_from_chance(
    classes, accuracy, guessing, written, tmp_path
):
    # chance is 1 / classes: 0.5 + 0.1 · 0.5 = 0.55 and 0.1 + 0.1 · 0.9 = 0.19
    written(validation=accuracy, data__classes=[f"class {i}" for i in range(classes)])
    (row,) = runs_in(tmp_path).to_dict("records")
    assert (row["best_guessing"], row["last_guessing"]) == (guessing, guessing)


@pytest.mark.parametrize(("accuracy", "guessing"), [(0.81, True), (0.83, False)])
def test_a_model_that_names_the_largest_class_alone_guesses(accuracy, guessing, written, tmp_path):
    # Of the sources' 20 images each, 18 and 14 are dogs: 0.8 + 0.1 · 0.2 = 0.82; the target's are
    # cats.
    counts = {"art_painting": [18, 2], "photo": [14, 6], "sketch": [0, 20]}
    written(validation=accuracy, data__class_images=counts)
    (row,) = runs_in(tmp_path).to_dict("records")
    assert row["best_guessing"] is guessing


def test_curves_are_a_row_a_validation_and_absent_values_are_nan(record, tmp_path):
    record["curves"]["cosine"] = []
    record["curves"]["validation_loss"] = [None, 1.0]
    (tmp_path / "record.json").write_text(json.dumps(record))
    inventory = take_inventory([tmp_path])
    curves = curves_frame(inventory.runs.assign(method="mine"), inventory.records)
    assert list(curves["step"]) == [20, 40]
    assert list(curves.iloc[1][["method", "target", "seed"]]) == ["mine", "sketch", 0]
    assert set(curves["data"]) == {"pacs"}
    assert set(curves["record"]) == set(inventory.runs["record"])  # to merge with the runs
    assert list(curves.iloc[1][["train_loss", "validation_loss"]]) == [1.0, 1.0]
    assert curves["cosine"].isna().all()
    assert list(curves["validation_loss"].isna()) == [True, False]


def test_what_training_writes_is_read(record, tmp_path):
    Record.model_validate(record).save(tmp_path)
    (row,) = runs_in(tmp_path).to_dict("records")
    assert (row["method"], row["best_target_accuracy"]) == ("agr-sum", 0.5)


def test_reading_needs_no_training():
    code = (
        "import sys, rich.console;"
        "heavy = {'torch', 'pandas', 'rich.table', 'gradsurgery.training'};"
        "heavy -= set(sys.modules);"  # rich's console had tables
        "import gradsurgery.report, gradsurgery.results, gradsurgery.cli.finished_runs;"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
