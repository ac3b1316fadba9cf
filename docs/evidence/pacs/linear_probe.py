"""What the page on PACS says of frozen features, from `linear-probe.csv`: `python linear_probe.py`.

For each kind of batch, learning rate and method the mean target accuracy of the best models in
percent, the difference from Deep-All's runs of the same target and seed (its mean over the seeds, a
95 % bootstrap interval, p of Wilcoxon's signed-rank test), target by target and averaged over the
targets, the accuracy on the sources' validation images, and the components that agree. Then the
same where each method has the learning rate of its own highest validation accuracy on a target, and
where it has that of its highest accuracy on it, which nobody knows beforehand.
"""

from pathlib import Path

import pandas as pd

from gradsurgery.results.statistics import compare_paired

TABLE = Path(__file__).with_name("linear-probe.csv")
SEEDS_OF_RATES = 6


def by_target(runs: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of one method, a row a seed and a column a target."""
    return runs.pivot(index="seed", columns="target", values="accuracy").dropna()


def show(method: str, runs: pd.DataFrame, baseline: pd.DataFrame) -> None:
    """Print a line for each target and one for their average, on the seeds that both have."""
    own, theirs = by_target(runs).align(by_target(baseline), join="inner", axis=0)
    validation, agreeing = 100 * runs.validation_accuracy.mean(), runs.agreeing.mean()
    print(f"{method}, {len(own)} seeds: validation {validation:.1f}, agreeing {agreeing:.3f}")
    for target in [*own.columns, "average"]:
        ours, others = (
            table.mean(axis=1) if target == "average" else table[target] for table in (own, theirs)
        )
        found = compare_paired(ours.tolist(), others.tolist(), seed=0)
        interval = f"[{found.low:+.3f}, {found.high:+.3f}]"
        over = f"{found.difference:+6.3f} {interval}  p {found.p:.2g}"
        print(f"  {target:13} {ours.mean():7.3f} ± {ours.std():5.3f}  {over}")


def at_best_rate(runs: pd.DataFrame, by: str) -> pd.DataFrame:
    """On each target the runs with the learning rate whose mean of `by` is the highest."""
    means = runs.groupby(["target", "learning_rate"])[by].mean()
    best = means.groupby("target").idxmax().tolist()
    return runs.set_index(["target", "learning_rate"]).loc[best].reset_index()


def main() -> None:
    """Print the lines of each kind of batch and rate, then those of the chosen rates."""
    runs = pd.read_csv(TABLE)
    runs["accuracy"] = 100 * runs.target_accuracy
    tried = runs[(runs.batches == "multi") & (runs.seed < SEEDS_OF_RATES)]
    sections = {
        f"{batches} batches, learning rate {rate:g}": of_kind
        for (batches, rate), of_kind in runs.groupby(["batches", "learning_rate"], sort=False)
    }
    title = f"multi batches, learning rate 0.001, the first {SEEDS_OF_RATES} seeds"
    sections[title] = tried[tried.learning_rate == 1e-3]
    for title, of_kind in sections.items():
        print(f"\n{title}")
        methods = dict(list(of_kind.groupby("method", sort=False)))
        for method, own in methods.items():
            show(method, own, methods["deep-all"])
    rates = tried.groupby("method").learning_rate.nunique()
    for by in ("validation_accuracy", "target_accuracy"):
        print(f"\nlearning rates of the highest {by}")
        chosen = {
            method: at_best_rate(tried[tried.method == method], by)
            for method in rates.index[rates > 1]
        }
        for method, own in chosen.items():
            show(method, own, chosen["deep-all"])


if __name__ == "__main__":
    main()
