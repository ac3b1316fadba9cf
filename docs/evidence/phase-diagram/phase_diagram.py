"""Where Agr-Sum gains over Deep-All on coded-digits, and what a diagnosis knows of it beforehand.

    gradsurgery sweep --config plan.yaml --no-report --out runs/phase-diagram
    gradsurgery sweep --config unseen.yaml --no-report --out runs/unseen
    gradsurgery sweep --config elsewhere.yaml --no-report --out runs/elsewhere
    python phase_diagram.py collect runs/phase-diagram runs/unseen runs/elsewhere   # runs.csv
    python phase_diagram.py diagnose                                  # diagnoses.csv
    python phase_diagram.py figure                                    # phase-diagram.png
    python phase_diagram.py predict                                   # the table of predictors

The last two read the stored tables alone. What they say of other data, beside its true gain:

    gradsurgery diagnose DATA --target TARGET --out diagnoses/TARGET   # for each target
    python phase_diagram.py elsewhere runs/of-a-sweep diagnoses
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gradsurgery.data.digits import NAME, CodedDigitsOptions

if TYPE_CHECKING:
    from gradsurgery.documents.studies import Diagnosis

HERE = Path(__file__).parent
SET = ["data", "target"]
PARAMETERS = ["bits", "noise", "share", "code_seed"]
OPTIONS = ["iterations", "learning_rate", "weight_decay", "optimizer", "batch_size", "backbone"]
OPTIONS += ["image_size", "validate_every", "method", "seed"]
STEPS = 50
"""Of Deep-All on which the diagnosis looks: what `gradsurgery diagnose DATA --target` does."""
LOOKED_AT = (0, 10, 50)
"""Steps whose measurements are tried as predictors."""


def collect(folders: list[Path]) -> None:
    """Write runs.csv, a row a run."""
    table = runs_in(folders).sort_values([*SET, *OPTIONS])
    table.to_csv(HERE / "runs.csv", index=False)
    print(f"{len(table)} runs of {table.groupby(SET).ngroups} settings in {HERE / 'runs.csv'}")


def runs_in(folders: list[Path]) -> pd.DataFrame:
    """A row a run that is in the folders, but for those that were diagnosed as they trained."""
    from gradsurgery.documents.record import Record
    from gradsurgery.documents.studies import Diagnosis

    rows = []
    for path in sorted(path for folder in folders for path in folder.rglob("record.json")):
        if (path.parent.parent / Diagnosis.file_name).exists():
            continue
        record = Record.load(path)
        row = {"data": record.data.name, "target": record.configuration.target}
        row["domains"] = len(record.data.domains) - 1
        row |= parameters_of(record.data.name)
        row |= {name: getattr(record.configuration, name) for name in OPTIONS}
        for name in ("best", "last"):
            model = getattr(record.result, name)
            row[f"{name}_step"] = model.step
            row[f"{name}_validation"] = round(model.validation_accuracy, 6)
            row[f"{name}_target"] = round(model.target_accuracy, 6)
        rows.append(row)
    return pd.DataFrame(rows)


def parameters_of(data: str) -> dict[str, float | None]:
    """Those of coded digits by their name; of another set, none."""
    if data.partition(":")[0] != NAME:
        return dict.fromkeys(PARAMETERS)
    options = CodedDigitsOptions.parsed(data.partition(":")[2])
    return {name: getattr(options, name.removeprefix("code_")) for name in PARAMETERS}


def diagnose() -> None:
    """Write diagnoses.csv, a row a step looked at of each set in runs.csv, 50 steps of Deep-All."""
    from gradsurgery.data import open_source, prepare
    from gradsurgery.documents.configuration import RunConfiguration
    from gradsurgery.documents.studies import DiagnosisOptions
    from gradsurgery.studies.diagnosis import diagnose_training

    rows = []
    for data, target in pd.read_csv(HERE / "runs.csv")[SET].drop_duplicates().to_numpy():
        options = {"iterations": STEPS, "validate_every": STEPS, "batch_size": 32, "threads": 1}
        configuration = RunConfiguration(data=data, target=target, method="deep-all", **options)
        images = prepare(open_source(data), configuration.image_size)
        with tempfile.TemporaryDirectory() as folder:
            measured = DiagnosisOptions(batch_size=32, every=10)
            seen = diagnose_training(configuration, measured, images, Path(folder))
        rows += [{"data": data, "target": target} | row for row in rows_of(seen)]
        print(data, target, f"{rows[-1]['agreeing']:.4f}", flush=True)
    pd.DataFrame(rows).round(8).to_csv(HERE / "diagnoses.csv", index=False)


def rows_of(seen: "Diagnosis") -> Iterator[dict[str, float | None]]:
    """What a diagnosis says, a row a step looked at."""
    for snapshot in seen.snapshots:
        cosines = np.array(snapshot.total.cosines, dtype=float)
        yield {
            "step": snapshot.step,
            "agreeing": snapshot.total.agreeing,
            "chance": 0.5 ** (len(seen.domains) - 1),
            "shuffled_agreeing": snapshot.shuffled_agreeing,
            "cosine": cosines[np.triu_indices(len(cosines), 1)].mean(),
            "shuffled_cosine": snapshot.shuffled_cosine,
            "kept_length": snapshot.total.kept_length,
        }


def gains() -> pd.DataFrame:
    """Target accuracy of Agr-Sum minus Deep-All in points, a row a set, number of steps and seed.

    `validation` is the same difference on validation images of the sources, `base` the accuracy of
    Deep-All on the target.
    """
    about = [*SET, "domains", *PARAMETERS, "iterations", "seed"]
    runs = pd.read_csv(HERE / "runs.csv")
    one, other = (runs[runs["method"] == method] for method in ("agr-sum", "deep-all"))
    pairs = one.merge(other, on=about, suffixes=("", "_base"))
    for name, column in (("gain", "best_target"), ("validation", "best_validation")):
        pairs[name] = (100 * (pairs[column] - pairs[f"{column}_base"])).round(4)
    pairs["base"] = 100 * pairs["best_target_base"]
    return pairs[[*about, "gain", "validation", "base"]]


def evidence() -> pd.DataFrame:
    """A row a set, number of steps and step of the diagnosis: the mean gain, and what that says."""
    keys = [*SET, "domains", *PARAMETERS, "iterations"]
    gain = gains().groupby(keys, dropna=False)[["gain", "validation", "base"]].mean()
    seen = quantities(pd.read_csv(HERE / "diagnoses.csv"))
    return gain.reset_index().merge(seen, on=SET)


def quantities(diagnoses: pd.DataFrame) -> pd.DataFrame:
    """What may predict, of the steps that count."""
    seen = diagnoses[diagnoses["step"].isin(LOOKED_AT)].copy()
    least = 1e-5  # of the components: below, a logarithm would be of chance
    agreeing, shuffled = (seen[n].clip(lower=least) for n in ("agreeing", "shuffled_agreeing"))
    seen["log agreeing"] = np.log(agreeing)
    seen["above chance"] = np.log(agreeing / seen["chance"])
    seen["lost to the domains"] = seen["shuffled_agreeing"] - seen["agreeing"]
    seen["log ratio to shuffled"] = np.log(shuffled / agreeing)
    seen["within minus across"] = seen["shuffled_cosine"] - seen["cosine"]
    return seen


PREDICTORS = {
    "log of the agreement": ["log agreeing"],
    "log of the agreement by chance (the number of domains)": ["domains"],
    "log (agreement / chance)": ["above chance"],
    "agreement lost to the domains, in points": ["lost to the domains"],
    "log (shuffled agreement / agreement)": ["log ratio to shuffled"],
    "mean cosine": ["cosine"],
    "cosine when shuffled − cosine": ["within minus across"],
    "length that Agr-Sum leaves": ["kept_length"],
    "cosine when shuffled − cosine, and domains": ["within minus across", "domains"],
    "the set's own parameters (not known of real data)": ["domains", "share", "noise"],
}


def fitted(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """What a straight line through `train` says of the gain in `test`."""
    design = [np.column_stack([np.ones(len(t)), t[columns].to_numpy(float)]) for t in (train, test)]
    return design[1] @ np.linalg.lstsq(design[0], train["gain"].to_numpy(), rcond=None)[0]


def by_number_of_domains(
    table: pd.DataFrame, columns: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gains, and what is said of each by the settings with other numbers of domains.

    That is: the straight line through those, and their mean.
    """
    parts = []
    for domains in sorted(table["domains"].unique()):
        here = table["domains"] == domains
        said = fitted(table[~here], table[here], columns)
        mean = np.full(here.sum(), table[~here]["gain"].mean())
        parts.append((table[here]["gain"].to_numpy(), said, mean))
    gain, said, mean = (np.concatenate(part) for part in zip(*parts, strict=True))
    return gain, said, mean


