"""Which candidate is chosen, against figures that are worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradsurgery.documents.deployment import Deployment, DeploymentCandidate
from gradsurgery.documents.record import Record
from gradsurgery.documents.tally import Tally
from gradsurgery.errors import DataError
from gradsurgery.results import take_inventory
from gradsurgery.results.deployment import (
    candidates_of,
    choose,
    classes_unseen,
    known_domains,
    unseen_groups,
    unseen_low,
    without_looking,
)
from tests.results.records import of_target

DOMAINS = ["a", "b", "c"]


def candidate(method: str, unseen: list[float], validation: float, **about: Any) -> Any:
    """With one seed."""
    return DeploymentCandidate(
        method=method,
        options={},
        unseen={domain: [value] for domain, value in zip(DOMAINS, unseen, strict=True)},
        validation={domain: [validation] for domain in DOMAINS},
        **about,
    )


# Means over the domains: 0.5, 0.6, 0.9; the last one lacks a run. On c, `first` is far better.
FIRST = candidate("first", [0.4, 0.2, 0.9], 0.8)
SECOND = candidate("second", [0.7, 0.6, 0.5], 0.7)
LACKING = candidate("third", [0.9, 0.9, 0.9], 0.9, lacks="a seed 1")
TRIED = [FIRST, SECOND, LACKING]


def test_the_candidate_with_the_highest_mean_over_the_domains_left_out_is_chosen() -> None:
    assert SECOND.score("leave-one-domain-out", DOMAINS) == pytest.approx(0.6)
    assert choose(TRIED, "leave-one-domain-out", DOMAINS) == 1
    assert choose(TRIED, "training-domain", DOMAINS) == 0
    assert choose([LACKING], "training-domain", DOMAINS) is None
    assert choose([SECOND, SECOND], "leave-one-domain-out", DOMAINS) == 0


def test_a_choice_that_does_not_look_at_a_domain_is_made_by_the_others() -> None:
    """Without a: first has (0.2 + 0.9) / 2 = 0.55, second 0.55 too, and the first of equal ones is
    taken, with 0.4 on a. Without b: 0.65 and 0.6, so first's 0.2. Without c: 0.3 and 0.65, so
    second's 0.5."""
    found = without_looking(TRIED, "leave-one-domain-out", DOMAINS)
    assert found == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.5})


Written = Callable[..., Path]


def test_runs_are_grouped_by_method_and_settings(tmp_path: Path, written: Written) -> None:
    for target in ("art_painting", "photo", "sketch"):
        for method, seeds in (("agr-sum", (0, 1)), ("deep-all", (0,))):
            for seed in seeds:
                written(method, target, seed, best=0.25 * seed)
    tried = candidates_of(take_inventory([tmp_path]))
    by_method = {each.candidate.method: each.candidate for each in tried}
    assert set(by_method) == {"agr-sum", "deep-all"}
    assert not by_method["agr-sum"].lacks
    assert by_method["deep-all"].lacks == ("art_painting seed 1, photo seed 1, sketch seed 1")
    assert by_method["agr-sum"].options == {"iterations": 40}
    assert set(map(tuple, by_method["agr-sum"].unseen.values())) == {(0.0, 0.25)}


def test_answers_of_domains_left_out_are_counted_by_class(record: dict[str, Any]) -> None:
    records = [Record.model_validate(record)]
    assert classes_unseen(records) == []  # an old one, which does not count
    records = []
    for target, rows in (("photo", ["0:3 1:1", "0:2"]), ("sketch", ["0:1", "1:4"])):
        tests = {"art_painting": Tally(confusion=["1:9", "0:9"]), target: Tally(confusion=rows)}
        records.append(of_target(record, target, tests))
    found = [
        (each.name, each.images, each.recognised, each.predicted)
        for each in classes_unseen(records)
    ]
    # dog: 4 + 1 images, 3 + 1 recognised, predicted 3 + 2 + 1 times; cat: 2 + 4, 0 + 4, 1 + 4
    assert found == [("dog", 5, 4, 6), ("cat", 6, 4, 5)]


def test_what_is_tested_in_groups_is_counted_in_groups(record: dict[str, Any]) -> None:
    target = record["data"]["domains"][0]
    classes = len(record["data"]["classes"])
    rows, groups = ["0:8 1:4", *[""] * (classes - 1)], ["0>0@9:3 0>1@9:2", "0>1@9:2", "0>0@9:5"]
    tally = Tally.model_validate({"confusion": rows, "groups": groups})
    records = [of_target(record, target, {target: tally})]
    assert unseen_groups(records) == {target: 3}
    right, images = np.array([3, 0, 5]), np.array([5, 2, 5])
    p, without = 8 / 12, (8 - right) / (12 - images)
    variance = 2 / 3 * ((without - p) ** 2).sum()
    effective = min(p * (1 - p) / variance, 12)
    k = stats.t.ppf(0.975, 144 / 54 - 1) ** 2 / effective
    low = min(np.roots([1 + k, -2 * p - k, p * p]).real)
    assert unseen_low(records) == pytest.approx(low)
    records = [of_target(record, target, {target: Tally(confusion=rows)})]
    assert (unseen_groups(records), unseen_low(records)) == ({}, None)


def test_domains_that_the_weights_knew_are_found(record: dict[str, Any]) -> None:
    for known, found in ([], []), (["sketch"], []), (["photo", "sketch"], ["photo"]):
        record["model"]["weights_domains"] = known
        assert known_domains([of_target(record, "photo")]) == found


def test_runs_on_all_domains_are_not_compared(tmp_path: Path, written: Written) -> None:
    path = written(target="none", best=None, last=None)
    assert Record.load(path).result.best.target_accuracy is None
    with pytest.raises(DataError, match="hold out no domain"):
        take_inventory([tmp_path])
    other = written(target="sketch")
    assert list(take_inventory([tmp_path]).records) == [other]


def test_the_account_of_a_deployment_is_read_again(tmp_path: Path) -> None:
    deployment = Deployment(
        data="d",
        data_digest="0",
        domains=DOMAINS,
        classes=["x"],
        criterion="leave-one-domain-out",
        seeds=[0],
        candidates=TRIED,
        chosen=1,
        without_it={"a": 0.5},
        directory="d/none",
    )
    deployment.save(tmp_path)
    assert Deployment.load(tmp_path) == deployment
    damaged = deployment.model_copy(update={"chosen": 3})
    damaged.save(tmp_path)
    with pytest.raises(DataError, match="chosen is 3, and there are 3"):
        Deployment.load(tmp_path)
