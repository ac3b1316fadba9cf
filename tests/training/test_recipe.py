"""Learning rate, frozen layers, early stopping, clipping: what they do to a run."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from gradsurgery.backbones import Backbone, build_backbone
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError
from gradsurgery.training import TrainingProgress, train
from gradsurgery.training.recipe import Freezing, frozen_names, has_stopped, rate_factor

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]


class StopError(Exception):
    pass


def interrupted(
    directory: Path, configuration: RunConfiguration, images: ImageSet, step: int
) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done >= step:
            raise StopError

    with pytest.raises(StopError):
        train(configuration, directory, stop, opened=images)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_learning_rate_is_that_of_torchs_schedulers(schedule: str, warmup: int) -> None:
    run = RunConfiguration(
        data="d", target="t", schedule=schedule, warmup=warmup, iterations=30, learning_rate=0.5
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    after: dict[str, Callable[[], LRScheduler]] = {
        "constant": lambda: LinearLR(optimizer, 1.0, 1.0, total_iters=1),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, total_iters=30 - warmup),
        "cosine": lambda: CosineAnnealingLR(optimizer, 30 - warmup),
    }
    scheduler: LRScheduler
    if warmup:
        rise = LinearLR(optimizer, 1 / warmup, 1.0, total_iters=max(warmup - 1, 1))
        scheduler = SequentialLR(optimizer, [rise, after[schedule]()], milestones=[warmup])
    else:
        scheduler = after[schedule]()
    for step in range(1, 31):
        expected = optimizer.param_groups[0]["lr"]
        assert 0.5 * rate_factor(run, step) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_every_step_moves_by_its_learning_rate(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    """Adam's first steps are of the size of the learning rate, here along one constant sign."""
    sizes: list[float] = []
    before: list[torch.Tensor] = []

    def observe(step: int, backbone: Backbone) -> None:
        weights = [p.detach().clone() for p in backbone.model.parameters()]
        if before:
            moved = [(a - b).abs().max().item() for a, b in zip(weights, before, strict=True)]
            sizes.append(max(moved))
        before[:] = weights

    options = {"schedule": "linear", "warmup": 2, "iterations": 4, "learning_rate": 1e-3}
    configuration = configured(method="deep-all", weight_decay=0.0, **options)
    train(configuration, tmp_path, opened=images, observe=observe)
    assert sizes[0] == pytest.approx(0.5e-3, rel=1e-3)  # Adam's first step is exactly ±rate
    assert sizes[3] < 0.6e-3 < 0.9e-3 < sizes[1] < 1.1e-3