def judged(gain: np.ndarray, said: np.ndarray, mean: np.ndarray) -> str:
    """R² of predictions against the `mean` of the other settings, and the rank correlation.

    An R² of 0 or less is no better than that mean.
    """
    from scipy.stats import spearmanr

    better = 1 - ((gain - said) ** 2).sum() / ((gain - mean) ** 2).sum()
    return f"{better:+z.2f} ({spearmanr(gain, said).statistic:+z.2f})".replace("-", "−")


def predict() -> None:
    """Print how well each quantity predicts the gain of settings that it was not fitted to.

    As Markdown, a table for each step of the diagnosis. "unseen" are other settings with other
    codes; what is said of sets that were not made for it is by the fit to the largest number of
    steps, their gain in the head of the column.
    """
    everything = evidence()
    for step, of_step in everything.groupby("step"):
        elsewhere = of_step[of_step["code_seed"].isna()]
        rows = {}
        for name, columns in PREDICTORS.items():
            rows[name] = {}
            for steps, table in of_step[of_step["code_seed"] >= 0].groupby("iterations"):
                known, unseen = table[table["code_seed"] == 0], table[table["code_seed"] > 0]
                rows[name][f"{steps} steps"] = judged(*by_number_of_domains(known, columns))
                mean = np.full(len(unseen), known["gain"].mean())
                said = fitted(known, unseen, columns)
                rows[name][f"{steps}, unseen"] = judged(unseen["gain"].to_numpy(), said, mean)
            for (_, there), said in zip(
                elsewhere.iterrows(), fitted(known, elsewhere, columns), strict=True
            ):
                head = f"{there['data']} {there['target']} ({there['gain']:+z.0f})"
                rows[name][head.replace("(-", "(−")] = (
                    "–" if np.isnan(said) else f"{said:+z.0f}".replace("-", "−")
                )
        print(f"\nDiagnosed after {step} steps: R² (rank correlation)\n")
        heads = list(next(iter(rows.values())))
        print("| what the diagnosis says |", *(f"{head} |" for head in heads))
        print("|---|" + "--:|" * len(heads))
        for name, row in rows.items():
            print(f"| {name} |", *(f"{row[head]} |" for head in heads))


