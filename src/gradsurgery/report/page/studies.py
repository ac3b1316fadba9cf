"""Sections for the studies of gradients that lie in the folders of a report."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.report.page.blocks import (
    PIXELS_PER_INCH,
    Block,
    Figure,
    Listing,
    embedded,
    plain_table,
)
from gradsurgery.report.page.render import Section
from gradsurgery.results.inventory import SIMILARITY, study_files

if TYPE_CHECKING:
    from gradsurgery.report.section import Section as Study


def study_sections(paths: Sequence[Path]) -> list[Section]:
    """A section for every similarity.json of a study and every diagnosis.json in `paths`."""
    sections: list[Section] = []
    for file in study_files(paths):
        study = _similarity(file) if file.name == SIMILARITY else _diagnosis(file)
        if study is not None:
            sections.append(study_section(f"study-{len(sections) + 1}", study, file))
    return sections


def study_section(identity: str, study: "Study", file: Path) -> Section:
    """The study's sentences, tables and figures; the figures' files lie beside `file`."""
    blocks: list[Block] = [Listing(study.sentences)] if study.sentences else []
    drawn = [path.stem for path in sorted(file.parent.glob(f"{file.stem}*.svg"))]
    for stem in study.figures or drawn:
        png, svg = file.with_name(f"{stem}.png"), file.with_name(f"{stem}.svg")
        if png.is_file() and svg.is_file():
            picture = svg.read_bytes()
            alt = f"{study.title}, as a figure: {' '.join(study.sentences[:2])}"
            part = stem.removeprefix(file.stem).strip("-")
            caption = f"{study.title}: {part}" if part else study.title
            source = embedded(picture, png.read_bytes())
            blocks.append(Figure(source, alt, f"{caption}.", width=_width(picture)))
    for table in study.tables:
        left = [i for i in range(1, len(table.header)) if not _has_numbers(table.rows, i)]
        header = [name or "name" for name in table.header]
        blocks.append(plain_table(table.title, header, table.rows, left=left))
    return Section(identity, study.title, blocks)


def _width(svg: bytes) -> int:
    """Pixels on the page of a drawing whose file gives its width in points."""
    found = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', svg)
    return round(float(found[1]) / 72 * PIXELS_PER_INCH) if found else Figure.width


def _has_numbers(rows: Sequence[Sequence[str]], column: int) -> bool:
    texts = [row[column].lstrip("+-−") for row in rows]
    return any(text[:1].isdigit() for text in texts)


def _similarity(file: Path) -> "Study | None":
    """None for the measurements of a single run, which the study's file has too."""
    from gradsurgery.documents.similarity import SimilarityStudy
    from gradsurgery.report.similarity_summary import similarity_section

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {"runs": None}  # loading says what is wrong with it
    if isinstance(content, dict) and "version" in content and "runs" not in content:
        return None
    return similarity_section(SimilarityStudy.load(file.parent))


def _diagnosis(file: Path) -> "Study":
    from gradsurgery.documents.diagnosis import Diagnosis
    from gradsurgery.report.diagnosis_text import diagnosis_section

    return diagnosis_section(Diagnosis.load(file.parent))
