"""What loggers are told is what the record holds, and none of them can harm a run."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError, GradsurgeryError, MissingPackageError
from gradsurgery.training import loggers, train
from gradsurgery.training.loggers import Logger, logged, logger_class

C = RunConfiguration(
    data="rotated-digits", target="75", method="pcgrad", iterations=6, validate_every=3,
    batch_size=4, image_size=12, device="cpu", learning_rate=1e-3, schedule="cosine", warmup=2,
)  # fmt: skip


class Remembering(Logger):
    def __init__(self, directory, options):
        self.told, self.results, self.closed, self.options = [], {}, None, options
        MADE.append(self)

    def log(self, step, figures):
        self.told.append((step, dict(figures)))

    def result(self, figures):
        self.results.update(figures)

    def close(self, *, failed):
        self.closed = failed


class Failing(Remembering):
    def log(self, step, figures):
        super().log(step, figures)
        if step == 2:
            raise ConnectionError("the server is gone")


class NotStarting(Remembering):
    def __init__(self, directory, options):
        raise ConnectionError("no server")


MADE: list = []
HERE = f"{__name__}:"


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    MADE.clear()
    monkeypatch.setenv("GRADSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or this_module())


def this_module() -> ModuleType:
    module = ModuleType(__name__)
    vars(module).update(globals())
    return module


def run(names, folder, heard=None, configuration=C):
    report = (heard if heard is not None else []).append
    with logged(names, folder, configuration, report) as log:
        record = train(configuration, folder, log)
        log.finished(record)
    return record


def test_a_logger_hears_every_step_and_what_came_out(tmp_path):
    record = run([HERE + "Remembering"], tmp_path / "run")
    (logger,) = MADE
    assert [step for step, _ in logger.told] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "cosine", "learning_rate"} <= set(told) for _, told in logger.told)
    validated = [(s, f["validation/accuracy"]) for s, f in logger.told if "validation/loss" in f]
    accuracies = record.curves.validation_accuracy
    assert validated == list(zip(record.curves.step, accuracies, strict=True))
    losses = [told["loss"] for _, told in logger.told]
    assert sum(losses[:3]) / 3 == pytest.approx(record.curves.train_loss[0])
    # half of the rate and all of it while it warms up, then the cosine's four steps
    rates = [told["learning_rate"] for _, told in logger.told]
    assert rates[:2] == pytest.approx([0.5e-3, 1e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert logger.results["best/test/75"] == record.result.best.target_accuracy
    assert logger.options["method"] == "pcgrad"
    assert logger.closed is False


def test_the_record_is_the_same_with_and_without(tmp_path):
    heard: list = []
    plain = run([], tmp_path / "plain")
    logs = run([HERE + "Failing", HERE + "Remembering"], tmp_path / "logged", heard)
    assert logs.curves == plain.curves
    assert logs.result == plain.result
    failing, remembering = MADE
    assert [step for step, _ in failing.told] == [1, 2]
    assert [step for step, _ in remembering.told] == [1, 2, 3, 4, 5, 6]
    (note,) = [progress.note for progress in heard if progress.note]
    assert note.endswith("Failing is left out from here on: the server is gone")


def test_one_that_does_not_start_ends_the_run_with_a_line(tmp_path):
    with pytest.raises(GradsurgeryError, match=r"NotStarting does not start: no server"):
        run([HERE + "NotStarting"], tmp_path / "run")


def test_those_that_had_started_before_it_are_closed(tmp_path):
    with pytest.raises(GradsurgeryError, match="does not start: no server"):
        run((f"{HERE}Remembering", f"{HERE}NotStarting"), tmp_path / "run")
    (first,) = MADE
    assert first.closed is True


def test_a_run_that_ends_early_is_closed_as_failed(tmp_path):
    def interrupt(progress):
        if progress.done == 4 and progress.stage == "training":
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        logged([HERE + "Remembering"], tmp_path, C, interrupt) as log,
    ):
        train(C, tmp_path, log)
    assert MADE[0].closed is True


def test_a_finished_run_starts_no_logger(tmp_path):
    run([], tmp_path / "run")
    run([HERE + "Remembering"], tmp_path / "run")
    assert not MADE


def test_names_and_packages_are_checked_beforehand(monkeypatch):
    with pytest.raises(ArgumentError, match="unknown logger 'comet'; there are tensorboard, wandb"):
        logger_class("comet")
    with pytest.raises(ArgumentError, match=r"expected a subclass of .*loggers\.Logger"):
        logger_class("pathlib:Path")
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    logger_class("tensorboard").check_installed()
    for name in ("wandb", "mlflow"):
        with pytest.raises(MissingPackageError, match=rf"pip install \"gradsurgery\[{name}\]\""):
            logger_class(name).check_installed()


def test_mlflow_has_the_curves_and_goes_on_in_the_run_it_began(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mlflow's imports
        mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())

        def interrupt(progress):
            if progress.done == 5 and progress.stage == "training":
                raise KeyboardInterrupt

        folder = tmp_path / "a 'quoted' run"
        with pytest.raises(KeyboardInterrupt), logged(["mlflow"], folder, C, interrupt) as log:
            train(C, folder, log)
        record = run(["mlflow"], folder)
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("gradsurgery")
        (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["method"] == "pcgrad"
    history = client.get_metric_history(found.info.run_id, "validation/accuracy")
    assert {m.step: m.value for m in history} == dict(
        zip(record.curves.step, record.curves.validation_accuracy, strict=True)
    )
    assert found.data.metrics["best/test/75"] == record.result.best.target_accuracy


def test_wandb_is_told_by_its_own_calls(tmp_path, monkeypatch):
    calls: list = []
    theirs = SimpleNamespace(
        define_metric=lambda *names, **options: calls.append(("define", names, options)),
        log=lambda figures: calls.append(("log", figures)),
        summary=SimpleNamespace(update=lambda figures: calls.append(("summary", figures))),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )
    wandb = ModuleType("wandb")
    wandb.setup = lambda: SimpleNamespace(settings=SimpleNamespace(project=None))
    wandb.init = lambda **options: calls.append(("init", options)) or theirs
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    record = run(["wandb"], tmp_path / "run")
    options = calls[0][1]
    assert options["project"] == "gradsurgery"
    assert options["name"] == "rotated-digits 75 pcgrad seed 0"
    assert options["config"]["learning_rate"] == 1e-3
    assert calls[1] == ("define", ("*",), {"step_metric": "step"})
    assert [figures["step"] for kind, figures in calls[2:8] if kind == "log"] == [1, 2, 3, 4, 5, 6]
    assert calls[8][1]["last/test/75"] == record.result.last.target_accuracy
    assert calls[9] == ("finish", 0)
