import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, draw_split
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import (
    Diagnosis,
    DiagnosisOptions,
    GroupConflict,
    LoggedConflict,
    Snapshot,
)
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.gradients.conflict import Conflict, conflict_of
from gradsurgery.report.gradients_text import diagnosis_section, diagnosis_sentences
from gradsurgery.report.rendering import section_markdown
from gradsurgery.report.section import Table
from gradsurgery.studies.diagnosis import (
    diagnose_run,
    diagnose_training,
    diagnose_weights,
    logged_conflict,
)
from gradsurgery.studies.measuring import check_every_step
from gradsurgery.studies.snapshot import Seen, diagnose_step, snapshot_of
from gradsurgery.training import TrainingProgress, train
from tests.studies.image_sets import image_set

Configure = Callable[..., RunConfiguration]
SMALL = {"backbone": "small-cnn", "weights": "none", "image_size": 8}
OPTIONS = DiagnosisOptions(repeats=2, batch_size=8, every=5)


def seen(*layers: list[list[float]]) -> Seen:
    """What was seen in one batch: per layer the gradients, one row a domain."""
    groups = {f"l{i}": conflict_of(torch.tensor(rows)) for i, rows in enumerate(layers)}
    total = conflict_of(torch.cat([torch.tensor(rows) for rows in layers], 1))
    return Seen(groups, total, conflict_of(torch.ones(len(layers[0]), 2)))


def markdown_of(diagnosis: Diagnosis) -> str:
    return section_markdown(diagnosis_section(diagnosis))


def test_a_snapshot_is_the_mean_over_the_batches() -> None:
    first = seen([[1.0, 1.0], [1.0, -1.0]], [[2.0], [1.0]])
    second = seen([[1.0, 0.0], [1.0, 0.0]], [[2.0], [-1.0]])
    found = snapshot_of([first, second], ["a", "b"], 7)
    assert found.step == 7
    assert [group.name for group in found.groups] == ["l0", "l1"]
    assert found.groups[0].agreeing == pytest.approx((1 / 2 + 1 / 1) / 2)
    assert found.groups[0].moving == pytest.approx(3 / 4)
    assert found.total.agreeing == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.total.against_rest == [pytest.approx((1 / 3 + 1 / 2) / 2)] * 2
    cosine = (2 / (6 * 3) ** 0.5 + -1 / (5 * 2) ** 0.5) / 2
    assert found.total.cosines[0][1] == pytest.approx(cosine)
    # Σ g = (2, 0, 3), of which all is kept; then (2, 0, 1), of which the first
    assert found.total.kept_length == pytest.approx((1 + 2 / 5**0.5) / 2)
    assert found.shuffled_agreeing == 1


def test_the_most_conflicting_domain_has_the_lowest_cosine_with_the_rest() -> None:
    odd = seen([[1.0, 0.0], [1.0, 0.1], [-1.0, 1.0]])
    found = snapshot_of([odd, odd], ["a", "b", "c"], 0)
    assert (found.most_conflicting, found.times_most) == ("c", 2)
    rest = (1 - 0.0) / 1
    assert rest == 1
    # c · (a + b) = -2 + 0.1, |c| = √2, |a + b| = √(4 + 0.01)
    assert found.total.cosine_with_rest[2] == pytest.approx(-1.9 / (2 * 4.01) ** 0.5)


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_domains_dealt_at_random_have_no_worst_one(batches: int) -> None:
    """Of 100 draws of gradients without domains, the worst is named in about 5 or fewer."""
    generator = torch.Generator().manual_seed(batches)

    def drawn() -> Conflict:
        common = torch.randn(200, generator=generator)
        return conflict_of(common + torch.randn(4, 200, generator=generator))

    named = 0
    for _ in range(100):
        looks = [Seen({}, drawn(), drawn()) for _ in range(batches)]
        named += bool(snapshot_of(looks, ["a", "b", "c", "d"], 0).stands_out)
    assert named <= 10  # of a binomial of 100 and 0.05, in 99 % of all cases


def test_a_domain_that_goes_its_own_way_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(200, generator=generator)

    def drawn(factors: list[float]) -> Conflict:
        rows = torch.tensor(factors)[:, None] * common
        return conflict_of(rows + 0.3 * torch.randn(3, 200, generator=generator))

    for batches in (1, 4):
        looks = [Seen({}, drawn([1.0, 1.0, -0.5]), drawn([1.0] * 3)) for _ in range(batches)]
        found = snapshot_of(looks, ["a", "b", "c"], 0)
        assert (found.most_conflicting, found.stands_out) == ("c", True)
        assert "c conflicts most" in diagnosis_sentences(diagnosed([found]))[2]
    looks = [Seen({}, drawn([1.0] * 3), drawn([1.0] * 3)) for _ in range(4)]
    found = snapshot_of(looks, ["a", "b", "c"], 0)
    assert found.stands_out is False
    text = diagnosis_sentences(diagnosed([found, found]))
    assert text[2].startswith("No domain conflicts more with the rest than another, beyond chance")
    assert markdown_of(diagnosed([found, found])).count("| –") == 2  # no name in the table
    older = found.model_copy(update={"stands_out": None, "times_most": 2})
    assert "conflicts most" in diagnosis_sentences(diagnosed([older]))[2]