def elsewhere(folders: list[Path]) -> None:
    """Print what the lines fitted here say of other data, and the gain that its runs have there.

    folders: with runs of Agr-Sum and Deep-All, and with diagnoses of the same data and targets. Of
        several learning rates each method has the one of its best mean validation accuracy.
    """
    from gradsurgery.documents.studies import Diagnosis

    paths = sorted(path for folder in folders for path in folder.rglob(Diagnosis.file_name))
    if not paths:
        raise SystemExit("no diagnosis.json there; gradsurgery diagnose DATA --target … makes one")
    found = [Diagnosis.load(path) for path in paths]
    about = [{"data": s.data, "target": s.target, "domains": len(s.domains)} for s in found]
    rows = [a | row for a, seen in zip(about, found, strict=True) for row in rows_of(seen)]
    seen = quantities(pd.DataFrame(rows))
    here = evidence()
    here = here[(here["code_seed"] == 0) & (here["iterations"] == here["iterations"].max())]
    true = own_rates(runs_in(folders))
    for step, there in seen.groupby("step"):
        print(f"\nDiagnosed after {step} steps: the gain in points\n")
        names = [name for name, columns in PREDICTORS.items() if not {*columns} & {*PARAMETERS}]
        fit = here[here["step"] == step]
        said = {name: fitted(fit, there, PREDICTORS[name]) for name in names}
        print("| data | target | true |", *(f"{name} |" for name in names))
        print("|---|---|--:|" + "--:|" * len(names))
        for place, (data, target) in enumerate(there[SET].to_numpy()):
            gain = f"{true[data, target]:+.1f}" if (data, target) in true else "–"
            numbers = [f"{values[place]:+.0f}" for values in said.values()]
            print(f"| {data} | {target} |", *(f"{n} |" for n in [gain, *numbers]))


