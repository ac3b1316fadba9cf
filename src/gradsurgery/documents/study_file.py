"""The JSON file of a study, read and checked."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from gradsurgery.errors import DataError
from gradsurgery.versioned import read_versioned

Kind = TypeVar("Kind", bound=BaseModel)


def read_study(kind: type[Kind], path: Path, what: str, version: int) -> Kind:
    """The `kind` in the file at `path`; raises `DataError` where it is no `what` of `version`."""
    content = read_versioned(path, what, version, cure="delete it")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path} is no {what} ({where}: {first['msg']}); delete it") from error
