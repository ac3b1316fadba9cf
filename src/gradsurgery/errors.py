"""Errors a user can mend. Each message names what, where, expected, found and the cure."""

import errno
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

# Control characters, marks and overrides of the direction of writing, line separators, and the
# halves of characters that stand for bytes of a file's name that are no UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

# In what torch, CUDA and its libraries say where they find no memory.
_WITHOUT_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")

_LONGEST = 600  # characters of a message
_LONG_WORD = re.compile(r"\S{201,}")  # no path that anybody typed
_LONG_QUOTE = re.compile(r"(?<!\w)'[^']{101,}'(?!\w)")  # apostrophes follow a letter


def check_kind(what: str, found: Any, kind: Any, expected: str) -> None:
    """Raise `ArgumentError` unless an argument is of this kind, in words; True is no number."""
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise ArgumentError(f"{what} is {expected}, found a {type(found).__name__}")


def meant(name: str, known: Iterable[str]) -> str:
    """What to say behind a name that is not known, where one that is comes close.

    >>> meant("agrsum", ["sum", "agr-sum"]), meant("ERM", ["erm"]), meant("x", ["sum"])
    (' (did you mean agr-sum?)', ' (did you mean erm?)', '')
    """
    known = list(known)
    close = get_close_matches(name, known, n=1) or get_close_matches(name.lower(), known, n=1)
    return "".join(f" (did you mean {each}?)" for each in close)


def printable(text: str) -> str:
    r"""The text on one line, with an escape for everything that a terminal would obey.

    Names of files, domains and classes come from anywhere: with this they are shown, and typed, as
    what they are. Printable text is returned as it is.

    >>> printable("caf\udce9.png"), printable("\x1b[31mred\n")
    ('caf\\xe9.png', '\\x1b[31mred\\n')
    """
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match.group()
    if "\udc80" <= character <= "\udcff":  # a byte of a name, in Python's way of keeping it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(error: BaseException) -> str:
    r"""What an error of another library, or of anybody's code, says: at most 200 characters.

    >>> one_line(ValueError("no such\n  column")), one_line(KeyError())
    ('no such column', 'KeyError')
    """
    if isinstance(error, SystemExit):
        return "it ends the program (sys.exit)"
    said = getattr(error, "strerror", None) or str(error)
    text = " ".join(str(said).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch has found no memory, of the processor or an accelerator."""
    found = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, ImportError):  # of a library that does not fit
        return "failed to map segment" in str(error) or os.strerror(errno.ENOMEM) in str(error)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error) if isinstance(error, RuntimeError) else ""
    return found or any(words in said for words in _WITHOUT_MEMORY)


class suppress_out_of_memory:  # noqa: N801
    """Inside, an error that says that there is no memory ends the block, and nothing else."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> bool:
        return error is not None and is_out_of_memory(error)


class GradsurgeryError(Exception):
    """Base of every error with a cure; the command line prints it as one line and exits 1.

    Of a name of any length in it, and of a message that would fill a screen, the middle is left
    out: what is wrong stands at its beginning, and the cure at its end.
    """

    def __init__(self, message: str) -> None:
        text = printable(message)
        for long in (_LONG_QUOTE, _LONG_WORD):
            text = long.sub(lambda found: _without_middle(found[0], 80), text)
        super().__init__(_without_middle(text, _LONGEST))


def _without_middle(text: str, length: int) -> str:
    """The text, of which so many characters stay where it is longer, more of the beginning."""
    end = length // 3
    return text if len(text) <= length else f"{text[: length - end]} … {text[-end:]}"


class ArgumentError(GradsurgeryError, ValueError):
    """An argument or option has a value that cannot be used."""


class DataError(GradsurgeryError):
    """A data set, an image or a split is not usable as it is."""


class WeightsError(GradsurgeryError):
    """A weights file does not fit the backbone."""


class OutputError(GradsurgeryError):
    """Something could not be written; nothing half written is left behind."""


class NonFiniteError(GradsurgeryError):
    """A loss or a gradient is NaN or infinite.

    `domain` is the position of the source domain, None where the domains were pooled; `parameter`
    the name or the position of the parameter, None where the loss itself is not finite.
    """

    def __init__(self, message: str, *, domain: int | None, parameter: str | None = None) -> None:
        super().__init__(message)
        self.domain = domain
        self.parameter = parameter


class MissingPackageError(GradsurgeryError, ImportError):
    """A package that only some features need is not installed."""
