"""The groups of a study of tasks against domains: whose labels, whose images."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from gradsurgery.backbones import Backbone
from gradsurgery.data import DomainBatches, ImageSet, Split
from gradsurgery.documents.tasks_vs_domains import Grouping, TasksOptions
from gradsurgery.errors import ArgumentError
from gradsurgery.seeds import derive_seed, named_generator, random_order
from gradsurgery.studies.measuring import Positions, normalized

KINDS = {
    "parity": ("1", "3", "5", "7", "9"),
    "size": ("5", "6", "7", "8", "9"),
    "loop": ("0", "6", "8", "9"),
    "animal": ("dog", "elephant", "giraffe", "horse"),
}
"""Tasks with a name: is the class one of these? Odd, 5 or more, a closed loop, an animal."""

_BATCH = 128  # images at a time where nothing is trained


class Task(NamedTuple):
    """A labelling of the images: how many labels there are, and each image's, -1 for none."""

    name: str
    size: int
    labels: Positions


class Group(NamedTuple):
    """A task on some images; `number` is its place among the groups."""

    number: int
    task: int
    positions: Positions


def find_tasks(images: ImageSet, names: Sequence[str], sources: Sequence[str]) -> list[Task]:
    """The tasks of these names.

    names: "class", "domain" (which of the `sources`), a name of `KINDS`, or NAME=CLASS|CLASS.

    Raises `ArgumentError` for another name, for classes that the set does not have, and where all
    images would have one label.
    """
    found = [_task(images, name, sources) for name in names]
    for place, task in enumerate(found):
        if task.size < 2:
            raise ArgumentError(f"the task {task.name!r} has one label alone; leave it out")
        if task.name in [other.name for other in found[:place]]:
            raise ArgumentError(f"two tasks are called {task.name!r}; give them names of their own")
    return found


def _task(images: ImageSet, name: str, sources: Sequence[str]) -> Task:
    if name == "class":
        return Task(name, len(images.classes), images.label)
    if name == "domain":
        place = np.array([sources.index(d) if d in sources else -1 for d in images.domains])
        return Task(name, len(sources), place[images.domain])
    title, equals, listed = name.partition("=")
    members = tuple(listed.split("|")) if equals else KINDS.get(name, ())
    if not members:
        known = ", ".join(["class", "domain", *KINDS])
        raise ArgumentError(f"unknown task {name!r}; there are {known}, and NAME=CLASS|CLASS")
    if absent := [member for member in members if member not in images.classes]:
        raise ArgumentError(
            f"the task {title!r} asks for the class {absent[0]!r}, and {images.name} has "
            f"{', '.join(images.classes)}; choose other tasks"
        )
    inside = np.array([label in members for label in images.classes])
    return Task(title, 1 + (not inside.all()), inside.astype(np.int64)[images.label])


