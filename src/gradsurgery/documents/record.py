"""What a run leaves behind: `record.json` once it is finished, and `split.json`."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from gradsurgery.documents.configuration import RunDocument
from gradsurgery.documents.document import LARGEST, Document, Part, check_lengths
from gradsurgery.documents.tally import Tally, check_counts

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Duration = Annotated[float, Field(ge=0)]


class SkippedFile(Part):
    """An image that could not be decoded, or a file that is none, and why."""

    identity: str
    reason: str


class Copies(Part):
    """Pictures that are there more than once: files that are identical, or images that look alike.

    images: how many images are one of several.
    across_classes: pictures with more than one class, of which one at least is wrong.
    across_domains: pictures that two domains share, by "a and b".
    across_parts: pictures that are trained on, and validated or tested on too.
    of_target: the target's test images among these.
    examples: identities of the images of some of them, the most telling first.
    """

    images: Count = 0
    across_classes: Count = 0
    across_domains: dict[str, Count] = {}
    across_parts: Count = 0
    of_target: Count = 0
    examples: list[list[str]] = []


class DataRecord(Part):
    """The image set: `images` counts the images of each domain.

    `class_images` counts those of each class, in the order of `classes`, by domain; `left_out` are
    the files that were not read and the classes that were not used; `doubts` says what else there
    is to doubt. All are empty in files of before they were. `identical` and `alike` are pictures
    that the run uses more than once; None where they were not looked for.
    """

    name: str
    digest: str
    domains: list[str]
    classes: list[str]
    images: dict[str, Count]
    class_images: dict[str, list[Count]] = {}
    skipped: list[SkippedFile]
    left_out: list[SkippedFile] = []
    identical: Copies | None = None
    alike: Copies | None = None
    doubts: list[str] = []

    @model_validator(mode="after")
    def _names_and_counts_agree(self) -> "DataRecord":
        check_counts(self.domains, self.classes, self.images, self.class_images)
        return self


class SplitSizes(Part):
    """Numbers of images of one domain in each part."""

    train: Count
    validation: Count
    test: Count


class SplitRecord(Part):
    """The split and the seed it was drawn with; `unused` counts the images that are in no part."""

    digest: str
    seed: int
    unused: Count = 0
    sizes: dict[str, SplitSizes]


class ModelRecord(Part):
    """The network, the digest of its initial weights' file (None without one), and the domains of
    this data set that these weights had been trained on.
    """

    parameters: Count
    pretrained: bool
    weights_digest: str | None
    weights_domains: list[str] = []


class Curves(Part):
    """One entry a validation; a value that is not finite is None.

    `train_loss`, `agreeing` (fraction of components that agree, in [0, 1]) and `cosine` (mean over
    the pairs of domains, in [-1, 1]) are means over the steps since the validation before.
    """

    step: list[Count] = []
    train_loss: list[float | None] = []
    validation_loss: list[float | None] = []
    validation_accuracy: list[Fraction] = []
    agreeing: list[Fraction | None] = []
    cosine: list[float | None] = []

    def append(
        self,
        *,
        step: int,
        train_loss: float | None,
        validation_loss: float,
        validation_accuracy: float,
        agreeing: float | None,
        cosine: float | None,
    ) -> None:
        """Add one validation."""
        self.step.append(step)
        self.train_loss.append(_finite(train_loss))
        self.validation_loss.append(_finite(validation_loss))
        self.validation_accuracy.append(validation_accuracy)
        self.agreeing.append(_finite(agreeing))
        self.cosine.append(_finite(cosine))

    @model_validator(mode="after")
    def _of_one_length(self) -> "Curves":
        """Every curve has a value for every validation; of those that may be absent it is None."""
        for name in ("validation_loss", "agreeing", "cosine"):
            if not getattr(self, name):
                setattr(self, name, [None] * len(self.step))
        check_lengths(len(self.step), *self)
        return self

    def best(self) -> int:
        """Position of the highest validation accuracy; ties go to the earlier."""
        return max(range(len(self.step)), key=self.validation_accuracy.__getitem__)


class ModelResult(Part):
    """Accuracies in [0, 1] of one model; `target_accuracy` is the target's test accuracy, None
    where no domain was held out.

    `target_validation_accuracy` is that on the target's validation images, which the oracle of
    model selection looks at and nothing else; None in records of runs that did not test it.
    `tests` counts the test images of each domain by class and prediction; empty in records of
    before it was.
    `averaged_from` is the first step of the mean that SWAD's model is, `step` its last; None for
    every other model.
    """

    step: Count
    averaged_from: Count | None = None
    validation_accuracy: Fraction
    target_accuracy: Fraction | None
    target_validation_accuracy: Fraction | None = None
    test_accuracy: dict[str, Fraction]
    tests: dict[str, Tally] = {}


class Result(Part):
    """The model of the highest validation accuracy, and the last one.

    With the average "ema" both are exponential averages; with "swad" the best is the average over
    the valley of the validation loss, and the last is the plain model.
    """

    best: ModelResult
    last: ModelResult


class Cost(Part):
    """What the run took; the only part that differs between two runs of one command.

    `seconds` covers training, validation and checkpoints of all the processes that worked on the
    run; `seconds_per_step` is the time of a training step, its wait for images among it, and
    `data_wait` the fraction of that time that passed without images to compute on (None in files
    written before it was); `peak_memory_bytes` is the device's where it has memory of its own, else
    the process's; `cuda_graph` says that steps were replayed, or why not (None without a GPU);
    `frozen_features` whether what the frozen layers make of the images was computed once for all
    steps, the time for which, shared by all runs that take them, is in none of these.
    """

    seconds: Duration
    seconds_per_step: Duration
    data_wait: Fraction | None = None
    peak_memory_bytes: Count
    cuda_graph: str | None = None
    frozen_features: bool = False


class ConflictLog(Part):
    """One entry every so many steps; a value that is not finite, or that the rule lacks, is None.

    Nothing is computed for it: it holds what the step's rule computes anyway, on the gradients of
    that step's batches.

    step: counted from 1.
    losses: of each source domain.
    agreeing: fraction in which the domains agree, of the components that are not zero in every
        domain (files written before `moving` was: of all, zero counting as agreement).
    cosines: of the domains' gradients, in pairs, for rules that use inner products.
    layers: `agreeing` within each layer, by the layer's name in the model.
    moving: numbers of components in these layers that are not zero in every domain.
    sizes: numbers of all their components.
    """

    step: list[int] = []
    losses: list[list[float | None]] = []
    agreeing: list[Fraction | None] = []
    cosines: list[list[list[float | None]] | None] = []
    layers: list[dict[str, float] | None] = []
    moving: list[dict[str, int] | None] = []
    sizes: dict[str, int] = {}

    @model_validator(mode="after")
    def _of_one_length(self) -> "ConflictLog":
        """Every list has an entry for every step; `moving`, which is younger, may lack some."""
        of_every_step = ("losses", "agreeing", "cosines", "layers")
        check_lengths(len(self.step), *((name, getattr(self, name)) for name in of_every_step))
        if len(self.moving) > len(self.step):
            check_lengths(len(self.step), ("moving", self.moving))
        return self

    def append(
        self,
        step: int,
        losses: list[float],
        *,
        agreeing: float | None,
        cosines: list[list[float]] | None,
        by_parameter: Mapping[str, float] | None,
        moving: Mapping[str, int] | None,
        sizes: Mapping[str, int],
    ) -> None:
        """Add one step.

        by_parameter: `agreeing` within each parameter tensor, by its name.
        moving: numbers of components of these tensors that are not zero in every domain.
        sizes: numbers of all components of every tensor.
        """
        self.step.append(step)
        self.losses.append([*map(_finite, losses)])
        self.agreeing.append(_finite(agreeing))
        self.cosines.append(None if cosines is None else [[*map(_finite, row)] for row in cosines])
        if by_parameter is None or moving is None:
            self.layers.append(None)
            self.moving.append(None)
            return
        counts = {name: fraction * moving[name] for name, fraction in by_parameter.items()}
        agree, moved = _by_layer(counts), _by_layer(moving)
        self.sizes.update({layer: int(size) for layer, size in _by_layer(sizes).items()})
        self.moving.append({layer: int(count) for layer, count in moved.items()})
        self.layers.append({layer: count / moved[layer] for layer, count in agree.items()})


def _by_layer(values: Mapping[str, int | float]) -> dict[str, int | float]:
    """The sums over the parameter tensors of each layer."""
    sums: dict[str, int | float] = {}
    for name, value in values.items():
        layer = name.rpartition(".")[0] or name
        sums[layer] = sums.get(layer, 0) + value
    return sums


class Record(RunDocument):
    """A finished run; `conflict` is None where the run did not log it.

    `objects` is what the run took from outside of this software (rule, objective, data source,
    backbone): its name, package, version and file's sha256; twice if it changed during the run.
    """

    file_name: ClassVar[str] = "record.json"
    title: ClassVar[str] = "record of a run"
    cure: ClassVar[str] = "delete it and repeat the run"

    data: DataRecord
    split: SplitRecord
    model: ModelRecord
    curves: Curves
    conflict: ConflictLog | None = None
    result: Result
    objects: list[dict[str, str | None]] = []
    environment: dict[str, str | int | bool | None]
    cost: Cost

    @model_validator(mode="after")
    def _fits_its_domains(self) -> "Record":
        """The domains that the configuration names are the data set's."""
        domains, configuration, sizes = self.data.domains, self.configuration, self.split.sizes
        target = configuration.held_out(domains)
        for domain in (target, *configuration.without):
            if domain is not None and domain not in domains:
                raise ValueError(f"configuration names the domain {domain!r}, expected {domains}")
        for model in (self.result.best, self.result.last):
            tested = model.test_accuracy
            expected = tested.get(target, "nothing") if target else None
            if model.target_accuracy != expected:
                about = f"{expected} in test_accuracy, where the target is {configuration.target!r}"
                raise ValueError(f"a target_accuracy is {model.target_accuracy}, and {about}")
            if beyond := [domain for domain in tested if domain not in domains]:
                raise ValueError(f"test_accuracy is of {beyond[0]!r}, expected {domains}")
            for domain, tally in model.tests.items():
                images = sizes[domain].test if domain in sizes else None
                tally.check_fits(domain, len(self.data.classes), images, tested.get(domain))
        return self

    @model_validator(mode="after")
    def _of_its_steps(self) -> "Record":
        """Every model is of a step that was validated, or the mean of steps up to one."""
        steps, c = self.curves.step, self.configuration
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError("curves.step does not increase from one validation to the next")
        if steps and (steps[-1] > c.iterations or (steps[-1] < c.iterations and not c.patience)):
            raise ValueError(f"curves.step ends at {steps[-1]} of {c.iterations} iterations")
        at = dict(zip(steps, self.curves.validation_accuracy, strict=True))
        for name, model in (("best", self.result.best), ("last", self.result.last)):
            first, step, accuracy = model.averaged_from, model.step, model.validation_accuracy
            if at and not (step in at if first is None else first <= step <= steps[-1]):
                about = f"none of the {len(steps)} steps that were validated, up to {steps[-1]}"
                raise ValueError(f"result.{name}.step is {about}, found {step}")
            if at and first is None and accuracy != at[step]:
                about = f"{accuracy}, and in curves {at[step]}"
                raise ValueError(f"result.{name}.validation_accuracy is {about} at step {step}")
        return self


class SplitFile(Document):
    """The identities of the images of each domain and part, and the seed that drew them.

    files: how the sha256 of each training image's file begins, by domain; empty if not known.
    """

    file_name: ClassVar[str] = "split.json"
    title: ClassVar[str] = "split"
    cure: ClassVar[str] = "draw it anew"

    seed: int
    digest: str
    domains: dict[str, dict[str, list[str]]]
    files: dict[str, list[str]] = {}


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) <= LARGEST else None
