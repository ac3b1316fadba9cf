"""One argument names a data set."""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from gradsurgery.atomic import expanded
from gradsurgery.data.derived import (
    PRESETS,
    PresetSource,
    decoder_of,
    innermost,
    layers,
    with_common_classes,
)
from gradsurgery.data.digits import CodedDigits, CodedDigitsOptions, ColoredDigits, RotatedDigits
from gradsurgery.data.folder import FolderSource, LayoutSource
from gradsurgery.data.manifest import SUFFIXES, ManifestSource
from gradsurgery.data.parquet import ParquetSource, parquet_files
from gradsurgery.data.source import Source, check_domains, naming_left_out
from gradsurgery.data.tables import HubSource
from gradsurgery.documents.data_options import COLUMN_ROLES, Classes, Resize
from gradsurgery.documents.document import unknown_name
from gradsurgery.doors import entry_names, is_door, load_object, provenance
from gradsurgery.errors import ArgumentError, DataError, GradsurgeryError, meant, one_line

BUILT_IN: dict[str, Callable[[], Source]] = {
    "rotated-digits": RotatedDigits,
    "colored-digits": ColoredDigits,
    "coded-digits": CodedDigits,
}


def open_source(
    spec: str | os.PathLike[str],
    *,
    layout: str = "",
    columns: Mapping[str, str] | None = None,
    classes: Classes = "same",
    resize: Resize = "squash",
    fewest_domains: int = 2,
) -> Source:
    """Open the data set that `spec` names; lists its images, decodes none.

    `spec` is "rotated-digits", "colored-digits" or "coded-digits" (built in; the last may be
    followed by parameters, as "coded-digits:domains=8,noise=0.2"); "pacs", "vlcs" or "office-home",
    alone (from the Hub) or followed by ":PATH"; "hf://owner/name"; the path of a folder
    domain/class/image, of a table of paths (CSV, TSV, JSONL), of a Parquet file or of a folder of
    such files; or, where none of these has the name, a source of your own: "package.module:Name" or
    an entry point in the group `gradsurgery.sources`, a class or a function that gives a `Source`
    without arguments. A local folder that is called like one of the names is given as "./pacs".

    Args:
        spec: the data set.
        layout: what the paths of a folder's images say (`gradsurgery.data.layout.Layout`); ""
            stands for domain/class/image.
        columns: what the columns of a table are called, by what they are for: path (image in a
            Parquet file), label, domain, split, and group, which no column is for otherwise.
        classes: where a domain lacks a class, "same" refuses the data set, "common" leaves out the
            classes that not every domain has, and "all" takes it as it is.
        resize: how images that are not square become so (`gradsurgery.data.decode_image`).
        fewest_domains: 2 to train on; 1 does to evaluate a model on.

    Raises `ArgumentError` for any other `spec` and for what does not go with it, `DataError` where
    the data set is not usable.

    >>> open_source("rotated-digits").domains
    ('0', '15', '30', '45', '60', '75')
    """
    spec = _text("the data set", os.fspath(spec) if isinstance(spec, os.PathLike) else spec)
    layout = _text("the layout", layout)
    if not isinstance(columns, Mapping | None):
        raise ArgumentError(f"columns are a mapping of names, found {columns!r:.80}")
    columns = dict(columns or {})
    for role in columns:
        if role not in COLUMN_ROLES:
            raise unknown_name("column", str(role), COLUMN_ROLES)
    for what, found, kind in (("classes", classes, Classes), ("resize", resize, Resize)):
        if not isinstance(found, str) or found not in get_args(kind):
            raise ArgumentError(f"{what} is {', '.join(get_args(kind))}, found {found!r:.80}")
    source = _opened(spec, layout, columns)
    if layout and not isinstance(innermost(source), LayoutSource):
        raise ArgumentError(f"{spec:.300} is no folder of images, and has no layout; leave it out")
    if columns and not isinstance(innermost(source), ManifestSource | ParquetSource):
        raise ArgumentError(f"{spec:.300} is no table of images, and has no columns to name")
    if resize != "squash" and decoder_of(source) is not None:
        raise ArgumentError(
            f"{source.name} decodes images by itself, always square; leave resize {resize} out"
        )
    try:
        check_domains(source.name, source.domains, fewest_domains)
    except DataError as error:
        raise naming_left_out(error, source.left_out) from None
    if classes == "common":
        source = with_common_classes(source)
    source.gaps = classes == "all"
    source.reading = {"layout": layout, "columns": columns, "classes": classes, "resize": resize}
    for layer in layers(source):
        layer.resize = resize
    source.check_complete()
    return source


