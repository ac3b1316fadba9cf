"""The command `gradsurgery`: its commands, and how errors leave it."""

import sys
from typing import Annotated

import typer

from gradsurgery import __version__
from gradsurgery.cli.compare import compare
from gradsurgery.cli.data import app as data
from gradsurgery.cli.diagnose import diagnose
from gradsurgery.cli.methods import methods
from gradsurgery.cli.report import report
from gradsurgery.cli.reproduce import app as reproduce
from gradsurgery.cli.select import select
from gradsurgery.cli.show import show
from gradsurgery.cli.similarity import similarity
from gradsurgery.cli.sweep import sweep
from gradsurgery.cli.train import train
from gradsurgery.errors import GradsurgeryError

app = typer.Typer(
    name="gradsurgery",
    help="Train image classifiers on several domains so that they hold up on one never seen.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(sweep)
app.command()(compare)
app.command()(show)
app.command()(report)
app.command()(select)
app.command()(similarity)
app.command()(diagnose)
app.command()(methods)
app.add_typer(reproduce, name="reproduce")
app.add_typer(data, name="data")


def _version(asked: bool) -> bool:
    if asked:
        print(__version__)
        raise typer.Exit
    return asked


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of no command."""


def run() -> None:
    """Entry point: an error that has a cure is one line and exit code 1, an interruption 130."""
    try:
        app()
    except GradsurgeryError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
