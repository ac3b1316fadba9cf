"""The sections of a report's page, and the page put together from them."""

import csv
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradsurgery.documents.configuration import RunConfiguration, options_of
from gradsurgery.documents.record import Record
from gradsurgery.documents.selection import CRITERIA
from gradsurgery.documents.studies import Diagnosis, Explanation, SimilarityStudy
from gradsurgery.report.evaluation_text import explanation_section
from gradsurgery.report.gradients_text import diagnosis_section, similarity_section
from gradsurgery.report.rendering import render_page
from gradsurgery.report.run_text import recalls_section, recorded_sentences
from gradsurgery.report.section import (
    Block,
    Details,
    Entry,
    Figure,
    Section,
    Table,
    Text,
    Verbatim,
    counted,
    duration,
    embedded,
    listed,
    plain_table,
    value_text,
)
from gradsurgery.report.summary import summarize
from gradsurgery.report.tables import (
    candidates_table,
    choice_cautions,
    choices_table,
    comparison_table,
    significance_table,
)
from gradsurgery.results.ranking import Ranking
from gradsurgery.results.runs import Inventory, study_files
from gradsurgery.results.selection import ALL, Search
from gradsurgery.results.tables import ComparisonTable

PIXELS_PER_INCH = 125
"""Of a figure on the page: its seven points become a little less than the text's size."""
_TESTS = (
    "The test is the two-sided Wilcoxon signed-rank test over runs paired by seed; zeros are pairs "
    "without a difference, which it leaves out. Holm: corrected for all tests of the same table. "
    "Effect size: rank-biserial correlation, from −1 to 1. Interval: 95 % bootstrap percentiles of "
    "the mean difference; of few seeds it is too narrow, and may leave out zero where the test "
    "finds nothing."
)
_RUNS = [
    "best: target accuracy of the model with the best validation accuracy on the source domains, "
    "at the step given; last: of the model after the last step; validation: that of the best "
    "model.",
    "A run repeats bit for bit on a processor with the same number of threads; a path or a device "
    "may have to be adapted. A click on a command selects all of it.",
]
_KEYS = set(options_of("identity"))  # the tables say these of each run
_MANY = 12
"""Rows up to which a table is not folded away."""
_MOST_VALUES = 8


def assemble(
    folder: Path,
    inventory: Inventory,
    tables: Sequence[ComparisonTable],
    ranking: Ranking | None,
    search: Search,
    *,
    figures: Mapping[str, Sequence[Figure]],
    first: Sequence[str],
    notes: Sequence[str],
    paper: bool,
) -> str:
    """The page as HTML; its links lead from `folder` to the records.

    figures: by kind: "examples", "accuracies" (one a table), "batches", "curves" and "ranks".
    first, notes: further sentences for the summary, before and after the others.
    """
    results: list[Block] = []
    for table, drawn in zip(tables, figures["accuracies"], strict=True):
        results += [comparison_table(table, paper=paper), drawn]
    sections = [
        Section("results", "Results", results),
        recalls_section(tables, inventory.records),
        Section("batches", "Batches of several domains and of one", figures["batches"]),
        statistics_section(tables, figures["ranks"]),
        Section("curves", "Learning curves", figures["curves"]),
        _selection_section(search),
        *study_sections(inventory.paths),
        Section("examples", "Example images", figures["examples"]),
        absent_section(inventory),
        configuration_section(list(inventory.records.values())),
        runs_section(inventory, folder),
    ]
    paths = listed([path.as_posix() for path in inventory.paths])
    return render_page(
        title=f"Domain generalization on {listed(dict.fromkeys(t.data for t in tables))}",
        origin=f"From {counted(len(inventory.records), 'record')} in {paths}.",
        summary=[
            *first,
            *summarize(inventory, tables, ranking),
            *_search_sentences(search),
            *notes,
        ],
        sections=sections,
    )


def statistics_section(tables: Sequence[ComparisonTable], ranks: Sequence[Figure]) -> Section:
    """The tests behind the stars, and the average ranks."""
    blocks: list[Block] = [significance_table([table]) for table in tables if table.tests]
    if blocks:
        blocks.append(Text(_TESTS))
    return Section("statistics", "Statistics", [*blocks, *ranks])


