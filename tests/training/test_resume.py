import hashlib
import importlib
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsurgery.backbones import build_backbone
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, GradsurgeryError, OutputError
from gradsurgery.training import CheckpointError, TrainingProgress, train
from gradsurgery.training import checkpoint as checkpoint_module
from gradsurgery.training import loop as loop_module
from gradsurgery.training.learner import Learner, build_learner
from gradsurgery.training.outcome import Evaluation, Run

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]
RUN_FILES = {"configuration.json", "model.safetensors", "record.json", "split.json"}


class StopError(Exception):
    pass


def stop_at(step: int) -> Callable[[TrainingProgress], None]:
    def report(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done >= step:
            raise StopError

    return report


def interrupted(
    directory: Path, configuration: RunConfiguration, images: ImageSet, step: int
) -> None:
    with pytest.raises(StopError):
        train(configuration, directory, stop_at(step), opened=images)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Real processes that start with the libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradsurgery.training.run", "sklearn.datasets", "torchvision"])
    return context


def test_a_run_killed_at_any_moment_ends_in_the_same_record(
    tmp_path: Path,
    cache: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    processes: ForkServerContext,
) -> None:
    configuration = configured(method="agr-rand", iterations=60, validate_every=2)
    whole = train(configuration, tmp_path / "whole", opened=images)
    directory = tmp_path / "killed"
    moments = random.Random(0)
    kills = resumable = 0
    while kills < 12 and not (directory / "record.json").exists():
        child = processes.Process(target=train, args=(configuration, directory, None, cache))
        child.start()
        # by turns soon after the start and soon after a checkpoint
        sign = directory / (".lock" if kills % 2 else "checkpoint.pt")
        while child.is_alive() and not sign.exists():
            time.sleep(0.001)
        child.join(moments.uniform(0, 0.25))
        child.kill()
        child.join()
        kills += child.exitcode == -9
        resumable += (directory / "checkpoint.pt").exists()
    assert kills
    assert resumable
    record = train(configuration, directory, cache=cache)
    assert outcome(record, directory) == outcome(whole, tmp_path / "whole")
    assert {path.name for path in directory.iterdir()} == RUN_FILES


@pytest.mark.parametrize(
    ("method", "precision", "optimizer"),
    [
        ("deep-all", "float32", "adam"),
        ("agr-sum", "bfloat16", "adamw"),
        ("agr-rand", "float16", "adam"),
        ("pcgrad", "float32", "sgd"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_record(
    method: str,
    precision: str,
    optimizer: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
) -> None:
    configuration = configured(method=method, precision=precision, optimizer=optimizer)
    whole = train(configuration, tmp_path / "whole", opened=images)
    done: list[int] = []
    for step in (5, 8, 11):  # between validations, at one, before the last
        interrupted(tmp_path / "parts", configuration, images, step)

    def note(progress: TrainingProgress) -> None:
        if progress.stage == "training":
            done.append(progress.done)

    record = train(configuration, tmp_path / "parts", note, opened=images)
    assert done[0] > 1
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_a_run_goes_on_as_the_command_says_that_continues_it(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []

    class Noted(loop_module.GraphedSteps):
        def __init__(self, learner: Learner, mode: Any, *others: Any, **options: Any) -> None:
            modes.append(mode)
            super().__init__(learner, mode, *others, **options)

    monkeypatch.setattr(loop_module, "GraphedSteps", Noted)
    interrupted(tmp_path, configured(), images, 5)
    record = train(configured(cuda_graph="off"), tmp_path, opened=images)
    assert modes == ["auto", "off"]
    assert record.configuration.cuda_graph == "off"


def test_dropout_is_the_same_in_a_resumed_run(
    tmp_path: Path, cache: Path, configured: Configure, outcome: Outcome
) -> None:
    options = configured(
        backbone="squeezenet1_1", image_size=32, iterations=4, validate_every=2, learning_rate=1e-4
    )
    whole = train(options, tmp_path / "whole", cache=cache)
    with pytest.raises(StopError):
        train(options, tmp_path / "parts", stop_at(3), cache)
    record = train(options, tmp_path / "parts", cache=cache)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_a_run_interrupted_while_testing_repeats_only_the_tests(
    tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    whole = train(configured(), tmp_path / "whole", opened=images)

    def stop(progress: TrainingProgress) -> None:
        if progress.stage == "testing" and progress.done == 9:
            raise StopError

    with pytest.raises(StopError):
        train(configured(), tmp_path / "parts", stop, opened=images)
    reports: list[TrainingProgress] = []
    record = train(configured(), tmp_path / "parts", reports.append, opened=images)
    assert all(report.stage == "testing" or report.done > 4 for report in reports)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_a_finished_run_is_returned_and_cleaned_up(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    record = train(configured(), tmp_path, opened=images)
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / "best-4.safetensors").touch()
    reports: list[TrainingProgress] = []
    assert train(configured(), tmp_path, reports.append) == record
    assert reports == []
    assert {path.name for path in tmp_path.iterdir()} == RUN_FILES


def test_another_configuration_is_refused_finished_or_not(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    train(configured(), tmp_path / "done", opened=images)
    interrupted(tmp_path / "begun", configured(), images, 9)
    for name in ("done", "begun"):
        before = {path.name for path in (tmp_path / name).iterdir()}
        with pytest.raises(ArgumentError, match="seed: 0 there, 1 here") as caught:
            train(configured(seed=1), tmp_path / name, opened=images)
        assert "choose another output folder" in str(caught.value)
        assert {path.name for path in (tmp_path / name).iterdir()} == before


def test_a_folder_without_checkpoint_may_be_used_with_other_options(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    interrupted(tmp_path, configured(), images, 1)
    record = train(configured(seed=1), tmp_path, opened=images)
    assert record.configuration.seed == 1


@pytest.mark.parametrize("file", ["checkpoint.pt", "best-*.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing"])
def test_a_damaged_checkpoint_is_one_error_with_the_cure(
    file: str, damage: str, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    interrupted(tmp_path, configured(), images, 9)
    (path,) = tmp_path.glob(file)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif file == "checkpoint.pt":
        pytest.skip("without a checkpoint a run starts anew")
    else:
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        train(configured(), tmp_path, opened=images)
    message = str(caught.value)
    assert str(path) in message
    assert "is damaged" in message
    assert "delete" in message
    assert "\n" not in message


def test_images_that_changed_since_are_noticed(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    from dataclasses import replace

    interrupted(tmp_path, configured(), images, 9)
    with pytest.raises(CheckpointError, match="have changed since"):
        train(configured(), tmp_path, opened=replace(images, digest="0" * 64))
    grouped = replace(images, groups=("one", *[None] * (len(images.identities) - 1)))
    with pytest.raises(CheckpointError, match=r"the split of .* \(its groups, .*\) has changed"):
        train(configured(), tmp_path, opened=grouped)


def test_a_model_no_checkpoint_names_is_not_believed(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = iter([0.25, 0.5, 0.75, 0.25, 0.5, 0.75])
    monkeypatch.setattr(Run, "validate", lambda _: Evaluation(1.0, next(accuracies)))
    whole = train(configured(), tmp_path / "whole", opened=images)
    interrupted(tmp_path / "parts", configured(), images, 5)
    # As of a process killed between the model and the checkpoint that names it.
    (tmp_path / "parts" / "best-8.safetensors").write_bytes(b"half")
    interrupted(tmp_path / "parts", configured(), images, 9)
    record = train(configured(), tmp_path / "parts", opened=images)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_the_loss_scale_is_restored(configured: Configure) -> None:
    configuration = configured(precision="float16")

    def learner() -> Learner:
        backbone = build_backbone("small-cnn", classes=2, weights="none", seed=0)
        return build_learner(configuration, backbone, torch.device("cpu"))

    first, second = learner(), learner()
    assert first.scaler is not None
    assert second.scaler is not None
    first.scaler.scale(torch.ones(()))
    first.scaler.update(256.0)
    second.restore(first.state())
    assert second.scaler.get_scale() == 256.0


def test_the_best_model_is_written_once(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = iter([0.5, 0.25, 0.75])
    monkeypatch.setattr(Run, "validate", lambda _: Evaluation(1.0, next(accuracies)))
    written: list[str] = []
    save = checkpoint_module.save_weights

    def noted(weights: Any, path: Path, metadata: dict[str, str] | None = None) -> None:
        written.append(path.name)
        save(weights, path, metadata)

    monkeypatch.setattr(checkpoint_module, "save_weights", noted)
    monkeypatch.setattr(loop_module, "_CHECKPOINT_SHARE", 1.0)
    train(configured(), tmp_path, opened=images)
    assert written == ["best-4.safetensors", "best-12.safetensors"]


def test_two_processes_on_one_folder(
    tmp_path: Path, cache: Path, configured: Configure, processes: ForkServerContext
) -> None:
    configuration = configured(iterations=100_000)
    child = processes.Process(target=train, args=(configuration, tmp_path, None, cache))
    child.start()
    try:
        while child.is_alive() and not (tmp_path / "checkpoint.pt").exists():
            time.sleep(0.01)
        with pytest.raises(OutputError, match="another process is working"):
            train(configuration, tmp_path, stop_at(1), cache)
    finally:
        child.kill()
        child.join()


def test_an_output_folder_that_is_a_file_is_found_out_before_training(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    (tmp_path / "file").touch()
    reports: list[TrainingProgress] = []
    with pytest.raises(GradsurgeryError, match="cannot write"):
        train(configured(), tmp_path / "file" / "run", reports.append, opened=images)
    assert reports == []


def test_code_that_changes_while_a_run_is_interrupted_is_told_and_recorded(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_CHECKPOINT_SHARE", 1.0)
    monkeypatch.syspath_prepend(tmp_path)
    configuration = configured(method="erm+changing:rule", iterations=6, validate_every=2)
    code = tmp_path / "changing.py"
    digests, notes = [], []
    for step, factor in ((3, "1"), (5, "1"), (9, "2.5")):
        code.write_text(f"def rule(gradients):\n    return {factor} * gradients.mean(0)\n")
        monkeypatch.delitem(sys.modules, "changing", raising=False)
        importlib.invalidate_caches()
        digests.append(hashlib.sha256(code.read_bytes()).hexdigest())
        if step < 9:
            interrupted(tmp_path / "run", configuration, images, step)
    record = train(configuration, tmp_path / "run", lambda p: notes.append(p.note), opened=images)
    assert [each["sha256"] for each in record.objects] == digests[1:]
    assert [note for note in notes if note] == [
        "the code of changing:rule has changed since the run began: its record names both"
    ]
    monkeypatch.delitem(sys.modules, "changing")


@pytest.mark.parametrize("part", ["method", "backbone"])
def test_code_that_changes_after_a_run_was_finished_is_told(
    part: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"{part}_edited:mine"
    options = {"method": {"method": f"erm+{name}"}, "backbone": {"backbone": name}}[part]
    configuration = configured(iterations=2, validate_every=2, **options)
    code = tmp_path / f"{part}_edited.py"
    bodies = {
        "method": "def mine(g):\n    return g.mean(0)\n",
        "backbone": "from gradsurgery.backbones.networks import SmallCNN\n"
        "class mine(SmallCNN): ...\n",
    }
    told: list[list[str]] = []
    for remark in ("", "# the same in effect\n", "# the same in effect\n"):
        code.write_text(bodies[part] + remark)
        monkeypatch.delitem(sys.modules, code.stem, raising=False)
        importlib.invalidate_caches()
        notes: list[str] = []
        train(
            configuration,
            tmp_path / "run",
            lambda p, notes=notes: notes.append(p.note or ""),
            opened=images,
        )
        told.append([note for note in notes if note])
    assert told[0] == []
    assert told[1] == told[2]
    assert told[1][0].startswith(f"the code of {name} has changed since this run was finished; ")
    monkeypatch.delitem(sys.modules, code.stem)


def test_a_finished_run_is_returned_without_the_code_that_it_ran(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "gone_later.py"
    code.write_text("def mine(g):\n    return g.mean(0)\n")
    configuration = configured(iterations=2, validate_every=2, method="erm+gone_later:mine")
    record = train(configuration, tmp_path / "run", opened=images)
    for text in ("def mine(g:\n", None):
        monkeypatch.delitem(sys.modules, code.stem, raising=False)
        code.unlink() if text is None else code.write_text(text)
        importlib.invalidate_caches()
        assert train(configuration, tmp_path / "run", opened=images) == record
        with pytest.raises(ArgumentError, match="gone_later"):  # which has steps to take
            train(configured(iterations=4, method="erm+gone_later:mine"), tmp_path / "run")
    with pytest.raises(ArgumentError, match="unknown method 'agr-sun'"):  # before the folder's run
        train(configured(method="agr-sun"), tmp_path / "run", opened=images)


def test_a_finished_run_says_that_its_images_or_their_split_changed(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    from dataclasses import replace

    def told(images: ImageSet) -> list[str]:
        notes: list[str | None] = []
        train(configuration, tmp_path, lambda p: notes.append(p.note), opened=images)
        return [note for note in notes if note]

    configuration = configured(iterations=2)
    assert told(images) == told(images) == []
    (line,) = told(replace(images, digest="0" * 64))
    assert line.startswith(f"the images of {images.name} have changed since this run was finished;")
    (line,) = told(replace(images, groups=("one", *[None] * (len(images.identities) - 1))))
    assert line.startswith(f"the split of {images.name} (its groups, column or lists) has changed ")
