"""gradsurgery data: look at a data set, and decode it ahead of time."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import images_displayed
from gradsurgery.data import ImageSet, SkippedImage, Source, cache_folder, cpus, open_source
from gradsurgery.data import prepare as decode
from gradsurgery.data.derived import differing_counts, matching_preset
from gradsurgery.data.duplicates import INSPECTED_SIDE, Inspection, inspect_images
from gradsurgery.data.formats import dark_sentences
from gradsurgery.data.groups import shared_groups
from gradsurgery.data.image_set import cached_sets, remove_cached
from gradsurgery.data.source import spelled_alike
from gradsurgery.data.splits import called_as_parts
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.data_options import left_out_classes
from gradsurgery.documents.tally import shown_order
from gradsurgery.errors import ArgumentError, printable
from gradsurgery.report.rendering import OnTerminal
from gradsurgery.report.run_text import copies_sentences, gap_sentences, imbalance_sentences
from gradsurgery.report.section import Text, counted, plain_table
from gradsurgery.report.summary import counts_table

app = typer.Typer(help="Look at a data set, or decode it ahead of time.", no_args_is_help=True)
cache_app = typer.Typer(help="The decoded data sets on this machine.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

SKIPPED_SHOWN = 10
_MOST_LINES = 400  # a line a number: half a minute of scrolling


@app.command()
@opt.takes_options_of(RunConfiguration, only=("layout", "columns", "classes"))
def info(
    data: Annotated[str, opt.DATA],
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Count alone: do not read the images and compare them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    options: dict[str, Any],
) -> None:
    """Count a data set's images by domain and class, and look for what makes it doubtful.

    Gaps and imbalance between domains and classes, files that are not read, images that cannot be
    decoded, identical files, and images that look alike.
    """
    source = open_data(data, {"classes": "all"} | options, fewest_domains=1)
    found = None
    if not quick:
        with images_displayed("looking at images", len(source.listing.identities)) as advance:
            found = inspect_images(source, cpus(), advance)
    summary = summarize(source, found)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _print_table(source, summary, found)


@app.command()
@opt.takes_options_of(RunConfiguration, only=("layout", "columns", "classes", "resize", "skip_bad"))
def prepare(
    data: Annotated[str, opt.DATA],
    *,
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of the square images, in pixels.")
    ] = 224,
    cache: opt.CacheOption = None,
    workers: opt.WorkersOption = None,
    options: dict[str, Any],
) -> None:
    """Decode a data set into the cache, which training then reads."""
    source = open_data(data, options)
    skip_bad = options.get("skip_bad", False)
    with images_displayed("decoding", len(source.listing.identities)) as advance:
        images = decode(source, image_size, cache, workers, skip_bad, advance)
    _print_cache(images)


def open_data(data: str, options: dict[str, Any], fewest_domains: int = 2) -> Source:
    """The data set as a run with these options has it."""
    run = RunConfiguration(**options | {"data": data, "target": "any"})
    return open_source(run.data, **run.reading, fewest_domains=fewest_domains)


@cache_app.command("list")
def list_cached(cache: opt.CacheOption = None) -> None:
    """List the decoded data sets, the one that was used last first."""
    folder = cache_folder(cache)
    found = cached_sets(folder)
    columns = ["folder", "pixels", "images", "MB", "days unused", "domains"]
    rows = [
        [
            each.folder.name[:12],
            str(each.size or "damaged"),
            f"{each.images:,}",
            f"{each.bytes / 1e6:,.1f}",
            f"{each.days_unused:.1f}",
            ", ".join(each.domains),
        ]
        for each in found
    ]
    if rows:
        Console().print(OnTerminal([plain_table("", columns, rows)]))
    total = sum(each.bytes for each in found)
    sets = counted(len(found), "decoded data set")
    print(f"{sets}, {total / 1e6:,.1f} MB, in {printable(str(folder))}")


@cache_app.command("prune")
def prune_cached(
    unused: Annotated[float, typer.Option(min=0, help="Days for which nobody has used it.")] = 30.0,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER]...", help="The folders that begin so, whatever their age."
        ),
    ] = None,
    cache: opt.CacheOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
) -> None:
    """Remove decoded data sets that nobody has used for a month; training decodes them again."""
    folder = cache_folder(cache)
    found = cached_sets(folder)
    for name in names or ():
        if not any(each.folder.name.startswith(name) for each in found):
            raise ArgumentError(f"{folder} has no decoded data set {name!r}; see data cache list")
    chosen = [each for each in found if each.days_unused >= unused]
    if names:
        chosen = [each for each in found if each.folder.name.startswith(tuple(names))]
    removed = [each for each in chosen if dry_run or remove_cached(folder, each)]
    freed = sum(each.bytes for each in removed)
    print(
        f"{'would remove' if dry_run else 'removed'} {len(removed)} of {len(found)} decoded data "
        f"sets, {freed / 1e6:,.1f} MB"
    )


def summarize(source: Source, found: Inspection | None) -> dict[str, Any]:
    """Counts of a source, whether they are the paper's, and what reading the images has shown."""
    preset = matching_preset(source)
    counts = by_domain(source)
    return {
        "name": source.name,
        "images": sum(map(sum, counts.values())),
        "domains": list(source.domains),
        "classes": list(source.classes),
        "counts": {
            domain: dict(zip(source.classes, numbers, strict=True))
            for domain, numbers in counts.items()
        },
        "preset": preset.name if preset else None,
        "paper_counts": not differing_counts(preset, source) if preset else None,
        "gaps": [
            {"domain": domain, "class": label}
            for domain, numbers in counts.items()
            for label, n in zip(source.classes, numbers, strict=True)
            if n == 0
        ],
        "groups": None if source.groups is None else len(_groups(source)),
        "left_out": _as_json(source.left_out),
        "bad": None if found is None else _as_json(found.bad),
        "several": None if found is None else list(found.several),
        "dark": None if found is None else list(found.dark),
        "identical": None if found is None else found.identical.model_dump(),
        "alike": None if found is None or found.alike is None else found.alike.model_dump(),
    }


