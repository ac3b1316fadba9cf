import json

import pytest

from gradsurgery.errors import DataError
from gradsurgery.results import take_inventory
from gradsurgery.results.inventory import find_records, record_files
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
    assert take_inventory([tmp_path]).planned is None
    place = path.parent.relative_to(tmp_path).as_posix()
    runs = [{"directory": place, "seed": 1}, {"directory": "b", "without": ["photo"]}]
    write_plan(tmp_path, [*runs, {"directory": "c"}])
    write_failure(tmp_path / "c", "the loss is nan")
    found = take_inventory([tmp_path, tmp_path / "one" / ".."])
    assert list(found.planned) == [tmp_path / name for name in (place, "b", "c")]
    assert [run.without for run in found.planned.values()] == [[], ["photo"], []]
    assert [run.directory for run in found.missing] == ["b"]
    assert found.failures[tmp_path / "c"].error == "the loss is nan"
    assert not found.searched
    write_plan(tmp_path, runs, grid={"learning_rate": [0.1, 0.2]})
    assert take_inventory([tmp_path]).searched


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
