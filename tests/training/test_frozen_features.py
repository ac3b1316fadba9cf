"""Features of frozen layers are computed once, and the run is the one that computes them anew."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from gradsurgery import load_model
from gradsurgery.algorithms import METHODS, OBJECTIVES, OTHER_METHODS
from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, split_of
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.training import TrainingProgress, frozen_features, train
from gradsurgery.training.frozen_features import features_kept, may_keep_features
from gradsurgery.training.learner import Learner, build_learner

Configure = Callable[..., RunConfiguration]
PROBE = {"freeze": "all-but-head", "batch_size": 16, "iterations": 40, "learning_rate": 0.01}


pytestmark = pytest.mark.usefixtures("nothing_kept")


def both(options: RunConfiguration, folder: Path, images: ImageSet) -> tuple[Record, Record]:
    """The run on features, and the one in which every step passes the whole network."""
    kept = train(options, folder / "kept", opened=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_features, "may_keep_features", lambda _: False)
        whole = train(options, folder / "whole", opened=images)
    assert not whole.cost.frozen_features
    return kept, whole


def assert_same(kept: Record, whole: Record) -> None:
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        assert getattr(kept.curves, name) == pytest.approx(getattr(whole.curves, name), rel=1e-4)
    assert kept.result.best.target_accuracy == whole.result.best.target_accuracy
    assert kept.result.last.test_accuracy == whole.result.last.test_accuracy


SHAPING = [name for name, objective in OBJECTIVES.items() if objective.shapes_features]
TRAINING = [name for name in (*METHODS, *OTHER_METHODS) if name not in SHAPING]
"""Of the others nothing is left where features are frozen."""


@pytest.mark.parametrize("method", [*TRAINING, "fishr+agr-sum"])
def test_the_run_is_that_of_the_whole_network(
    method: str, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    objective = method.partition("+")[0]
    settings = {f"{objective}.anneal": 10} if objective in ("fishr", "eqrm") else {}
    options = configured(**PROBE, method=method, settings=settings)
    kept, whole = both(options, tmp_path, images)
    assert kept.cost.frozen_features == (method != "mixup")
    assert_same(kept, whole)


@pytest.mark.parametrize(
    "more",
    [
        {"average": "ema"},
        {"average": "swad"},
        {"precision": "bfloat16"},
        {"batch_norm": "per-domain"},
        {"batch_norm": "pooled", "method": "agr-sum"},
        {"batches": "single", "method": "agr-sum"},
        {"validation_mean": "domains", "test_on": "all", "log_conflict": 2, "method": "pcgrad"},
        {"backbone": "resnet18"},
    ],
    ids=str,
)
def test_it_is_with_other_options(
    more: dict[str, Any], tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    options = configured(**{**PROBE, **more})
    kept, whole = both(options, tmp_path, images)
    assert kept.cost.frozen_features
    assert_same(kept, whole)


class Trunk(nn.Module):
    """Features of an image by its mean colours, changed by `change`, and a last layer."""

    def __init__(self, change: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.mixing = nn.Linear(3, 4)
        self.head = nn.Linear(4, 10)
        self.change = change

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.change(self, self.mixing(images.mean((2, 3)))))


def counted(network: nn.Module, features: torch.Tensor) -> torch.Tensor:
    network.seen += 1
    return features


def counted_anew(network: nn.Module, features: torch.Tensor) -> torch.Tensor:
    network.seen = network.seen + 1
    return features


CHANGES: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "dropout": lambda net, z: nn.functional.dropout(z, 0.5, net.training),
    "rare dropout": lambda net, z: nn.functional.dropout(z, 1e-9, net.training),
    "Python's numbers": lambda net, z: z * (1 + random.random() * net.training),
    "another in training": lambda net, z: z * (1.01 if net.training else 1),
    "of the batch": lambda net, z: z - z.mean(0),
    "counts its passes": counted,
    "counts its passes in another tensor": counted_anew,
}
"""Networks whose features are others at another step."""


def learner_of(network: nn.Module, configured: Configure, **more: Any) -> Learner:
    options = configured(**{**PROBE, **more})
    backbone = Backbone("trunk", network, (0.5,) * 3, (0.5,) * 3, False, None, heads=("head",))
    return build_learner(options, backbone, torch.device("cpu"))


def kept_for(learner: Learner, configured: Configure, images: ImageSet, *, unused: int = 0) -> bool:
    loader, options = learner.loader(images), configured(**PROBE)
    first = np.arange(0, len(images.label), 30)
    whole = learner.backbone.model.forward
    with features_kept(
        learner, loader, options, lambda _: first[None], lambda _: None, unused=unused
    ) as kept:
        pass
    assert learner.backbone.model.forward == whole
    return kept is not loader


@pytest.mark.parametrize("name", CHANGES)
def test_a_network_with_other_features_at_another_step_is_taken_whole(
    name: str, images: ImageSet, configured: Configure
) -> None:
    """It begins as if nobody had looked, and so do the caller's random numbers."""
    network = Trunk(CHANGES[name])
    learner, drawn = learner_of(network, configured), torch.get_rng_state()
    assert not kept_for(learner, configured, images)
    assert network.seen == 0
    assert torch.equal(torch.get_rng_state(), drawn)


def test_its_twin_with_the_same_features_is_not(images: ImageSet, configured: Configure) -> None:
    assert kept_for(learner_of(Trunk(lambda _, z: z), configured), configured, images)


class Twice(Trunk):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        z = self.mixing(images.mean((2, 3)))
        return self.head(z) + self.head(z.square())


class Scaled(Trunk):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(images)


class ScaledInPlace(Trunk):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).mul_(3)


class Patches(Trunk):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.mixing(images.flatten(2).mT)).mean(1)


