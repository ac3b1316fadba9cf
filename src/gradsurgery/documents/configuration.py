"""The options of one run: each declared once, with its description and its role."""

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from gradsurgery.atomic import write_text
from gradsurgery.documents.data_options import NO_TARGET, DataOptions, without_slash
from gradsurgery.documents.defaults import defaults_of
from gradsurgery.documents.document import (
    FILE_VERSION,
    Document,
    Role,
    about_option,
    option,
    read_mapping,
)

BatchNorm = Literal["frozen", "per-domain", "pooled"]
Optimizer = Literal["adam", "adamw", "sgd"]
Average = Literal["none", "ema", "swad"]
Batches = Literal["multi", "single"]
Schedule = Literal["constant", "linear", "cosine"]
Augment = Literal["none", "flip", "crop", "domainbed", "randaugment", "trivialaugment"]
Precision = Literal["float32", "tf32", "ieee", "bfloat16", "float16"]
Switch = Literal["auto", "on", "off"]


class RunConfiguration(DataOptions):
    """Everything that decides the outcome of a run.

    The defaults are the paper's protocol, or DomainBed's where `protocol` says so; the built-in
    digit sets have small ones of their own. What each option means is its field's `description`,
    which the command line shows too; `role` says what it is to a comparison of runs. A folder or
    file may be a `Path`, and a domain that is called by a number that number. Raises
    `ArgumentError` for a value out of its range.

    >>> RunConfiguration(data="pacs", target="sketch").learning_rate
    1e-05
    >>> RunConfiguration(data="rotated-digits", target="75").backbone
    'small-cnn'
    """

    file_name: ClassVar[str] = "configuration.json"

    protocol: Literal["paper", "domainbed"] = option(
        "place",
        "What the options are that are not given: paper (Mansilla et al. 2021) or domainbed "
        "(Gulrajani & Lopez-Paz 2021: ResNet-50, 5,000 steps of 32 images a domain, augmented, 80 "
        "% for training, a split for every seed).",
        "paper",
        free=True,
    )
    method: str = option(
        "identity",
        "A name of `gradsurgery methods`, or objective+rule; either may be package.module:Name.",
        "agr-sum",
    )
    settings: dict[str, float | str] = option(
        "hyperparameter",
        "A hyperparameter of the method or the average, e.g. group-dro.eta=0.05; see "
        "`gradsurgery methods`.",
        {},
        free=True,
    )
    backbone: str = option(
        "condition",
        "A torchvision or timm classifier, small-cnn, small-mlp, or package.module:function.",
        "alexnet",
    )
    weights: str = option(
        "condition",
        "Initial weights: default (pretrained on ImageNet), a name of torchvision's "
        "(IMAGENET1K_V1), none, or a file.",
        "default",
    )
    batch_norm: BatchNorm = option(
        "hyperparameter",
        "Batch normalisation: frozen (evaluation mode), per-domain (every domain by its own "
        "batch), or pooled (one forward pass over the batches of all domains, then a backward pass "
        "per domain). Default: frozen, with weights none per-domain.",
        "frozen",
    )
    seed: int = option(
        "identity", "Seed of everything random in the run.", 0, free=True, ge=0, le=2**63 - 1
    )
    iterations: int = option("hyperparameter", "Steps of the optimiser.", 1000, ge=1)
    batch_size: int = option("hyperparameter", "Images per source domain and step.", 128, ge=1)
    batches: Batches = option(
        "condition",
        "multi: one batch of every source domain. single: as many batches, all of one domain "
        "chosen at random at every step (the control of the paper's figure 4).",
        "multi",
    )
    log_conflict: int = option(
        "incidental",
        "Record every so many steps how the domains' gradients agree; 0 is never.",
        0,
        ge=0,
    )
    learning_rate: float = option(
        "hyperparameter", "Step size of the optimiser.", 1e-5, free=True, gt=0
    )
    weight_decay: float = option(
        "hyperparameter", "Weight decay of the optimiser.", 5e-5, free=True, ge=0
    )
    optimizer: Optimizer = option(
        "hyperparameter", "adam, adamw or sgd (with momentum 0.9).", "adam"
    )
    schedule: Schedule = option(
        "hyperparameter",
        "The learning rate over the steps: constant, or falling to 0 at the end, linear or cosine.",
        "constant",
        free=True,
    )
    warmup: int = option(
        "hyperparameter",
        "Steps over which the learning rate rises to its full value before that, linearly.",
        0,
        free=True,
        ge=0,
    )
    clip_norm: float | None = option(
        "hyperparameter",
        "Largest norm of the update that the method hands to the optimiser, all parameters "
        "together; a longer one is scaled down to it. Default: no limit.",
        None,
        gt=0,
    )
    label_smoothing: float = option(
        "hyperparameter",
        "Weight that the targets of training spread over all classes; validation and tests are "
        "without.",
        0.0,
        free=True,
        ge=0,
        lt=1,
    )
    augment: Augment = option(
        "hyperparameter",
        "Change training images at random: none, flip, crop (a random part, and flip), domainbed "
        "(that, with colours and grey), randaugment or trivialaugment.",
        "none",
    )
    freeze: str = option(
        "hyperparameter",
        "What is not trained: none, all-but-head, or layers by name or pattern, separated by "
        "commas, e.g. features.0,layer1.*.",
        "none",
        min_length=1,
    )
    freeze_steps: int = option(
        "hyperparameter",
        "For how many steps that is frozen, after which all is trained; 0 is for the whole run.",
        0,
        ge=0,
    )
    patience: int = option(
        "hyperparameter",
        "Stop after so many validations in a row without a higher validation accuracy; 0 is never.",
        0,
        ge=0,
    )
    average: Average = option(
        "hyperparameter",
        "Average of the weights over the steps: none, ema (the exponential average is validated, "
        "selected and tested), or swad (the best model is the mean over the valley of the "
        "validation loss).",
        "none",
    )
    validate_every: int = option(
        "hyperparameter",
        "Steps between validations. Each writes a checkpoint, unless writing them takes more than "
        "a tenth of the run's time.",
        20,
        ge=1,
    )
    device: str = option(
        "place", "auto (cuda where there is one, else cpu), or a device of torch.", "auto"
    )
    precision: Precision = option(
        "hyperparameter",
        "Of the forward and backward passes: float32 (as torch computes by itself, on a GPU "
        "convolutions in TF32, with 10 bits of fraction), tf32 (on a GPU all products in TF32), "
        "ieee (float32 everywhere), bfloat16 or float16. Weights are float32.",
        "float32",
    )
    channels_last: Switch = option(
        "place",
        "Weights and images with the channels last in memory: on, off, or auto (on a GPU with "
        "another precision than float32, for networks with convolutions). Results depend on it to "
        "the last bit.",
        "auto",
    )
    compile: bool = option(
        "place",
        "Compile the network with torch.compile: faster steps after a wait at the start. Results "
        "depend on it to the last bit.",
        False,
    )
    cuda_graph: Switch = option(
        "place",
        "Record a training step on the GPU once and replay it: on, off, or auto (where it can be). "
        "Results do not depend on it.",
        "auto",
    )
    threads: int | None = option(
        "place",
        "Threads of the processor to compute with; results depend on them to the last bit. "
        "Default: as many as torch takes.",
        None,
        ge=1,
    )
    keep_checkpoint: bool = option(
        "place",
        "Keep the last checkpoint beside the record (about four times the size of the model), so "
        "that the run can be given more --iterations without repeating its steps.",
        False,
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        filled = {**defaults_of(options), **options}
        for name in _FORMER:
            filled.pop(name, None)
        if filled.get("backbone") in ("small-cnn", "small-mlp"):  # there are no weights for it
            filled.setdefault("weights", "none")
        for name in ("data", "weights", "split"):
            if isinstance(filled.get(name), os.PathLike):
                filled[name] = os.fspath(filled[name])
        if isinstance(filled.get("data"), str):
            filled["data"] = without_slash(filled["data"])
        if "target" in filled:
            filled["target"] = _domain(filled["target"])
        if isinstance(filled.get("without"), list | tuple):
            filled["without"] = [_domain(name) for name in filled["without"]]
        for name in ("channels_last", "cuda_graph"):  # YAML takes on and off for true and false
            if isinstance(filled.get(name), bool):
                filled[name] = "on" if filled[name] else "off"
        if filled.get("weights") == "none":  # random running statistics are worth nothing
            filled.setdefault("batch_norm", "per-domain")
        return filled

    @property
    def seed_of_split(self) -> int:
        """The seed that the split is drawn from."""
        return self.seed if self.split_per_run else self.split_seed

    def held_out(self, domains: Collection[str]) -> str | None:
        """The target, None where all of `domains` are trained on."""
        return None if self.target == NO_TARGET and self.target not in domains else self.target

    def sources(self, domains: Iterable[str]) -> list[str]:
        """Those of `domains` that are trained and validated on."""
        return [d for d in domains if d != self.target and d not in self.without]

    def differences(self, other: "RunConfiguration", *also: str) -> dict[str, tuple[Any, Any]]:
        """The options in which two runs differ, wherever they are worked on: own value, other's.

        also: names of further options to compare.
        """
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in (*also, *_WHEREVER)
            if getattr(self, name) != getattr(other, name)
        }

    def departures(self) -> dict[str, Any]:
        """The options that are not at their field's default, wherever the run is worked on.

        A field that a later version adds changes nothing here where it is not set.
        """
        default = type(self).model_fields
        return {
            name: getattr(self, name)
            for name in _WHEREVER
            if getattr(self, name) != default[name].default
        }

    @classmethod
    def load(cls, path: Path | str) -> "RunConfiguration":
        """The options in a YAML or JSON file, or in a folder's own; raises `ArgumentError`."""
        path = Path(path)
        path = path / cls.file_name if path.is_dir() else path
        return cls(**read_mapping(path, "configuration", known_options()))

    def save(self, folder: Path) -> None:
        """Write `configuration.json`, which `--config` takes; raises `OutputError`."""
        content = {"version": FILE_VERSION, **self.model_dump(mode="json")}
        write_text(folder / self.file_name, json.dumps(content, indent=1) + "\n")


_FORMER = ("passes",)
"""Options of version 0.1.0 that say how to compute the same, and are read past."""


def known_options() -> list[str]:
    """The names that a file of options may have, those of earlier versions at the end."""
    return [*RunConfiguration.model_fields, *_FORMER]


class RunDocument(Document):
    """A document with the configuration of a run in it."""

    configuration: RunConfiguration


def options_of(*roles: Role) -> list[str]:
    """The names of the options that have one of the `roles`, in the order of the fields."""
    return [name for name in RunConfiguration.model_fields if role_of(name) in roles]


def role_of(name: str) -> Role:
    """The role of the option `name`."""
    role: Role = about_option(RunConfiguration, name)["role"]
    return role


def costly_options() -> list[str]:
    """The names of the options that decide what a step costs."""
    return [
        name
        for name in RunConfiguration.model_fields
        if not about_option(RunConfiguration, name)["free"]
    ]


_WHEREVER = [name for name in RunConfiguration.model_fields if role_of(name) != "place"]
"""The options that decide a run, wherever it is worked on."""


def _domain(name: Any) -> Any:
    """YAML takes the name 75 for a number."""
    return str(name) if type(name) in (int, float) else name
