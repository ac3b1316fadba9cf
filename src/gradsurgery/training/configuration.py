"""The options of one run, checked."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gradsurgery.errors import ArgumentError
from gradsurgery.training.defaults import defaults_for

BatchNorm = Literal["frozen", "per-domain", "pooled"]
Optimizer = Literal["adam", "adamw", "sgd"]
Precision = Literal["float32", "bfloat16", "float16"]
Average = Literal["none", "ema", "swad"]
Batches = Literal["multi", "single"]
Passes = Literal["auto", "separate", "pooled"]


class RunConfiguration(BaseModel):
    """Everything that decides the outcome of a run.

    The defaults are the paper's protocol; the built-in digit sets have small ones of their own
    (`gradsurgery.training.defaults`). Raises `ArgumentError` for a value out of its range.

    Args:
        data: data set: a built-in name, a folder, "hf://owner/name", "pacs" or "pacs:PATH".
        target: the domain that is held out.
        without: source domains that are left out too, of training and of validation: what
            leave-one-domain-out cross-validation needs.
        method: one of the paper's names ("agr-sum"), or an objective and a rule ("irm+pcgrad").
        settings: hyperparameters of the method or the average, e.g. {"group-dro.eta": 0.05}.
        backbone: a name of `gradsurgery.backbones.backbone_names()`.
        weights: initial weights: "default" (the library's pretrained ones), "none" or a file.
        batch_norm: "frozen" keeps batch-normalisation layers in evaluation mode, "per-domain"
            normalises every domain by its own batch, "pooled" by the batches of all domains in one
            pass. Not given, it is "frozen", with weights "none" "per-domain" ("pooled" where
            passes are): random running statistics are worth nothing.
        seed: of the initial weights, the batches and everything else random in the run.
        split_seed: of the split into training, validation and test images.
        split_per_run: draw the split from `seed` instead.
        iterations: number of optimiser steps.
        batch_size: images per source domain and step.
        batches: "multi" draws one batch from each of the D source domains, "single" all D batches
            from one of them, chosen at random at every step (the control of the paper's figure 4).
        passes: "separate" makes one forward and backward pass per domain, "pooled" one for all,
            "auto" the faster of the two where both are exact.
        log_conflict: record every so many steps what the step sees of the domains' conflict; 0 is
            never.
        learning_rate: step size of the optimiser.
        weight_decay: of the optimiser.
        optimizer: "adam", "adamw" or "sgd" (momentum 0.9).
        average: of the weights over the steps. "ema": the exponential moving average is the model
            that is validated, selected and tested. "swad": the best model is the average over the
            valley of the validation loss, the last model is the plain one.
        validate_every: steps between validations; the last step is validated always. A validation
            writes a checkpoint, unless writing them takes more than a tenth of the run's time.
        image_size: height and width in pixels.
        device: "auto" (cuda, mps, cpu: the first there is), or a device of torch.
        precision: of the forward and backward passes; the weights are float32.
        skip_bad: leave out images that cannot be decoded, rather than stop.

    >>> RunConfiguration(data="pacs", target="sketch").learning_rate
    1e-05
    >>> RunConfiguration(data="rotated-digits", target="75").backbone
    'small-cnn'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str = Field(min_length=1)
    target: str = Field(min_length=1)
    without: list[str] = Field(default_factory=list)
    method: str = "agr-sum"
    settings: dict[str, float | str] = Field(default_factory=dict)
    backbone: str = "alexnet"
    weights: str = "default"
    batch_norm: BatchNorm = "frozen"
    seed: int = Field(0, ge=0)
    split_seed: int = Field(0, ge=0)
    split_per_run: bool = False
    iterations: int = Field(1000, ge=1)
    batch_size: int = Field(128, ge=1)
    batches: Batches = "multi"
    passes: Passes = "auto"
    log_conflict: int = Field(0, ge=0)
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(5e-5, ge=0)
    optimizer: Optimizer = "adam"
    average: Average = "none"
    validate_every: int = Field(20, ge=1)
    image_size: int = Field(224, ge=8, le=2048)
    device: str = "auto"
    precision: Precision = "float32"
    skip_bad: bool = False

    if not TYPE_CHECKING:  # the signature type checkers see stays the fields'

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise _argument_error(error) from None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, options: dict[str, Any]) -> dict[str, Any]:
        filled = {**defaults_for(str(options.get("data", ""))), **options}
        if filled.get("backbone") == "small-cnn":  # there are no weights for it
            filled.setdefault("weights", "none")
        if isinstance(filled.get("data"), str):
            filled["data"] = without_slash(filled["data"])
        if isinstance(filled.get("without"), list | tuple):
            filled["without"] = sorted(set(filled["without"]))
        if filled.get("weights") == "none":
            pooled = filled.get("passes") == "pooled"
            filled.setdefault("batch_norm", "pooled" if pooled else "per-domain")
        return filled

    def sources(self, domains: Iterable[str]) -> list[str]:
        """Those of `domains` that are trained and validated on."""
        return [d for d in domains if d != self.target and d not in self.without]

    def differences(self, other: "RunConfiguration") -> dict[str, tuple[Any, Any]]:
        """The options in which two configurations differ: name to (own value, other's)."""
        mine, theirs = self.model_dump(), other.model_dump()
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}


def without_slash(data: str) -> str:
    """A data set as users name it: the same folder with a slash at its end and without.

    >>> without_slash("photos/"), without_slash("/")
    ('photos', '/')
    """
    return data.rstrip("/") if data[1:].endswith("/") else data


def _argument_error(error: ValidationError) -> ArgumentError:
    """The first complaint of pydantic as one line that names the option."""
    first = error.errors()[0]
    option = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(RunConfiguration.model_fields)
        return ArgumentError(f"unknown option {option!r}; the options are {known}")
    if first["type"] == "missing":
        return ArgumentError(f"{option} is missing; give one")
    expected = first["msg"].replace("Input should be", "must be")
    return ArgumentError(f"{option} {expected}, found {first['input']!r}")
