"""Sections for the studies of gradients that lie in the folders of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.reports.page.blocks import Block, Figure, Listing, embedded, plain_table
from gradsurgery.reports.page.render import Section

if TYPE_CHECKING:
    from gradsurgery.analysis.section import Section as Study


def study_sections(paths: Sequence[Path]) -> list[Section]:
    """A section for every study of similarity in `paths`, in the order of the files."""
    found = sorted(
        file for path in paths if path.is_dir() for file in path.rglob("similarity.json")
    )
    sections: list[Section] = []
    for file in found:
        study = _similarity(file)
        if study is not None:
            number = len(sections) + 1
            sections.append(study_section(f"study-{number}", study, file.parent))
    return sections


def study_section(identity: str, study: "Study", folder: Path) -> Section:
    """The study's sentences, tables and figures; the figures' files lie in `folder`."""
    blocks: list[Block] = [Listing(study.sentences)] if study.sentences else []
    for stem in study.figures:
        png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
        if png.is_file() and svg.is_file():
            source = embedded(svg.read_bytes(), png.read_bytes())
            alt = f"Figure of: {' '.join(study.sentences[:1]) or study.title}"
            blocks.append(Figure(source, alt, study.title))
    for table in study.tables:
        left = [i for i in range(1, len(table.header)) if not _has_numbers(table.rows, i)]
        blocks.append(plain_table(table.title, table.header, table.rows, left=left))
    return Section(identity, study.title, blocks)


def _has_numbers(rows: Sequence[Sequence[str]], column: int) -> bool:
    texts = [row[column].lstrip("+-−") for row in rows]
    return any(text[:1].isdigit() for text in texts)


def _similarity(file: Path) -> "Study | None":
    """None for the measurements of a single run, which the study's file has too."""
    import json

    from gradsurgery.analysis.similarity_record import SimilarityStudy
    from gradsurgery.analysis.similarity_summary import similarity_section

    if "runs" not in json.loads(file.read_text(encoding="utf-8")):
        return None
    return similarity_section(SimilarityStudy.load(file.parent))
