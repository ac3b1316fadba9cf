"""The command `gradsurgery`: its commands, and how errors leave it.

A command's module is imported when the command is called, so that `--help` is instant.
"""

import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from gradsurgery import __version__
from gradsurgery.doors import fault_of
from gradsurgery.errors import GradsurgeryError, is_out_of_memory, one_line, printable

PROGRAM = "gradsurgery"
_LONGEST = 240  # characters of what is wrong
COMMANDS = {
    "train": "Train on every domain but the target, and test on the target.",
    "predict": "Classify pictures with a trained model.",
    "export": "Write a trained model for another runtime, or to the Hub.",
    "evaluate": "Say how right a trained model is on a data set, and how far to trust it.",
    "sweep": "Run data sets x targets x methods x seeds, and write the report.",
    "compare": "Train every method on every target with every seed, and print the table.",
    "show": "Show what runs came to: one in detail, several as tables.",
    "deploy": "Choose a method by leaving every domain out in turn, and train it on all of them.",
    "report": "Write tables, figures and a page about finished runs.",
    "select": "Choose hyperparameters among finished runs, by three criteria.",
    "similarity": "Measure the similarity of single images' gradients while a network trains.",
    "diagnose": "Say where the gradients of the domains conflict, by layers.",
    "explain": "Show what a model's answers rest on, picture by picture.",
    "study": "Run a study of its own kind: tasks against domains.",
    "methods": "List the methods and their hyperparameters.",
    "reproduce": "Run the experiments of Mansilla et al. (ICCV 2021) with their settings.",
    "data": "Look at a data set, or decode it ahead of time.",
}
"""The commands and what they are for."""
_MODULES = {
    "compare": "sweep",
    "methods": "train",
    **dict.fromkeys(("show", "select", "report"), "finished_runs"),
    "export": "deploy",
    **dict.fromkeys(("predict", "evaluate"), "trained_models"),
    **dict.fromkeys(("similarity", "diagnose", "study"), "studies"),
}
"""The module in `gradsurgery.cli` of a command whose own name it does not have."""


class _LazyGroup(TyperGroup):
    """Imports a command's module when the command is called."""

    _listing = False

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
        module = import_module(f"gradsurgery.cli.{_MODULES.get(cmd_name, cmd_name)}")
        if not hasattr(module, cmd_name):  # a group
            return _flowing(typer.main.get_command(module.app))
        single = typer.Typer(**_STYLE)
        single.command(cmd_name, cls=_Flowing)(getattr(module, cmd_name))
        return _flowing(typer.main.get_command(single))

    @override
    def invoke(self, ctx: Any) -> Any:
        """Of somebody's code that fails or ends the program, say which; errors of ours pass.

        An interruption that the command does not speak of itself is told.
        """
        try:
            return super().invoke(ctx)
        except (GradsurgeryError, typer.Exit, typer.Abort, _UsageError):
            raise
        except KeyboardInterrupt:  # of which the library would say nothing
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except (Exception, SystemExit) as error:
            unread = BrokenPipeError in (type(error), type(error.__context__))  # rich ends then
            if unread or (fault := fault_of(error)) is None:
                raise
            raise GradsurgeryError(fault) from error

    @override
    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


class _Flowing(TyperCommand):
    """A command whose help breaks what is wider than its column, and cuts nothing off."""

    @override
    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.table import Table
        from typer import rich_utils

        class Folding(Table):
            @override
            def add_row(self, *cells: Any, **options: Any) -> None:
                super().add_row(*cells, **options)
                texts = [text for cell in cells for text in getattr(cell, "renderables", ())]
                for each in (*self.columns, *texts):
                    each.overflow = "fold"

        vars(rich_utils)["Table"] = Folding
        super().format_help(ctx, formatter)


def _flowing(command: Any) -> Any:
    """The command, a paragraph of its help one line, which the terminal wraps at its own width."""
    if command.help:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help)
    for within in getattr(command, "commands", {}).values():
        _flowing(within)
    return command


_UsageError: Any = typer.BadParameter.__base__  # what was typed is wrong, not what it names

