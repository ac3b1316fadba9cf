"""From a plan to its runs, each with an identity and maybe a record; the paper's plans."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradsurgery.algorithms.methods import settings_of
from gradsurgery.algorithms.names import METHODS, MethodParts, method_parts
from gradsurgery.data import Source, open_source, reopened
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.document import folder_name
from gradsurgery.documents.plan import Plan, Value, number_or_text, rounded
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError
from gradsurgery.training.averaging import average_settings
from gradsurgery.training.checkpoint import check_same
from gradsurgery.training.images_used import Gaps, gaps_of
from gradsurgery.training.run import check_network, check_run, network_of

DATA_SETS = ("pacs", "vlcs", "office-home")
SURGERY = ("agr-sum", "agr-rand", "pcgrad")

# Options that are not given are the paper's: AlexNet, 1,000 iterations, 128 images per domain, …
_TABLE1: dict[str, Any] = {"methods": ["all"], "targets": "all", "seeds": 20}
PAPER_PLANS: dict[str, dict[str, Any]] = {
    "table1": _TABLE1,
    "figure3": _TABLE1,
    "figure4": {
        "methods": list(SURGERY),
        "targets": "all",
        "seeds": 20,
        "grid": {"batches": ["multi", "single"]},
    },
    # The paper gives what its search chose, 1e-5 and 5e-5, not where it searched.
    "grid-search": {
        "methods": ["deep-all", *SURGERY],
        "targets": "all",
        "seeds": 3,
        "grid": {"learning_rate": [1e-3, 1e-4, 1e-5], "weight_decay": [5e-3, 5e-4, 5e-5]},
    },
}
"""The experiments of Mansilla et al. (ICCV 2021); `figure3` draws the runs of `table1`."""

_DIVIDING = {"target", "without", "split", "test_on", "drop_duplicates"}
_FITTING = {"target", "without", "batch_norm", "batch_size", "freeze"}


class OpenedData(NamedTuple):
    """What a plan needs to know of a data set."""

    name: str
    domains: tuple[str, ...]
    gaps: Gaps = ()


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    directory: relative to the sweep's folder.
    tried: its values of what the plan's grid varies, as a person reads them; "" without a grid.
    """

    configuration: RunConfiguration
    data: str
    directory: str
    tried: str = ""

    @property
    def title(self) -> str:
        """What a person calls it."""
        c = self.configuration
        without = f" without {', '.join(c.without)}" if c.without else ""
        tried = f" {self.tried}" if self.tried else ""
        return f"{self.data} {c.target}{without} {c.method}{tried} seed {c.seed}"

    @property
    def images(self) -> tuple[Any, ...]:
        """What its decoded images depend on."""
        c = self.configuration
        return c.data, c.image_size, c.skip_bad, str(c.reading)

    @property
    def division(self) -> str:
        """What their division into parts depends on."""
        c = self.configuration
        return c.model_dump_json(include=_DIVIDING) + str(c.seed_of_split)


def paper_plan(
    name: str, data: list[str] | None = None, seeds: str | None = None
) -> dict[str, Any]:
    """The parts of a named plan, on other data sets or with other seeds where they are given.

    Raises `ArgumentError` for a name that is not in `PAPER_PLANS`.

    >>> paper_plan("figure4", ["rotated-digits"])["grid"]
    {'batches': ['multi', 'single']}
    """
    if name not in PAPER_PLANS:
        raise ArgumentError(f"no plan is called {name!r}; they are {', '.join(PAPER_PLANS)}")
    parts = {"data": data or list(DATA_SETS), **PAPER_PLANS[name]}
    return parts if seeds is None else parts | {"seeds": seeds}


def opened_sources(plan: Plan) -> dict[str, Source]:
    """The data sets of `plan`, read as its options say; raises as `open_source` does.

    With all classes where the grid has ways to go about those that a domain lacks.
    """
    ways = {way for grid in plan.grids for way in grid.get("classes", ["same"])}
    opened = {}
    for spec in plan.data:
        asked = {name: value for name, value in plan.options.items() if name not in plan.searched}
        if "same" not in ways:
            asked["classes"] = "all"
        c = RunConfiguration(**{**asked, "data": spec, "target": "any", "settings": {}})
        opened[spec] = open_source(spec, **c.reading)
    return opened