@pytest.mark.parametrize("network", [Twice, Scaled, ScaledInPlace, Patches])
def test_the_last_layer_has_to_make_the_logits(
    network: type[Trunk], images: ImageSet, configured: Configure
) -> None:
    learner = learner_of(network(lambda _, z: z), configured)
    assert not kept_for(learner, configured, images)


@pytest.mark.parametrize(
    "more",
    [
        {"freeze": "mixing"},
        {"freeze_steps": 20},
        {"augment": "flip"},
        {"method": "mixup"},
        {"method": "mixup+agr-sum"},
        {"method": "tests.training.test_frozen_features:Brighter"},
        {"compile": True},
    ],
    ids=str,
)
def test_options_under_which_images_matter(more: dict[str, Any], configured: Configure) -> None:
    assert not may_keep_features(configured(**{**PROBE, **more}))


def test_runs_of_a_process_share_them_and_other_weights_do_not(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def hear(progress: TrainingProgress) -> None:
        if progress.stage == "features" and progress.done == progress.total:
            computed.append(progress.total)

    for number, more in enumerate(
        [{}, {"method": "agr-sum", "target": "0"}, {"learning_rate": 0.1}, {"seed": 5}, {"seed": 5}]
    ):
        options = configured(**{**PROBE, **more})
        train(options, tmp_path / str(number), hear, opened=images)
    assert computed == [len(images.label)] * 2  # the weights of seed 5 are others


def test_runs_of_a_grid_take_turns_with_what_is_kept(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not asked for longest gives way to the next, by number and by bytes."""

    def computed(seeds: list[int]) -> list[int]:
        found: list[int] = []
        frozen_features._kept.clear()
        for seed in seeds:  # which has weights of its own

            def hear(progress: TrainingProgress, seed: int = seed) -> None:
                if progress.stage == "features" and progress.done == progress.total:
                    found.append(seed)

            options = configured(**{**PROBE, "iterations": 1, "seed": seed})
            place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            assert train(options, place, hear, opened=images).cost.frozen_features
        return found

    assert computed([0, 1, 0, 1]) == [0, 1]
    monkeypatch.setattr(frozen_features, "MOST_KEPT", 2)
    assert computed([0, 1, 0, 2, 0, 1]) == [0, 1, 2, 1]
    monkeypatch.setattr(frozen_features, "MOST_BYTES", 4 * 64 * len(images.label))  # those of one
    assert computed([0, 1, 0]) == [0, 1, 0]


def test_the_models_file_answers_as_the_run_says(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    record = train(configured(**PROBE), tmp_path, opened=images)
    c = record.configuration
    test = split_of(c, images, c.seed_of_split).test["75"]
    with pytest.warns(UserWarning, match="were decoded by"):
        found = load_model(tmp_path).predict([PIL.Image.fromarray(images.images[n]) for n in test])
    right = np.mean([images.classes.index(label) for label in found.labels] == images.label[test])
    assert record.result.best.target_accuracy == pytest.approx(right)


def test_an_interrupted_run_goes_on_to_the_same_record(
    tmp_path: Path, images: ImageSet, configured: Configure, outcome: Any
) -> None:
    options = configured(**PROBE, method="agr-rand", average="ema")
    whole = train(options, tmp_path / "whole", opened=images)

    def stop(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done == 22:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "cut", stop, opened=images)
    frozen_features._kept.clear()
    again = train(options, tmp_path / "cut", opened=images)
    assert again.cost.frozen_features
    assert outcome(again, tmp_path / "cut") == outcome(whole, tmp_path / "whole")


def test_a_run_of_few_steps_is_on_features_too_and_goes_on_with_more(
    tmp_path: Path, images: ImageSet, configured: Configure, outcome: Any
) -> None:
    """test_byobnet's features have other bits in batches of another size."""
    options = {**PROBE, "backbone": "test_byobnet", "keep_checkpoint": True, "iterations": 4}
    short = train(configured(**options), tmp_path / "grown", opened=images)
    assert short.cost.frozen_features
    longer = configured(**{**options, "iterations": 24})
    grown = train(longer, tmp_path / "grown", opened=images)
    whole = train(longer, tmp_path / "whole", opened=images)
    assert outcome(grown, tmp_path / "grown") == outcome(whole, tmp_path / "whole")


def test_images_of_which_most_are_unused_are_not_worth_it(
    images: ImageSet, configured: Configure
) -> None:
    learner, half = learner_of(Trunk(lambda _, z: z), configured), len(images.label) // 2
    assert kept_for(learner, configured, images, unused=half)
    assert not kept_for(learner, configured, images, unused=half + 1)


def test_copies_that_an_observer_makes_answer_by_their_own_layers(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    copies: list[nn.Module] = []

    def observe(step: int, backbone: Backbone) -> None:
        copies.append(copy.deepcopy(backbone.model))

    probe = torch.randn(3, 3, 12, 12)
    record = train(
        configured(**{**PROBE, "iterations": 4}), tmp_path, opened=images, observe=observe
    )
    assert record.cost.frozen_features
    for made in copies:
        features = made.features(probe).mean((2, 3))
        with torch.no_grad():
            made.classifier.bias.add_(1)
        assert torch.equal(made(probe), made.classifier(features))
    assert not torch.equal(copies[0].classifier.weight, copies[-1].classifier.weight)


def test_an_observer_has_a_model_of_images(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    seen = []

    def observe(step: int, backbone: Backbone) -> None:
        with torch.no_grad():
            seen.append(backbone.model(torch.zeros(2, 3, 12, 12)).shape)

    record = train(configured(**PROBE), tmp_path, opened=images, observe=observe)
    assert record.cost.frozen_features
    assert set(seen) == {(2, 10)}
