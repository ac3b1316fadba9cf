"""gradsurgery data: look at a data set, and decode it ahead of time."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gradsurgery.cli import options as opt
from gradsurgery.data import ImageSet, SkippedImage, Source, open_source
from gradsurgery.data import prepare as decode
from gradsurgery.data.presets import differing_counts, matching_preset
from gradsurgery.errors import printable

app = typer.Typer(help="Look at a data set, or decode it ahead of time.", no_args_is_help=True)

SKIPPED_SHOWN = 10


@app.command()
def info(
    data: Annotated[str, opt.DATA],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count a data set's images by domain and class."""
    source = open_source(data)
    summary = summarize(source)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _print_table(source, summary)


@app.command()
def prepare(
    data: Annotated[str, opt.DATA],
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of the square images, in pixels.")
    ] = 224,
    cache: opt.CacheOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode [default: one a CPU].")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")
    ] = False,
) -> None:
    """Decode a data set into the cache, which training then reads."""
    source = open_source(data)
    with progress_bar(len(source.listing.identities)) as advance:
        images = decode(source, image_size, cache, workers, skip_bad, advance)
    _print_cache(images)


def summarize(source: Source) -> dict[str, Any]:
    """Counts of a source, and whether they are the paper's."""
    preset = matching_preset(source)
    counts = source.counts()
    return {
        "name": source.name,
        "images": int(counts.sum()),
        "domains": list(source.domains),
        "classes": list(source.classes),
        "counts": {
            domain: dict(zip(source.classes, map(int, row), strict=True))
            for domain, row in zip(source.domains, counts, strict=True)
        },
        "preset": preset.name if preset else None,
        "paper_counts": not differing_counts(preset, source) if preset else None,
        "left_out": [{"file": file.identity, "reason": file.reason} for file in source.left_out],
    }


def _print_table(source: Source, summary: dict[str, Any]) -> None:
    table = Table(title=escape(source.name), show_footer=True)
    counts = source.counts()
    table.add_column("class", footer="total")
    for domain, total in zip(source.domains, counts.sum(axis=1), strict=True):
        table.add_column(escape(domain), footer=f"{total:,}", justify="right")
    table.add_column("total", footer=f"{counts.sum():,}", justify="right")
    for label, column in zip(source.classes, counts.T, strict=True):
        table.add_row(escape(label), *(f"{n:,}" for n in column), f"{column.sum():,}")
    console = Console()
    console.print(table)
    console.print(
        f"{summary['images']:,} images, {len(source.domains)} domains, "
        f"{len(source.classes)} classes",
        highlight=False,
    )
    console.print(_comparison(source), highlight=False, soft_wrap=True)
    _print_skipped(source.left_out, "files among the images are left out")


def _comparison(source: Source) -> str:
    preset = matching_preset(source)
    if preset is None:
        return "Its domains and classes are those of no preset (pacs, vlcs, office-home)."
    differing = differing_counts(preset, source)
    if not differing:
        return (
            f"Its domains and classes are those of {preset.name}, in the paper's counts. "
            f"{preset.name}:PATH resizes as the paper does, first to 227 pixels."
        )
    found = "; ".join(f"{d} {found:,} (paper {paper:,})" for d, paper, found in differing)
    return f"Its domains and classes are those of {preset.name}, but not the counts: {found}."


@contextmanager
def progress_bar(count: int, doing: str = "decoding") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with bar:
        task = bar.add_task(doing, total=count)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_cache(images: ImageSet) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{len(images.identities):,} images of {images.size}x{images.size} pixels, "
        f"{images.images.nbytes / 1e6:,.1f} MB, in {escape(printable(str(images.folder)))}"
    )
    _print_skipped(images.skipped, "images skipped")
    _print_skipped(images.left_out, "files among the images are left out")


def _print_skipped(files: Sequence[SkippedImage], title: str) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if files:
        console.print(f"{len(files):,} {title}:")
    for file in files[:SKIPPED_SHOWN]:
        console.print(f"  {printable(file.identity)}: {printable(file.reason)}")
    if len(files) > SKIPPED_SHOWN:
        kinds = Counter(file.reason for file in files[SKIPPED_SHOWN:])
        counted = ", ".join(f"{printable(kind)} ({n:,})" for kind, n in kinds.most_common(5))
        console.print(f"  and {len(files) - SKIPPED_SHOWN:,} more: {counted}")
