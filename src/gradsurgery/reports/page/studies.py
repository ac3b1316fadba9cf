"""Sections for the studies of gradients that lie in the folders of a report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.reports.inventory import SIMILARITY, study_files
from gradsurgery.reports.page.blocks import Block, Figure, Listing, embedded, plain_table
from gradsurgery.reports.page.render import Section

if TYPE_CHECKING:
    from gradsurgery.analysis.section import Section as Study


def study_sections(paths: Sequence[Path]) -> list[Section]:
    """A section for every similarity.json of a study and every diagnosis.json in `paths`."""
    sections: list[Section] = []
    for file in study_files(paths):
        study = _similarity(file) if file.name == SIMILARITY else _diagnosis(file)
        if study is not None:
            sections.append(study_section(f"study-{len(sections) + 1}", study, file.parent))
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
    from gradsurgery.analysis.similarity_record import SimilarityStudy
    from gradsurgery.analysis.similarity_summary import similarity_section

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {"runs": None}  # loading says what is wrong with it
    if isinstance(content, dict) and "version" in content and "runs" not in content:
        return None
    return similarity_section(SimilarityStudy.load(file.parent))


def _diagnosis(file: Path) -> "Study":
    from gradsurgery.analysis.diagnosis_record import Diagnosis
    from gradsurgery.analysis.diagnosis_text import diagnosis_section

    figures = [path.stem for path in sorted(file.parent.glob("diagnosis*.svg"))]
    return diagnosis_section(Diagnosis.load(file.parent), figures)
