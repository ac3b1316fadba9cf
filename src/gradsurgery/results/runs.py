"""Finished runs: what folders hold of them and what is missing, and all of them as a data frame."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsurgery.documents.configuration import options_of
from gradsurgery.documents.plan import Failure, PlannedRun, SweepPlan, plans_below, usual_name
from gradsurgery.documents.record import ModelResult, Record
from gradsurgery.documents.studies import Diagnosis, Explanation, SimilarityStudy
from gradsurgery.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Records = Mapping[Path, Record]
"""Records by their files."""
Plans = Sequence[Mapping[Path, PlannedRun]]
"""Of each sweep the runs that it should have, by their folders, in the order of its plan."""
STUDIES = (SimilarityStudy.file_name, Diagnosis.file_name)
PAPER_METHODS = (
    *("deep-all", "agr-sum", "agr-rand", "pcgrad"),
    *("irm", "mldg", "mixup", "group-dro"),
)
"""In the order of its Table 1, in which `gradsurgery methods` lists them too."""
_GUESSING = 0.1


@dataclass(frozen=True)
class Inventory:
    """The records at some paths, and what should be there too.

    records: by their files.
    plans: the runs that each sweep's plan names, by their folders.
    searched: whether a plan tries several hyperparameters.
    failures: runs that were given up, by their folders.
    """

    paths: tuple[Path, ...]
    records: Records
    plans: Plans
    searched: bool
    failures: dict[Path, Failure]

    @cached_property
    def runs(self) -> "pd.DataFrame":
        """A row a record."""
        return runs_frame(self.records, self.planned.values())

    @cached_property
    def planned(self) -> dict[Path, PlannedRun]:
        """The runs of all plans, none where there is no plan."""
        return {folder: run for plan in self.plans for folder, run in plan.items()}

    @property
    def missing(self) -> dict[Path, PlannedRun]:
        """Planned runs that are neither finished nor given up, by their folders."""
        there = {path.parent.resolve() for path in self.records}
        there |= {folder.resolve() for folder in self.failures}
        return {
            folder: run
            for folder, run in self.planned.items()
            if folder not in there and not (folder / Record.file_name).exists()
        }


def take_inventory(paths: Sequence[Path]) -> Inventory:
    """Read everything at `paths`.

    A folder may hold studies of gradients and no runs where another holds runs. Raises `DataError`
    for paths without any run, and for what is no record, plan or failure.
    """
    records = _comparable({path: Record.load(path) for path in record_files(paths)})
    plans = plans_below(paths)
    return Inventory(
        paths=tuple(paths),
        records=records,
        plans=[plan.by_folder(folder) for folder, plan in plans.items()],
        searched=any(plan.plan.get("grid") for plan in plans.values()),
        failures={file.parent: Failure.load(file) for file in _failure_files(paths)},
    )


def find_records(paths: Iterable[Path]) -> list[Path]:
    """The record files at `paths`: files as they are, folders searched for `**/record.json`.

    Each file is there once, however many paths lead to it. Raises `DataError` for a path that
    does not exist and for one without a record.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; give a record.json or a folder of runs")
        files = sorted(path.rglob(Record.file_name)) if path.is_dir() else [path]
        if not files:
            why = "no run there is finished; give a folder of finished runs"
            raise DataError(f"no record.json under {path}: {why}")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def record_files(paths: Sequence[Path]) -> list[Path]:
    """The records at `paths` but for the runs that a study trained for itself.

    Those lie below the study's file, with no sweep's plan in between. Where no other is left they
    are all given, and so is each that is itself among `paths`. Raises `DataError` as `find_records`
    does.
    """
    with_runs = [p for p in paths if not study_files([p]) or any(p.rglob(Record.file_name))]
    found = find_records(with_runs or paths)
    roots = {path.resolve() for path in paths}
    return [file for file in found if not _of_a_study(file, roots)] or found


def study_files(paths: Sequence[Path]) -> list[Path]:
    """The files of studies and explanations in those of `paths` that are folders, by path."""
    folders = [path for path in paths if path.is_dir()]
    names = (*STUDIES, Explanation.file_name)
    return sorted({file for folder in folders for name in names for file in folder.rglob(name)})


