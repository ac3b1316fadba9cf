"""The card of a deployed model, as the Hub reads it and as a person does."""

import math
import statistics
from typing import Any

import pytest
from huggingface_hub import ModelCard
from scipy import stats

from gradsurgery.documents.deployment import (
    ClassRecall,
    CopiedTests,
    Deployment,
    DeploymentCandidate,
)
from gradsurgery.documents.record import Record, SkippedFile
from gradsurgery.report.model_card import model_card

DOMAINS = ["art_painting", "photo", "sketch"]
UNSEEN = {"art_painting": [0.5, 0.7], "photo": [0.9, 0.9], "sketch": [0.4, 0.2]}


def deployment(**changes: Any) -> Deployment:
    chosen = DeploymentCandidate(
        method="agr-sum",
        options={"learning_rate": 1e-4},
        unseen=UNSEEN,
        validation={domain: [0.8, 0.8] for domain in DOMAINS},
    )
    other = chosen.model_copy(update={"method": "deep-all", "lacks": "photo seed 1"})
    usual: dict[str, Any] = {
        "data": "pacs",
        "data_digest": "0123456789abcdef",
        "domains": DOMAINS,
        "classes": ["dog", "cat"],
        "criterion": "leave-one-domain-out",
        "seeds": [0, 1],
        "candidates": [chosen, other],
        "chosen": 0,
        "without_it": {"art_painting": 0.6, "photo": 0.8, "sketch": 0.3},
        "classes_unseen": [
            ClassRecall(name="dog", images=8, recognised=6, predicted=10),
            ClassRecall(name="cat", images=4, recognised=0, predicted=0),
        ],
        "directory": "pacs/none/agr-sum/seed-0",
    }
    return Deployment(**usual | changes)


@pytest.fixture
def everything(record: dict[str, Any]) -> Record:
    """The record of a run on all domains."""
    record["configuration"]["target"] = "none"
    sizes = {"train": 14, "validation": 2, "test": 4}
    record["split"]["sizes"] = dict.fromkeys(DOMAINS, sizes)
    for model in record["result"].values():
        model["target_accuracy"] = None
    return Record.model_validate(record)


def test_the_hub_reads_its_metadata(everything: Record) -> None:
    data = ModelCard(model_card(deployment(), everything, None)).data
    assert data.library_name == "gradsurgery"
    assert data.pipeline_tag == "image-classification"
    (result,) = data.eval_results
    assert (result.metric_type, result.dataset_name) == ("accuracy", "pacs")
    assert result.metric_value == pytest.approx(0.6)  # (0.6 + 0.9 + 0.3) / 3


def test_it_says_what_to_expect_with_the_interval_of_scipy(everything: Record) -> None:
    card = model_card(deployment(), everything, None)
    means = [0.6, 0.9, 0.3]
    assert "Expect 60 % of the images" in card
    assert "30 % on the worst of 3 domains left out in turn, 90 % on the best." in card
    assert "name the most frequent class is right for 67 %. ITS RUNS DO" in card  # 8 of 12
    unseen = model_card(deployment(classes_unseen=[]), everything, None)
    assert "To guess one of its classes is right for 50 %." in unseen
    low, high = stats.t.interval(
        0.95, 2, loc=0.6, scale=statistics.stdev(means) * math.sqrt(1 + 1 / 3)
    )
    assert low < 0
    assert high > 1  # three domains say next to nothing: from 0 to 1
    assert "lies between 0 % and 100 %" in card
    (row,) = [line for line in card.splitlines() if line.startswith("| art_painting")][:1]
    assert "60.0 ± 14.1" in row  # 50 and 70
    assert "| mean" in card
    assert "56.7" in card  # of what is chosen without looking


def test_it_says_how_many_images_each_accuracy_rests_on(everything: Record) -> None:
    card = model_card(deployment(tested={"photo": 1000, "sketch": 8}), everything, None)
    rows = [[cell.strip() for cell in line.split("|")] for line in card.splitlines()]
    counted = {row[1]: row[2] for row in rows if len(row) == 6}
    assert (counted["photo"], counted["sketch"], counted["art_painting"]) == ("1,000", "8", "–")
    assert "so it is for sketch." in card
    assert "so it is for" not in model_card(deployment(), everything, None)


def test_it_says_whether_the_model_has_learned_anything(everything: Record) -> None:
    warning = "ITS RUNS DO NO BETTER THAN THAT, as far as their test images can tell."
    for recognised, warned in ((60, True), (160, False)):  # 30 and 80 of 100 images, of two seeds
        classes = [
            ClassRecall(name="dog", images=100, recognised=recognised, predicted=100),
            ClassRecall(name="cat", images=100, recognised=0, predicted=100),
        ]
        card = model_card(deployment(classes_unseen=classes), everything, None)
        assert "is right for 50 %." in card
        assert (warning in card) == warned


