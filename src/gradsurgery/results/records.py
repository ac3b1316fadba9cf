"""Records of finished runs, read and checked; one row a run."""

import json
from collections.abc import Iterable, Mapping
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsurgery.errors import DataError
from gradsurgery.versioned import read_versioned

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1

Records = Mapping[Path, dict[str, Any]]
"""The content of records by their files."""

_MODELS = ("best", "last")
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "configuration.target": str,
    "configuration.method": str,
    "configuration.seed": int,
    "configuration.backbone": str,
    "data.name": str,
    "data.digest": str,
    "data.domains": list,
    "split.digest": str,
    "cost.seconds": (int, float),
    "environment": dict,
}
_CURVES = ("step", "train_loss", "validation_accuracy")
_OTHER_CURVES = ("validation_loss", "agreeing", "cosine")
_ACCURACIES = ("validation_accuracy", "target_accuracy")

# Where a run may differ and still be comparable: what a table compares, and what cannot change
# its outcome or is in a digest (the data's path, the files left out).
_COMPARED = ("target", "without", "method", "settings", "seed")
_IMMATERIAL = ("data", "device", "skip_bad", "log_conflict")

# The settings that are the experiment's rather than the method's: no search chooses among them.
CONDITIONS = (
    "backbone",
    "weights",
    "batches",
    "split_seed",
    "split_per_run",
    "data_digest",
    "split_digest",
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
        files = sorted(path.rglob("record.json")) if path.is_dir() else [path]
        if not files:
            raise DataError(
                f"no record.json under {path}: no run there is finished; "
                "give a folder of finished runs"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_record(path: Path) -> dict[str, Any]:
    """The content of one record file, with every part that reports need checked.

    Raises `DataError`, naming the file, where it is cut off, of another version or no record.
    """
    content = read_versioned(path, "record of a run", VERSION, cure="repeat the run")
    for name, kind in _REQUIRED.items():
        _checked(content, name, kind, path)
    for model in _MODELS:
        _checked(content, f"result.{model}.step", int, path)
        _checked(content, f"result.{model}.test_accuracy", dict, path)
        for name in (*_ACCURACIES, *_optional_accuracies(content["result"][model])):
            value = _checked(content, f"result.{model}.{name}", (int, float), path)
            if not 0 <= value <= 1:  # also false for NaN
                raise _unusable(path, f"result.{model}.{name}", "a fraction from 0 to 1", value)
    for name in _CURVES:
        for value in _checked(content, f"curves.{name}", list, path):
            if value is not None and not isinstance(value, int | float):
                raise _unusable(path, f"curves.{name}", "a list of numbers", value)
    domains, target = content["data"]["domains"], content["configuration"]["target"]
    if target not in domains:
        raise _unusable(path, "configuration.target", f"one of {domains}", target)
    without = content["configuration"].setdefault("without", [])
    if not isinstance(without, list) or any(domain not in domains for domain in without):
        raise _unusable(path, "configuration.without", f"a list of {domains}", without)
    return content


def _optional_accuracies(result: dict[str, Any]) -> list[str]:
    """The names of the accuracies that a record may lack."""
    validated = result.get("target_validation_accuracy") is not None
    tested = [f"test_accuracy.{domain}" for domain in result["test_accuracy"]]
    return [*(["target_validation_accuracy"] if validated else []), *tested]


def read_runs(paths: Iterable[Path]) -> "pd.DataFrame":
    """One row for every record at `paths`, in the order of data, target, method and seed.

    Columns: `record` (the file), `data`, `domains` (tuple, in the data's order), `target`,
    `without` (tuple of the source domains left out too), `method` (with the hyperparameters that
    were set), `method_name` (without them), `backbone`, `batches`, `seed`; for `best` and `last`
    model each `best_step`, `best_validation_accuracy` and `best_target_accuracy` (fractions in
    [0, 1]), `best_target_validation_accuracy` (NaN where it was not tested) and
    `best_test_accuracy` (dict, domain to fraction); `seconds`; `settings`, a JSON object of
    everything else two runs must share to be compared; and `hyperparameters`, a JSON object of
    what a search may choose: the method's hyperparameters that were set, and the settings that are
    not among `CONDITIONS`.

    Raises `DataError` as `find_records` and `read_record` do.
    """
    return runs_of(read_records(paths))


def read_curves(paths: Iterable[Path]) -> "pd.DataFrame":
    """One row for every validation of every run at `paths`.

    Columns: `data`, `target`, `method`, `settings`, `seed` as `read_runs` has them; `step`,
    `train_loss`, `validation_loss`, `validation_accuracy`, `agreeing` and `cosine`, NaN where the
    record has no finite value. Runs that leave out source domains are not in it.

    Raises `DataError` as `read_runs` does, and where the curves of a record differ in length.
    """
    return curves_of(read_records(paths))


def read_records(paths: Iterable[Path]) -> Records:
    """The content of every record at `paths`; raises as `find_records` and `read_record` do."""
    return {path: read_record(path) for path in find_records(paths)}


def runs_of(records: Records) -> "pd.DataFrame":
    """The frame of `read_runs`, of records that were read."""
    import pandas as pd

    rows = [_row(path, content) for path, content in records.items()]
    order = ["data", "settings", "target", "method", "seed"]
    return pd.DataFrame(rows).sort_values(order, kind="stable", ignore_index=True)


def curves_of(records: Records) -> "pd.DataFrame":
    """The frame of `read_curves`, of records that were read."""
    import pandas as pd

    about = ["data", "target", "method", "settings", "seed"]
    numbers = [name for name in (*_CURVES, *_OTHER_CURVES) if name != "step"]
    columns: dict[str, list[Any]] = {name: [] for name in (*about, "step", *numbers)}
    for path, content in records.items():
        if content["configuration"]["without"]:
            continue
        row, steps = _row(path, content), content["curves"]["step"]
        for name in about:
            columns[name] += [row[name]] * len(steps)
        columns["step"] += steps
        for name in numbers:
            columns[name] += _curve(content, name, len(steps), path)
    frame = pd.DataFrame(columns).astype(dict.fromkeys(numbers, float))
    return frame.sort_values([*about, "step"], kind="stable", ignore_index=True)


def _curve(content: dict[str, Any], name: str, length: int, path: Path) -> list[Any]:
    """One of the curves, None where there is no value."""
    values = content["curves"].get(name)
    values = [None] * length if values is None else values
    if not isinstance(values, list) or len(values) != length:
        raise _unusable(path, f"curves.{name}", f"a list of {length} numbers", values)
    for value in values:
        if value is not None and not isinstance(value, int | float):
            raise _unusable(path, f"curves.{name}", "a list of numbers", value)
    return values


def _row(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    configuration, data = content["configuration"], content["data"]
    results: dict[str, Any] = {}
    for model in _MODELS:
        result = content["result"][model]
        names = ("step", *_ACCURACIES, "test_accuracy")
        results |= {f"{model}_{name}": result[name] for name in names}
        validated = result.get("target_validation_accuracy")
        results[f"{model}_target_validation_accuracy"] = nan if validated is None else validated
    settings = _settings(content)
    chosen = {k: v for k, v in settings.items() if k not in CONDITIONS}
    chosen |= configuration.get("settings") or {}
    return {
        "record": str(path),
        "data": data["name"],
        "domains": tuple(data["domains"]),
        "target": configuration["target"],
        "without": tuple(configuration["without"]),
        "method": method_label(configuration["method"], configuration.get("settings") or {}),
        "method_name": configuration["method"],
        "backbone": configuration["backbone"],
        "batches": configuration.get("batches", "multi"),
        "seed": configuration["seed"],
        **results,
        "seconds": content["cost"]["seconds"],
        "settings": json.dumps(settings, sort_keys=True),
        "hyperparameters": json.dumps(chosen, sort_keys=True),
    }


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


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """What two runs must share to be comparable."""
    apart = (*_COMPARED, *_IMMATERIAL)
    settings = {k: v for k, v in content["configuration"].items() if k not in apart}
    if settings.get("passes") != "pooled":  # "auto" takes it only where it is exact
        settings.pop("passes", None)
    model = content.get("model")
    digest = model.get("weights_digest") if isinstance(model, dict) else None
    if isinstance(digest, str):  # the same file may lie at two places
        settings["weights"] = f"sha256:{digest[:12]}"
    settings["data_digest"] = content["data"]["digest"]
    if settings.get("split_per_run"):
        settings.pop("split_seed", None)
    else:
        settings["split_digest"] = content["split"]["digest"]
    return settings


def _checked(content: dict[str, Any], name: str, kind: type | tuple[type, ...], path: Path) -> Any:
    value: Any = content
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(f"{path} is no record of a run: it has no {name}; repeat the run")
        value = value[part]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise _unusable(path, name, " or ".join(k.__name__ for k in kinds), value)
    return value


def _unusable(path: Path, name: str, expected: str, found: object) -> DataError:
    return DataError(f"{path}: {name} is {found!r:.80}, expected {expected}; repeat the run")
