"""Where the curves of a run go besides its record: TensorBoard, Weights & Biases, MLflow, yours."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from gradsurgery import doors
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, GradsurgeryError, MissingPackageError, one_line
from gradsurgery.training.progress import ProgressCallback, TrainingProgress

EVENTS_FOLDER = "tensorboard"
EXPERIMENT = "gradsurgery"
"""The project of W&B, and MLflow's experiment, where theirs is not set in the environment."""

_UNSENT = 50  # steps


class Logger(ABC):
    """Takes the figures of one run as they come.

    A logger of your own is a subclass, named `package.module:Name`, that takes these arguments:

    directory: the run's folder.
    options: all options of the run.

    It is made at the first step that has figures. An error in `__init__` ends the run. One later on
    is told in a line, and the run goes on without the logger.

    package: what has to be installed for it, which is looked at before the run starts.
    """

    package: ClassVar[str | None] = None

    @classmethod
    def check_installed(cls) -> None:
        """Raise `MissingPackageError`, with the cure, where its package is missing."""
        if cls.package is not None and find_spec(cls.package) is None:
            raise MissingPackageError(
                f'{cls.package} is not installed; pip install "gradsurgery[{cls.package}]"'
            )

    @abstractmethod
    def __init__(self, directory: Path, options: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step, by name; a run that goes on repeats a few steps."""

    def result(self, figures: Mapping[str, float]) -> None:  # noqa: B027
        """Take what the finished run came to: accuracies in [0, 1], by name."""

    def close(self, *, failed: bool) -> None:  # noqa: B027
        """Send what is not sent yet; failed: whether the run was interrupted or went wrong."""


class TensorBoard(Logger):
    """Event files in `directory/tensorboard`.

    A run that goes on writes a further file, which takes the place of the steps that it repeats.
    """

    @override
    def __init__(self, directory: Path, options: Mapping[str, Any]) -> None:
        self._folder = directory / EVENTS_FOLDER
        self._writer: Any = None

    @override
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=step)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        if "validation/accuracy" in figures:
            self._writer.flush()

    @override
    def close(self, *, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases(Logger):
    """A run of Weights & Biases; a run that goes on goes on there.

    Its own environment variables say where and how: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE …
    """

    package = "wandb"

    @override
    def __init__(self, directory: Path, options: Mapping[str, Any]) -> None:
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=wandb.setup().settings.project or EXPERIMENT,
            name=run_name(options),
            dir=str(directory),
            config=dict(options),
            resume="auto",
        )
        self._run.define_metric("*", step_metric="step")

    @override
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    @override
    def result(self, figures: Mapping[str, float]) -> None:
        self._run.summary.update(dict(figures))

    @override
    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Logger):
    """A run of MLflow, at MLFLOW_TRACKING_URI, in MLFLOW_EXPERIMENT_NAME.

    A run that goes on goes on there: it is found by its folder.
    """

    package = "mlflow"

    @override
    def __init__(self, directory: Path, options: Mapping[str, Any]) -> None:
        import mlflow

        self._entities = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        self._unsent: list[Any] = []
        name = mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        there = experiment.experiment_id if experiment else self._client.create_experiment(name)
        folder = str(directory.resolve())
        digest = sha256(folder.encode()).hexdigest()  # a filter has no way to write every name
        tags = {"gradsurgery.folder": folder, "gradsurgery.digest": digest}
        begun = self._client.search_runs(
            [there],
            f"tags.`gradsurgery.digest` = '{digest}' and attributes.status != 'FINISHED'",
            max_results=1,
        )
        run = begun[0] if begun else self._client.create_run(there, None, tags, run_name(options))
        self._run = run.info.run_id
        if begun:
            self._client.update_run(self._run, status="RUNNING")
            return
        parameters = [self._entities.Param(key, str(value)) for key, value in options.items()]
        self._client.log_batch(self._run, params=parameters)

    @override
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._unsent += [
            self._entities.Metric(name, value, now, step) for name, value in figures.items()
        ]
        if "validation/accuracy" in figures or step % _UNSENT == 0:
            self._send()

    @override
    def result(self, figures: Mapping[str, float]) -> None:
        self.log(0, figures)

    @override
    def close(self, *, failed: bool) -> None:
        self._send()
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._client.log_batch(self._run, metrics=unsent)


LOGGERS: dict[str, type[Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def logger_class(name: str) -> type[Logger]:
    """The class of a name in `LOGGERS`, of `package.module:Name` or of an entry point."""
    if name in LOGGERS:
        return LOGGERS[name]
    if not doors.is_door(name) and name not in doors.entry_names("logger"):
        known = ", ".join([*LOGGERS, *doors.entry_names("logger")])
        raise ArgumentError(f"unknown logger {name!r}; there are {known}, and package.module:Name")
    found: type[Logger] = doors.load_object(
        name,
        "logger",
        fits=lambda there: isinstance(there, type) and issubclass(there, Logger),
        expected="a subclass of gradsurgery.training.loggers.Logger",
    )
    return found


class LoggedRun:
    """The report of a run, which goes to its loggers too.

    start: makes the loggers one after the other, at the first step that has figures.
    """

    def __init__(
        self, start: Callable[[], Iterable[tuple[str, Logger]]], report: ProgressCallback
    ) -> None:
        self._start = start
        self._report = report
        self._loggers: dict[str, Logger] | None = None

    def __call__(self, progress: TrainingProgress) -> None:
        """Pass the report on."""
        self._report(progress)
        if progress.stage != "training" or not (figures := figures_of(progress)):
            return
        if self._loggers is None:
            self._loggers = {}
            for name, logger in self._start():  # those that have started are closed in any case
                self._loggers[name] = logger
        self._tell(progress, lambda logger: logger.log(progress.done, figures))

    def finished(self, record: Record) -> None:
        """Pass on what the run came to, if any of its steps were taken now."""
        figures, step = result_figures(record), record.result.last.step
        done = TrainingProgress("testing", step, record.configuration.iterations)
        self._tell(done, lambda logger: logger.result(figures))

    def close(self, *, failed: bool) -> None:
        """Close the loggers."""
        self._tell(TrainingProgress("testing", 0, 0), lambda logger: logger.close(failed=failed))

    def _tell(self, progress: TrainingProgress, say: Callable[[Logger], None]) -> None:
        for name, logger in list((self._loggers or {}).items()):
            try:
                say(logger)
            except Exception as error:  # nobody's server ends a training
                (self._loggers or {}).pop(name)
                note = f"the logger {name} is left out from here on: {one_line(error)}"
                self._report(replace(progress, note=note))


@contextmanager
def logged(
    names: Sequence[str], directory: Path, configuration: RunConfiguration, report: ProgressCallback
) -> Iterator[LoggedRun]:
    """A report that tells the loggers of these names, too, and `report` as before."""
    options = configuration.model_dump(mode="json")
    classes = {name: logger_class(name) for name in names}

    def start() -> Iterator[tuple[str, Logger]]:
        for name, kind in classes.items():
            yield name, _started(name, kind, directory, options)

    run = LoggedRun(start, report)
    try:
        yield run
    except BaseException:
        run.close(failed=True)
        raise
    run.close(failed=False)


def _started(name: str, kind: type[Logger], directory: Path, options: Mapping[str, Any]) -> Logger:
    try:
        return kind(directory, options)
    except GradsurgeryError:
        raise
    except Exception as error:
        raise GradsurgeryError(f"the logger {name} does not start: {one_line(error)}") from error


def figures_of(progress: TrainingProgress) -> dict[str, float]:
    """What a report of a step has for a logger, by name."""
    figures = {
        "loss": progress.loss,
        "agreeing": progress.agreeing,
        "cosine": progress.cosine,
        "learning_rate": progress.learning_rate,
        "validation/loss": progress.validation_loss,
        "validation/accuracy": progress.validation_accuracy,
        "data_wait": progress.data_wait,
    }
    return {name: value for name, value in figures.items() if value is not None}


def result_figures(record: Record) -> dict[str, float]:
    """The accuracies of the best and the last model, by name."""
    figures: dict[str, float] = {}
    for which, model in (("best", record.result.best), ("last", record.result.last)):
        figures[f"{which}/validation_accuracy"] = model.validation_accuracy
        figures |= {f"{which}/test/{d}": accuracy for d, accuracy in model.test_accuracy.items()}
    return figures


def run_name(options: Mapping[str, Any]) -> str:
    """What a run is called among others."""
    return f"{options['data']} {options['target']} {options['method']} seed {options['seed']}"
