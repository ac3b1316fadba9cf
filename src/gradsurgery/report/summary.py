"""What came out, in sentences that say no more than the records do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsurgery.documents.defaults import built_in
from gradsurgery.documents.plan import rounded
from gradsurgery.documents.record import Record
from gradsurgery.report.evaluation_text import known_targets
from gradsurgery.report.section import Table, counted, listed, plain_table, value_text
from gradsurgery.report.tables import p_text
from gradsurgery.results.ranking import Ranking
from gradsurgery.results.runs import Inventory
from gradsurgery.results.statistics import SIGNIFICANCE, PairedComparison, least_p
from gradsurgery.results.tables import ComparisonTable

_MOST_NAMED = 8
_MOST_ROWS = 40
_LEAST_POINTS = 1.0  # of validation accuracy: what is less is not called a difference


def summarize(
    inventory: Inventory, tables: Sequence[ComparisonTable], ranking: Ranking | None
) -> list[str]:
    """The sentences on top of a report."""
    records = list(inventory.records.values())
    sentences = [_compared(tables, records), _complete(inventory, tables)]
    for table in tables:
        sentences += [*_averages(table), *_tests(table), *_misled(table)]
        sentences.append(f"{caution}." if (caution := built_in(table.data).caution) else "")
    sentences += [*known_targets(records), *copied_targets(records)]
    sentences.append(_ranked(ranking, tables))
    return [sentence for sentence in sentences if sentence]


def _compared(tables: Sequence[ComparisonTable], records: Sequence[Record]) -> str:
    methods = list(dict.fromkeys(method for table in tables for method in table.methods))
    data = list(dict.fromkeys(table.data for table in tables))
    targets = dict.fromkeys((table.data, target) for table in tables for target in table.targets)
    fewest, most = (f(len(table.seeds) for table in tables) for f in (min, max))
    seeds = f"{counted(most, 'seed')} each" if fewest == most else f"{fewest} to {most} seeds"
    named = f" ({listed(methods)})" if len(methods) <= _MOST_NAMED else ""
    domains = ""
    if len(data) == 1:
        turn = " in turn" if len(targets) > 1 else ""
        few = len(targets) <= _MOST_NAMED
        names = listed([t for _, t in targets]) if few else counted(len(targets), "domain")
        domains = f" with {names} held out{turn}"
    verb = "was trained" if len(methods) == 1 else "were compared"
    model = "with the best validation accuracy on the source domains"
    if tables[0].model == "last":
        model = "after the last step"
    joined = "and" if domains else "with"
    return (
        f"{counted(len(methods), 'method')}{named} {verb} on {listed(data)}{domains}, "
        f"{joined} {seeds}. The figures are accuracies on the {_tested(records)}test images of the "
        f"domain held out, which training never saw, of the model {model}."
    )


def _tested(records: Sequence[Record]) -> str:
    """On how many images of the domain held out the runs are tested, as `333 to 785 `."""
    sizes = [(record.configuration.target, record.split.sizes) for record in records]
    tested = {of_domains[target].test for target, of_domains in sizes if target in of_domains}
    if not tested:
        return ""
    return " to ".join(f"{size:,}" for size in sorted({min(tested), max(tested)})) + " "


def _complete(inventory: Inventory, tables: Sequence[ComparisonTable]) -> str:
    there, failed = len(inventory.records), len(inventory.failures)
    extra = int((inventory.runs["without"].map(len) > 0).sum())
    partial = sum(not cell.complete for table in tables for cell in table.cells.values())
    empty = sum(len(t.methods) * len(t.targets) - len(t.cells) for t in tables)
    if not inventory.planned:
        sentences = [counted(there, "run", "is there")]
        sentences[0] += f"; {counted(failed, 'run')} failed" if failed else ""
    else:
        done = sum(path.parent.resolve() in inventory.planned for path in inventory.records)
        planned = counted(len(inventory.planned), "planned run")
        sentences = [f"{done:,} of {planned} {'is' if done == 1 else 'are'} finished"]
        absent = {"failed": failed, "not done": len(inventory.missing)}
        if lacking := [f"{count} {how}" for how, count in absent.items() if count]:
            sentences[0] += f"; {listed(lacking)}"
        if there > done:
            verb = "is" if there - done == 1 else "are"
            sentences.append(f"{counted(there - done, 'run')} that no plan names {verb} there too")
    wanting = {"lacks seeds": partial, "has no run": empty}
    if gaps := [counted(number, "cell", what) for what, number in wanting.items() if number]:
        sentences.append(
            f"The comparison is not complete: {listed(gaps)}; nothing of that is in an average, "
            "rank or test"
        )
    elif apart := _apart(tables):
        sentences.append(apart)
    elif inventory.planned and not inventory.missing and not failed and there > 1:
        sentences.append("The comparison is complete")
    elif not inventory.planned and not failed and there > 1:  # nobody knows what else was meant
        sentences.append("Every method has each seed on each target")
    if extra:
        also = "with two domains held out serve the choice of hyperparameters alone"
        sentences.append(f"{counted(extra, 'run')} {also}")
    return f"{'. '.join(sentences)}."


def _apart(tables: Sequence[ComparisonTable]) -> str:
    """In what the runs of a data set differ, so that they are in several tables; "" where none."""
    found: dict[str, list[Any]] = {}
    for table in tables:
        for name, value in table.differences.items():
            found.setdefault(name.replace("_", " "), []).append(value)
    options = [
        f"{name} ({listed(dict.fromkeys(map(value_text, rounded(values))))})"
        for name, values in found.items()
    ]
    if not options:
        return ""
    return f"Runs that differ in {listed(options)} are not comparable: each has a table of its own"


def _averages(table: ComparisonTable) -> list[str]:
    """Who has the highest mean; a mean alone is no test."""
    if len(table.averages) > 1:
        cells, over = table.averages, f"the average over {len(table.targets)} targets"
    elif len(table.targets) == 1:
        cells = {m: cell for (m, _), cell in table.cells.items() if cell.complete}
        over = f"the mean accuracy on {table.targets[0]}"
    else:
        return []
    best = [method for method, cell in cells.items() if cell.best]
    if not best:
        return []
    of_baseline = [c for (method, _), c in table.cells.items() if method == table.baseline]
    if guessing := sum(cell.guessing for cell in of_baseline):
        runs = sum(cell.runs for cell in of_baseline)
        return [
            f"On {table.name}, {table.baseline} does hardly better than guessing on its own "
            f"domains in {guessing} of {counted(runs, 'run')}: that another method has a higher "
            "mean says little."
        ]
    shown = f"{cells[best[0]].mean:.2f} %"
    absent = len(cells) < len(table.methods)
    among = f"of the {len(cells)} methods that are complete, " if absent else ""
    if len(best) == len(cells):
        return [f"On {table.name}, {among}{over} is the same for all ({shown})."]
    sentence = f"On {table.name}, {among}{over} is highest for {listed(best)} ({shown})"
    baseline = cells.get(table.baseline)
    if baseline is not None and table.baseline not in best:
        sentence += f"; {table.baseline} has {baseline.mean:.2f} %"
    return [f"{sentence}."]


def _tests(table: ComparisonTable) -> list[str]:
    """What is significant on one table, and what is not."""
    tests = {
        key: cell.comparison for key, cell in table.cells.items() if cell.comparison is not None
    }
    if not tests:
        return [f"On {table.name}: {table.test}."] if table.test else []
    pairs = max(test.n for test in tests.values())
    if least_p(pairs) >= SIGNIFICANCE:
        return [
            f"On {table.name}, {counted(pairs, 'pair')} of runs a cell are too few for any test to "
            f"reach p < {SIGNIFICANCE} (the least possible is {p_text(least_p(pairs))}): the means "
            "show a tendency, and prove none."
        ]
    family, on = counted(len(tests), "test"), f"On {table.name}"
    corrected = {key: test for key, test in tests.items() if test.significant_corrected}
    alone = {key: t for key, t in tests.items() if t.significant and key not in corrected}
    rest = len(tests) - len(corrected) - len(alone)
    sentences = []
    if (least := least_p(pairs, len(tests))) >= SIGNIFICANCE:
        sentences.append(
            f"{on}, {counted(pairs, 'pair')} of runs a cell are too few for a difference to stand "
            f"Holm's correction over {family} (the least possible p is {p_text(least)})."
        )
    if corrected:
        test = f"(paired Wilcoxon, p < {SIGNIFICANCE})"
        which = f"after Holm's correction over {family} {test} these differ"
        if len(tests) == 1:
            which = f"the only test {test} shows a difference"
        sentences.append(f"{on}, {which} from {table.baseline}: {_named(corrected)}.")
    if alone:
        sentences.append(
            f"{on}, these differ from {table.baseline} in a test taken alone and not after the "
            f"correction, so some may be chance: {_named(alone)}."
        )
    if rest:
        which = f"{rest} of {family} {'shows' if rest == 1 else 'show'} no"
        if rest == len(tests):
            which = "The only test shows no" if rest == 1 else f"None of {rest} tests shows a"
        sentences.append(
            f"{on}: {which} significant difference from {table.baseline}, which does not mean that "
            "there is none."
        )
    return sentences


def _misled(table: ComparisonTable) -> list[str]:
    """Where a significant difference on a target has the other sign on the source domains."""
    column = f"{table.model}_validation_accuracy"
    validated = 100 * table.frame.groupby(["method", "target"])[column].mean()
    found = []
    for target, method, test in table.comparisons():
        there = float(validated[method, target] - validated[table.baseline, target])
        if test.significant and there * test.difference < 0 and abs(there) >= _LEAST_POINTS:
            found.append((abs(test.difference), abs(there), method, target, there < 0))
    if not found:
        return []
    (here, there, method, target, ahead), *others = sorted(found, reverse=True)
    better, worse = (method, table.baseline) if ahead else (table.baseline, method)
    sentence = (
        f"On {table.name}, {better} is {here:.1f} points above {worse} on {target} and "
        f"{there:.1f} points below it on validation images of the source domains: {worse} has "
        f"learned what helps there and not on {target}, and a choice between the two by validation "
        f"would take {worse}."
    )
    if others:
        also = [f"{method} on {target}" for _, _, method, target, _ in others[:_MOST_NAMED]]
        sentence += f" Target and sources also say the opposite of {listed(also)}."
    return [sentence]


def _named(tests: dict[tuple[str, str], PairedComparison]) -> str:
    largest = sorted(tests.items(), key=lambda item: -abs(item[1].difference))
    parts = [
        f"{method} on {target} ({test.difference:+z.2f} points)"
        for (method, target), test in largest[:_MOST_NAMED]
    ]
    if more := len(tests) - len(parts):
        parts.append(f"{more} more, in the table of tests")
    return listed(parts)


def copied_targets(records: Sequence[Record]) -> list[str]:
    """A sentence for every target of which half the test images or more were trained on too."""
    sentences = {}
    for record in records:
        target, copies = record.configuration.target, record.data.identical
        tested = record.split.sizes[target].test if target in record.split.sizes else 0
        if copies is not None and tested and 2 * copies.of_target >= tested:
            sentences[record.data.name, target] = (
                f"ATTENTION: {copies.of_target:,} of the {tested:,} test images of {target} in "
                f"{record.data.name} are identical to images that were trained on, so that the "
                "accuracy on it says nothing of a domain that was never seen."
            )
    return list(sentences.values())


def _ranked(ranking: Ranking | None, tables: Sequence[ComparisonTable]) -> str:
    """Who has the best average rank, and Friedman's test; "" where that is not to be had."""
    if ranking is None or (p := ranking.p) is None:
        return ""
    verdict = f"Friedman's test shows no significant difference of ranks (p = {p_text(p)})"
    if p < SIGNIFICANCE:
        verdict = (
            f"Friedman's test says that ranks differ (p = {p_text(p)}), which is a rough guide: "
            "the targets of a data set share training images"
        )
    best = ranking.ranks[0]
    first = [m for m, rank in zip(ranking.methods, ranking.ranks, strict=True) if rank == best]
    order = f"the best average rank is that of {listed(first)} ({best:.2f})"
    if len(first) == len(ranking.ranks):
        order = f"all methods have the same average rank ({best:.2f})"
    return f"Over {cells_text(ranking, tables)}, {order}; {verdict}."


def cells_text(ranking: Ranking, tables: Sequence[ComparisonTable]) -> str:
    """How many cells were ranked; a data set has several tables where settings differ."""
    setting = "setting, " if any(table.differences for table in tables) else ""
    return counted(len(ranking.cells), f"(data set, {setting}target) cell")


def counts_table(what: str, names: Sequence[str], counts: NDArray[np.int64], others: str) -> Table:
    """The images of each domain, or class, and in how many of the others they are."""
    images, there = counts.sum(axis=1), (counts > 0).sum(axis=1)
    shown = list(range(len(names)))
    notes = []
    if len(shown) > _MOST_ROWS:
        ranked = sorted(shown, key=lambda k: -images[k])
        shown = ranked[: _MOST_ROWS // 2] + ranked[-(_MOST_ROWS // 2) :]
        notes = [f"Those with the most and with the fewest images, of {len(names)}."]
    rows = [[names[k], f"{images[k]:,}", f"{there[k]:,}"] for k in shown]
    return plain_table("", [what, "images", others], rows, notes=notes)
