"""One argument names a data set."""

import re
from pathlib import Path

from gradsurgery.data.digits import ColoredDigits, RotatedDigits
from gradsurgery.data.folder import FolderSource
from gradsurgery.data.hub import HubSource
from gradsurgery.data.parquet import ParquetSource, parquet_files
from gradsurgery.data.presets import PRESETS, PresetSource
from gradsurgery.data.source import Source
from gradsurgery.errors import ArgumentError, DataError

BUILT_IN = {"rotated-digits": RotatedDigits, "colored-digits": ColoredDigits}
ACCEPTED = (
    f"{', '.join(BUILT_IN)}, {', '.join(PRESETS)} (or, say, pacs:PATH), hf://owner/name, a folder "
    "domain/class/image, or the path of Parquet files"
)


def open_source(spec: str) -> Source:
    """Open the data set that `spec` names; lists its images, decodes none.

    `spec` is "rotated-digits" or "colored-digits" (built in); "pacs", "vlcs" or "office-home",
    alone (from the Hub) or followed by ":PATH"; "hf://owner/name"; the path of a folder laid out
    as domain/class/image; or the path of a Parquet file or of a folder of such files. A local
    folder that is called like one of the names is given as "./pacs".

    Raises `ArgumentError` for any other `spec`, `DataError` where the data set is not usable.

    >>> open_source("rotated-digits").domains
    ('0', '15', '30', '45', '60', '75')
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    name, _, place = spec.partition(":")
    if name in PRESETS:
        return _open_preset(name, place)
    return _open_place(spec)


def _open_preset(name: str, place: str) -> Source:
    preset = PRESETS[name]
    if not place:
        if preset.hub is None:
            raise DataError(
                f"{name} is not known to be on the Hugging Face Hub; download it and give its path "
                f"as {name}:PATH"
            )
        place = f"hf://{preset.hub}"
    return PresetSource(preset, _open_place(place))


def _open_place(place: str) -> Source:
    if place.startswith("hf://"):
        repository = place.removeprefix("hf://")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise ArgumentError(f"{place} is no data set of the Hub, expected hf://owner/name")
        return HubSource(repository)
    path = Path(place).expanduser()
    if path.is_dir():
        return ParquetSource(path) if parquet_files(path) else FolderSource(path)
    if path.is_file():
        if path.suffix != ".parquet":
            raise ArgumentError(f"{place} is a file, but no Parquet file; accepted are: {ACCEPTED}")
        return ParquetSource(path)
    raise ArgumentError(
        f"no data set {place!r}: no such folder or file, nor a known name; accepted are: {ACCEPTED}"
    )