def planned(plan: Plan, sources: Mapping[str, Source]) -> list[SweepRun]:
    """The runs of `plan` on opened data sets; raises `ArgumentError` as `plan_runs` does."""
    opened = {
        spec: OpenedData(source.name, source.domains, gaps_of(source))
        for spec, source in sources.items()
    }
    return plan_runs(plan, opened)


def plan_runs(plan: Plan, opened: Mapping[str, OpenedData]) -> list[SweepRun]:
    """The runs of `plan`, those of the first seed first; `opened` has every data set of the plan.

    Raises `ArgumentError` for a name that is not known, a value out of its range, or a target,
    method or hyperparameter that does not fit.
    """
    titles = [data.name for data in opened.values()]
    if twice := sorted({name for name in titles if titles.count(name) > 1}):
        raise ArgumentError(f"two data sets of the plan are called {twice[0]!r}; rename a folder")
    listed = [METHODS if method == "all" else (method,) for method in plan.methods]
    methods = list(dict.fromkeys(itertools.chain.from_iterable(listed)))
    _check_names(methods)
    _check_settings(plan, methods)
    known = {*plan.data, *titles}
    if isinstance(plan.targets, dict) and (unknown := sorted(set(plan.targets) - known)):
        raise ArgumentError(
            f"targets are given for {unknown[0]!r}, which is no data set of the plan; they are "
            f"{', '.join(plan.data)}"
        )
    targets = {spec: _targets(plan, spec, data) for spec, data in opened.items()}
    shown = _shown(plan)
    asked = (
        (configuration, opened[spec])
        for seed in plan.seeds
        for spec in plan.data
        for target, without in _held_out(targets[spec], opened[spec], plan)
        for method in methods
        for configuration in configurations(
            plan, method, data=spec, target=target, without=without, seed=seed
        )
    )
    runs: dict[str, SweepRun] = {}
    refused: dict[str, ArgumentError] = {}
    for configuration, data in asked:
        try:
            run = _planned(configuration, data, shown)
        except ArgumentError as error:
            refused.setdefault(configuration.method, error)
        else:
            runs[run.directory] = run
    if refused:
        raise _refusal(refused)
    return list(runs.values())


def _refusal(refused: Mapping[str, ArgumentError]) -> ArgumentError:
    """The first method's error, with the other methods that meet one of their own."""
    (_, first), *others = refused.items()
    also = [method for method, error in others if str(error) != str(first)]
    if not also:  # what is wrong has nothing to do with the method
        return first
    are = "is" if len(also) == 1 else "are"
    return ArgumentError(f"{first}; {', '.join(also)} {are} refused too")


def check_networks(runs: Sequence[SweepRun], sources: Mapping[str, Source]) -> None:
    """Build the network of each kind of run once, to see that weights are to be had and all fits.

    Raises `ArgumentError` or `WeightsError`.
    """
    kinds: dict[tuple[Any, ...], dict[str, RunConfiguration]] = {}
    for run in runs:
        c = run.configuration
        kind = kinds.setdefault((*run.images, c.backbone, c.weights), {})
        kind.setdefault(c.model_dump_json(include=_FITTING), c)
    for kind in kinds.values():
        first, *_ = kind.values()
        source = reopened(sources[first.data], first.data, first.reading)
        backbone = network_of(first, source)
        for c in kind.values():
            check_network(c, backbone, source.domains)


def existing_records(runs: Sequence[SweepRun], folder: Path) -> dict[str, Record]:
    """The records that are there, by the run's directory; raises where one is unusable."""
    found = ((run, finished_record(run, folder)) for run in runs)
    return {run.directory: record for run, record in found if record is not None}


def finished_record(run: SweepRun, folder: Path) -> Record | None:
    """The record of a run that is finished, None where there is none.

    Raises `DataError` where it is damaged or of another version, `ArgumentError` where it is of
    other options. Where the data lie and the device may differ.
    """
    path = folder / run.directory / Record.file_name
    if not path.exists():
        return None
    record = Record.load(path)
    also = [] if record.data.name == run.data else ["data"]  # the same, wherever it lies
    check_same(run.configuration, record.configuration, path.parent, *also)
    return record