class Groups:
    """The groups of one grouping, and their losses for a network with a last layer for every task.

    The network gives all tasks' logits side by side: Σ size of the tasks.

    options: `batch_size`, `groups` and `contradiction` count.
    sources: the domains trained on, as many as there are groups.
    tasks: the first is that of the domains.
    seed: of the run; which labels are wrong depends on it, and which images are dealt to whom.
    """

    def __init__(
        self,
        grouping: Grouping,
        images: ImageSet,
        split: Split,
        options: TasksOptions,
        *,
        sources: Sequence[str],
        tasks: Sequence[Task],
        seed: int,
    ) -> None:
        self.grouping, self.images, self.seed = grouping, images, seed
        self.count = len(sources)
        self.tasks = list(tasks)
        self._train = [split.train[domain] for domain in sources]
        self._batches, self._measured = (
            DomainBatches(
                images, split.train, domains=sources, batch_size=options.batch_size, seed=each
            )
            for each in (seed, derive_seed(seed, "measured"))
        )
        self._weights = [options.scale ** (-d / (self.count - 1)) for d in range(self.count)]
        self._wrong = [self._told_wrong(number, options) for number in range(self.count)]

    def _told_wrong(self, number: int, options: TasksOptions) -> Bool[np.ndarray, " images"]:
        """Which images the group is told a wrong label of: none, for the first group."""
        generator = named_generator(self.seed, "contradiction", number)
        draws = torch.rand(len(self.images.label), generator=generator).numpy()
        wrong: Bool[np.ndarray, " images"] = draws < (options.contradiction if number else 0.0)
        return wrong

    @property
    def one_task(self) -> bool:
        """Whether all groups have the same task, and share its last layer."""
        return self.grouping in ("domains", "dealt")

    def at(self, step: int, *, measured: bool = False) -> list[Group]:
        """The groups' images at `step`, from 0: the same images in every grouping.

        measured: those of batches drawn anew for each `step`, so that two of them may share images,
            as two independent draws do.
        """
        drawn = self._drawn_anew(step) if measured else self._batches.indices_at(step)
        if self.grouping == "tasks":
            return self._groups([drawn.flatten()] * self.count)
        if self.grouping != "domains":
            order = random_order(drawn.size, self.seed, "dealt", step)
            drawn = drawn.flatten()[order].reshape(drawn.shape)
        return self._groups(list(drawn))

    def _drawn_anew(self, place: int) -> Int64[np.ndarray, "domains batch"]:
        """A batch of every domain, independent of those at other places.

        Batches of one epoch share no image: each has more of what the others lack, and over n
        images the product of two batches' gradients is tr Σ / (n − 1) too small on average, where Σ
        is the covariance of the gradients of single images.
        """
        size = self._measured.batch_size
        orders = [self._measured.order(domain, place) for domain in self._measured.domains]
        return np.stack([np.resize(order, size) for order in orders])

    def whole(self, most: int) -> list[Group]:
        """Every group with all training images that it may be given, up to `most` a domain."""
        parts = [spread(positions, most) for positions in self._train]
        mixed = self.grouping != "domains"
        return self._groups([np.concatenate(parts)] * self.count if mixed else parts)

    def _groups(self, parts: Sequence[Positions]) -> list[Group]:
        tasks = [0] * self.count if self.one_task else range(self.count)
        return [Group(*each) for each in zip(range(self.count), tasks, parts, strict=True)]

    def losses(self, backbone: Backbone, groups: Sequence[Group]) -> Iterator[Float[Tensor, ""]]:
        """The loss of each group by its weight; groups of the same images share one pass."""
        logits: Tensor | None = None
        for group in groups:
            if logits is None or self.grouping != "tasks":
                logits = backbone.model(normalized(backbone, self.images, group.positions)).float()
            yield self._weights[group.number] * self.loss(logits, group)

    def loss(self, logits: Float[Tensor, "batch outputs"], group: Group) -> Float[Tensor, ""]:
        """The mean cross-entropy of the group's task, with the labels that it is told."""
        labels = torch.from_numpy(self.told(group)).to(logits.device)
        return functional.cross_entropy(self.logits_of(group.task, logits), labels)

    def logits_of(
        self, task: int, logits: Float[Tensor, "batch outputs"]
    ) -> Float[Tensor, "batch labels"]:
        """The task's part of the network's output."""
        first = sum(each.size for each in self.tasks[:task])
        return logits[:, first : first + self.tasks[task].size]

    def told(self, group: Group) -> Positions:
        """The labels that the group is told; a wrong one is moved on, each group by its own step.

        Group d moves a label y of C to (y + 1 + (d − 1) mod (C − 1)) mod C.
        """
        task = self.tasks[group.task]
        labels = task.labels[group.positions]
        moved = (labels + 1 + (group.number - 1) % (task.size - 1)) % task.size
        told: Positions = np.where(self._wrong[group.number][group.positions], moved, labels)
        return told


def spread(positions: Positions, most: int) -> Int64[np.ndarray, " chosen"]:
    """Up to `most` of the positions, evenly spread over them: they are in order of class."""
    count = min(len(positions), most)
    places = np.linspace(0, max(len(positions) - 1, 0), count).round().astype(int)
    chosen: Int64[np.ndarray, " chosen"] = positions[places]
    return chosen


@torch.no_grad()
def all_logits(
    backbone: Backbone, images: ImageSet, positions: Positions
) -> Float[Tensor, "images outputs"]:
    """The network's output in evaluation mode for images of any number, on the CPU."""
    parts = np.array_split(positions, max(1, -(-len(positions) // _BATCH)))
    found = [backbone.model(normalized(backbone, images, part)).float().cpu() for part in parts]
    return torch.cat(found)


def parameters_in_order(model: nn.Module, outputs: int) -> tuple[list[tuple[str, Tensor]], int]:
    """The trained parameters by name, those of the last layer last, and how many these are.

    Raises `ArgumentError` where there is no linear last layer of so many outputs.
    """
    last = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == outputs
    ]
    if not last:
        raise ArgumentError(
            "the network has no linear last layer, which the tasks would share out; choose another "
            "backbone"
        )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [each for each in named if each[0].rpartition(".")[0] == last[-1]]
    trunk = [each for each in named if each[0].rpartition(".")[0] != last[-1]]
    return [*trunk, *head], sum(p.numel() for _, p in head)
