"""What every file is that this software writes and reads again, and every option of a person."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradsurgery.atomic import write_text
from gradsurgery.errors import ArgumentError, DataError, one_line

Kind = TypeVar("Kind", bound="Document")

FILE_VERSION = 1
"""Of the files that a person may write too: a configuration, a plan."""

LARGEST = 1e100
"""Nothing that is measured here is larger, and sums of such numbers are finite."""
_LARGEST_INTEGER = 2**63 - 1
_FEW = 140  # characters of names that a message lists
_HALVES = re.compile("[\ud800-\udfff]")  # of characters: not in UTF-8


class Part(BaseModel):
    """A part of a document. What a later version may have added is read past."""

    # Before 2.10 pydantic warned of every field called model_….
    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=False, protected_namespaces=("model_validate", "model_dump")
    )


class Document(Part):
    """A file: its name, its version, how it is read, checked and written.

    file_name: what it is called in its folder.
    title: what it is, in messages.
    cure: what to do about one that is damaged.
    unnumbered: whether files of version 1 did not say so.
    """

    file_name: ClassVar[str]
    title: ClassVar[str]
    cure: ClassVar[str]
    unnumbered: ClassVar[bool] = False

    version: int = 1

    @classmethod
    def load(cls: type[Kind], path: Path | str) -> Kind:
        """Read the file at `path`, or the one of its name in the folder `path`.

        Raises `DataError`, one line that names the file, what is wrong and the cure, where it
        cannot be read, is cut off, is something else or of a later version.
        """
        path = Path(path)
        path = path / cls.file_name if path.is_dir() else path
        if path.exists() and not path.is_file():  # a device has no end
            raise DataError(f"{path} is not a regular file; name a {cls.title}")
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}; check the file, or {cls.cure}"
            ) from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}; {cls.cure}") from error
        return cls.parsed(text, path)

    @classmethod
    def parsed(cls: type[Kind], text: str, path: Path) -> Kind:
        """The document that `text`, of the file at `path`, is; raises as `load` does."""
        content = cls._content(text, path)
        try:
            return cls.model_validate(cls.upgraded(content), strict=True)
        except ArgumentError as error:
            raise DataError(f"{path}: {error}; {cls.cure}") from error
        except ValidationError as error:
            message = f"{path} is no {cls.title}: {complaint(error)}; {cls.cure}"
            raise DataError(message) from error

    @classmethod
    def upgraded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """The content of a file of an earlier version in today's form."""
        return content

    def save(self, folder: Path) -> None:
        """Write the file into `folder`, whole or not at all; raises `OutputError`."""
        write_text(folder / self.file_name, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def _content(cls, text: str, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(text)
            if isinstance(content, dict):
                check_values(content)
        except ArgumentError as error:
            raise DataError(f"{path} is no {cls.title}: {error}; {cls.cure}") from error
        except (ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{path} is not JSON: {reason}; {cls.cure}") from error
        first = 1 if cls.unnumbered else None
        found = content.get("version", first) if isinstance(content, dict) else None
        if found is None:
            raise DataError(f"{path} is no {cls.title}: it has no version; move it elsewhere")
        latest = cls.model_fields["version"].default
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= latest:
            raise DataError(
                f"{path} is a {cls.title} of version {found!r:.60}, expected {latest} or earlier; "
                f"read it with the gradsurgery that wrote it or {cls.cure}"
            )
        return {**content, "version": found}


class Choices(BaseModel):
    """What a person chooses, by name; raises `ArgumentError`, one line, for what cannot be.

    part: what one of its fields is called, in messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    part: ClassVar[str] = "option"

    if not TYPE_CHECKING:  # the signature type checkers see stays the fields'

        def __init__(self, **chosen: Any) -> None:
            try:
                check_values(chosen)
                super().__init__(**chosen)
                check_values(self.__dict__)  # text may spell any number
            except ValidationError as error:
                raise self._argument_error(error) from None

    @classmethod
    def _argument_error(cls, error: ValidationError) -> ArgumentError:
        """The first complaint of pydantic."""
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            return unknown_name(cls.part, str(first["loc"][0]), list(cls.model_fields))
        cure = "; give one" if first["type"] == "missing" else ""
        return ArgumentError(f"{complaint(error)}{cure}")


def unknown_name(what: str, name: str, known: Sequence[str]) -> ArgumentError:
    """The error of a name that is none of those known: the closest, or all if they are few.

    An abbreviation, as lr, comes closest to the name with these initials.
    """
    close = [each for each in known if "".join(word[:1] for word in each.split("_")) == name]
    close = close or get_close_matches(name, known, n=2)
    listed = " or ".join(close) or ", ".join(known)
    verb = "is" if close or len(known) == 1 else "are"
    if not close and len(listed) > _FEW:
        listed = f"{listed[:_FEW].rpartition(',')[0]}, …: --print-config prints them all"
    return ArgumentError(f"unknown {what} {name!r:.80}; there {verb} {listed}")


def complaint(error: ValidationError) -> str:
    """The first complaint of pydantic: what, what is expected, what was found."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where} is missing"
    expected = first["msg"].removeprefix("Value error, ")
    expected = re.sub("^(Input|String|List|Dictionary) should ", "must ", expected)
    said = ", found " in expected or isinstance(first["input"], dict)
    found = "" if said else f", found {first['input']!r:.80}"
    if expected.startswith(f"{where} "):  # it says itself of what it speaks
        where = ""
    colon = ":" if where and not expected.startswith(("must ", "is ")) else ""
    return f"{where}{colon} {expected}{found}".strip()


def check_values(content: Any) -> None:
    """Raise `ArgumentError` for what nothing here is counted or written in, however deep."""
    try:
        place = _odd_value(content)
    except RecursionError:
        raise ArgumentError("an option is nested too deeply, or within itself") from None
    if place:
        raise ArgumentError(f"{'.'.join(place[:-1])} must be {place[-1]}".strip())


def _odd_value(content: Any) -> list[str]:
    """The names that lead to such a value, and what is wrong; empty where there is none."""
    named = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in named:
        found: list[str] = []
        if isinstance(value, dict | list | tuple):
            found = _odd_value(value)
        elif isinstance(value, float) and not abs(value) <= LARGEST:
            found = [f"finite, up to {LARGEST:g}, found {value:g}"]
        elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            found = [f"a number of up to 18 digits, found one of {value.bit_length()} bits"]
        elif any(isinstance(text, str) and _HALVES.search(text) for text in (name, value)):
            found = [f"text in UTF-8, found {value!r:.80}"]
        if found:
            return [str(name), *found]
    return []


def check_lengths(length: int, *lists: tuple[str, list[Any]]) -> None:
    """Raise `ValueError` unless every list, each with its name, has as many values."""
    for name, values in lists:
        if len(values) != length:
            raise ValueError(f"{name} has {len(values)} values, expected {length}")


def read_mapping(path: Path, what: str, known: Sequence[str] | None = None) -> dict[str, Any]:
    """What a YAML or JSON file says by name: the options of a run, or the parts of a plan.

    Of the record of a run it is the configuration.

    Raises `ArgumentError`, calling it `what`, where it cannot be read, is no mapping by name, of a
    later version, or has a name in it that is not among those `known`, where given; its values
    are not checked.
    """
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"cannot read the {what} {path}: {error.strerror}") from error
    except Exception as error:  # YAML's own types raise errors of any kind
        raise ArgumentError(f"the {what} {path} is not YAML: {one_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ArgumentError(f"the {what} {path} is no mapping: give one line NAME: VALUE for each")
    if known is not None and isinstance(content.get("configuration"), dict):
        content = content["configuration"]
    if (version := content.pop("version", FILE_VERSION)) != FILE_VERSION:
        raise ArgumentError(
            f"the {what} {path} is of version {version!r:.60}, expected {FILE_VERSION}; "
            "read it with the gradsurgery that wrote it"
        )
    for name in content:
        if known is not None and name not in known:
            raise unknown_name(f"name in the {what} {path}:", name, known)
    return dict(content)


Role = Literal["identity", "condition", "hyperparameter", "incidental", "place"]
"""What an option is to a comparison of runs.

identity: says which of the compared runs it is; two runs that are compared may differ in it.
incidental: what is recorded or let pass; runs that differ in nothing else are one run.
condition: of the experiment; two runs that are compared share it, and no search chooses it: in a
    grid its values are experiments apart.
hyperparameter: two runs that are compared share it, unless a search has chosen it for each.
place: where and on what the run is worked on, or where options that were not given came from.
    Every option but these decides the run's folder.
"""


def option(
    role: Role, description: str, default: Any = ..., *, free: bool = False, **limits: Any
) -> Any:
    """A field with its role; of one that is `free`, no value makes a step cost more or less."""
    about: dict[str, Any] = {"role": role, "free": free}
    return Field(default, description=description, json_schema_extra=about, **limits)


def about_option(kind: type[BaseModel], name: str) -> dict[str, Any]:
    """What the field `name` was declared with: its role, and whether it is free."""
    extra = kind.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) else {}


_UNSAFE = re.compile(r"^\.|[/\\\x00-\x1f\x7f]|%(?=[0-9A-F]{2})")
_LONGEST = 100  # bytes; file systems take 255, with what is appended to it


def folder_name(name: str) -> str:
    """The name of a domain, a data set or a method as that of one folder.

    Different names have different folders. What no folder's name may have, or what would hide it,
    is written as % and two digits, and a long name ends in the hash of it.

    >>> folder_name("a/b"), folder_name(".."), folder_name("v1.0"), folder_name("-90%")
    ('a%2Fb', '%2E.', 'v1.0', '-90%')
    """
    safe = _UNSAFE.sub(lambda match: f"%{ord(match.group()):02X}", name)
    if len(os.fsencode(safe)) <= _LONGEST:
        return safe
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f"{os.fsencode(safe)[:_LONGEST].decode(errors='ignore')}-{digest}"
