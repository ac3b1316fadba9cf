"""What frozen layers make of images, computed once for all steps and all runs.

Where only the last layer is trained and images are not changed at random, what goes into it is the
same at every step. That it is so is seen on the first batch: a network that draws at random, writes
to its buffers, or answers otherwise in training or in another batch is taken as it is.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from gradsurgery.algorithms import MLDG, OBJECTIVES, method_parts
from gradsurgery.algorithms.names import is_foreign
from gradsurgery.algorithms.objectives import Mixup
from gradsurgery.backbones import Backbone, set_training_mode
from gradsurgery.data import ImageLoader
from gradsurgery.data.loader import Change, Fetched, Positions, prefetched
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import suppress_out_of_memory
from gradsurgery.kernels.network import sent
from gradsurgery.training.cuda_graph import draws_on_host, generator_states
from gradsurgery.training.device import reproducible
from gradsurgery.training.features_file import FeaturesFile
from gradsurgery.training.learner import Learner
from gradsurgery.training.progress import ProgressCallback, TrainingProgress
from gradsurgery.training.recipe import ALL_BUT_HEAD, trains_head_alone

MOST_BYTES = 2 << 30
"""Features beyond it are not kept; and all that are kept at once take no more."""

MOST_KEPT = 4
"""Networks and images whose features a process keeps: the runs of a grid may take turns."""

CHECKED = 12
"""How many images of the first step are looked at, in training and in evaluation mode."""

_AT_ONCE = {"cpu": 32, "cuda": 128}
"""Images that are passed at once, always the same ones: their bits do not depend on the run."""

_WAITING = "another process computes what the frozen layers make of these images: waiting for it"

Features = Float[Tensor, "images features 1 1"]
"""As maps of one pixel: a batch of them goes where images go."""


@final
class FeatureLoader(ImageLoader):
    """Features in the place of the images of another loader."""

    ahead = 0  # they are there

    def __init__(self, loader: ImageLoader, features: Features) -> None:
        super().__init__(loader.images, loader.mean, loader.std, loader.device)
        self._features = features
        self._labels = torch.tensor(loader.images.label.copy(), device=loader.device)

    @override
    def fetch(self, positions: Positions, change: Change | None = None) -> Fetched:
        waiting = torch.from_numpy(np.asarray(positions))

        def batch() -> tuple[Tensor, Tensor]:
            chosen = sent(waiting, self.device)
            return self._features.index_select(0, chosen), self._labels.index_select(0, chosen)

        return batch


def may_keep_features(configuration: RunConfiguration) -> bool:
    """Whether the options leave nothing to train but the last layer, and no image as chance has it.

    Mixup mixes images, and an objective of the user's own may do with them what it wants.
    """
    c = configuration
    if c.freeze != ALL_BUT_HEAD or c.freeze_steps or c.augment != "none" or c.compile:
        return False
    parts = method_parts(c.method)
    if parts is None:  # fish, whose losses are plain ones
        return True
    may_be_objective = is_foreign(c.method) and "+" not in c.method
    return parts.objective in {*OBJECTIVES, MLDG.name} - {Mixup.name} and not may_be_objective


def looked_at(first: Positions) -> Int64[np.ndarray, " few"]:
    """Images of the first step, of all its domains."""
    return first[:: -(-len(first) // CHECKED)]


@contextmanager
def features_kept(
    learner: Learner,
    loader: ImageLoader,
    configuration: RunConfiguration,
    images_at: Callable[[int], Int64[np.ndarray, "domains batch"]],
    report: ProgressCallback,
    *,
    unused: int = 0,
) -> Iterator[ImageLoader]:
    """What brings the run its images: their features where these can be kept, else `loader`.

    Inside, the model answers to both. Which it is does not depend on the number of steps: a run
    that is given more of them goes on as it began.

    images_at: those of a step, from 0. unused: how many images are in no part of the split.
    """
    features = None
    if may_keep_features(configuration) and (head := _head(learner.backbone)) is not None:
        frozen = _FrozenLayers(learner, head, loader, configuration)
        with reproducible(learner.device), suppress_out_of_memory():
            features = frozen.features(images_at(0).reshape(-1), unused, report)
    if features is None:
        yield loader
        return
    models = {id(model): model for model in (learner.backbone.model, learner.average.model)}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(_answering_to(model, learner.backbone.heads[0], features.shape[1]))
        yield FeatureLoader(loader, features)


def have_file(learner: Learner, loader: ImageLoader, configuration: RunConfiguration) -> bool:
    """Whether another run has left features on this machine that this one would take."""
    head = _head(learner.backbone)
    if head is None:
        return False
    frozen = _FrozenLayers(learner, head, loader, configuration)
    file = frozen.file(frozen.key())
    return file is not None and file.path.exists()


def _head(backbone: Backbone) -> nn.Linear | None:
    """The last layer, where it is linear and all that is trained, of a network known here."""
    if len(backbone.heads) != 1 or backbone.provenance is not None:
        return None
    head = backbone.model.get_submodule(backbone.heads[0])
    return head if isinstance(head, nn.Linear) and trains_head_alone(backbone) else None


_lock = threading.Lock()
_kept: list[tuple[Any, Features]] = []
"""The features that were asked for last, the last at the end, and what they are of."""


@dataclass(frozen=True)
class _FrozenLayers:
    """All layers of a run's network but the last one."""

    learner: Learner
    head: nn.Linear
    loader: ImageLoader
    configuration: RunConfiguration

    def features(self, first: Positions, unused: int, report: ProgressCallback) -> Features | None:
        """Of all images, the same as those of the first step's; None where they are not to be had.

        That is also where most images are in no part of the split.
        """
        few, total = looked_at(first), len(self.loader.images.label)
        if 2 * unused > total or (seen := self._seen(few)) is None:
            return None
        if (needed := 4 * total * seen.shape[1]) > MOST_BYTES:
            return None

        def are_right(features: Features) -> bool:
            form = (total, seen.shape[1], 1, 1), seen.dtype
            is_form = (features.shape, features.dtype) == form
            return is_form and _alike(features[few].flatten(1), seen)

        with _lock:
            features = self._computed_once(needed, are_right, report)
        return features if are_right(features) else None

    def _seen(self, positions: Positions) -> Float[Tensor, "batch features"] | None:
        """What goes into the last layer in training; None where it may be another at every step."""
        model, (images, _) = self.learner.backbone.model, self.loader.fetch(positions)()
        set_training_mode(model, self.configuration.batch_norm)
        self.learner.freezing.apply(1)
        draws, buffers = self._draws(), {name: b.clone() for name, b in model.named_buffers()}
        features = self._of(images)
        model.eval()
        evaluated = self._of(images)
        changed = self._draws() != draws
        for name, buffer in model.named_buffers():
            if not torch.equal(buffer, before := buffers.get(name, buffer)):
                changed = True
                buffer.copy_(before)  # the first step finds what it would have found
        if changed or features is None or evaluated is None or not _alike(features, evaluated):
            return None
        return features

    def _draws(self) -> list[Any]:
        """What random numbers come next."""
        states = [state.cpu().numpy().tobytes() for state in generator_states(self.learner)]
        return [*states, *draws_on_host(self.learner)]

    @torch.no_grad()
    def _of(self, images: Tensor) -> Float[Tensor, "batch features"] | None:
        """What goes into the last layer; None where it is called otherwise, or is not the last."""
        calls: list[tuple[Tensor, Tensor, int]] = []
        handle = self.head.register_forward_hook(
            lambda _, given, made: calls.append((given[0], made, made._version))
        )
        try:
            with self.learner.autocast():
                logits = self.learner.backbone.model(images)
        finally:
            handle.remove()
        if len(calls) != 1:
            return None
        ((features, made, version),) = calls
        as_made = made is logits and logits._version == version  # also in place
        return features if as_made and features.ndim == 2 else None

    def _computed_once(
        self, needed: int, are_right: Callable[[Features], bool], report: ProgressCallback
    ) -> Features:
        """In this process, and where there is a file for them on this machine.

        needed: the bytes they take at most.
        """
        if not self.loader.images.has_cached_pixels:  # its digest is not to be trusted
            return self._computed(report)
        key = self.key()
        for at, (known, kept) in enumerate(_kept):
            if known == key:
                _kept.append(_kept.pop(at))
                return kept
        while _kept and (
            len(_kept) >= MOST_KEPT or needed + sum(f.nbytes for _, f in _kept) > MOST_BYTES
        ):
            del _kept[0]
        if (file := self.file(key)) is None:
            features = self._computed(report)
        else:
            waits = TrainingProgress("features", 0, len(self.loader.images.label), note=_WAITING)
            with file.in_turn(lambda: report(waits)):
                found = file.read()
                if found is None or not are_right(found):
                    found = self._computed(report)
                    file.write(found)
            features = found
        if features.is_cuda:  # runs of other threads read them on streams of their own
            torch.cuda.current_stream(features.device).synchronize()
        _kept.append((key, features))
        return features

    def file(self, key: tuple[Any, ...]) -> FeaturesFile | None:
        """Where they are kept for other processes; None for weights that no other run may have."""
        images = self.loader.images
        if not images.has_cached_pixels or self.configuration.weights == "none":
            return None
        assert images.folder is not None  # where they are cached
        return FeaturesFile(images.folder, key, self.loader.device)

    def key(self) -> tuple[Any, ...]:
        """All that the features' bits depend on."""
        backbone, loader = self.learner.backbone, self.loader
        digest = hashlib.sha256()
        for name, value in backbone.model.state_dict().items():
            if not name.startswith(f"{backbone.heads[0]}."):
                digest.update(name.encode() + value.cpu().contiguous().view(-1).numpy().tobytes())
        images = loader.images.digest, len(loader.images.label), loader.mean, loader.std
        place = loader.device, self.learner.channels_last, torch.get_num_threads()
        return (*images, *place, self.configuration.precision, backbone.name, digest.digest())

    def _computed(self, report: ProgressCallback) -> Features:
        loader, total = self.loader, len(self.loader.images.label)
        each = _AT_ONCE[loader.device.type]
        parts = [np.arange(start, min(start + each, total)) for start in range(0, total, each)]
        ahead = 0 if loader.device.type == "cpu" else 1
        computed: Features | None = None
        self.learner.backbone.model.eval()
        for at, fetched in prefetched(lambda i: loader.fetch(parts[i]), 1, len(parts), ahead=ahead):
            features = self._of(fetched()[0])
            assert features is not None  # as of the images of the first step
            if computed is None:  # all at once: joined in the end, they would be there twice
                computed = features.new_empty((total, features.shape[1], 1, 1))
            last = int(parts[at - 1][-1]) + 1
            computed[last - len(features) : last, :, 0, 0] = features
            report(TrainingProgress("features", last, total))
        assert computed is not None  # a set has images
        return computed


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether they differ by no more than the order of sums in another batch makes them differ."""
    coarse = one.dtype in (torch.float16, torch.bfloat16)
    tolerance = 5e-2 if coarse else 5e-3 if one.device.type == "cuda" else 1e-4
    apart, size = (one - other).float().norm(), other.float().norm()
    return bool(apart <= tolerance * size)


@dataclass(frozen=True, eq=False)
class _Answering:
    """A model's `forward` that takes features too, which go into its last layer.

    A copy of the model copies it, and answers by its own layers.
    """

    whole: Callable[..., Tensor]
    head: nn.Linear
    width: int

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[1:] == (self.width, 1, 1):
            logits: Tensor = self.head(images.flatten(1))
            return logits
        return self.whole(images)


@contextmanager
def _answering_to(model: Any, head: str, width: int) -> Iterator[None]:
    """Inside, the model takes features too."""
    own = vars(model).get("forward")
    model.forward = _Answering(model.forward, model.get_submodule(head), width)
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
