"""Options that several commands share. One that is not given takes the data set's default."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.errors import ArgumentError

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="rotated-digits, colored-digits, pacs, vlcs, office-home (also pacs:PATH …), "
        "hf://owner/name, a folder domain/class/image, or Parquet files.",
    ),
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="A torchvision or timm classifier, or small-cnn.")
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="default (pretrained), none, or a file.")
]
BatchNormOption = Annotated[
    str | None,
    typer.Option(
        "--batch-norm",
        help="frozen or per-domain. Default: frozen, per-domain with weights none.",
    ),
]
IterationsOption = Annotated[int | None, typer.Option("--iterations", help="Optimiser steps.")]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", help="Images per source domain and step.")
]
BatchesOption = Annotated[
    str | None,
    typer.Option(
        "--batches",
        help="multi: one batch of every source domain. single: as many batches, all of one domain "
        "chosen at random at every step.",
    ),
]
LearningRateOption = Annotated[float | None, typer.Option("--learning-rate")]
WeightDecayOption = Annotated[float | None, typer.Option("--weight-decay")]
OptimizerOption = Annotated[
    str | None, typer.Option("--optimizer", help="adam, adamw or sgd (momentum 0.9).")
]
AverageOption = Annotated[
    str | None,
    typer.Option(
        "--average",
        help="Of the weights over the steps: none, ema (exponential) or swad (over the valley of "
        "the validation loss).",
    ),
]
ValidateEveryOption = Annotated[
    int | None,
    typer.Option(
        "--validate-every",
        help="Steps between validations. Each writes a checkpoint, unless writing them takes more "
        "than a tenth of the run's time.",
    ),
]
ImageSizeOption = Annotated[
    int | None, typer.Option("--image-size", help="Height and width in pixels.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="float32, bfloat16 or float16.")
]
SplitSeedOption = Annotated[
    int | None, typer.Option("--split-seed", help="Seed of the split, the same for all runs.")
]
SplitPerRunOption = Annotated[
    bool, typer.Option("--split-per-run", help="Draw the split from the run's own seed.")
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A hyperparameter of the method or the average, e.g. group-dro.eta=0.05; see "
        "`gradsurgery methods`.",
    ),
]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Folder of the decoded images.")]


def settings_from(texts: list[str] | None) -> dict[str, float | str]:
    """Hyperparameters from "name=value"; raises `ArgumentError` where that is not what is there."""
    settings: dict[str, float | str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ArgumentError(f"--set takes NAME=VALUE, e.g. group-dro.eta=0.05, found {text!r}")
        try:
            settings[name] = float(value)
        except ValueError:
            settings[name] = value
    return settings


def without_none(options: dict[str, Any], *others: str) -> dict[str, Any]:
    """The options that were given, without `others`."""
    return {k: v for k, v in options.items() if v is not None and k not in others}