RECIPES: list[dict[str, Any]] = [
    {"schedule": "cosine", "warmup": 3, "method": "agr-rand", "average": "ema"},
    {"schedule": "linear", "optimizer": "sgd", "clip_norm": 0.01, "method": "mldg"},
    {"freeze": "all-but-head", "freeze_steps": 5, "label_smoothing": 0.1, "method": "irm"},
    {"freeze": "features.0", "augment": "crop", "method": "pcgrad", "average": "swad"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: next(iter(recipe)))
def test_an_interrupted_run_goes_on_to_the_same_record(
    recipe: dict[str, Any],
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
) -> None:
    configuration = configured(**recipe, iterations=8)
    whole = train(configuration, tmp_path / "whole", opened=images)
    interrupted(tmp_path / "parts", configuration, images, 5)
    record = train(configuration, tmp_path / "parts", opened=images)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_a_frozen_layer_stays_as_it_is_until_it_is_thawed(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    initial = build_backbone("small-cnn", classes=10, weights="none", seed=0).model.state_dict()
    moved: dict[int, set[str]] = {}

    def observe(step: int, backbone: Backbone) -> None:
        state = backbone.model.state_dict()
        moved[step] = {name for name, value in state.items() if not value.equal(initial[name])}

    options = {"freeze": "all-but-head", "freeze_steps": 3, "iterations": 5}
    train(configured(**options), tmp_path, opened=images, observe=observe)
    head = {"classifier.weight", "classifier.bias"}
    assert not moved[0]
    assert moved[1] == moved[3] == head
    assert moved[4] > head
    assert {name for name in initial if name.endswith("weight")} <= moved[5]


def test_a_linear_probe_for_the_whole_run_saves_the_other_layers_as_they_were(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    initial = build_backbone("small-cnn", classes=10, weights="none", seed=0).model.state_dict()
    train(configured(freeze="all-but-head", iterations=4), tmp_path, opened=images)
    saved = load_file(tmp_path / "model.safetensors")
    differing = {name for name, value in saved.items() if not value.equal(initial[name])}
    assert differing == {"classifier.weight", "classifier.bias"}


def test_batch_norm_of_a_frozen_layer_is_in_evaluation_mode() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4, affine=False)
    )
    freezing = Freezing(model, ["1.weight", "1.bias"], 2)
    for step, frozen in ((1, True), (2, True), (3, False)):
        model.train()
        freezing.apply(step)
        assert [layer.training for layer in model] == [True, not frozen, True]
        assert model[1].weight.requires_grad is not frozen
        assert model[0].weight.requires_grad


def test_batch_normalisation_without_parameters_is_frozen_with_what_it_is_a_part_of() -> None:
    body = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3, affine=False))
    model = torch.nn.Sequential(body, torch.nn.BatchNorm1d(3, affine=False), torch.nn.Linear(3, 2))
    Freezing(model.train(), ["0.0.weight", "0.0.bias"], 0).apply(1)
    assert [layer.training for layer in (body[1], model[1])] == [False, True]


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("none", set()),
        ("all-but-head", {"features.0.weight", "features.1.bias", "features.4.weight"}),
        ("features.1", {"features.1.weight", "features.1.bias"}),
        ("features.*.bias", {"features.1.bias", "features.5.bias"}),
        ("features.[03], none*", None),
    ],
)
def test_layers_are_frozen_by_name_and_pattern(freeze: str, expected: set[str] | None) -> None:
    backbone = build_backbone("small-cnn", classes=2, weights="none", seed=0)
    if expected is None:
        with pytest.raises(ArgumentError, match=r"no layer 'none\*' to freeze; it has features"):
            frozen_names(backbone, freeze)
        return
    names = set(frozen_names(backbone, freeze))
    assert expected <= names
    assert bool(names) == bool(expected)
    assert not names & {"classifier.weight"}


