"""What a sweep is to run, and the files that say so in its folder."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from gradsurgery.documents.configuration import RunDocument, options_of
from gradsurgery.documents.data_options import listed_names, without_slash
from gradsurgery.documents.document import Choices, Document, Part, unknown_name
from gradsurgery.errors import ArgumentError, DataError

_MOST_SEEDS = 100_000
Value = bool | int | float | str
Targets = Literal["all"] | list[str]
Grid = dict[str, list[Value]]

PLAN_PARTS = {
    "data": "data",
    "target": "targets",
    "without": "leave_one_domain_out",
    "method": "methods",
    "seed": "seeds",
}
"""Options of a run that the plan decides, and by what."""


class Plan(Choices):
    """Data sets × targets × methods × grid × seeds.

    Run k of every method has the same initial weights and the same batches: the runs are paired by
    seed. Raises `ArgumentError` for what is not a plan.

    data: data sets, each as `gradsurgery train` takes it.
    targets: domains to hold out in turn: "all", names, or a mapping from a data set (as in
        `data`, or by its name: pacs for pacs:PATH) to either.
    methods: names, or `objective+rule`; "all" is the paper's eight.
    seeds: of the runs. A number n stands for 0 … n − 1, "3-5" for 3, 4, 5.
    options: options of every run, by the names of `RunConfiguration`'s fields; the
        hyperparameters are under "settings". One that no method has is an error; a method
        takes its own. What has a part of its own here is not among them.
    grid: values to try of an option or a hyperparameter ("learning_rate", "backbone",
        "irm.penalty"): every combination is run. Methods without a hyperparameter are run
        once. A list of such mappings is a list of grids, all of which are run: settings that
        were drawn at random, say.
    leave_one_domain_out: also run with every pair of domains held out, for the model selection
        of that name.
    """

    part = "part of a plan"

    data: list[str] = Field(min_length=1)
    targets: Targets | dict[str, Targets] = "all"
    methods: list[str] = Field(["deep-all", "agr-sum"], min_length=1)
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    grid: Grid | list[Grid] = Field(default_factory=dict)
    leave_one_domain_out: bool = False

    @property
    def threads(self) -> int:
        """Of the processor, for each run; one where the options do not say.

        Sums depend on their number to the last bit, so it does not follow the number of workers.
        """
        threads = self.options.get("threads", 1)
        if not isinstance(threads, int) or threads < 1:
            raise ArgumentError(f"--threads is at least 1, found {threads!r}")
        return threads

    @property
    def grids(self) -> list[Grid]:
        """The grid, or each of the list."""
        return self.grid if isinstance(self.grid, list) else [self.grid]

    @property
    def searched(self) -> list[str]:
        """What the grids have values of."""
        return list(dict.fromkeys(name for grid in self.grids for name in grid))

    @field_validator("data", "methods", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return listed_names(value) if isinstance(value, str) else value

    @field_validator("data")
    @classmethod
    def _same_folders(cls, value: list[str]) -> list[str]:
        return [without_slash(each) for each in value]

    @field_validator("options", mode="before")
    @classmethod
    def _options(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("options")
    @classmethod
    def _mapped_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        settings = value.get("settings", {})
        if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
            raise ValueError(
                f"settings of the plan's options are a mapping by name, found {settings!r:.80}"
            )
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        return parse_seeds(str(value)) if isinstance(value, int | str) else value

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        if isinstance(value, int | float | str):  # a domain may be called 75
            return value if value == "all" else listed_names(str(value))
        if isinstance(value, dict):
            return {without_slash(str(key)): cls._targets(each) for key, each in value.items()}
        return [str(each) for each in value] if isinstance(value, list) else value

    @field_validator("data", "methods", "seeds")
    @classmethod
    def _each_once(cls, value: list[Any]) -> list[Any]:
        return list(dict.fromkeys(value))

    @field_validator("grid", mode="before")
    @classmethod
    def _values(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not value or not all(isinstance(each, dict) for each in value):
                raise ValueError(f"is a mapping or a list of mappings, found {value!r:.80}")
            return [cls._values(each) for each in value]
        if not isinstance(value, dict):
            return {} if value is None else value
        listed = {name: each if isinstance(each, list) else [each] for name, each in value.items()}
        return {
            name: [number_or_text(each) if isinstance(each, str) else each for each in values]
            for name, values in listed.items()
        }

    @field_validator("options", "grid")
    @classmethod
    def _not_a_plan_part(cls, value: Any) -> Any:
        for name, part in PLAN_PARTS.items():
            if any(name in each for each in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{name} has a place of its own in the plan, {part}")
        return value

    @field_validator("grid")
    @classmethod
    def _values_to_try(cls, value: Grid | list[Grid]) -> Grid | list[Grid]:
        unsearched = options_of("place", "identity", "incidental")
        searched = options_of("condition", "hyperparameter")
        grids = value if isinstance(value, list) else [value]
        for name, values in itertools.chain.from_iterable(grid.items() for grid in grids):
            if name in unsearched:
                raise ValueError(
                    f"{name} does not itself change what is learned, and is not searched"
                )
            if "." not in name and name not in searched:
                raise unknown_name("option", name, searched)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} has no values, or one of them twice")
        return value


class PlannedRun(Part):
    """A run that a sweep's folder should have; its record lies in `directory`, relative to it."""

    directory: str
    data: str
    target: str
    method: str
    seed: int
    without: list[str] = []

    @field_validator("directory")
    @classmethod
    def _within_the_folder(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"must be a path within the folder, found {value!r:.80}")
        return value