def reopened(source: Source, spec: str, reading: dict[str, Any]) -> Source:
    """The data set `spec` as `reading` has it: `source`, where it has been read so."""
    return source if source.reading in (None, reading) else open_source(spec, **reading)


def _text(what: str, found: Any) -> str:
    if not isinstance(found, str):
        raise ArgumentError(f"{what} is text, found {found!r:.80}")
    return found


def _opened(spec: str, layout: str, columns: Mapping[str, str]) -> Source:
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    name, colon, place = spec.partition(":")
    if name == "coded-digits" and colon:
        return CodedDigits(CodedDigitsOptions.parsed(place))
    if name in PRESETS:
        return _open_preset(name, place, layout, columns)
    if (is_door(spec) or spec in entry_names("source")) and not _exists(spec):
        return _open_own(spec)
    return _open_place(spec, layout, columns)


def _open_preset(name: str, place: str, layout: str, columns: Mapping[str, str]) -> Source:
    preset = PRESETS[name]
    if not place:
        if preset.hub is None:
            raise DataError(
                f"{name} is not known to be on the Hugging Face Hub; download it and give its path "
                f"as {name}:PATH"
            )
        place = f"hf://{preset.hub}"
    if not place.startswith("hf://") and not _exists(place):
        raise ArgumentError(f"{name}:{place}: no such folder or file; give the path it has here")
    return PresetSource(preset, _open_place(place, layout, columns))


def _open_own(name: str) -> Source:
    build = load_object(
        name,
        "source",
        fits=_builds_source,
        expected="a subclass of gradsurgery.Source, or a function that gives one",
    )
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        raise ArgumentError(
            f"the source {name!r} cannot be made without arguments: {error}; let it need none"
        ) from error
    try:
        source = build()
    except GradsurgeryError:
        raise
    except (Exception, SystemExit) as error:  # code of anybody's
        raise DataError(
            f"the source {name!r} cannot be opened, {type(error).__name__}: {one_line(error)}; "
            "mend it"
        ) from error
    if not isinstance(source, Source):
        raise ArgumentError(
            f"the source {name!r} gives a {type(source).__name__}, expected a gradsurgery.Source"
        )
    if not hasattr(source, "listing"):
        raise ArgumentError(
            f"the source {name!r} lists no images; call super().__init__ in its __init__"
        )
    source.provenance = provenance(build)
    return source


def _builds_source(found: Any) -> bool:
    return issubclass(found, Source) if isinstance(found, type) else callable(found)


def _open_place(place: str, layout: str, columns: Mapping[str, str]) -> Source:
    if place.startswith("hf://"):
        repository = place.removeprefix("hf://")
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
            raise ArgumentError(f"{place} is no data set of the Hub, expected hf://owner/name")
        return HubSource(repository)
    if not place:
        raise ArgumentError(f"the name of the data set is empty; accepted are: {_accepted()}")
    if not _exists(place):
        close = meant(place, [*BUILT_IN, *PRESETS])
        raise ArgumentError(
            f"no data set '{place:.60}'{close}, nor a folder or file; accepted are: {_accepted()}"
        )
    path = expanded(place)
    _check_not_saved_to_disk(path)
    if path.is_dir() and layout:
        return LayoutSource(path, layout)
    if path.is_dir():
        return ParquetSource(path, columns) if parquet_files(path) else FolderSource(path)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return ManifestSource(path, columns)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        raise ArgumentError(
            f"{place} is no folder, no table and no Parquet file; accepted are: {_accepted()}"
        )
    return ParquetSource(path, columns)


def _check_not_saved_to_disk(path: Path) -> None:
    """Raise `DataError` for what `save_to_disk` of a `datasets.Dataset`, or of several, wrote."""
    loaded = f'load_from_disk("{path}")'
    if (path / "dataset_dict.json").is_file():
        write = f'for name, part in {loaded}.items(): part.to_parquet(f"FOLDER/{{name}}.parquet")'
    elif (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        write = f'{loaded}.to_parquet("FOLDER/train.parquet")'
    else:
        return
    raise DataError(
        f"{path} is what save_to_disk of the library datasets wrote, which is not read; write "
        f"Parquet files, {write}, and give FOLDER"
    )


def _exists(place: str) -> bool:
    """Whether the file system has something of that name."""
    return os.path.exists(expanded(place))  # noqa: PTH110, Path's raises for what is too long


def _accepted() -> str:
    own = "".join(f", {name}" for name in entry_names("source"))
    return (
        f"{', '.join(BUILT_IN)}{own}, {', '.join(PRESETS)} (or, say, pacs:PATH), hf://owner/name, "
        "a folder domain/class/image, a table of paths (CSV, TSV, JSONL), Parquet files, or a "
        "source of your own (package.module:Name)"
    )