def test_without_test_images_of_known_domains_it_says_so(everything: Record) -> None:
    """As with the split 80/20/0 of DomainBed."""
    assert "| domain " in model_card(deployment(), everything, None)
    everything.result.best.test_accuracy = {}
    card = model_card(deployment(), everything, None)
    assert "No images of the domains that it knows were kept for tests." in card
    assert "| domain " not in card


def test_equal_accuracies_give_no_interval(everything: Record) -> None:
    chosen = DeploymentCandidate(
        method="agr-sum",
        options={},
        unseen={domain: [0.5, 0.7] for domain in DOMAINS},
        validation={domain: [0.8, 0.8] for domain in DOMAINS},
    )
    card = model_card(deployment(candidates=[chosen]), everything, None)
    assert "with a probability of" not in card  # s = 0: t s √(1 + 1/3) is no certainty
    assert "The 3 domains left out have one and the same accuracy" in card


def test_it_names_weak_classes_and_those_that_are_never_predicted(everything: Record) -> None:
    card = model_card(deployment(), everything, None)
    assert card.index("| cat") < card.index("| dog")
    assert "75.0" in card
    assert "Never predicted of such an image: cat." in card


def test_it_says_which_accuracies_rest_on_images_trained_on(everything: Record) -> None:
    few = CopiedTests(domain="photo", images=10, identical=2, alike=1)
    most = CopiedTests(domain="sketch", images=1, identical=1)
    assert "ATTENTION" not in model_card(deployment(), everything, None)
    card = model_card(deployment(copied=[few, most]), everything, None)
    first, second = [line for line in card.splitlines() if "ATTENTION" in line]
    assert "of the 10 test images of photo, 2 are identical to and 1 is like images" in first
    assert "is too high" in first
    alike = model_card(
        deployment(copied=[CopiedTests(domain="photo", images=10, identical=0, alike=1)]),
        everything,
        None,
    )
    assert "the accuracy on it may be too high" in alike
    assert "of the 1 test image of sketch, 1 is identical to images" in second
    assert "SAYS NOTHING" in second


def test_it_names_the_classes_left_out(everything: Record) -> None:
    assert "left out, for" not in model_card(deployment(), everything, None)
    everything.data.left_out = [SkippedFile(identity="class cow", reason="1 image, none in photo")]
    card = model_card(deployment(), everything, None)
    assert "Classes left out, for not every domain has them: cow (1 image, none in photo)." in card


def test_names_of_users_mean_nothing_in_it(everything: Record) -> None:
    name = "a|b <script> **x**\n# y"
    recalls = [ClassRecall(name=name, images=1, recognised=0, predicted=0)]
    card = model_card(deployment(data=name, classes_unseen=recalls), everything, None)
    text = ModelCard(card).text
    assert "<script>" not in text.replace("\\<", "")
    assert not [line for line in text.splitlines() if line.startswith("# y")]
    assert ModelCard(card).data.eval_results[0].metric_value == pytest.approx(0.6)


def test_a_candidate_that_lacks_runs_is_listed_as_such(everything: Record) -> None:
    card = model_card(deployment(), everything, None)
    assert "lacks photo seed 1" in card
    alone = deployment(candidates=deployment().candidates[:1])
    assert "What it was chosen among" not in model_card(alone, everything, None)


def test_tests_in_groups_are_counted_in_groups(everything):
    few = {"art_painting": 300, "photo": 400, "sketch": 500}
    groups = {"art_painting": 45, "photo": 12, "sketch": 60}
    card = model_card(deployment(tested=few, tested_groups=groups), everything, None)
    assert "| 400 of 12 groups |" in card
    assert "fewer than 30 groups of images says little" in card
    assert "so it is for photo." in card
    # the most frequent class is right for 8 of 12
    poor = "ITS RUNS DO NO BETTER THAN THAT"
    assert poor in model_card(deployment(unseen_low=0.6), everything, None)
    assert poor not in model_card(deployment(unseen_low=0.7), everything, None)


def test_weights_that_knew_a_domain_left_out_are_told_of_first(everything):
    card = model_card(deployment(known=["photo"]), everything, None)
    said = "ATTENTION: runs with photo of pacs held out began with weights that had been trained on"
    assert said in card
    assert card.index(said) < card.index("Each domain was left out")
    assert "began with weights" not in model_card(deployment(), everything, None)
