import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsurgery.errors import DataError
from gradsurgery.results import PlannedRun, find_plans, read_failures, read_plan

RUN = {"directory": "pacs/sketch/irm/seed-0-1a2b3c4d", "data": "pacs", "target": "sketch"}
RUN |= {"method": "irm", "seed": 0}


def write_plan(folder, *runs, **changes):
    content = {"version": 1, "plan": {"data": ["pacs"]}, "runs": list(runs)} | changes
    (folder / "plan.json").write_text(json.dumps(content))


def test_planned_runs_in_their_order(tmp_path):
    write_plan(tmp_path, RUN | {"seed": 1}, RUN, RUN | {"without": ["photo"]})
    expected = [("sketch", 1, ()), ("sketch", 0, ()), ("sketch", 0, ("photo",))]
    planned = read_plan(tmp_path)
    assert [(run.target, run.seed, run.without) for run in planned] == expected
    assert planned[0] == PlannedRun(
        tmp_path / "pacs/sketch/irm/seed-0-1a2b3c4d", "pacs", "sketch", "irm", 1
    )


def test_the_plans_of_folders_and_no_plan(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    assert find_plans([one, two]) is None
    write_plan(one, RUN)
    assert find_plans([one, two, one / ".." / "one"]) == read_plan(one)
    write_plan(two, RUN)
    assert find_plans([one, two]) == read_plan(one) + read_plan(two)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "is a plan of a sweep of version 2, expected 1"),
        ({"version": None}, "is no plan of a sweep: it has no version"),
        ({"runs": []}, "has no list of runs"),
        ({"runs": None}, "has no list of runs"),
        ({"runs": [RUN, 3]}, "run 2 has the directory None, expected str"),
        ({"runs": [RUN | {"seed": "0"}]}, "run 1 has the seed '0', expected int"),
        ({"runs": [RUN | {"seed": True}]}, "run 1 has the seed True, expected int"),
        ({"runs": [RUN | {"without": "photo"}]}, "run 1 leaves out 'photo', expected names"),
        ({"runs": [RUN | {"directory": "../x"}]}, "expected one within the folder"),
        ({"runs": [RUN | {"directory": "/x"}]}, "expected one within the folder"),
    ],
)
def test_what_is_no_plan_is_said_in_a_line(tmp_path, changes, words):
    write_plan(tmp_path, **changes)
    with pytest.raises(DataError) as raised:
        read_plan(tmp_path)
    assert words in str(raised.value)
    assert str(tmp_path / "plan.json") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_truncation_of_a_plan_is_refused(tmp_path):
    write_plan(tmp_path, RUN)
    path = tmp_path / "plan.json"
    text = path.read_text()
    for length in range(0, len(text), 23):
        path.write_text(text[:length])
        with pytest.raises(DataError, match=r"plan\.json is not JSON"):
            read_plan(tmp_path)


@given(content=st.binary(max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_bytes_give_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.json").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_plan(folder)
    assert "\n" not in str(raised.value)


def test_no_plan(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*plan\.json"):
        read_plan(tmp_path)


FAILURE = {"version": 1, "configuration": {"seed": 0}, "attempts": 2}
FAILURE |= {"error": "NonFiniteError: the loss is nan", "traceback": "Traceback …"}


def test_failures_but_not_those_that_succeeded_later(tmp_path):
    for name in ("b", "a", "later"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "failure.json").write_text(json.dumps(FAILURE))
    (tmp_path / "later" / "record.json").write_text("{}")
    found = read_failures([tmp_path, tmp_path / "a"])
    assert [failure.path.parent.name for failure in found] == ["a", "b"]
    assert (found[0].attempts, found[0].error) == (2, FAILURE["error"])
    assert read_failures([tmp_path / "later"]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 7}, "version 7, expected 1"),
        ({"attempts": "2"}, "attempts is '2', expected int"),
        ({"traceback": None}, "traceback is None, expected str"),
    ],
)
def test_a_file_that_is_no_failure(tmp_path, changes, words):
    (tmp_path / "failure.json").write_text(json.dumps(FAILURE | changes))
    with pytest.raises(DataError, match=words):
        read_failures([tmp_path])
