"""Finished runs as a data frame: what they came to, and what makes them comparable."""

import json
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsurgery.documents.configuration import options_of
from gradsurgery.documents.record import ModelResult, Record
from gradsurgery.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Records = Mapping[Path, Record]
"""Records by their files."""

_GUESSING = 0.1


def runs_frame(records: Records) -> "pd.DataFrame":
    """One row for every record, in the order of data, protocol, target, method and seed.

    Columns: `record` (the file), `data`, `domains` (tuple, in the data's order), `target`,
    `without` (tuple of the source domains left out too), `method` (with the hyperparameters that
    were set), `method_name` (without them), `seed`; for the `best` and the `last` model each
    `best_step`, `best_validation_accuracy` and `best_target_accuracy` (fractions in [0, 1]),
    `best_target_validation_accuracy` (NaN where it was not tested), `best_test_accuracy` (dict,
    domain to fraction) and `best_guessing` (see `guesses`).

    As JSON objects: `conditions`, what the runs of an experiment share; `hyperparameters`, what a
    search may choose, the method's own among them; `settings`, these own ones; and `protocol`,
    everything that two runs must share to be compared: the first two without the third.

    Runs of one outcome that differ in incidental options alone are one. Raises `DataError` for any
    other run that is there twice.
    """
    import pandas as pd

    rows = _each_once([_row(path, record) for path, record in records.items()], records)
    order = ["data", "protocol", "target", "method", "seed"]
    return pd.DataFrame(rows).sort_values(order, kind="stable", ignore_index=True)


def curves_frame(runs: "pd.DataFrame", records: Records) -> "pd.DataFrame":
    """One row for every validation of each of the `runs`.

    Columns: `method`, `target` and `seed` as the runs have them; `step`, `train_loss`,
    `validation_loss`, `validation_accuracy`, `agreeing` and `cosine`, NaN where there is no value.
    """
    import pandas as pd

    about = ["record", "method", "target", "seed"]
    frames = [
        pd.DataFrame(dict(records[Path(file)].curves), dtype=float).assign(
            method=method, target=target, seed=seed
        )
        for file, method, target, seed in zip(*(runs[name] for name in about), strict=True)
    ]
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


def as_json(values: Mapping[str, Any]) -> str:
    """The same text for the same values in any order."""
    return json.dumps(values, sort_keys=True)


def _row(path: Path, record: Record) -> dict[str, Any]:
    options = record.configuration
    conditions = _conditions(record)
    hyperparameters = options.model_dump(include=set(options_of("hyperparameter")) - {"settings"})
    row = {
        "record": str(path),
        "data": record.data.name,
        "domains": tuple(record.data.domains),
        "target": options.target,
        "without": tuple(options.without),
        "method": method_label(options.method, options.settings),
        "method_name": options.method,
        "seed": options.seed,
        "conditions": as_json(conditions),
        "hyperparameters": as_json(hyperparameters | options.settings),
        "settings": as_json(options.settings),
        "protocol": as_json(conditions | hyperparameters),
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
        differing = one.configuration.differences(other.configuration)
        if not differing.keys() & options_of("incidental") or one.result != other.result:
            without = f" without {', '.join(row['without'])}" if row["without"] else ""
            raise DataError(
                f"the run of {row['method']} on {row['target']}{without} with seed {row['seed']} "
                f"is there twice: {first['record']} and {row['record']}; give one of them"
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
