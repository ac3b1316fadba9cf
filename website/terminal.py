"""The page on the command line, made of what `--help` says."""

import inspect
import re
from collections.abc import Iterator
from html import escape
from typing import Any

import typer

from gradsurgery.cli.main import COMMANDS, app

HEAD = """# The command line

Every command says this itself: `gradsurgery COMMAND --help`. This page is made of the same words.
"""


def page() -> str:
    """All commands with their arguments, options and defaults, as Markdown."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("gradsurgery", [next(iter(COMMANDS))], resilient_parsing=True)
    parts = [HEAD]
    for name in COMMANDS:
        parts += _described(group.get_command(context, name), f"gradsurgery {name}", context)
    return "\n\n".join(parts) + "\n"


def _described(command: Any, called: str, parent: Any) -> Iterator[str]:
    context = type(parent)(command, info_name=called.rsplit(maxsplit=1)[-1], parent=parent)
    yield f"## {called}"
    yield _prose(command.help or COMMANDS[called.split()[1]])
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _described(command.get_command(context, name), f"{called} {name}", context)
        return
    shown = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [_names(p, context) for p in shown if p.param_type_name == "argument"]
    yield f"```\n{' '.join([called, *arguments, '[OPTIONS]'])}\n```"
    for parameter in shown:
        text = parameter.get_help_record(context)[1]
        yield f"`{_names(parameter, context)}`\n:   {_prose(text) or '–'}"


def _names(parameter: Any, context: Any) -> str:
    names = parameter.get_help_record(context)[0]
    return str(names).split(" ")[0] if parameter.param_type_name == "argument" else str(names)


def _prose(text: str) -> str:
    """Help is plain text: nothing in it is markup."""
    return re.sub(r"([*_\[\]$`])", r"\\\1", escape(inspect.cleandoc(text), quote=False))
