"""JSON files that say which version of their form they have."""

import json
from pathlib import Path
from typing import Any

from gradsurgery.errors import DataError


def read_versioned(path: Path, what: str, version: int, *, cure: str) -> dict[str, Any]:
    """The JSON object at `path`, whose `version` must be `version`.

    Args:
        path: the file.
        what: the name of what it should be, e.g. "record of a run".
        version: the only one that is understood.
        cure: what to do about a damaged one, e.g. "repeat the run".

    Raises `DataError`, one line that names the file, where it cannot be read, is cut off, is
    something else or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the file") from error
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is not JSON: {reason}; {cure}") from error
    found = content.get("version") if isinstance(content, dict) else None
    if found is None:
        raise DataError(f"{path} is no {what}: it has no version; move it elsewhere")
    if isinstance(found, bool) or found != version:
        raise DataError(
            f"{path} is a {what} of version {found!r}, expected {version}; "
            f"read it with the gradsurgery that wrote it or {cure}"
        )
    return dict(content)