def test_a_run_stops_where_its_validation_accuracy_has_not_risen(
    tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    """With a learning rate that changes nothing no validation is better than the first."""
    options = {"learning_rate": 1e-12, "iterations": 40, "patience": 2, "method": "deep-all"}
    record = train(configured(**options), tmp_path / "whole", opened=images)
    assert record.curves.step == [4, 8, 12]
    assert (record.result.best.step, record.result.last.step) == (4, 12)
    interrupted(tmp_path / "parts", configured(**options), images, 12)
    again = train(configured(**options), tmp_path / "parts", opened=images)
    assert outcome(again, tmp_path / "parts") == outcome(record, tmp_path / "whole")


def test_patience_counts_validations_since_the_last_rise() -> None:
    run = RunConfiguration(data="d", target="t", patience=3)
    accuracies = [0.1, 0.3, 0.2, 0.3, 0.25, 0.4]
    stopped = [has_stopped(run, accuracies[:n]) for n in range(7)]
    assert stopped == [False, False, False, False, False, True, False]
    assert not has_stopped(run.model_copy(update={"patience": 0}), [0.5] * 100)


@pytest.mark.parametrize("method", ["deep-all", "agr-sum", "pcgrad"])
def test_a_clipped_update_has_the_norm_of_the_limit(
    method: str, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    """One step of plain gradient descent from the same weights, with and without."""
    weights: list[list[torch.Tensor]] = []

    def observe(step: int, backbone: Backbone) -> None:
        weights.append([p.detach().clone().double() for p in backbone.model.parameters()])

    options = {"iterations": 1, "optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0}
    for limit in (None, 1e9, 0.05):
        configuration = configured(method=method, clip_norm=limit, **options)
        train(configuration, tmp_path / str(limit), opened=images, observe=observe)
    steps = [
        torch.cat([(b - a).flatten() for a, b in zip(weights[i], weights[i + 1], strict=True)])
        for i in (0, 2, 4)
    ]
    assert steps[0].equal(steps[1])
    assert steps[0].norm() > 0.05
    assert steps[2].norm().item() == pytest.approx(0.05, rel=1e-4)
    cosine = torch.dot(steps[0], steps[2]) / (steps[0].norm() * steps[2].norm())
    assert cosine.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup": 12}, "warmup 12 never ends in 12 iterations"),
        ({"method": "fish", "clip_norm": 1.0}, "no one update to clip"),
        ({"freeze_steps": 3}, "nothing is frozen"),
        ({"freeze": "all-but-head", "freeze_steps": 12}, "the whole run of 12 iterations"),
        (
            {"method": "agr-ema", "freeze": "all-but-head", "freeze_steps": 3},
            "agr-ema remembers every component that is trained, found freeze_steps 3",
        ),
        (
            {"method": "coral+agr-sum", "freeze": "all-but-head"},
            "coral.agr-sum has a penalty on features, which freeze all-but-head leaves as they are",
        ),
        (
            {"method": "dann", "freeze": "all-but-head"},
            "dann has a penalty on features, which freeze all-but-head leaves as they are",
        ),
        (
            {"method": "ib-erm", "freeze": "all-but-head", "settings": {"ib-erm.anneal": 3}},
            "ib-erm has a penalty on features, which freeze all-but-head leaves as they are",
        ),
        (
            {"method": "mmd", "freeze": "features"},
            "mmd has a penalty on features, which freeze features leaves as they are",
        ),
        ({"average": "swad", "patience": 2}, "swad needs the losses after its valley"),
        ({"freeze": "*"}, "leaves nothing of small-cnn to train"),
        ({"freeze": "layer9"}, "no layer 'layer9' to freeze; it has features, classifier"),
    ],
)
def test_what_means_nothing_together_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    with pytest.raises(ArgumentError, match=words):
        train(configured(**options), tmp_path / "run", opened=images)
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_its_last_layer_alone_has_no_features_to_shape(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shallow.py").write_text(
        "from torch import nn\n\n\ndef softmax(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shallow = configured(method="coral", backbone="shallow:softmax")
    with pytest.raises(ArgumentError, match="softmax has nothing to train before its last layer"):
        train(shallow, tmp_path / "run", opened=images)


def test_the_factor_of_a_cosine_is_a_half_in_the_middle() -> None:
    run = RunConfiguration(data="d", target="t", schedule="cosine", iterations=100)
    assert rate_factor(run, 51) == pytest.approx(0.5)
    assert rate_factor(run, 26) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_clipping_works_through_a_loss_scaler(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    """In float16 the gradients are scaled: the limit is of those that are not."""
    weights: list[list[torch.Tensor]] = []

    def observe(step: int, backbone: Backbone) -> None:
        weights.append([p.detach().clone().double() for p in backbone.model.parameters()])

    options = {"iterations": 8, "optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0}
    configuration = configured(
        method="deep-all", clip_norm=0.05, precision="float16", **options, validate_every=8
    )
    train(configuration, tmp_path, opened=images, observe=observe)
    first = [(b - a).flatten() for a, b in zip(weights[0], weights[-1], strict=True)]
    assert 0 < torch.cat(first).norm() <= 0.05 * 8 * 10  # momentum 0.9: ten steps' length at most
    moved = [
        torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)]).norm().item()
        for before, after in itertools.pairwise(weights)
    ]
    start = next(size for size in moved if size)  # the scaler skips steps until its scale fits
    assert start == pytest.approx(0.05, rel=1e-3)