def study_sections(paths: Sequence[Path]) -> list[Section]:
    """A section for every study of gradients, diagnosis and explanation in `paths`."""
    sections: list[Section] = []
    for file in study_files(paths):
        if file.name == Diagnosis.file_name:
            section = diagnosis_section(Diagnosis.load(file))
        elif file.name == Explanation.file_name:
            section = explanation_section(Explanation.load(file))
        elif (study := SimilarityStudy.load(file)).part:
            continue
        else:
            section = similarity_section(study)
        sections.append(with_figures(section, f"study-{len(sections) + 1}", file))
    return sections


def with_figures(study: Section, identity: str, file: Path) -> Section:
    """The section of a study, after its sentences the figures whose files lie beside `file`."""
    sentences, *tables = study.blocks
    figures = []
    for svg in sorted(file.parent.glob(f"{file.stem}*.svg")):
        if not (png := svg.with_suffix(".png")).is_file():
            continue
        picture = svg.read_bytes()
        found = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', picture)
        part = svg.stem.removeprefix(file.stem).strip("-")
        figures.append(
            Figure(
                embedded(picture, png.read_bytes()),
                f"{study.title}, as a figure; the sentences above say what it shows.",
                f"{study.title}: {part}." if part else f"{study.title}.",
                width=round(float(found[1]) / 72 * PIXELS_PER_INCH) if found else Figure.width,
            )
        )
    shown = [_folded(block) if isinstance(block, Table) else block for block in tables]
    return Section(identity, study.title, [sentences, *figures, *shown])


def absent_section(inventory: Inventory) -> Section:
    """Runs that failed, and runs that are planned and not done."""
    blocks: list[Block] = []
    columns = ["data", "target", "method", "seed"]
    if inventory.failures:
        rows = [
            [c.data, c.target, c.method, str(c.seed), str(failure.attempts), failure.error]
            for failure in inventory.failures.values()
            for c in [failure.configuration]
        ]
        blocks.append(plain_table("Runs that failed", [*columns, "attempts", "error"], rows))
        for folder, failure in inventory.failures.items():
            traceback = Verbatim(failure.traceback)
            blocks.append(Details(f"Traceback of {folder.as_posix()}", [traceback], printed=False))
    if missing := inventory.missing:
        rows = [[run.data, run.target, run.method, str(run.seed)] for run in missing.values()]
        if len(inventory.plans) > 1:
            columns = [*columns, "folder"]
            rows = [[*row, os.path.relpath(at)] for row, at in zip(rows, missing, strict=True)]
        blocks.append(_folded(plain_table("Runs that are planned and not done", columns, rows)))
    return Section("absent", "Failed and missing runs", blocks)


def configuration_section(records: Sequence[Record]) -> Section:
    """The data, and the options and environment that all runs share or differ in."""
    blocks: list[Block] = [_data_table(records), *map(Text, recorded_sentences(records))]
    parts: dict[str, list[dict[str, Any]]] = {
        "Options": [record.configuration.model_dump(exclude=_KEYS) for record in records],
        "Environment": [dict(record.environment) for record in records],
    }
    for title, values in parts.items():
        shared: list[list[str]] = []
        differing: list[list[str]] = []
        for name in dict.fromkeys(name for value in values for name in value):
            counts = Counter(value_text(value.get(name)) for value in values)
            row = [name.replace("_", " "), _values_text(counts)]
            (shared if len(counts) == 1 else differing).append(row)
        if differing:
            caption = f"{title} in which the runs differ"
            blocks.append(plain_table(caption, ["name", "values"], differing))
        table = plain_table(f"{title} that all runs share", ["name", "value"], shared)
        blocks.append(Details(table.caption, [table]))
    seconds = sum(record.cost.seconds for record in records)
    blocks.append(Text(f"The runs took {duration(seconds)} of computing, one after the other."))
    return Section("configuration", "Data, configuration and environment", blocks)


def runs_section(inventory: Inventory, folder: Path) -> Section:
    """Every run with its record and the command that repeats it; links are from `folder`."""
    fractions = {"best": "best_target", "last": "last_target", "validation": "best_validation"}
    rows = []
    for run in inventory.runs.to_dict("records"):
        path = Path(run["record"])
        record = inventory.records[path]
        texts = [str(run[name]) for name in ("data", "target", "method", "seed")]
        texts += [f"{100 * run[f'{name}_accuracy']:.2f}" for name in fractions.values()]
        texts += [str(run["best_step"]), f"{record.cost.seconds:.1f}"]
        link = Entry("record", link=relative_link(path, folder))
        command = Entry(repeat_command(record.configuration), code=True)
        rows.append([*map(Entry, texts), link, command])
    columns = ["data", "target", "method", "seed", *(f"{name} (%)" for name in fractions)]
    table = Table("All runs", [*columns, "step", "seconds", "record", "command"], rows, _RUNS)
    summary = f"{counted(len(rows), 'run')} with their records and the commands that repeat them"
    return Section("runs", "Reproducing each run", [Details(summary, [table], printed=False)])


