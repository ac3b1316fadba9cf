"""`gradsurgery train`, one run, and `gradsurgery methods`, what there is to train with."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gradsurgery.algorithms import METHODS, OTHER_METHODS, method_parts, settings_listing
from gradsurgery.atomic import check_folder
from gradsurgery.cli import options as opt
from gradsurgery.cli.live import continuable, displayed
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.document import folder_name
from gradsurgery.documents.record import Record
from gradsurgery.doors import Kind, entry_names, entry_place
from gradsurgery.errors import ArgumentError, printable
from gradsurgery.report.evaluation_text import chance_sentences, known_targets
from gradsurgery.report.rendering import OnTerminal
from gradsurgery.report.run_text import accuracy_text
from gradsurgery.report.section import Table, Text, plain_table
from gradsurgery.training import device
from gradsurgery.training import train as train_run
from gradsurgery.training.averaging import average_listing
from gradsurgery.training.checkpoint import is_longer
from gradsurgery.training.loggers import logged


@opt.takes_options_of(RunConfiguration)
def train(
    *,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Default: runs/<data>/<target>/<method>/seed-<seed>.")
    ] = None,
    cache: opt.CacheOption = None,
    tensorboard: opt.TensorboardOption = False,
    logger: opt.LoggerOption = None,
    options: dict[str, Any],
) -> None:
    """Train on every domain but the target, and test on the target.

    The options' defaults are the paper's protocol; the digit sets have small ones of their own.
    The same command again continues a run that was interrupted.
    """
    chosen = opt.configured(config, options)
    check_target(chosen)
    c = RunConfiguration(**chosen)
    if print_config:
        opt.print_yaml(c.model_dump())
        return
    check_new(out, Record.file_name, [c.method])
    names = opt.loggers(logger, tensorboard)
    device.keep_freed_memory()  # before torch allocates anything
    source = open_source(c.data, **c.reading)
    place = *map(folder_name, (source.name, c.target, c.method)), f"seed-{c.seed}"
    directory = out or Path("runs", *place)
    finished = _is_finished(c, directory)
    with continuable(), displayed(c.method) as shown, logged(names, directory, c, shown) as log:
        record = train_run(c, directory, log, cache, opened=source)
        log.finished(record)
    if finished:
        print("this run was finished before")
    print(result_line(record))
    for sentence in [*known_targets([record]), *chance_sentences(record)]:
        print(printable(sentence))
    print(f"record: {directory / Record.file_name}")


def _is_finished(configuration: RunConfiguration, directory: Path) -> bool:
    """Whether the run's record is there, rather than that of one with fewer steps.

    Whether it is of these options is looked at once they have been checked.
    """
    if not (directory / Record.file_name).exists():
        return False
    return not is_longer(configuration, Record.load(directory).configuration)


def check_new(out: Path | None, file_name: str, methods: Iterable[str]) -> None:
    """Raise for a folder that cannot be written or a method that there is not.

    Called before data is fetched. A folder that has the file already may hold all that is asked
    for.
    """
    if out is not None:
        if os.path.exists(out / file_name):  # noqa: PTH110, Path's raises what `check_folder` tells
            return
        check_folder(out)
    for method in methods:
        method_parts(method)


def check_target(options: dict[str, Any]) -> None:
    """Raise `ArgumentError` where the options name no target, with the domains there are."""
    if "target" not in options and isinstance(options.get("data"), str):
        asked = RunConfiguration(**{**options, "target": "any"})
        source = open_source(asked.data, **asked.reading)
        raise ArgumentError(
            f"target is missing; give --target and one of the domains of {source.name}: "
            f"{', '.join(source.domains)}, or none to train on all"
        )


def result_line(record: Record) -> str:
    """What came out, in a line."""
    best, last = record.result.best, record.result.last
    model = f"best model, step {best.step}"
    if best.averaged_from is not None:
        model = f"average of steps {best.averaged_from} to {best.step}"
    if best.target_accuracy is None or last.target_accuracy is None:
        return (
            f"trained on {', '.join(record.data.domains)}: validation accuracy "
            f"{best.validation_accuracy:.1%} ({model}); no domain was held out"
        )
    target = record.configuration.target
    return (
        f"accuracy on {target} {accuracy_text(best.target_accuracy, best.tests.get(target))} "
        f"({model}, validation {best.validation_accuracy:.1%}), "
        f"{last.target_accuracy:.1%} (last model, step {last.step})"
    )


def methods() -> None:
    """List the methods and the hyperparameters, with what they do and where they come from.

    Besides these names, any objective+rule is a method, e.g. mixup+agr-sum. The hyperparameters of
    ema and swad are those of the option --average. Of the rules and objectives that installed
    packages register the name and the place are listed; their code is not run.
    """
    columns = ["method", "objective+rule", "what it does", "source"]
    kinds: dict[Kind, str] = {"rule": "erm+{}", "objective": "{}+mean"}
    of_packages = [
        (name, parts.format(name), f"{kind} of a package", entry_place(name, kind))
        for kind, parts in kinds.items()
        for name in entry_names(kind)
    ]
    settings = [*settings_listing(), *average_listing()]
    blocks: list[Text | Table] = [
        plain_table("The paper's methods", columns, METHODS.values()),
        plain_table("Others", columns, [*OTHER_METHODS.values(), *of_packages]),
        Text("Any objective+rule is a method, e.g. mixup+agr-sum or irm+torchjd:UPGrad."),
        Text(""),
        plain_table("Hyperparameters", ["--set", "default", "meaning"], settings),
    ]
    Console().print(OnTerminal(blocks))
