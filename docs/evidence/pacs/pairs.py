"""What the page on PACS says beside its table, from the records here: `python pairs.py`.

For each method, learning rate and kind of batch: accuracy on validation images of the sources and
on the target in percent, means over the runs there are, the difference from Deep-All's run of the
same target and seed at 1e-4 (its mean with a 95 % interval, in how many pairs it is positive, and p
of Wilcoxon's signed-rank test over the pairs), the components that agree at validations, and how
many runs are best at their last step.
"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from gradsurgery.documents.record import Record
from gradsurgery.results.statistics import compare_paired

HERE = Path(__file__).parent
BASELINE = ("deep-all", 1e-4, "multi")


def main() -> None:
    """Print the table."""
    groups: dict[tuple[str, float, str], dict[tuple[str, int], Record]] = defaultdict(dict)
    for path in sorted(HERE.rglob("record.json")):
        record = Record.load(path)
        run = record.configuration
        groups[run.method, run.learning_rate, run.batches][run.target, run.seed] = record
    base = groups[BASELINE]
    heads = [
        "method",
        "rate",
        "batches",
        "runs",
        "validation",
        "target",
        "over",
        "ahead",
        "p",
        "agree",
        "last",
    ]
    print("|", " | ".join(heads), "|")
    print("|---" * len(heads) + "|")
    for (method, rate, batches), runs in sorted(groups.items()):
        best = {key: record.result.best for key, record in runs.items()}
        pairs = [key for key in best if key in base]
        own = [100 * best[key].target_accuracy for key in pairs]
        other = [100 * base[key].result.best.target_accuracy for key in pairs]
        over = compare_paired(own, other, seed=0)
        ahead = sum(a > b for a, b in zip(own, other, strict=True))
        agree = [a for record in runs.values() for a in record.curves.agreeing if a is not None]
        last = sum(best[key].step == runs[key].curves.step[-1] for key in runs)
        cells = [method, f"{rate:g}", batches, str(len(runs))]
        cells.append(f"{100 * fmean(model.validation_accuracy for model in best.values()):.2f}")
        cells.append(f"{100 * fmean(model.target_accuracy for model in best.values()):.2f}")
        cells.append(f"{over.difference:+.2f} [{over.low:+.1f}, {over.high:+.1f}]")
        cells += [f"{ahead} of {len(pairs)}", f"{over.p:.2f}"]
        cells += [f"{100 * min(agree):.0f}–{100 * max(agree):.0f} %" if agree else "–", str(last)]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
