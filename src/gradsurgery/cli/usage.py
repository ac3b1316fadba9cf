"""What is wrong with a command line that was typed, in one line with the cure."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from gradsurgery.errors import printable

PROGRAM = "gradsurgery"
_LONGEST = 240  # characters of what is wrong


def usage_line(error: Any, commands: Sequence[str], typed: Sequence[str]) -> str:
    """The line for a usage error of the library that reads the command line.

    commands: what there is, to say which comes close to one that there is not.
    typed: the words after the program's name.
    """
    command = " ".join([PROGRAM, *(word for word in typed[:1] if word in commands)])
    if error.ctx is not None:
        command = error.ctx.command_path
    text = printable(_wrong(error, commands))
    half = _LONGEST // 2
    text = text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"
    return f"{text}; see {command} --help"


def _wrong(error: Any, commands: Sequence[str]) -> str:
    kind, said = type(error).__name__, " ".join(error.format_message().split()).rstrip(".")
    if kind == "NoSuchOption":
        close = get_close_matches(error.option_name, error.possibilities or (), n=1)
        return f"there is no option {error.option_name}{''.join(f', but {c}' for c in close)}"
    if missing := re.fullmatch(r"Missing \w+ '?([^']+)'?", said):
        usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
        return f"{missing[1].rstrip('.')} is missing, of {usage}"
    if unknown := re.match(r"No such command '(.*?)'", said):
        close = get_close_matches(unknown[1], commands, n=1) or list(commands)
        return f"there is no command {unknown[1]!r}; there is {', '.join(close)}"
    explained = getattr(error.__cause__, "errors", None)
    if explained is None:
        return said
    option, _, message = said.removeprefix("Invalid value for ").partition(": ")
    found = explained()[0]["input"]  # pydantic's, which the library does not quote
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    value = "" if repr(found) in message else f", found {found!r:.80}"
    return f"{option.replace(chr(39), '')}: {message}{value}"