def by_domain(source: Source) -> dict[str, list[int]]:
    """The number of images of each class, by domain."""
    return dict(zip(source.domains, source.counts().tolist(), strict=True))


def _groups(source: Source) -> dict[tuple[str, object], int]:
    """The number of images of each (domain, group); an image without a group is one by itself."""
    named = zip(source.listing.domain.tolist(), source.groups or (), strict=True)
    return Counter(
        (source.domains[d], position if group is None else group)
        for position, (d, group) in enumerate(named)
    )


def _group_sentences(source: Source) -> Iterator[str]:
    if source.groups is None:
        return
    found = _groups(source)
    yield (
        f"The images are of {counted(len(found), 'group')}, of up to {max(found.values()):,} "
        "images each; a split divides none of them."
    )
    yield from shared_groups((d, group) for d, group in found if isinstance(group, str))


def _as_json(files: Sequence[SkippedImage]) -> list[dict[str, str]]:
    return [{"file": file.identity, "reason": file.reason} for file in files]


def _print_table(source: Source, summary: dict[str, Any], found: Inspection | None) -> None:
    console = Console()
    console.print(_counts_table(source, console))
    counts = by_domain(source)
    sentences = [
        f"{counted(summary['images'], 'image')}, {counted(len(source.domains), 'domain')}, "
        f"{len(source.classes)} {'class' if len(source.classes) == 1 else 'classes'}",
        *_comparison(source),
    ]
    sentences += gap_sentences(counts, source.classes)
    sentences += imbalance_sentences(counts, source.classes)
    sentences += _group_sentences(source)
    sentences += [f"Classes {sentence}." for sentence in spelled_alike(source.classes)]
    sentences += [f"Domains {sentence}." for sentence in called_as_parts(source.domains)]
    if any(0 in numbers for numbers in counts.values()):
        sentences.append(
            "Train with --classes common (without such classes) or --classes all (with gaps)."
        )
    if len(source.domains) == 1:
        sentences.append("Training takes two domains at least; evaluate a model on this one.")
    if found is not None:
        sentences += copies_sentences(found.identical)
        if found.alike is not None:
            sentences += copies_sentences(found.alike, alike_at=INSPECTED_SIDE)
        if found.several:
            files = counted(len(found.several), "file", "has several pictures")
            sentences.append(
                f"{files} (an animation, pages), of which the first is used: {found.several[0]}"
                f"{', …' if len(found.several) > 1 else ''}."
            )
        sentences += dark_sentences(found.dark, found.unstretched)
    for sentence in sentences:
        print(printable(sentence))
    _print_left_out(source.left_out)
    if found is not None:
        _print_skipped(
            found.bad, "image cannot", "images cannot", "be decoded (train with --skip-bad)"
        )