def identity(configuration: RunConfiguration, data: str) -> str:
    """8 hexadecimal digits that stand for the options of a run on the data set called `data`.

    An option at its default counts as absent, so that an identity outlives new options; where the
    run is worked on does not count.
    """
    text = json.dumps(configuration.departures() | {"data": data}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _planned(
    configuration: RunConfiguration, data: OpenedData, shown: Mapping[str, Mapping[Value, Value]]
) -> SweepRun:
    """The run; `shown` is what the grid varies, with the values that are shown as others."""
    gaps = data.gaps if configuration.classes == "all" else ()  # others have none
    check_run(configuration, data.name, data.domains, gaps)
    c = configuration
    run = f"seed-{c.seed}-{identity(c, data.name)}"
    place = f"{folder_name(data.name)}/{folder_name(c.target)}/{folder_name(c.method)}/{run}"
    values = c.model_dump() | c.settings
    tried = " ".join(
        f"{name}={shown[name].get(value, value)}" for name, value in values.items() if name in shown
    )
    return SweepRun(c, data.name, place, tried)


def _shown(plan: Plan) -> dict[str, dict[Value, Value]]:
    """What the plan's grid varies; of its fractions, how they are shown."""
    found: dict[str, dict[Value, Value]] = {}
    for name in plan.searched:
        values = list(dict.fromkeys(each for grid in plan.grids for each in grid.get(name, ())))
        if len(values) > 1 or any(name not in grid for grid in plan.grids):
            pairs = zip(values, rounded(values), strict=True)
            found[name] = {value: short for value, short in pairs if isinstance(value, float)}
    return found


def _targets(plan: Plan, spec: str, data: OpenedData) -> list[str]:
    asked = plan.targets
    if isinstance(asked, dict):
        asked = asked.get(spec, asked.get(data.name, "all"))
    if asked == "all":
        return list(data.domains)
    if not asked:
        raise ArgumentError(f"no target is named; give all, or some of {', '.join(data.domains)}")
    return list(dict.fromkeys(asked))


def _held_out(
    targets: Sequence[str], data: OpenedData, plan: Plan
) -> Iterator[tuple[str, list[str]]]:
    """Every target, and every pair of domains with a target in it where the plan asks for it."""
    yield from ((target, []) for target in targets)
    if plan.leave_one_domain_out:
        for first, second in itertools.combinations(data.domains, 2):
            if first in targets or second in targets:
                yield first, [second]


def configurations(plan: Plan, method: str, **place: Any) -> Iterator[RunConfiguration]:
    """One for every combination of a grid's values; `place` is data, target, without and seed."""
    for point in _points(plan):
        options = {name: value for name, value in point.items() if not _is_setting(name)}
        given = plan.options.get("settings", {}) | {
            name: value for name, value in point.items() if _is_setting(name)
        }
        settings = {name: _setting(value) for name, value in given.items()}
        yield RunConfiguration(
            **{
                **plan.options,
                "threads": plan.threads,
                **options,
                **place,
                "method": method,
                "settings": settings_of(method, settings) | average_settings(settings),
            }
        )


def _points(plan: Plan) -> Iterator[dict[str, Value]]:
    for grid in plan.grids:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _is_setting(name: str) -> bool:
    return "." in name


def _setting(value: Value) -> float | str:
    """A hyperparameter's value as `--set` gives it, so that equal values are one run."""
    if isinstance(value, bool) or value in ("True", "False"):
        return str(value).lower()
    if isinstance(value, str):
        value = number_or_text(value)
    return float(value) if isinstance(value, int) else value


def _check_names(methods: Sequence[str]) -> None:
    """Raise `ArgumentError` for a method that is there under two names: it would be run twice."""
    named: dict[MethodParts | None, str] = {}
    for method in methods:
        parts = method_parts(method)
        if (other := named.setdefault(parts, method)) != method:
            raise ArgumentError(
                f"{other} and {method} are one method, {'+'.join(parts or ())}; give one of the "
                "names"
            )


def _check_settings(plan: Plan, methods: Sequence[str]) -> None:
    """Raise `ArgumentError` for a hyperparameter that none of the methods has."""
    given: dict[str, Any] = plan.options.get("settings", {})
    names = [*given, *filter(_is_setting, plan.searched)]
    known = set(average_settings(dict.fromkeys(names, 0.0)))
    for method in methods:
        known |= settings_of(method, dict.fromkeys(names, 0.0)).keys()
    if unused := [name for name in names if name not in known]:
        raise ArgumentError(f"no method of this comparison has the hyperparameter {unused[0]!r}")
    if taken := [name for name in (*plan.options, *given) if name in plan.searched]:
        raise ArgumentError(f"{taken[0]} is an option of the plan and in its grid; give it once")
