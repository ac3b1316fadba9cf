"""The training loop of one run, which reads from top to bottom."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gradsurgery.backbones import Backbone, set_training_mode
from gradsurgery.data import Batches, normalize
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.engine import BackwardResult
from gradsurgery.errors import GradsurgeryError, NonFiniteError
from gradsurgery.seeds import derive_seed
from gradsurgery.training.checkpoint import Checkpoint, save_checkpoint
from gradsurgery.training.evaluation import Evaluation
from gradsurgery.training.learner import Learner
from gradsurgery.training.progress import ProgressCallback, TrainingProgress

Batch = TypeVar("Batch")
Observer = Callable[[int, Backbone], None]
"""Is shown the steps done and the backbone; it may change the model's mode and nothing else."""

# Writing checkpoints may take this part of a run's time: after one that took t seconds the next is
# at the first validation at least 9 t later. A large model on a fast device has fewer, then.
_CHECKPOINT_SHARE = 0.1


@dataclass
class _Means:
    """Sums over the steps since the last validation, on the device."""

    steps: int = 0
    loss: Tensor | float = 0.0
    agreeing: float | None = 0.0
    cosine: Tensor | float | None = 0.0

    def add(self, result: BackwardResult) -> None:
        self.steps += 1
        self.loss = self.loss + result.losses.detach().double().mean()
        if self.agreeing is not None:
            self.agreeing = None if result.agreeing is None else self.agreeing + result.agreeing
        if self.cosine is not None:
            cosine = _mean_cosine(result.cosines)
            self.cosine = None if cosine is None else self.cosine + cosine

    def mean(self, name: str) -> float | None:
        total = getattr(self, name)
        return None if total is None else float(total) / self.steps


def run_steps(
    learner: Learner,
    checkpoint: Checkpoint,
    batches: Batches,
    validate: Callable[[], Evaluation],
    directory: Path,
    *,
    report: ProgressCallback,
    observe: Observer | None = None,
) -> None:
    """Do the steps after `checkpoint.step`; `checkpoint` holds the outcome.

    `observe` is shown the model at `checkpoint.step` and after every further step. At every
    validation the curves grow, the model is kept where it is the best so far, and a checkpoint is
    written, at the last step and wherever writing them takes at most a tenth of the run's time.
    Raises `NonFiniteError`, naming domain, step and parameter, and `OutputError` where a
    checkpoint cannot be written.
    """
    configuration = checkpoint.configuration
    total = configuration.iterations
    means, checkpoint_due, spent = _Means(), 0.0, time.perf_counter()
    with _reproducible(learner.device):
        _show(learner, checkpoint.step, observe)
        for step, images in prefetched(batches.at, checkpoint.step + 1, total):
            start = time.perf_counter()
            result = _step(learner, images, configuration, step, batches.domains_at(step - 1))
            learner.average.update(step)
            means.add(result)
            _log_conflict(checkpoint, step, result, learner)
            loss = float(result.losses.mean())  # waits for the device
            checkpoint.step_seconds += time.perf_counter() - start
            _show(learner, step, observe)
            if step % configuration.validate_every and step < total:
                report(TrainingProgress("training", step, total, loss, result.agreeing))
                continue
            evaluation = validate()
            learner.average.validated(step, evaluation.loss)
            _record(checkpoint, step, means, evaluation, learner)
            means = _Means()
            now = time.perf_counter()
            checkpoint.seconds, spent = checkpoint.seconds + now - spent, now
            if now >= checkpoint_due or step == total:
                checkpoint.learner = learner.state()
                save_checkpoint(checkpoint, directory)
                saved = time.perf_counter()
                checkpoint_due = saved + (saved - now) * (1 / _CHECKPOINT_SHARE - 1)
            report(
                TrainingProgress(
                    "training",
                    step,
                    total,
                    loss,
                    result.agreeing,
                    evaluation.loss,
                    evaluation.accuracy,
                )
            )