def repeat_command(configuration: RunConfiguration) -> str:
    """`gradsurgery train …` with every option of a configuration that has a value.

    All are written out, so that the command stays the same run when defaults change.

    >>> options = RunConfiguration(data="my pictures", target="photo")
    >>> repeat_command(options)[:64]
    "gradsurgery train 'my pictures' --target=photo --method=agr-sum "
    """
    words = []
    first = ("target", "method")
    for name in (*first, *(name for name, _ in configuration if name not in first)):
        value = getattr(configuration, name)
        flag = f"--{name.replace('_', '-')}"
        if name == "settings":
            words += [f"--set={setting}={each}" for setting, each in value.items()]
        elif isinstance(value, dict):
            words += [f"{flag}={_one_row(value)}"] if value else []
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif name != "data" and value not in (None, ""):
            words += [f"{flag}={each}" for each in (value if isinstance(value, list) else [value])]
    data = configuration.data
    words = [*words, "--", data] if data.startswith("-") else [data, *words]
    return shlex.join(["gradsurgery", "train", *words])


def _one_row(named: Mapping[str, str]) -> str:
    """As "role=name,role=name", quoted as in a CSV file."""
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow([f"{role}={name}" for role, name in named.items()])
    return row.getvalue()


def relative_link(path: Path, folder: Path) -> str:
    """The address of `path` from a page in `folder`."""
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _folded(table: Table) -> Block:
    """The table, folded away where it is long."""
    if len(table.rows) <= _MANY:
        return table
    return Details(f"{table.caption}: {counted(len(table.rows), 'row')}", [table])


def _search_sentences(search: Search) -> list[str]:
    if not search.selections:
        return []
    if search.used == ALL:
        return [
            "The runs differ in hyperparameters; each setting is compared by itself, and what each "
            "criterion of model selection would choose is under Model selection."
        ]
    criterion = CRITERIA[search.used]
    sentence = (
        f"{'Hyperparameters were searched; the' if search.tried_several else 'The'} tables and "
        f"figures have what {criterion.label} chooses: {criterion.score}."
    )
    edges = choice_cautions({search.used: search.selections[search.used]})
    return [*filter(None, [sentence, search.provisional]), *edges]


def _selection_section(search: Search) -> Section:
    """What each criterion chose, with its evidence."""
    if not search.selections:
        return Section("selection", "Model selection")
    introduction = Text(
        "The criteria of Gulrajani & Lopez-Paz 2021. Only the oracle looks at the target domain: "
        "it is what an unattainable choice would give, and no result."
    )
    criteria = [f"{criterion.label}: {criterion.score}." for criterion in CRITERIA.values()]
    chosen = choices_table(search.selections, "What each criterion chooses")
    chosen = replace(chosen, notes=[*chosen.notes, *criteria])
    candidates = candidates_table(search.selections, "All candidates")
    details = Details("The scores of all candidates", [candidates])
    return Section("selection", "Model selection", [introduction, chosen, details])


def _values_text(counts: Counter[str]) -> str:
    """The values of an option, those that differ by how often, the most frequent first."""
    if len(counts) == 1:
        return next(iter(counts))
    texts = [f"{text} ({counted(count, 'run')})" for text, count in counts.most_common()]
    more = len(texts) - _MOST_VALUES
    return ", ".join([*texts[:_MOST_VALUES], *([f"and {more} more"] if more > 0 else [])])


def _data_table(records: Sequence[Record]) -> Table:
    """One row a data set."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.data.name, record.data.digest), []).append(record)
    rows = []
    for of_data in found.values():
        data, splits = of_data[-1].data, {record.split.digest[:12] for record in of_data}
        counts = [f"{name} ({data.images[name]:,})" for name in data.domains if name in data.images]
        numbers = [str(len(data.classes)), f"{sum(data.images.values()):,}", str(len(data.skipped))]
        split = splits.pop() if len(splits) == 1 else f"{len(splits)} splits"
        domains = ", ".join(counts) or listed(data.domains)
        rows.append([data.name, domains, *numbers, data.digest[:12], split])
    columns = ["data", "domains (images)", "classes", "images", "not decoded", "digest", "split"]
    return plain_table("Data", columns, rows)