def own_rates(runs: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The gain in points by data and target, each method at its own learning rate."""
    if runs.empty:
        return {}
    means = runs.groupby([*SET, "method", "learning_rate"])[["best_validation", "best_target"]]
    best = means.mean().reset_index().sort_values("best_validation").groupby([*SET, "method"])
    target = best["best_target"].last().unstack("method").reindex(columns=["agr-sum", "deep-all"])
    return (100 * (target["agr-sum"] - target["deep-all"])).dropna().to_dict()


def figure(folder: Path = HERE) -> None:
    """Draw phase-diagram.png from runs.csv: maps of the gain by noise and number of steps."""
    from matplotlib.figure import Figure

    table = gains()
    table = table[table["code_seed"] == 0]
    rows, columns = (sorted(table[name].unique()) for name in ("iterations", "noise"))
    most = table.groupby(["data", "iterations"])["gain"].mean().abs().max()
    drawing = Figure(figsize=(8, 5.2), layout="constrained", dpi=160)
    panels = drawing.subplots(len(rows), len(columns), sharex=True, sharey=True)
    for panel, (steps, noise) in zip(
        panels.flat, [(steps, noise) for steps in rows for noise in columns], strict=True
    ):
        here = table[(table["iterations"] == steps) & (table["noise"] == noise)]
        cells = here.pivot_table(index="share", columns="domains", values="gain")
        map_ = panel.imshow(cells, cmap="PuOr_r", vmin=-most, vmax=most, origin="lower")
        for (y, x), value in np.ndenumerate(cells.to_numpy()):
            color = "white" if abs(value) > 0.75 * most else "black"
            panel.text(
                x, y, f"{value:+z.0f}".replace("-", "−"), ha="center", va="center", color=color
            )
        panel.set_xticks(range(len(cells.columns)), [str(d) for d in cells.columns])
        panel.set_yticks(range(len(cells.index)), [f"{100 * share:.0f} %" for share in cells.index])
        panel.set_title(f"noise {noise}, {steps} steps", fontsize=9)
        panel.spines[:].set_visible(False)
    drawing.supxlabel("source domains", fontsize=9)
    drawing.supylabel("source images that carry a code", fontsize=9)
    drawing.colorbar(map_, ax=panels, label="Agr-Sum − Deep-All on the target (points)", shrink=0.8)
    drawing.savefig(folder / "phase-diagram.png", metadata={"Software": None})


READING = {"collect": collect, "elsewhere": elsewhere}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*READING, "diagnose", "figure", "predict"])
    parser.add_argument("folders", nargs="*", type=Path, help="of runs, and of diagnoses")
    given = parser.parse_args()
    if given.what in READING:
        READING[given.what](given.folders)
    else:
        {"diagnose": diagnose, "figure": figure, "predict": predict}[given.what]()


if __name__ == "__main__":
    main()
