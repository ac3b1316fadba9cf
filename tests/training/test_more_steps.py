"""A finished run that is given more iterations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.atomic import claimed
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError
from gradsurgery.training import TrainingProgress, train

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]
RUN_FILES = {"configuration.json", "model.safetensors", "record.json", "split.json"}


def noted(notes: list[str], steps: list[int]) -> Callable[[TrainingProgress], None]:
    def report(progress: TrainingProgress) -> None:
        if progress.note:
            notes.append(progress.note)
        elif progress.stage == "training":
            steps.append(progress.done)

    return report


@pytest.mark.parametrize(
    "options",
    [
        {"method": "agr-rand", "average": "ema", "warmup": 3},
        {"method": "group-dro", "average": "swad", "optimizer": "sgd"},
    ],
    ids=lambda options: options["method"],
)
def test_a_kept_checkpoint_goes_on_to_the_record_of_a_longer_run(
    options: dict[str, Any],
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
) -> None:
    options |= {"keep_checkpoint": True}
    whole = train(configured(iterations=16, **options), tmp_path / "whole", opened=images)
    train(configured(iterations=8, **options), tmp_path / "parts", opened=images)
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    notes: list[str] = []
    steps: list[int] = []
    longer = configured(iterations=16, **options)
    record = train(longer, tmp_path / "parts", noted(notes, steps), opened=images)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")
    assert RunConfiguration.load(tmp_path / "parts").iterations == 16
    assert not notes
    assert min(steps) == 9
    assert train(longer, tmp_path / "parts", opened=images) == record


def test_a_process_killed_between_model_and_record_leaves_no_record_of_another_model(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorter, longer = (configured(iterations=n, keep_checkpoint=True) for n in (8, 16))
    whole = train(longer, tmp_path / "whole", opened=images)
    train(shorter, tmp_path / "parts", opened=images)

    def killed(record: Record, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(longer, tmp_path / "parts", opened=images)
    with pytest.raises(ArgumentError, match="iterations: 16 there, 8 here"):
        train(shorter, tmp_path / "parts", opened=images)
    record = train(longer, tmp_path / "parts", opened=images)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "its last checkpoint was not kept"),
        ({"keep_checkpoint": True, "schedule": "cosine"}, "the learning rate follows"),
        ({"keep_checkpoint": True, "validate_every": 3}, "step 8 was validated as the last"),
    ],
)
def test_where_the_steps_are_others_they_are_taken_again(
    options: dict[str, Any],
    reason: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
) -> None:
    train(configured(iterations=8, **options), tmp_path / "parts", opened=images)
    notes: list[str] = []
    steps: list[int] = []
    longer = configured(iterations=12, **options)
    record = train(longer, tmp_path / "parts", noted(notes, steps), opened=images)
    assert len(notes) == 1
    assert reason in notes[0]
    assert min(steps) == 1
    if options.get("schedule"):  # of which the shorter run's checkpoint and best model were there
        whole = train(longer, tmp_path / "whole", opened=images)
        assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_a_run_of_fewer_steps_or_of_another_option_is_another_run(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    train(configured(iterations=8), tmp_path, opened=images)
    for options in ({"iterations": 4}, {"iterations": 12, "seed": 1}):
        with pytest.raises(ArgumentError, match="holds a run with other options"):
            train(configured(**options), tmp_path, opened=images)


def test_the_checkpoint_goes_where_it_is_not_asked_for(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    train(configured(iterations=4), tmp_path, opened=images)
    assert {path.name for path in tmp_path.iterdir()} == RUN_FILES


def test_a_run_that_stopped_early_stays_stopped_with_more_iterations(
    tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    still = {"learning_rate": 1e-12, "patience": 1, "keep_checkpoint": True, "method": "deep-all"}
    whole = train(configured(iterations=40, **still), tmp_path / "whole", opened=images)
    train(configured(iterations=20, **still), tmp_path / "parts", opened=images)
    record = train(configured(iterations=40, **still), tmp_path / "parts", opened=images)
    assert record.result.last.step == 8
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_a_finished_run_leaves_the_checkpoint_of_the_longer_one_that_was_interrupted(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    short, long = configured(iterations=8), configured(iterations=16)
    finished = train(short, tmp_path, opened=images)

    def interrupt(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(long, tmp_path, interrupt, opened=images)
    assert (tmp_path / "checkpoint.pt").exists()
    assert train(short, tmp_path, opened=images) == finished
    steps: list[int] = []
    train(long, tmp_path, noted([], steps), opened=images)
    assert 8 < min(steps) <= 14
    assert {path.name for path in tmp_path.iterdir()} == RUN_FILES


@pytest.mark.parametrize("contents", [None, b"not a checkpoint"])
def test_a_finished_run_removes_what_it_was_killed_before_it_could(
    contents: bytes | None, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    kept = configured(iterations=8, keep_checkpoint=True)
    train(kept, tmp_path / "kept", opened=images)
    short = configured(iterations=8)
    finished = train(short, tmp_path / "run", opened=images)
    checkpoint = (tmp_path / "kept" / "checkpoint.pt").read_bytes()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(contents or checkpoint)
    (tmp_path / "run" / "best-4.safetensors").write_bytes(b"")
    with claimed(tmp_path / "run"):  # by a process that is at work there
        assert train(short, tmp_path / "run", opened=images) == finished
        assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert train(short, tmp_path / "run", opened=images) == finished
    assert {path.name for path in (tmp_path / "run").iterdir()} == RUN_FILES