def prefetched(
    at: Callable[[int], Batch], first: int, last: int, *, ahead: int = 1
) -> Iterator[tuple[int, Batch]]:
    """Yield `(step, at(step - 1))` for the steps `first` to `last`.

    One thread of its own works `ahead` steps in advance, in order; `at` is a pure function of its
    argument, so what is yielded does not depend on `ahead`. 0 does without the thread.
    """
    if ahead < 1:
        for step in range(first, last + 1):
            yield step, at(step - 1)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = [pool.submit(at, step - 1) for step in range(first, min(first + ahead, last + 1))]
        for step in range(first, last + 1):
            batch = pending.pop(0).result()
            if step + ahead <= last:
                pending.append(pool.submit(at, step + ahead - 1))
            yield step, batch


def _step(
    learner: Learner,
    images: list[tuple[Tensor, Tensor]],
    configuration: RunConfiguration,
    step: int,
    sources: tuple[str, ...],
) -> BackwardResult:
    """One optimiser step; all that is random in it comes from the run's seed and `step`."""
    torch.manual_seed(derive_seed(configuration.seed, "step", step))  # dropout
    learner.generator.manual_seed(derive_seed(configuration.seed, "rule", step))
    backbone, device = learner.backbone, learner.device
    batches = [
        (
            normalize(pixels.to(device, non_blocking=True), backbone.mean, backbone.std),
            labels.to(device, non_blocking=True),
        )
        for pixels, labels in images
    ]
    set_training_mode(backbone.model, configuration.batch_norm)
    try:
        return learner.algorithm.step(
            backbone.model,
            batches,
            learner.optimizer,
            step=step,
            scaler=learner.scaler,
            autocast=learner.autocast,
        )
    except torch.OutOfMemoryError as error:
        raise GradsurgeryError(
            f"out of memory on {device} with {configuration.batch_size} images of "
            f"{configuration.image_size} pixels per domain; lower --batch-size or --image-size"
        ) from error
    except NonFiniteError as error:
        names = set(sources) if error.domain is None else {sources[error.domain]}
        where = "the pooled domains" if len(names) > 1 else f"domain {names.pop()!r}"
        raise _explained(error, where, step) from error


def _record(
    checkpoint: Checkpoint, step: int, means: _Means, evaluation: Evaluation, learner: Learner
) -> None:
    """Add a validation to the curves; keep a copy of the model where it is the best."""
    checkpoint.step = step
    checkpoint.curves.append(
        step=step,
        train_loss=means.mean("loss"),
        validation_loss=evaluation.loss,
        validation_accuracy=evaluation.accuracy,
        agreeing=means.mean("agreeing"),
        cosine=means.mean("cosine"),
    )
    if checkpoint.best_step == step and not learner.average.selects:
        state = learner.average.model.state_dict()
        checkpoint.best = {name: value.detach().clone() for name, value in state.items()}


def _log_conflict(
    checkpoint: Checkpoint, step: int, result: BackwardResult, learner: Learner
) -> None:
    every = checkpoint.configuration.log_conflict
    if every == 0 or step % every:
        return
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
    modes = [(module, module.training) for module in learner.backbone.model.modules()]
    devices = [learner.device] if learner.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        observe(step, learner.backbone)
    for module, training in modes:
        module.training = training


def _mean_cosine(cosines: Tensor | None) -> Tensor | None:
    """Mean over the pairs of domains."""
    if cosines is None or len(cosines) < 2:
        return None
    rows, columns = torch.triu_indices(len(cosines), len(cosines), offset=1)
    return cosines.detach().double()[rows, columns].mean()


def _explained(error: NonFiniteError, where: str, step: int) -> NonFiniteError:
    """The engine knows positions; the user knows domains and steps."""
    what = "the loss" if error.parameter is None else f"the gradient of {error.parameter}"
    return NonFiniteError(
        f"{what} of {where} is not finite at step {step}; "
        "lower the learning rate, use float32 or bfloat16, or check the images",
        domain=error.domain,
        parameter=error.parameter,
    )


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Leave torch's global random state and cuDNN's choice of algorithms as they were."""
    devices = [device] if device.type == "cuda" else []
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.backends.cudnn.deterministic = before