def test_a_domain_without_a_gradient_is_not_the_most_conflicting() -> None:
    found = snapshot_of([seen([[0.0], [1.0], [2.0]])], ["a", "b", "c"], 0)
    assert found.most_conflicting != "a"
    assert found.total.cosine_with_rest[0] is None


def linear_backbone(side: int) -> Backbone:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 2), nn.Dropout(0.5))
    return Backbone("linear", model.train(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False, None)


def test_a_look_is_at_the_domains_mean_gradients_in_evaluation_mode() -> None:
    images = image_set([0] * 20 + [1] * 20, [0, 1] * 20)
    split = draw_split(images)
    backbone = linear_backbone(4)
    options = DiagnosisOptions(repeats=1, batch_size=14)
    found = diagnose_step(backbone, images, split, ["d0", "d1"], options)
    again = diagnose_step(backbone, images, split, ["d0", "d1"], options)
    assert found == again
    assert all(module.training for module in backbone.model.modules())
    # a batch of all 14 training images of a domain: the gradient of the mean over them
    rows = []
    for domain in ("d0", "d1"):
        chosen = split.train[domain]
        assert len(chosen) == 14
        x = (torch.from_numpy(images.images[chosen]).double() / 255 - 0.5) / 0.5
        x = x.permute(0, 3, 1, 2).flatten(1)
        weight, bias = (p.detach().double() for p in backbone.model.parameters())
        target = nn.functional.one_hot(torch.from_numpy(images.label[chosen]), 2)
        residual = (torch.softmax(x @ weight.T + bias, 1) - target) / 14
        rows.append(torch.cat([(residual.T @ x).flatten(), residual.sum(0)]))
    expected = nn.functional.cosine_similarity(rows[0], rows[1], dim=0)
    assert found.total.cosines[0][1] == pytest.approx(float(expected), abs=1e-5)
    same = (rows[0].sign() == rows[1].sign()).double().mean()
    assert found.total.agreeing == pytest.approx(float(same))


def test_images_shared_by_all_domains_are_no_domain_s_doing(configured: Configure) -> None:
    """Domains that are copies of one image agree whether they are shuffled or not."""
    images = image_set([0] * 10 + [1] * 10, ([0] * 5 + [1] * 5) * 2, side=8)
    pixels = np.repeat(images.images[[0, 5]], 5, axis=0)
    copies = ImageSet(**{**vars(images), "images": np.concatenate([pixels, pixels])})
    configuration = configured(data="made", target="d0", **SMALL)
    options = DiagnosisOptions(repeats=1, batch_size=6)
    found = diagnose_weights(configuration, options, copies)
    total = found.snapshots[0].total
    assert total.agreeing is not None
    assert total.agreeing > 0.99  # the order of summation decides the sign of what is almost zero
    assert total.cosines[0][1] == pytest.approx(1, abs=1e-4)


def stop_at_7(progress: TrainingProgress) -> None:
    if progress.stage == "training" and progress.done >= 7:
        raise KeyboardInterrupt


def test_looks_on_the_way_and_a_run_interrupted_between_them(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    configuration = configured(log_conflict=4)
    whole = diagnose_training(configuration, OPTIONS, digits, tmp_path / "whole")
    assert [snapshot.step for snapshot in whole.snapshots] == [0, 5, 10, 12]
    assert whole.domains == ["0", "15", "30", "45", "60"]
    with pytest.raises(KeyboardInterrupt):
        diagnose_training(configuration, OPTIONS, digits, tmp_path / "parts", stop_at_7)
    kept = Diagnosis.load(tmp_path / "parts")
    assert kept.snapshots == whole.snapshots[:2]
    resumed = diagnose_training(configuration, OPTIONS, digits, tmp_path / "parts")
    assert resumed == whole == Diagnosis.load(tmp_path / "parts")
    assert diagnose_training(configuration, OPTIONS, digits, tmp_path / "parts") == whole
    plain = train(configuration, tmp_path / "plain", opened=digits)
    watched = Record.load(tmp_path / "whole" / "run" / "record.json")
    assert plain.model_dump(exclude={"cost"}) == watched.model_dump(exclude={"cost"})
    other = OPTIONS.model_copy(update={"repeats": 3})
    with pytest.raises(
        ArgumentError, match=r"with other options \(repeats: 2 there, 3 here\); .*\(--out\)"
    ):
        diagnose_training(configuration, other, digits, tmp_path / "parts")


def test_a_finished_run_is_diagnosed_from_its_folder(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    record = train(configured(log_conflict=6), tmp_path, opened=digits)
    found = diagnose_run(tmp_path, OPTIONS, digits, "cpu")
    assert found.snapshots[0].step == record.result.best.step
    assert found.domains == ["0", "15", "30", "45", "60"]
    assert found.logged is not None
    assert found.logged.step == [6, 12]
    assert set(found.logged.groups) == {group.name for group in found.snapshots[0].groups}
    options = OPTIONS.model_copy(update={"all_domains": True})
    assert diagnose_run(tmp_path, options, digits, "cpu").domains == list(digits.domains)
    with pytest.raises(DataError, match=r"cannot read .*record\.json"):
        diagnose_run(tmp_path / "absent", OPTIONS, digits)
    made = image_set([0] * 10 + [1] * 10, ([0] * 5 + [1] * 5) * 2, side=12)
    with pytest.raises(DataError, match="was trained on other images than made has"):
        diagnose_run(tmp_path, OPTIONS, made)


def test_domains_left_out_with_the_target_are_no_sources(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    configuration = configured(without=["15", "45"])
    train(configuration, tmp_path, opened=digits)
    assert diagnose_run(tmp_path, OPTIONS, digits, "cpu").domains == ["0", "30", "60"]
    found = diagnose_weights(configuration, OPTIONS, digits)
    assert found.domains == ["0", "30", "60", "75"]


def test_one_domain_has_nobody_to_conflict_with(configured: Configure) -> None:
    images = image_set([0] * 10 + [1] * 10, ([0] * 5 + [1] * 5) * 2, side=8)
    configuration = configured(data="made", target="d0", **SMALL)
    with pytest.raises(ArgumentError, match="leaves 1 domain beside 'd0'"):
        diagnose_weights(configuration, OPTIONS, images, target="d0")
    with pytest.raises(ArgumentError, match="has no domain 'd7'"):
        diagnose_weights(configuration, OPTIONS, images, target="d7")


def test_a_log_is_put_into_the_groups_of_layers(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    record = train(configured(iterations=2, log_conflict=1), tmp_path, opened=digits)
    log = record.conflict
    assert log is not None
    log.sizes = {"stem.0": 4, "stem.0.norm": 3, "fc": 2}
    log.moving = [{"stem.0": 1, "stem.0.norm": 3, "fc": 2}, None]
    log.layers = [{"stem.0": 1.0, "stem.0.norm": 0.2, "fc": 0.5}, None]
    log.cosines = [[[1.0, 0.5, 0.3], [0.5, 1.0, 0.1], [0.3, 0.1, 1.0]], None]
    snapshot = snapshot_of([seen([[1.0], [1.0]])], ["a", "b"], 0)
    group = snapshot.total
    snapshot.groups = [group.model_copy(update={"name": n}) for n in ("stem.0, bn", "fc")]
    found = logged_conflict(record, snapshot)
    assert found.groups == {"stem.0, bn": [pytest.approx(0.4), None], "fc": [0.5, None]}
    assert found.cosine == [pytest.approx(0.3), None]
    log.moving, log.sizes = [], {"stem.0": 1, "stem.0.norm": 1, "fc": 2}  # as logs were before
    found = logged_conflict(record, snapshot)
    assert found.groups == {"stem.0, bn": [pytest.approx(0.6), None], "fc": [0.5, None]}


def diagnosed(snapshots: list[Snapshot], **about: Any) -> Diagnosis:
    domains = ["a", "b", "c"][: len(snapshots[0].total.cosines)]
    return Diagnosis(
        **{
            "data": "made",
            "domains": domains,
            "target": None,
            "network": "a network",
            "options": OPTIONS,
            "snapshots": snapshots,
            **about,
        }
    )


def test_sentences_on_full_conflict_and_on_none() -> None:
    opposite = seen([[1.0, -2.0], [-1.0, 2.0]], [[3.0], [-3.0]])
    sentences = diagnosis_sentences(diagnosed([snapshot_of([opposite] * 2, ["a", "b"], 0)]))
    assert sentences[0] == "made, a network: mean over 2 batches of 8 images per domain."
    assert sentences[1] == (
        "The 2 domains agree in 0 % of the components; signs by chance would agree in 50 %, and "
        "the same images dealt out to the domains at random agree in 100 %, so all the "
        "disagreement is the domains' doing."
    )
    assert sentences[2] == (
        "a and b disagree in 100 % of the components; the cosine of their gradients is -1.00."
    )
    assert sentences[3:] == ["Agr-Sum leaves nothing of the update."]
    same = seen([[1.0, -2.0], [1.0, -2.0]])
    sentences = diagnosis_sentences(diagnosed([snapshot_of([same] * 2, ["a", "b"], 0)]))
    assert sentences[1:] == [
        "The 2 domains agree in every component: there is no conflict.",
        "Agr-Sum leaves 100 % of the update's components and 100 % of its length.",
    ]


def test_of_many_domains_few_components_agree_and_the_domains_are_blamed_all_the_same() -> None:
    found = snapshot_of([seen([[1.0, -2.0], [-1.0, 2.0]], [[3.0], [-3.0]])], ["a", "b"], 0)

    def said(agreeing: float) -> str:
        total = found.total.model_copy(update={"agreeing": agreeing})
        update = {"total": total, "shuffled_agreeing": 0.0045}
        return diagnosis_sentences(diagnosed([found.model_copy(update=update)]))[1]

    # 1 - 20/45
    assert said(0.002).endswith("agree in 0.4 %, of which the domains themselves cost 56 %.")
    assert said(0.0040).endswith("it is the size of the batches that shows here, not the domains.")


def test_sentences_name_the_domain_and_the_layers() -> None:
    one = seen([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [[2.0, 1.0], [2.0, 1.0], [-3.0, -1.0]])
    # Σ g = (3, 3, 1, 1), of which (3, 3, 0, 0) is kept: √18 of √20
    diagnosis = diagnosed([snapshot_of([one, one], ["a", "b", "c"], s) for s in (0, 9)])
    text = "\n".join(diagnosis_sentences(diagnosis))
    # c · (a + b) = 2 + 2 (−6 − 1) = −12; ‖c‖² = 2 + 10, ‖a + b‖² = 8 + 20
    assert (
        "c conflicts most with the rest: the cosine of its gradient with the sum of the others is "
        "-0.55, the lowest in 2 of 2 batches, and lowest in l1 (the last layer: -0.99)." in text
    )
    assert (
        "Agr-Sum leaves 50 % of the update's components and 95 % of its length." in text
    )  # √18 of √20
    assert "Over training the agreement went from 50 % at step 0 to 50 % at step 9." in text


def test_sentences_pass_over_layers_that_are_too_small_to_say_anything() -> None:
    rows = [[1.0] * 1000, [1.0] * 1000, [-1.0] * 500 + [1.0] * 500]
    agreeing = [[1.0] * 1000] * 3
    one = seen([[1.0], [1.0], [-1.0]], rows, agreeing)
    text = diagnosis_sentences(diagnosed([snapshot_of([one], ["a", "b", "c"], 0)]))[2]
    assert "and lowest in l1 (part 2 of 3: 0.00)" in text


def test_sentences_where_nothing_moves() -> None:
    still = diagnosed([snapshot_of([seen([[0.0], [0.0]])], ["a", "b"], 0)])
    assert diagnosis_sentences(still)[1].startswith("No component has a gradient")


def test_tables_as_markdown() -> None:
    one = seen([[1.0, 1.0], [1.0, -1.0]])
    logged = LoggedConflict(step=[3, 6], agreeing=[0.25, None], cosine=[None, None])
    text = re.sub(
        " +", " ", markdown_of(diagnosed([snapshot_of([one], ["a", "b"], 0)], logged=logged))
    )
    assert "| a | 1.00 | 0.00 | 0.00 | 50 % |" in text
    assert "| l0 | 2 | 50 % | 100 % | 50 % | 50 % |" in text
    assert text.endswith("| 3 | 25 % | – |\n")  # nothing is known of step 6


def test_a_run_that_may_end_early_is_not_measured_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="needs all of them, found patience 2; leave it out"):
        check_every_step(RunConfiguration(data="d", target="t", patience=2))
    check_every_step(RunConfiguration(data="d", target="t"))


def test_tables_of_hundreds_of_domains_have_no_column_for_each() -> None:
    domains = [f"camera {n}" for n in range(300)]
    total = GroupConflict(
        name="whole network",
        components=10,
        moving=1.0,
        agreeing=0.5,
        against_rest=[0.5] * 300,
        cosines=[[0.0] * 300] * 300,
        cosine_with_rest=[0.25] * 300,
        kept_length=0.5,
    )
    snapshot = Snapshot(
        step=0,
        total=total,
        groups=[],
        most_conflicting="camera 3",
        times_most=1,
        shuffled_agreeing=0.5,
        shuffled_cosine=0.1,
    )
    found = Diagnosis(
        data="made",
        domains=domains,
        target=None,
        network="a network",
        options=DiagnosisOptions(repeats=1),
        snapshots=[snapshot],
    )
    tables = [block for block in diagnosis_section(found).blocks if isinstance(block, Table)]
    assert tables[0].columns == ["domain", "all others", "components against all others"]
    assert [entry.text for entry in tables[0].rows[3]] == ["camera 3", "0.25", "50 %"]
    assert [len(row) for row in tables[1].rows] == [len(tables[1].columns)] == [4]
