"""What a study leaves in its folder beside its measurements: tables and figures."""

from pathlib import Path

from gradsurgery.atomic import atomic_file
from gradsurgery.documents.diagnosis import Diagnosis
from gradsurgery.documents.similarity import SimilarityStudy
from gradsurgery.report.diagnosis_text import diagnosis_markdown, diagnosis_sentences
from gradsurgery.report.figures.conflict import conflict_figures
from gradsurgery.report.figures.similarity import similarity_figure
from gradsurgery.report.figures.style import save
from gradsurgery.report.similarity_summary import (
    similarity_csv,
    similarity_markdown,
    similarity_section,
)


def write_diagnosis(diagnosis: Diagnosis, directory: Path) -> list[str]:
    """Write `diagnosis.json`, tables and figures into `directory`; what there is to say of them."""
    diagnosis.save(directory)
    _write(directory / "diagnosis.md", diagnosis_markdown(diagnosis))
    for name, figure in conflict_figures(diagnosis).items():
        save(figure, directory / name)
    return [*diagnosis_sentences(diagnosis), f"tables and figures: {directory}"]


def write_similarity(study: SimilarityStudy, directory: Path) -> list[str]:
    """Write tables and the figure into `directory`; what there is to say of them."""
    _write(directory / "similarity.md", similarity_markdown(study))
    _write(directory / "similarity.csv", similarity_csv(study))
    png, _ = save(similarity_figure(study), directory / "similarity")
    measurements = directory / study.file_name
    sentences = similarity_section(study).sentences
    return [*sentences, f"figure: {png}", f"measurements: {measurements}"]


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