_STYLE: dict[str, Any] = {
    "no_args_is_help": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "add_completion": False,
}
app = typer.Typer(
    **_STYLE | {"no_args_is_help": True, "add_completion": True},
    name="gradsurgery",
    cls=_LazyGroup,
    help="Train image classifiers on several domains so that they hold up on one never seen.",
)


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
    """Entry point: an error that has a cure is one line and exit code 1, an interruption 130.

    What cannot be typed is one line too, and exit code 2.
    """
    # Before torch is imported: threads that wait for each other sleep. Spinning takes the time of
    # those that are waited for, where a machine has other work. Results do not depend on it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _take_surroundings()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # images that cannot be read are named
    try:
        code = app(standalone_mode=False, prog_name=PROGRAM)
    except _UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            _end(f"error: {usage_line(error, sys.argv[1:])}", 2)
        error.show()
        sys.exit(2)
    except typer.Abort:
        _end("aborted")
    except GradsurgeryError as error:
        _end(f"error: {' '.join(str(error).split())}")
    except (ImportError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cure = "take fewer or smaller images at a time"
        if isinstance(error, ImportError):
            cure = "give the process more (ulimit -v)"
        _end(f"error: out of memory: {one_line(error)}; {cure}")
    except UnicodeEncodeError as error:
        if error.encoding.lower() == "utf-8":
            raise
        _end(
            f"error: the environment's encoding {error.encoding} cannot write "
            f"{error.object!a:.200}; set PYTHONUTF8=1"
        )
    except OSError as error:  # a path that is too long, a disk that is gone
        what = "" if error.filename is None else f"{error.filename!s:.200}: "
        _end(f"error: {what}{error.strerror or error}")
    except KeyboardInterrupt:
        _end("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _end(line: str, code: int = 1) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)


def _take_surroundings() -> None:
    """Make do with streams that are closed or of a small encoding, and end in order when told to.

    A closed one's number would be given to the next file that is opened, for others to write to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY
            descriptor = os.open(os.devnull, mode)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            ending = getattr(signal, name, None)  # Windows lacks one
            if ending is not None and signal.getsignal(ending) is signal.SIG_DFL:
                signal.signal(ending, signal.default_int_handler)


def usage_line(error: Any, typed: Sequence[str]) -> str:
    """The line for a usage error in what was `typed`, the words after the program's name."""
    command = " ".join([PROGRAM, *(word for word in typed[:1] if word in COMMANDS)])
    if error.ctx is not None:
        command = error.ctx.command_path
    text = printable(_wrong(error))
    half = _LONGEST // 2
    text = text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"
    return f"{text}; see {command} --help"


def _wrong(error: Any) -> str:
    kind, said = type(error).__name__, " ".join(error.format_message().split()).rstrip(".")
    if kind == "NoSuchOption":
        name, parameters = error.option_name, [] if error.ctx is None else error.ctx.command.params
        known = [option for each in parameters for option in each.opts if option.startswith("--")]
        # an abbreviation, as --lr, comes closest to the option with these initials
        close = [o for o in known if "".join(w[:1] for w in o[2:].split("-")) == name[2:]]
        close = close or get_close_matches(name, error.possibilities or (), n=1)
        return f"there is no option {name}" + (f", but {' or '.join(close)}" if close else "")
    if missing := re.fullmatch(r"Missing \w+ '?([^']+)'?", said):
        usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
        return f"{missing[1].rstrip('.')} is missing, of {usage}"
    if unknown := re.match(r"No such command '(.*?)'", said):
        commands = error.ctx.command.list_commands(error.ctx)
        close = get_close_matches(unknown[1], commands, n=1) or commands
        return f"there is no command {unknown[1]!r}; there is {', '.join(close)}"
    explained = getattr(error.__cause__, "errors", None)
    if explained is None:
        return said
    option, _, message = said.removeprefix("Invalid value for ").partition(": ")
    found = explained()[0]["input"]  # pydantic's, which the library does not quote
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    value = "" if repr(found) in message else f", found {found!r:.80}"
    return f"{option.replace(chr(39), '')}: {message}{value}"