def _counts_table(source: Source, console: Console) -> Table | OnTerminal:
    """Images by class and domain: domains beside one another, else below, else a line a number.

    Where that would be a book, by domain and by class.
    """
    order = shown_order(source.classes)
    counts, classes = source.counts()[:, order], [source.classes[k] for k in order]
    ways = (
        ("class", classes, source.domains, counts.T),
        ("domain", source.domains, classes, counts),
    )
    for what, rows, columns, numbers in ways:
        if 4 * len(columns) > console.width:  # nor is the width of a thousand columns measured
            continue
        table = Table(title=escape(source.name), show_footer=True)
        table.add_column(what, footer="total", no_wrap=True)
        for name, total in zip(columns, numbers.sum(axis=0), strict=True):
            table.add_column(escape(name), footer=f"{total:,}", justify="right", no_wrap=True)
        table.add_column("total", footer=f"{counts.sum():,}", justify="right")
        for name, row in zip(rows, numbers, strict=True):
            cells = (f"{n:,}" if n else "[bold red]0[/]" for n in row)
            table.add_row(escape(name), *cells, f"{row.sum():,}")
        wide = console.options.update(max_width=100_000)
        if Measurement.get(console, wide, table).maximum <= console.width:
            return table
    if counts.size > _MOST_LINES:
        by_domain = counts_table("domain", source.domains, counts, "classes")
        by_class = counts_table("class", classes, counts.T, "domains")
        each = Text("The images of each class in each domain are in what --json prints.")
        return OnTerminal([Text(source.name), by_domain, by_class, each])
    lines = [
        [domain, *(f"{n:,}" for n in row), f"{row.sum():,}"]
        for domain, row in zip(source.domains, counts, strict=True)
    ]
    return OnTerminal([plain_table(source.name, ["domain", *classes, "total"], lines)])


def _comparison(source: Source) -> list[str]:
    """How the data set compares with the paper's of its domains and classes, if it is one."""
    preset = matching_preset(source)
    if preset is None:
        return []
    same = f"Its domains and classes are those of {preset.name}"
    if differing := differing_counts(preset, source):
        found = "; ".join(f"{d} {found:,} (paper {paper:,})" for d, paper, found in differing)
        return [f"{same}, but not the counts: {found}."]
    resizes = f"{preset.name}:PATH resizes as the paper does, first to 227 pixels."
    return [f"{same}, in the paper's counts. {resizes}"]


def _print_cache(images: ImageSet) -> None:
    print(
        f"{len(images.identities):,} images of {images.size}x{images.size} pixels, "
        f"{images.images.nbytes / 1e6:,.1f} MB, in {printable(str(images.folder))}"
    )
    _print_skipped(images.skipped, "image", "images", "skipped")
    _print_left_out(images.left_out)


def _print_left_out(left_out: Sequence[SkippedImage]) -> None:
    """The files that are no images, and the classes that were not asked for."""
    found = left_out_classes((each.identity, each.reason) for each in left_out)
    classes = [each for each in left_out if each.identity.removeprefix("class ") in found]
    files = [each for each in left_out if each not in classes]
    _print_skipped(files, "file among the images is", "files among the images are", "left out")
    _print_skipped(classes, "class is", "classes are", "left out")


def _print_skipped(files: Sequence[SkippedImage], one: str, several: str, what: str) -> None:
    if files:
        print(f"{len(files):,} {one if len(files) == 1 else several} {what}:")
    for file in files[:SKIPPED_SHOWN]:
        print(printable(f"  {file.identity}: {file.reason}"))
    if len(files) > SKIPPED_SHOWN:
        kinds = Counter(file.reason for file in files[SKIPPED_SHOWN:])
        listed = ", ".join(f"{kind} ({n:,})" for kind, n in kinds.most_common(5))
        print(printable(f"  and {len(files) - SKIPPED_SHOWN:,} more: {listed}"))