def _comparable(records: dict[Path, Record]) -> dict[Path, Record]:
    """Those with a target: a run on all domains has nothing that methods are compared by."""
    with_target = {
        path: record
        for path, record in records.items()
        if record.configuration.held_out(record.data.domains) is not None
    }
    if not with_target:
        raise DataError(
            f"{next(iter(records))} and the others there hold out no domain, and there is nothing "
            "to compare them by; gradsurgery show tells of one of them"
        )
    return with_target


def _failure_files(paths: Sequence[Path]) -> list[Path]:
    """By path; one beside a finished run's record is left out: a later attempt succeeded."""
    files: dict[Path, Path] = {}
    for path in paths:
        for file in path.rglob(Failure.file_name) if path.is_dir() else [path]:
            if file.name == Failure.file_name and not file.with_name(Record.file_name).exists():
                files.setdefault(file.resolve(), file)
    return sorted(files.values())


def _of_a_study(file: Path, roots: set[Path]) -> bool:
    run = file.resolve().parent
    if file.resolve() in roots or run in roots:
        return False
    for folder in run.parents:
        if (folder / SweepPlan.file_name).exists():
            return False
        if any((folder / name).exists() for name in STUDIES):
            return True
        if folder in roots:
            return False
    return False


def runs_frame(records: Records, planned: Iterable[PlannedRun] = ()) -> "pd.DataFrame":
    """One row for every record, in the order of data, protocol, target, method and seed.

    Methods are in the order of `method_order(planned)`.

    Columns: `record` (the file), `data`, `domains` (tuple, in the data's order), `target`,
    `without` (tuple of the source domains left out too), `method` (by its usual name, with the
    hyperparameters that were set), `method_name` (without them), `seed`; for the `best` and the
    `last` model each `best_step`, `best_validation_accuracy` and `best_target_accuracy` (in
    [0, 1]), `best_target_validation_accuracy` (NaN where it was not tested), `best_test_accuracy`
    (dict, domain to fraction) and `best_guessing` (see `guesses`); `code`, the objects from outside
    of this software, each with the sha256 of its file, None where a record has none.

    As JSON objects: `conditions`, what the runs of an experiment share; `hyperparameters`, what a
    search may choose, the method's own among them; `settings`, these own ones; and `protocol`,
    everything that two runs must share to be compared: the first two without the third.

    Runs of one outcome that differ in incidental options or in their method's name alone are one.
    Raises `DataError` for any other run that is there twice.
    """
    import pandas as pd

    place = method_order(planned)
    rows = _each_once([_row(path, record) for path, record in records.items()], records)
    rows.sort(key=lambda r: (r["data"], r["protocol"], r["target"], place(r["method"]), r["seed"]))
    return pd.DataFrame(rows)


def curves_frame(runs: "pd.DataFrame", records: Records) -> "pd.DataFrame":
    """One row for every validation of each of the `runs`.

    Columns: `record`, `data`, `method`, `target` and `seed` as the runs have them; `step`,
    `train_loss`, `validation_loss`, `validation_accuracy`, `agreeing` and `cosine`, NaN where there
    is no value.
    """
    import pandas as pd

    about = ["record", "data", "method", "target", "seed"]
    frames = []
    for of in zip(*(runs[name] for name in about), strict=True):
        values = dict(records[Path(of[0])].curves)
        frames.append(pd.DataFrame(values, dtype=float).assign(**dict(zip(about, of, strict=True))))
    return pd.concat(frames, ignore_index=True)


def guesses(model: ModelResult, record: Record) -> bool:
    """Whether a model's validation accuracy is within a tenth of the way from chance to 1.

    Chance is what a network has that names one class for every image: the share of the largest
    class in the images of the source domains, 1 / classes where a record does not count them.
    """
    data = record.data
    sources = record.configuration.sources(data.domains)
    counts = [data.class_images[domain] for domain in sources if domain in data.class_images]
    totals = [sum(of_class) for of_class in zip(*counts, strict=True)]
    chance = max(totals) / sum(totals) if any(totals) else 1 / max(len(data.classes), 1)
    return model.validation_accuracy < chance + _GUESSING * (1 - chance)


def method_label(name: str, settings: Mapping[str, Any]) -> str:
    """The method's name, with the hyperparameters that were set.

    >>> method_label("irm", {"irm.penalty": 10.0})
    'irm (irm.penalty=10)'
    """
    listed = ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in sorted(settings.items())
    )
    return f"{name} ({listed})" if listed else name


