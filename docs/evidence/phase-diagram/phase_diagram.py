"""Where Agr-Sum gains over Deep-All on coded-digits, and what a diagnosis knows of it beforehand.

    gradsurgery sweep --config plan.yaml --no-report --out runs/phase-diagram
    gradsurgery sweep --config unseen.yaml --no-report --out runs/unseen
    python phase_diagram.py collect runs/phase-diagram runs/unseen     # runs.csv
    python phase_diagram.py diagnose                                   # diagnoses.csv
    python phase_diagram.py figure                                     # phase-diagram.png
    python phase_diagram.py predict                                    # the table of predictors

The last two read the stored tables alone.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from gradsurgery.data.coded_digits import CodedDigitsOptions

HERE = Path(__file__).parent
SETTING = ["data", "domains", "bits", "noise", "share", "code_seed"]
OPTIONS = ["iterations", "learning_rate", "weight_decay", "optimizer", "batch_size", "backbone"]
OPTIONS += ["image_size", "validate_every", "target", "method", "seed"]
STEPS = 50
"""Of Deep-All on which the diagnosis looks: what `gradsurgery diagnose DATA --target` does."""
LOOKED_AT = (0, 10, 50)
"""Steps whose measurements are tried as predictors."""


def setting_of(data: str) -> dict[str, object]:
    """The parameters of a data set by its name."""
    options = CodedDigitsOptions.parsed(data.partition(":")[2]).model_dump()
    return {"data": data, **options, "code_seed": options.pop("seed")}


def collect(folders: list[Path]) -> None:
    """Write runs.csv, a row a run."""
    from gradsurgery.documents.record import Record

    rows = []
    for path in sorted(path for folder in folders for path in folder.rglob("record.json")):
        record = Record.load(path)
        row = setting_of(record.data.name)
        row |= {name: getattr(record.configuration, name) for name in OPTIONS}
        for name in ("best", "last"):
            model = getattr(record.result, name)
            row[f"{name}_step"] = model.step
            row[f"{name}_validation"] = round(model.validation_accuracy, 6)
            row[f"{name}_target"] = round(model.target_accuracy, 6)
        rows.append(row)
    table = pd.DataFrame(rows).sort_values([*SETTING, *OPTIONS])
    table.to_csv(HERE / "runs.csv", index=False)
    print(f"{len(table)} runs of {table['data'].nunique()} settings in {HERE / 'runs.csv'}")


def diagnose() -> None:
    """Write diagnoses.csv, a row a setting of runs.csv: `diagnose` after 50 steps of Deep-All."""
    from gradsurgery.data import open_source, prepare
    from gradsurgery.documents.configuration import RunConfiguration
    from gradsurgery.documents.diagnosis import DiagnosisOptions
    from gradsurgery.studies.diagnosis import diagnose_training

    rows = []
    for data in pd.read_csv(HERE / "runs.csv")["data"].drop_duplicates():
        configuration = RunConfiguration(
            data=data,
            target="random",
            method="deep-all",
            iterations=STEPS,
            batch_size=32,
            validate_every=STEPS,
            threads=1,
        )
        images = prepare(open_source(data), configuration.image_size)
        with tempfile.TemporaryDirectory() as folder:
            options = DiagnosisOptions(batch_size=32, every=10)
            seen = diagnose_training(configuration, options, images, Path(folder))
        for snapshot in seen.snapshots:
            cosines = np.array(snapshot.total.cosines, dtype=float)
            row = setting_of(data) | {
                "step": snapshot.step,
                "agreeing": snapshot.total.agreeing,
                "chance": 0.5 ** (len(seen.domains) - 1),
                "shuffled_agreeing": snapshot.shuffled_agreeing,
                "cosine": cosines[np.triu_indices(len(cosines), 1)].mean(),
                "shuffled_cosine": snapshot.shuffled_cosine,
                "kept_length": snapshot.total.kept_length,
            }
            rows.append(row)
            print(data, {name: row[name] for name in ("step", "agreeing", "shuffled_agreeing")})
    pd.DataFrame(rows).round(6).to_csv(HERE / "diagnoses.csv", index=False)


def gains() -> pd.DataFrame:
    """Target accuracy of Agr-Sum minus Deep-All in points, a row a setting, number of steps, seed.

    `validation` is the same difference on validation images of the sources.
    """
    runs = pd.read_csv(HERE / "runs.csv")
    wide = runs.pivot_table(
        index=[*SETTING, "iterations", "seed"],
        columns="method",
        values=["best_target", "best_validation"],
    )
    difference = 100 * (wide.xs("agr-sum", axis=1, level=1) - wide.xs("deep-all", axis=1, level=1))
    difference["base"] = 100 * wide["best_target", "deep-all"]
    names = {"best_target": "gain", "best_validation": "validation"}
    return difference.rename(columns=names).reset_index()


def evidence() -> pd.DataFrame:
    """A row a setting, number of steps and step of the diagnosis: the gain, and what that says."""
    keys = [*SETTING, "iterations"]
    gain = gains().groupby(keys)[["gain", "validation", "base"]].mean().reset_index()
    seen = pd.read_csv(HERE / "diagnoses.csv")
    seen = seen[seen["step"].isin(LOOKED_AT)].copy()
    seen["above chance"] = np.log(seen["agreeing"] / seen["chance"])
    seen["lost to the domains"] = seen["shuffled_agreeing"] - seen["agreeing"]
    seen["log ratio to shuffled"] = np.log(seen["shuffled_agreeing"] / seen["agreeing"])
    seen["within minus across"] = seen["shuffled_cosine"] - seen["cosine"]
    return gain.merge(seen, on=SETTING)


PREDICTORS = {
    "agreement": ["agreeing"],
    "agreement by chance (the number of domains)": ["chance"],
    "log (agreement / chance)": ["above chance"],
    "agreement lost to the domains, in points": ["lost to the domains"],
    "log (shuffled agreement / agreement)": ["log ratio to shuffled"],
    "mean cosine": ["cosine"],
    "cosine when shuffled − cosine": ["within minus across"],
    "length that Agr-Sum leaves": ["kept_length"],
    "cosine, and length left": ["cosine", "kept_length"],
    "the data's own parameters (not known of real data)": ["domains", "share", "noise"],
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


def judged(gain: np.ndarray, said: np.ndarray, mean: np.ndarray) -> dict[str, str]:
    """How good predictions are, where the `mean` of the other settings is the alternative."""
    from scipy.stats import spearmanr

    better = 1 - ((gain - said) ** 2).sum() / ((gain - mean) ** 2).sum()
    return {
        "R²": f"{better:+.2f}",
        "mean error": f"{np.abs(gain - said).mean():.1f}",
        "rank correlation": f"{spearmanr(gain, said).statistic:+.2f}",
    }


def predict() -> None:
    """Print how well each quantity predicts the gain of settings that it was not fitted to."""
    for (steps, step), table in evidence().groupby(["iterations", "step"]):
        known, other = table[table["code_seed"] == 0], table[table["code_seed"] != 0]
        print(
            f"\ngain after {steps} steps, diagnosed after {step}: {len(known)} settings, "
            f"{len(other)} unseen ones"
        )
        rows = {}
        for name, columns in PREDICTORS.items():
            rows[name] = judged(*by_number_of_domains(known, columns))
            if len(other):
                mean = np.full(len(other), known["gain"].mean())
                there = judged(other["gain"].to_numpy(), fitted(known, other, columns), mean)
                rows[name] |= {f"{key}, unseen": value for key, value in there.items()}
        print(pd.DataFrame(rows).T.to_string())


def figure() -> None:
    """Draw phase-diagram.png from runs.csv: maps of the gain by noise and number of steps."""
    from matplotlib.figure import Figure

    table = gains()
    table = table[table["code_seed"] == 0]
    rows, columns = (sorted(table[name].unique()) for name in ("iterations", "noise"))
    most = table.groupby([*SETTING, "iterations"])["gain"].mean().abs().max()
    drawing = Figure(figsize=(8, 5.2), layout="constrained", dpi=160)
    panels = drawing.subplots(len(rows), len(columns), sharex=True, sharey=True)
    for panel, (steps, noise) in zip(
        panels.flat, [(steps, noise) for steps in rows for noise in columns], strict=True
    ):
        here = table[(table["iterations"] == steps) & (table["noise"] == noise)]
        cells = here.pivot_table(index="share", columns="domains", values="gain")
        map_ = panel.imshow(cells, cmap="PuOr_r", vmin=-most, vmax=most, origin="lower")
        for (y, x), value in np.ndenumerate(cells.to_numpy()):
            color = "white" if abs(value) > 0.6 * most else "black"
            panel.text(x, y, f"{value:+.0f}", ha="center", va="center", color=color)
        panel.set_xticks(range(len(cells.columns)), [str(d) for d in cells.columns])
        panel.set_yticks(range(len(cells.index)), [f"{100 * share:.0f} %" for share in cells.index])
        panel.set_title(f"noise {noise}, {steps} steps", fontsize=9)
        panel.spines[:].set_visible(False)
    drawing.supxlabel("source domains", fontsize=9)
    drawing.supylabel("source images that carry a code", fontsize=9)
    drawing.colorbar(map_, ax=panels, label="Agr-Sum − Deep-All on the target (points)", shrink=0.8)
    drawing.savefig(HERE / "phase-diagram.png", metadata={"Software": None})


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["collect", "diagnose", "figure", "predict"])
    parser.add_argument("folders", nargs="*", type=Path, help="of the runs to collect")
    given = parser.parse_args()
    if given.what == "collect":
        collect(given.folders)
    else:
        {"diagnose": diagnose, "figure": figure, "predict": predict}[given.what]()


if __name__ == "__main__":
    main()