class SweepPlan(Document):
    """`plan.json`: the plan of a sweep and its runs."""

    file_name: ClassVar[str] = "plan.json"
    title: ClassVar[str] = "plan of a sweep"
    cure: ClassVar[str] = (
        "delete it to let a plan have the folder, or choose another output folder (--out)"
    )

    plan: dict[str, Any]
    runs: list[PlannedRun] = Field(min_length=1)

    def by_folder(self, folder: Path) -> dict[Path, PlannedRun]:
        """Its runs by their folders, their methods by their usual names; it lies in `folder`."""
        named = [run.model_copy(update={"method": usual_name(run.method)}) for run in self.runs]
        return {(folder / run.directory).resolve(): run for run in named}


def plans_below(folders: Iterable[Path]) -> dict[Path, SweepPlan]:
    """The plans of the sweeps in these folders, of any depth, by the sweeps' folders.

    A file of that name below one of them that has no version is somebody's own, and passed over.
    Raises `DataError` for any other that is no plan.
    """
    found = {}
    for folder in folders:
        for file in sorted(folder.rglob(SweepPlan.file_name)):
            try:
                found[file.parent.resolve()] = SweepPlan.load(file)
            except DataError:
                if file.parent == folder or not _is_unnumbered(file):
                    raise
    return found


def _is_unnumbered(file: Path) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):  # which `load` has explained
        return False
    return not isinstance(content, dict) or "version" not in content


class Failure(RunDocument):
    """`failure.json`: a run that was given up after so many `attempts`."""

    file_name: ClassVar[str] = "failure.json"
    title: ClassVar[str] = "account of a failed run"
    cure: ClassVar[str] = "repeat the run"

    attempts: int
    error: str
    traceback: str


def usual_name(method: str) -> str:
    """The one name of a method that may be called by several, whatever is said after it.

    >>> usual_name("erm"), usual_name("erm+agr-sum"), usual_name("irm+mean (irm.penalty=10)")
    ('deep-all', 'agr-sum', 'irm (irm.penalty=10)')
    >>> usual_name("irm+agr-sum"), usual_name("erm+mine:Rule")  # mine:Rule may be an objective
    ('irm+agr-sum', 'erm+mine:Rule')
    """
    name, gap, more = method.partition(" ")
    match name.split("+"):
        case ["erm"] | ["mean"] | ["erm", "mean"]:
            name = "deep-all"
        case ["erm", part] | [part, "mean"] if ":" not in part or part.startswith("torchjd:"):
            name = part
    return name + gap + more


def rounded(values: Sequence[Any]) -> list[Any]:
    """The values as a person reads them, fractions to six digits, more where two were the same.

    >>> rounded([0.0012345678901234567, 1e-05, "adam"]), rounded([0.12345678, 0.12345679])
    ([0.00123457, 1e-05, 'adam'], [0.12345678, 0.12345679])
    """
    different = len(set(map(str, values)))
    for digits in range(6, 17):
        shown = [float(f"{v:.{digits}g}") if isinstance(v, float) else v for v in values]
        if len(set(map(str, shown))) == different:
            return shown
    return list(values)


def number_or_text(text: str) -> int | float | str:
    """The number that `text` spells, else the text: YAML takes 1e-5 for text.

    >>> number_or_text("1e-5"), number_or_text("alexnet")
    (1e-05, 'alexnet')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_seeds(text: str) -> list[int]:
    """Seeds of a count ("3": 0, 1, 2), a range with its end ("0-4") or a list ("0,1,2").

    Raises `ArgumentError` for anything else.

    >>> parse_seeds("2-4")
    [2, 3, 4]
    """
    text = re.sub(r"\s", "", text)
    seeds: Sequence[int] = ()
    if re.fullmatch(r"\d+", text):
        seeds = range(int(text))
    elif match := re.fullmatch(r"(\d+)-(\d+)", text):
        seeds = range(int(match[1]), int(match[2]) + 1)
    elif re.fullmatch(r"\d+(,\d+)+,?|\d+,", text):
        seeds = list(dict.fromkeys(int(part) for part in text.split(",") if part))
    if not seeds:
        raise ArgumentError(
            f"seeds must be a count (3), a range (0-4) or a list (0,1,2), found {text!r}"
        )
    if seeds[_MOST_SEEDS:]:  # more than anybody trains
        raise ArgumentError(f"seeds are at most {_MOST_SEEDS} in number, found {text!r:.80}")
    return list(seeds)


def difference(there: dict[str, Any], plan: Plan) -> str:
    """The parts, and of the options those, in which two plans differ."""
    before, after = _flat(there), _flat(plan.model_dump())
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    listed = [
        f"{name} ({_spoken(before.get(name))} there, {_spoken(after.get(name))} here)"
        for name in names
    ]
    return ", ".join(listed) or "images"


def _spoken(value: Any) -> str:
    """A part of a plan as a person would type it."""
    if value is None:
        return "not given"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f"a list of {len(value)}"
    return f"{','.join(map(str, value)) if isinstance(value, list) else str(value):.60}"


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plan.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat
