"""The training loop of one run, which reads from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean

import torch

from gradsurgery.algorithms.objectives import Batch
from gradsurgery.backbones import Backbone, keeping_modes, set_training_mode
from gradsurgery.data import Batches
from gradsurgery.data.loader import Fetched, prefetched
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.engine import BackwardResult
from gradsurgery.errors import GradsurgeryError, NonFiniteError, is_out_of_memory
from gradsurgery.seeds import derive_seed
from gradsurgery.training.checkpoint import Checkpoint, save_checkpoint
from gradsurgery.training.cuda_graph import GraphedSteps
from gradsurgery.training.device import reproducible
from gradsurgery.training.learner import Learner
from gradsurgery.training.outcome import Evaluation, Run
from gradsurgery.training.progress import (
    StepClock,
    StepFigures,
    TrainingProgress,
    UnreadSteps,
)
from gradsurgery.training.recipe import has_stopped, rate_factor

Observer = Callable[[int, Backbone], None]
"""Is shown the steps done and the backbone; it may change the model's mode and nothing else."""

# Writing checkpoints may take this part of a run's time: after one that took t seconds the next is
# at the first validation at least 9 t later. A large model on a fast device has fewer, then.
_CHECKPOINT_SHARE = 0.1
_DIVERGED = 1e4  # of a mean cross-entropy: logits that are so far off


class _Saving:
    """Counts the run's time, and writes checkpoints as long as that is a small part of it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._counted = time.perf_counter()
        self._due = 0.0

    def validated(self, *, last: bool) -> None:
        """Write a checkpoint where one is due, and after the last step."""
        now, checkpoint = time.perf_counter(), self._run.checkpoint
        checkpoint.seconds += now - self._counted
        self._counted = now
        if now >= self._due or last:
            checkpoint.learner = self._run.learner.state()
            save_checkpoint(checkpoint, self._run.directory)
            saved = time.perf_counter()
            self._due = saved + (saved - now) * (1 / _CHECKPOINT_SHARE - 1)


def run_steps(run: Run, batches: Batches, observe: Observer | None) -> str | None:
    """Do the steps after `run.checkpoint.step`; the checkpoint holds the outcome.

    An accelerator is waited for at validations, at steps whose conflict is logged, for `observe`,
    and once a second for the report. `observe` is shown the model at the checkpoint's step and
    after every further step. At every validation the curves grow, the model is kept where it is the
    best so far, and a checkpoint is written, at the last step and wherever writing them takes at
    most a tenth of the run's time. Returns whether a CUDA graph replayed the steps, or why not;
    None where there is no GPU. Raises `NonFiniteError`, naming domain, step and parameter, before
    anything is written of the step, and `OutputError` where a checkpoint cannot be written.
    """
    learner, checkpoint, report = run.learner, run.checkpoint, run.report
    configuration = checkpoint.configuration
    total = configuration.iterations
    since: list[StepFigures] = []  # the last validation
    saving = _Saving(run)
    clock = StepClock(learner.device)
    explain, say = partial(_explained, batches), partial(_say, run)
    unread = UnreadSteps(explain, scaled=learner.scaler is not None)

    with reproducible(learner.device), _naming_what_takes_memory(learner, configuration):
        _show(learner, checkpoint.step, observe)
        _set_training(learner, configuration, checkpoint.step + 1)
        steps = GraphedSteps(learner, configuration.cuda_graph, say)
        clock.start()
        for step, fetched in _coming(run, batches):
            try:
                take = learner.take if steps.refusal else steps.take
                result = _step(learner, take, configuration, fetched, step=step, clock=clock)
            except NonFiniteError as error:
                unread.check()  # an earlier step may be the one
                raise explain(error, step) from error
            learner.average.update(step)
            unread.add(step, result)
            validates = step % configuration.validate_every == 0 or step == total
            logs = configuration.log_conflict > 0 and step % configuration.log_conflict == 0
            if not (validates or logs or observe or clock.wants_reading()):
                clock.step_ended()
                continue
            figures = unread.read()
            checkpoint.took(*clock.stop())
            since += figures
            if logs:
                _log_conflict(checkpoint, step, result, learner)
            _show(learner, step, observe)
            for each in figures[:-1] if validates else figures:
                report(_progress(checkpoint, each))
            if validates:
                evaluation = steps.beside(run.validate)
                learner.average.validated(step, evaluation.loss)
                _record(checkpoint, since, evaluation, learner)
                since = []
                saving.validated(last=_stops(checkpoint) or step == total)
                report(_progress(checkpoint, figures[-1], evaluation))
                _warn_where_it_diverges(checkpoint, say)
                _set_training(learner, configuration, step + 1)
            clock.start()
    return steps.outcome


def _say(run: Run, line: str) -> None:
    at, total = run.checkpoint.step, run.checkpoint.configuration.iterations
    run.report(TrainingProgress("training", at, total, note=line))


def _warn_where_it_diverges(checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
    """Say once that the validation loss is one that no useful model has."""
    losses = checkpoint.curves.validation_loss
    *before, loss = (math.inf if value is None else value for value in losses)
    if max(before, default=0.0) < _DIVERGED <= loss:
        found = f"{loss:.3g}" if math.isfinite(loss) else "not finite"
        say(
            f"the validation loss is {found} at step {checkpoint.step}: training diverges; "
            "lower the learning rate"
        )


def _coming(run: Run, batches: Batches) -> Iterator[tuple[int, Fetched]]:
    """The steps that are left, with their images, up to the one after which the run stops."""
    loader, augmentation = run.loader, run.learner.augmentation

    def fetch(position: int) -> Fetched:
        positions = batches.indices_at(position).reshape(-1)
        if augmentation is None:
            return loader.fetch(positions)
        return loader.fetch(positions, augmentation.at(positions, position + 1))

    first, total = run.checkpoint.step + 1, run.checkpoint.configuration.iterations
    for step, fetched in prefetched(fetch, first, total, ahead=loader.ahead):
        if _stops(run.checkpoint):
            return
        yield step, fetched


def _stops(checkpoint: Checkpoint) -> bool:
    return has_stopped(checkpoint.configuration, checkpoint.curves.validation_accuracy)


def _set_training(learner: Learner, configuration: RunConfiguration, step: int) -> None:
    """Put the model in training mode, but for what step `step` does not train."""
    set_training_mode(learner.backbone.model, configuration.batch_norm)
    learner.freezing.apply(step)


def _step(
    learner: Learner,
    take: Callable[[Sequence[Batch], int], BackwardResult],
    configuration: RunConfiguration,
    fetched: Fetched,
    *,
    step: int,
    clock: StepClock,
) -> BackwardResult:
    """One optimiser step; all that is random in it comes from the run's seed and `step`."""
    if step == configuration.freeze_steps + 1:
        _set_training(learner, configuration, step)
    _seed_dropout(learner.device, derive_seed(configuration.seed, "step", step))
    for generator in (learner.generator, learner.host_generator):
        generator.manual_seed(derive_seed(configuration.seed, "rule", step))
    if learner.rate is not None:
        learner.rate.set(step)
    size = configuration.batch_size
    images, labels = fetched()
    clock.images_are_there()
    batches = list(zip(images.split(size), labels.split(size), strict=True))
    return take(batches, step)


@contextmanager
def _naming_what_takes_memory(learner: Learner, configuration: RunConfiguration) -> Iterator[None]:
    """Raise `GradsurgeryError` where there is no memory, for a step or for its images."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        graph = learner.device.type == "cuda" and configuration.cuda_graph != "off"
        raise GradsurgeryError(
            f"out of memory on {learner.device} with {configuration.batch_size} images of "
            f"{configuration.image_size} pixels per domain; lower --batch-size or --image-size"
            + (", or do without the memory of a CUDA graph by --cuda-graph off" if graph else "")
        ) from error


def _seed_dropout(device: torch.device, seed: int) -> None:
    """As `torch.manual_seed`, which tells the call stack to every kind of accelerator there is not:

    half a millisecond, and memory that is never freed.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _progress(
    checkpoint: Checkpoint, figures: StepFigures, evaluation: Evaluation | None = None
) -> TrainingProgress:
    c = checkpoint.configuration
    return TrainingProgress(
        "training",
        figures.step,
        c.iterations,
        figures.loss,
        figures.agreeing,
        None if evaluation is None else evaluation.loss,
        None if evaluation is None else evaluation.accuracy,
        checkpoint.data_wait,
        figures.cosine,
        c.learning_rate * rate_factor(c, figures.step),
    )


def _record(
    checkpoint: Checkpoint, steps: list[StepFigures], evaluation: Evaluation, learner: Learner
) -> None:
    """Add a validation to the curves; keep a copy of the model where it is the best."""
    checkpoint.step = step = steps[-1].step
    checkpoint.curves.append(
        step=step,
        train_loss=_mean([each.loss for each in steps]),
        validation_loss=evaluation.loss,
        validation_accuracy=evaluation.accuracy,
        agreeing=_mean([each.agreeing for each in steps]),
        cosine=_mean([each.cosine for each in steps]),
    )
    if checkpoint.best_step == step and not learner.average.selects:
        state = learner.average.model.state_dict()
        checkpoint.best = {name: value.detach().clone() for name, value in state.items()}


def _log_conflict(
    checkpoint: Checkpoint, step: int, result: BackwardResult, learner: Learner
) -> None:
    checkpoint.conflict.append(
        step,
        result.losses.tolist(),
        agreeing=result.agreeing,
        cosines=None if result.cosines is None else result.cosines.tolist(),
        by_parameter=result.agreeing_by_parameter,
        moving=result.moving_by_parameter,
        sizes={name: p.numel() for name, p in learner.backbone.model.named_parameters()},
    )


def _show(learner: Learner, step: int, observe: Observer | None) -> None:
    """What an observer draws at random or sets on the model leaves the run as it is."""
    if observe is None:
        return
    devices = [learner.device] if learner.device.type == "cuda" else []
    with keeping_modes(learner.backbone.model), torch.random.fork_rng(devices):
        observe(step, learner.backbone)


def _mean(values: Sequence[float | None]) -> float | None:
    """None as soon as a step has no value."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _explained(batches: Batches, error: NonFiniteError, step: int) -> NonFiniteError:
    """The engine knows positions; the user knows domains and steps."""
    domains = batches.domains_at(step - 1)
    names = set(domains) if error.domain is None else {domains[error.domain]}
    where = "the pooled domains" if len(names) > 1 else f"domain {names.pop()!r}"
    what = "the loss" if error.parameter is None else f"the gradient of {error.parameter}"
    return NonFiniteError(
        f"{what} of {where} is not finite at step {step}; "
        "lower the learning rate, use float32 or bfloat16, or check the images",
        domain=error.domain,
        parameter=error.parameter,
    )
