"""A sweep through a launcher whose workers do as the test says."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradsurgery.backbones import Backbone, build_backbone
from gradsurgery.data import Source, open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.plan import Plan, SweepPlan
from gradsurgery.errors import ArgumentError, DataError, WeightsError
from gradsurgery.sweep import Execution, run_sweep
from gradsurgery.sweep import run as run_module
from gradsurgery.sweep import runs as runs_module
from gradsurgery.sweep.launcher import Event, Launcher, Outcome, Task, work
from gradsurgery.sweep.runs import existing_records, planned
from gradsurgery.sweep.schedule import SweepProgress, estimate
from gradsurgery.training import TrainingProgress, train

MakePlan = Callable[..., Plan]
SOURCES = {"rotated-digits": open_source("rotated-digits")}


class Scripted(Launcher):
    """Works on tasks here and now, except that the first answers are those it is given."""

    def __init__(self, *answers: Outcome, workers: int = 2) -> None:
        self.workers = workers
        self.submitted: list[str] = []
        self._answers: Iterator[Outcome] = iter(answers)
        self._events: list[Event] = []
        self.under_way = 0
        self.entered = False

    def __enter__(self) -> "Scripted":
        self.entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.entered = False

    def submit(self, key: str, task: Task) -> None:
        self.under_way += 1
        assert self.under_way <= self.workers
        self.submitted.append(key)
        answer = next(self._answers, None)
        self._events.append(Event(key, TrainingProgress("training", 1, 6)))
        if answer is None:
            answer = work(task, lambda _: None)
        self._events.append(Event(key, answer))

    def wait(self, seconds: float) -> list[Event]:
        events, self._events, self.under_way = self._events, [], 0
        return events


@pytest.fixture(autouse=True)
def _decoded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSURGERY_CACHE", str(cache))


def swept(
    plan: Plan, folder: Path, launcher: Launcher, retries: int = 0
) -> tuple[dict[str, Outcome], list[str], SweepProgress]:
    lines: list[str] = []
    states: list[SweepProgress] = []

    def show(progress: SweepProgress, line: str) -> None:
        states.append(progress)
        lines.append(line)

    failed = run_sweep(
        plan,
        SOURCES,
        folder,
        launch=lambda: launcher,
        execution=Execution(retries=retries),
        show=show,
    )
    return failed, [line for line in lines if line], states[-1]


def test_a_domain_without_test_images_is_told_before_any_run(tmp_path: Path) -> None:
    for domain, count in (("large", 10), ("small", 2), ("other", 10)):
        for label in ("cat", "dog"):
            (tmp_path / "data" / domain / label).mkdir(parents=True)
            for i in range(count):  # of two images of a class both are trained on
                color = (i, count, len(label + domain) * 9)
                Image.new("RGB", (8, 8), color).save(
                    tmp_path / "data" / domain / label / f"{i}.png"
                )
    data = str(tmp_path / "data")
    options = {"backbone": "small-cnn", "weights": "none", "image_size": 8, "iterations": 1}
    launcher, sources = Scripted(), {data: open_source(data)}

    def sweep(plan: Plan) -> None:
        run_sweep(
            plan,
            sources,
            tmp_path / "out",
            launch=lambda: launcher,
            execution=Execution(),
            show=lambda *_: None,
        )

    few = Plan(data=[data], targets="all", methods=["deep-all"], seeds="1", options=options)
    with pytest.raises(DataError, match=r"no image of small is left for testing; .*--test-on all"):
        sweep(few)
    assert launcher.submitted == []
    sweep(few.model_copy(update={"options": {**options, "test_on": "all"}}))
    assert len(launcher.submitted) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "absent.pth"}, r"^cannot read the weights file absent\.pth: No such file"),
        ({"weights": "other.pth"}, r"^other\.pth does not fit small-cnn: of "),
        ({"weights": "IMAGENET1K_V1"}, r"^there are no weights IMAGENET1K_V1 of small-cnn, and no"),
        ({"freeze": "stem"}, "^small-cnn has no layer 'stem' to freeze"),
        ({"backbone": "small-cmm"}, "^there is no backbone 'small-cmm'; did you mean "),
    ],
)
def test_a_network_that_is_not_to_be_had_is_told_before_any_run(
    options: dict[str, str],
    words: str,
    plan: MakePlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(3, 2).state_dict(), "other.pth")
    launcher = Scripted()
    asked = plan(seeds="1", options={**plan().options, **options})
    with pytest.raises((ArgumentError, WeightsError), match=words):
        swept(asked, tmp_path / "out", launcher)
    assert launcher.submitted == []
    assert not (tmp_path / "out").exists()


def test_each_network_is_built_once_to_see_that_it_is_to_be_had(
    plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = build_backbone("small-cnn", classes=10, weights="none", seed=7).model
    torch.save(mine.state_dict(), "mine.pth")
    built: list[str] = []
    network_of = runs_module.network_of

    def counted(c: RunConfiguration, source: Source) -> Backbone:
        built.append(c.weights)
        return network_of(c, source)

    monkeypatch.setattr(runs_module, "network_of", counted)
    options = {**plan().options, "weights": "mine.pth"}
    asked = plan(seeds="2", options=options, grid={"learning_rate": [1e-4, 1e-3]})
    failed, _, progress = swept(asked, tmp_path / "out", Scripted())
    assert (failed, progress.done) == ({}, 8)
    assert built == ["mine.pth"]
    Path("mine.pth").unlink()  # what is finished needs it no more
    assert swept(asked, tmp_path / "out", Scripted())[2].found == 8


def test_a_sweep_leaves_the_records_that_runs_by_themselves_leave(
    plan: MakePlan, tmp_path: Path
) -> None:
    asked, launcher = plan(seeds="2"), Scripted()
    failed, lines, progress = swept(asked, tmp_path, launcher)
    assert not failed
    assert (progress.found, progress.done, progress.failed) == (0, 4, 0)
    assert [line.split("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    runs = planned(asked, SOURCES)
    assert launcher.submitted == [run.directory for run in runs]
    assert not launcher.entered
    for run in runs:
        alone = train(run.configuration, tmp_path / "alone" / run.directory)
        swept_model = (tmp_path / run.directory / "model.safetensors").read_bytes()
        alone_model = (tmp_path / "alone" / run.directory / "model.safetensors").read_bytes()
        assert swept_model == alone_model
        record = existing_records([run], tmp_path)[run.directory]
        assert record.model_dump(exclude={"cost"}) == alone.model_dump(exclude={"cost"})
    best = max(
        (record.result.best.target_accuracy, record.configuration.method)
        for record in existing_records(runs, tmp_path).values()
    )
    assert progress.best["rotated-digits", "75"][0] == best[0]


def test_the_same_sweep_again_does_nothing_and_a_larger_one_the_rest(
    plan: MakePlan, tmp_path: Path
) -> None:
    swept(plan(seeds="1"), tmp_path, Scripted())
    idle = Scripted()
    _, lines, progress = swept(plan(seeds="1"), tmp_path, idle)
    assert (idle.submitted, lines, progress.found) == ([], [], 2)
    more = Scripted()
    _, _, progress = swept(plan(seeds="2"), tmp_path, more)
    assert (len(more.submitted), progress.found, progress.done) == (2, 2, 2)
    other = plan(seeds="1", methods=["deep-all", "pcgrad"])
    with pytest.raises(ArgumentError, match="belongs to another plan"):
        swept(other, tmp_path, Scripted())


def test_a_run_that_fails_is_tried_again_then_recorded_while_the_others_go_on(
    plan: MakePlan, tmp_path: Path
) -> None:
    no = Outcome("failed", "no luck", "Traceback: no luck")
    launcher = Scripted(no, no, no, workers=1)
    failed, lines, progress = swept(
        plan(methods=["agr-sum"], seeds="2"), tmp_path, launcher, retries=1
    )
    # Both fail, both are tried again: the first fails for good, the second goes well.
    first, second = launcher.submitted[:2]
    assert launcher.submitted == [first, second, first, second]
    assert failed == {first: no}
    assert (progress.done, progress.failed) == (1, 1)
    assert [line.rpartition(": ")[2] for line in lines[:3]] == [
        "no luck; again",
        "no luck; again",
        "no luck",
    ]
    failure = json.loads((tmp_path / first / "failure.json").read_text())
    assert (failure["version"], failure["attempts"]) == (1, 2)
    assert (failure["error"], failure["traceback"]) == ("no luck", "Traceback: no luck")
    assert failure["configuration"]["seed"] == 0
    assert not (tmp_path / second / "failure.json").exists()
    assert not swept(plan(methods=["agr-sum"], seeds="2"), tmp_path, Scripted())[0]
    assert not (tmp_path / first / "failure.json").exists()


def test_a_run_whose_workers_are_lost_says_how_often_it_was_tried(
    plan: MakePlan, tmp_path: Path
) -> None:
    lost = Outcome("lost", "its process ended with -9")
    launcher = Scripted(*[lost] * 11, workers=1)
    failed, _, _ = swept(plan(methods=["agr-sum"], seeds="1"), tmp_path, launcher)
    (directory,) = failed
    assert json.loads((tmp_path / directory / "failure.json").read_text())["attempts"] == 11


class Waiting(Scripted):
    """Whose workers have to wait before they train."""

    def submit(self, key: str, task: Task) -> None:
        self._events.append(Event(key, TrainingProgress("features", 0, 9, note="it waits")))
        super().submit(key, task)


def test_a_sweep_says_once_what_its_runs_have_to_say(plan: MakePlan, tmp_path: Path) -> None:
    _, lines, _ = swept(plan(methods=["deep-all"], seeds=2), tmp_path, Waiting())
    waits = [line for line in lines if "waits" in line]
    assert waits == ["[0/2] rotated-digits 75 deep-all seed 0: it waits"]


def test_the_error_of_a_run_is_its_outcome(plan: MakePlan, tmp_path: Path) -> None:
    asked = plan(methods=["agr-sum", "deep-all"], seeds="1")
    run = planned(asked, SOURCES)[0]
    (tmp_path / run.directory).parent.mkdir(parents=True)
    (tmp_path / run.directory).touch()  # in the way
    failed, lines, progress = swept(asked, tmp_path, Scripted())
    assert list(failed) == [run.directory]
    assert "failed: cannot write" in lines[0]
    assert f"failure.json: {tmp_path / run.directory} is no folder" in lines[0]
    assert (progress.done, progress.failed) == (1, 1)
    (tmp_path / run.directory).unlink()
    (tmp_path / run.directory / "checkpoint.pt").mkdir(parents=True)
    failed, _, progress = swept(asked, tmp_path, Scripted())
    assert list(failed) == [run.directory]
    assert "checkpoint.pt is damaged" in failed[run.directory].error
    assert "Traceback" in failed[run.directory].traceback
    assert (progress.found, progress.failed) == (1, 1)


def test_a_run_that_another_process_works_on_is_awaited_not_repeated(
    plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_BUSY", 0.0)
    asked = plan(methods=["agr-sum"], seeds="2")
    first = planned(asked, SOURCES)[0]
    launcher = Scripted(Outcome("busy"), workers=1)
    waited = launcher.wait

    def wait(seconds: float) -> list[Event]:
        if len(launcher.submitted) == 2 and not (tmp_path / first.directory).exists():
            train(first.configuration, tmp_path / first.directory, opened=SOURCES["rotated-digits"])
        return waited(seconds)

    monkeypatch.setattr(launcher, "wait", wait)
    failed, lines, progress = swept(asked, tmp_path, launcher)
    assert not failed
    assert len(launcher.submitted) == 2
    assert lines[-1].endswith("(by another process)")
    assert (progress.found, progress.done, progress.aside) == (1, 1, 0)


def test_the_estimate_counts_what_is_left_at_what_it_takes(plan: MakePlan, tmp_path: Path) -> None:
    asked = plan(seeds="2")
    runs = planned(asked, SOURCES)
    timed: list[tuple[int, int]] = []
    before = estimate(runs, {}, SOURCES, Execution(), timed=lambda *at: timed.append(at))
    assert before.runs == 4
    assert before.seconds > 0
    assert before.timed == 2
    assert timed == [(0, 2), (1, 2), (2, 2)]
    assert list(tmp_path.iterdir()) == []
    records = {}
    for run, seconds in zip(runs, (3.0, 5.0), strict=False):
        record = train(run.configuration, tmp_path / run.directory)
        record.cost.seconds = seconds
        records[run.directory] = record
    # One run of either method is left, and each takes what the other of its method took.
    assert estimate(runs, records, SOURCES, Execution()) == (2, 8.0, 0, 0.0)


def test_a_method_that_fails_while_it_is_timed_is_named(
    plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_rules.py").write_text("def doubled(g):\n    return g * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    runs = planned(plan(methods=["deep-all", "erm+failing_rules:doubled"]), SOURCES)
    with pytest.raises(
        ArgumentError, match=r"^erm\+failing_rules:doubled on rotated-digits fails: the rule"
    ):
        estimate(runs, {}, SOURCES, Execution())


def test_code_that_changes_after_runs_were_finished_is_told(
    plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = plan(methods=["deep-all", "erm+edited_rules:mine"], seeds="2")
    code = tmp_path / "edited_rules.py"
    said = []
    for body in ("g.mean(0)", "g.mean(0)", "g.sum(0)"):
        code.write_text(f"def mine(g):\n    return {body}\n")
        monkeypatch.delitem(sys.modules, "edited_rules", raising=False)
        importlib.invalidate_caches()
        failed, lines, _ = swept(asked, tmp_path / "out", Scripted())
        assert not failed
        said.append([line for line in lines if "has changed since" in line])
    assert said[:2] == [[], []]
    (line,) = said[2]
    assert line.startswith("the code of edited_rules:mine has changed since 2 of these runs were ")
    monkeypatch.delitem(sys.modules, "edited_rules")


def test_a_second_plan_is_refused_while_a_first_one_is_at_work_in_a_new_folder(
    plan: MakePlan, tmp_path: Path
) -> None:
    asked = plan(seeds="1")
    listed: list[set[str]] = []

    class Watched(Scripted):
        def __enter__(self) -> "Watched":  # nothing is begun as yet
            with pytest.raises(ArgumentError, match=r"^another sweep is working in "):
                swept(plan(seeds="1", methods=["pcgrad"]), tmp_path, Scripted())
            _, _, larger = swept(plan(seeds="2"), tmp_path, Scripted())  # the same and more
            assert larger.done == 4
            listed.append({run.directory for run in SweepPlan.load(tmp_path).runs})
            return self

    failed, _, progress = swept(asked, tmp_path, Watched())
    assert not failed
    assert progress.found + progress.done == 2
    assert listed == [{run.directory for run in planned(plan(seeds="2"), SOURCES)}]
    assert not list(tmp_path.glob(".*"))


def test_images_and_splits_that_change_after_runs_were_finished_are_told(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    for place in ("a/x", "a/y", "b/x", "b/y", "c/x", "c/y"):
        (data / place).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, len(place), ord(place[0]))).save(
                data / place / f"{i}.png"
            )
    options = {"backbone": "small-cnn", "weights": "none", "image_size": 8, "iterations": 1}
    table = tmp_path / "table.csv"

    def write_table(parts: Sequence[str]) -> None:
        rows = [f"{file},{file.parts[-3]},{file.parts[-2]}" for file in sorted(data.rglob("*.png"))]
        told = [f"{row},{parts[i % 6]}" for i, row in enumerate(rows)]
        table.write_text("\n".join(["path,domain,label,split", *told]))

    def told(spec: Path = data, **also: str) -> list[str]:
        asked = Plan(
            data=[str(spec)],
            targets=["c"],
            methods=["deep-all"],
            seeds="2",
            options=options | also,
        )
        lines: list[str] = []
        run_sweep(
            asked,
            {str(spec): open_source(str(spec))},
            tmp_path / f"out-{spec.stem}",
            launch=Scripted,
            execution=Execution(),
            show=lambda _, line: lines.append(line),
        )
        return [line for line in lines if "changed since" in line]

    write_table(("train", "train", "train", "train", "val", "test"))
    assert told(table, split="column") == told(table, split="column") == []
    write_table(("train", "train", "train", "train", "test", "val"))
    (line,) = told(table, split="column")
    assert line.startswith("the split of table (its groups, column or lists) has changed since 2 ")
    write_table(("", "", "", "", "", ""))  # where nothing can be told, nothing is
    assert told(table, split="column") == []
    assert told() == told() == []
    Image.new("RGB", (8, 8), (1, 2, 3)).save(data / "a/x/0.png")
    (line,) = told()
    assert line.startswith("the images of photos have changed since 2 of these runs were finished ")
