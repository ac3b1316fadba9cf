"""What the page on PACS says of frozen features, from `linear-probe.csv`: `python linear_probe.py`.

For each method and kind of batch the mean target accuracy of the best models in percent, the
difference from Deep-All's runs of the same target and seed (its mean over the seeds, a 95 %
bootstrap interval, p of Wilcoxon's signed-rank test), target by target and averaged over the
targets, the accuracy on the sources' validation images, and the components that agree.
"""

from pathlib import Path

import pandas as pd

from gradsurgery.results.statistics import compare_paired

TABLE = Path(__file__).with_name("linear-probe.csv")


def main() -> None:
    """Print a line for each method, kind of batch and target."""
    runs = pd.read_csv(TABLE)
    runs["accuracy"] = 100 * runs.target_accuracy
    for batches, of_kind in runs.groupby("batches", sort=False):
        accuracies = of_kind.pivot(index="seed", columns=["method", "target"], values="accuracy")
        accuracies = accuracies.dropna()
        print(f"{batches} batches, {len(accuracies)} seeds")
        for method in of_kind.method.unique():
            own = of_kind[of_kind.method == method]
            validation = 100 * own.validation_accuracy.mean()
            print(f"{method}: validation {validation:.1f}, agreeing {own.agreeing.mean():.3f}")
            for target, values in [*accuracies[method].items(), ("average", None)]:
                theirs = accuracies["deep-all"]
                ours = accuracies[method].mean(axis=1) if values is None else values
                theirs = theirs.mean(axis=1) if values is None else theirs[target]
                found = compare_paired(ours.tolist(), theirs.tolist(), seed=0)
                accuracy = f"{ours.mean():6.2f} ± {ours.std():4.2f}"
                interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
                over = f"{found.difference:+5.2f} {interval}  p {found.p:.2g}"
                print(f"  {target:13} {accuracy}  {over}")


if __name__ == "__main__":
    main()