def plans_of(records: Iterable[str], plans: Plans) -> dict[Path, PlannedRun]:
    """The runs of those of the plans that name one of these records; others ask nothing of them."""
    folders = {Path(record).parent.resolve() for record in records}
    own = [plan for plan in plans if not folders.isdisjoint(plan)]
    return {folder: run for plan in own for folder, run in plan.items()}


def method_order(planned: Iterable[PlannedRun]) -> Callable[[str], tuple[int, list[str | float]]]:
    """A key that sorts methods as they were planned, then as in the paper, then by name.

    Those of one name are sorted by their hyperparameters, numbers as numbers.

    >>> sorted(["cagrad", "irm (irm.penalty=10)", "irm (irm.penalty=9)"], key=method_order([]))
    ['irm (irm.penalty=9)', 'irm (irm.penalty=10)', 'cagrad']
    """
    names = list(dict.fromkeys([*(run.method for run in planned), *PAPER_METHODS]))

    def place(method: str) -> tuple[int, list[str | float]]:
        name = method.partition(" (")[0]
        return names.index(name) if name in names else len(names), by_number(method)

    return place


def by_number(text: str) -> list[str | float]:
    """A key that sorts texts with the numbers in them as numbers.

    >>> sorted(["rate 0.001", "rate 1e-05"], key=by_number)
    ['rate 1e-05', 'rate 0.001']
    """
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)", text)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def as_json(values: Mapping[str, Any]) -> str:
    """The same text for the same values in any order."""
    return json.dumps(values, sort_keys=True)


def _row(path: Path, record: Record) -> dict[str, Any]:
    options, method = record.configuration, usual_name(record.configuration.method)
    conditions = _conditions(record)
    hyperparameters = options.model_dump(include=set(options_of("hyperparameter")) - {"settings"})
    row = {
        "record": str(path),
        "data": record.data.name,
        "domains": tuple(record.data.domains),
        "target": options.target,
        "without": tuple(options.without),
        "method": method_label(method, options.settings),
        "method_name": method,
        "seed": options.seed,
        "conditions": as_json(conditions),
        "hyperparameters": as_json(hyperparameters | options.settings),
        "settings": as_json(options.settings),
        "protocol": as_json(conditions | hyperparameters),
        "code": tuple((each["object"], each.get("sha256")) for each in record.objects),
    }
    for name, model in (("best", record.result.best), ("last", record.result.last)):
        validated = model.target_validation_accuracy
        row |= {
            f"{name}_step": model.step,
            f"{name}_validation_accuracy": model.validation_accuracy,
            f"{name}_target_accuracy": nan if (t := model.target_accuracy) is None else t,
            f"{name}_target_validation_accuracy": nan if validated is None else validated,
            f"{name}_test_accuracy": model.test_accuracy,
            f"{name}_guessing": guesses(model, record),
        }
    return row


def _each_once(rows: list[dict[str, Any]], records: Records) -> list[dict[str, Any]]:
    identity = ["data", "protocol", "method", *options_of("identity")]
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        first = kept.setdefault(tuple(row[name] for name in identity), row)
        if first is row:
            continue
        one, other = records[Path(first["record"])], records[Path(row["record"])]
        differing = one.configuration.differences(other.configuration)  # maybe in the name alone
        free = {"method", *options_of("incidental")}
        if not differing.keys() & free or one.result != other.result:
            without = f" without {', '.join(row['without'])}" if row["without"] else ""
            results, said = "the same results", [first["record"], row["record"]]
            if one.result != other.result:
                results, of = "other results", ("best_target_accuracy", "best_validation_accuracy")
                figures = [[f"{100 * each[name]:.2f} %" for name in of] for each in (first, row)]
                said = [
                    f"{p} (target {t}, validation {v})"
                    for p, (t, v) in zip(said, figures, strict=True)
                ]
            raise DataError(
                f"the run of {row['method']} on {row['target']}{without} with seed {row['seed']} "
                f"is there twice, with {results}: {' and '.join(said)}; give one of them"
            )
    return list(kept.values())


def _conditions(record: Record) -> dict[str, Any]:
    """The conditions among the options, and the digests of what they stand for."""
    conditions = record.configuration.model_dump(include=set(options_of("condition")))
    if record.model.weights_digest is not None:  # the same file may lie at two places
        conditions["weights"] = f"sha256:{record.model.weights_digest[:12]}"
    conditions["data_digest"] = record.data.digest[:12]
    if record.configuration.split_per_run:
        del conditions["split_seed"]
    else:
        conditions["split_digest"] = record.split.digest[:12]
    return conditions
