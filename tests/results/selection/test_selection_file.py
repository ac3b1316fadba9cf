import json

import pandas as pd
import pytest

from gradsurgery.errors import DataError
from gradsurgery.results.selection import (
    CHOICE_HEADER,
    CRITERIA,
    EVIDENCE_HEADER,
    choice_rows,
    evidence_rows,
    read_selections,
    select,
    write_selections,
)
from tests.results.selection.conftest import run


@pytest.fixture
def selections():
    """0.1 is the source domains' choice, 0.2 the oracle's; 0.3 lacks a seed."""
    tried = {0.1: (0.75, 0.5, 0.25), 0.2: (0.5, 0.75, 0.75), 0.3: (1.0, 1.0, 1.0)}
    runs = [
        run("a", seed, accuracies=accuracies, learning_rate=rate)
        for rate, accuracies in tried.items()
        for seed in (range(1) if rate == 0.3 else range(2))
    ]
    return [select(pd.DataFrame(runs), name) for name in CRITERIA]


def test_what_is_written_is_read_back(selections, tmp_path):
    path = tmp_path / "selection.json"
    write_selections(selections, path)
    assert list(read_selections(path).values()) == selections
    content = json.loads(path.read_text())
    oracle = content["criteria"]["oracle"]
    assert (oracle["attainable"], content["version"]) == (False, 1)
    (choice,) = content["criteria"]["training-domain"]["choices"]
    assert choice["candidates"][choice["chosen"]] == {
        "hyperparameters": {"learning_rate": 0.1},
        "score": {"mean": 0.75, "std": 0.0, "n": 2},
        "lacks": "",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["selection.json"]


def test_the_criteria_side_by_side(selections):
    rows = [dict(zip(CHOICE_HEADER, row, strict=True)) for row in choice_rows(selections)]
    training, leave, oracle = rows
    assert training["chosen"] == "learning_rate 0.1 (of 3)"
    assert (training["score (%)"], training["target (%)"]) == ("75.00 ± 0.00", "50.00 ± 0.00")
    assert leave["chosen"].startswith("not available: needs runs that leave out each source")
    assert (leave["score (%)"], leave["target (%)"]) == ("–", "–")
    assert oracle["criterion"] == "oracle (not attainable)"
    # the last model's, half of the best one's 75
    assert (oracle["chosen"], oracle["target (%)"]) == ("learning_rate 0.2 (of 3)", "37.50 ± 0.00")


def test_the_evidence(selections):
    rows = evidence_rows(selections[:1])
    assert [dict(zip(EVIDENCE_HEADER, row, strict=True))["candidate"] for row in rows] == [
        "learning_rate 0.1",
        "learning_rate 0.2",
        "learning_rate 0.3",
    ]
    assert [row[-1] for row in rows] == ["chosen", "", "not eligible: lacks seed 1"]
    assert [row[-2] for row in rows] == ["2", "2", "1"]


def test_a_result_that_lacks_seeds_says_so():
    runs = [run("a", seed, without=(source,)) for seed in range(2) for source in ("b", "c")]
    (row,) = choice_rows([select(pd.DataFrame([*runs, run("a", 0)]), "leave-one-domain-out")])
    assert row[-2:] == ["50.00 ± 0.00", "50.00 (n=1 of 2)"]


def test_conditions_are_named_where_they_differ():
    runs = [run(conditions={"backbone": name}, folder=name) for name in ("alexnet", "resnet50")]
    rows = choice_rows([select(pd.DataFrame(runs), "training-domain")])
    assert [row[2] for row in rows] == ["irm, backbone alexnet", "irm, backbone resnet50"]
    assert all(row[4] == "the only candidate" for row in rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"version": 2}', "is a model selection of version 2, expected 1"),
        ('{"version": 1}', "is no model selection"),
        ('{"version": 1, "criteria": []}', "is no model selection"),
        ('{"version": 1, "criteria": {"oracle": {"choices": [{}]}}}', "is no model selection"),
        ('{"version": 1, "crit', "is not JSON"),
        ("[]", "has no version"),
    ],
)
def test_a_file_that_is_no_selection(tmp_path, content, words):
    path = tmp_path / "selection.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_selections(path)
