"""How many workers, and on which GPUs; then worker processes of this machine, real ones."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradsurgery.errors import ArgumentError, GradsurgeryError
from gradsurgery.sweep import launcher as launcher_module
from gradsurgery.sweep.launcher import (
    Event,
    Launcher,
    LocalLauncher,
    Outcome,
    Task,
    visible_gpus,
    work,
    worker_count,
)
from gradsurgery.sweep.ray_cluster import cluster_room
from gradsurgery.training import TrainingProgress

by_number = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="kills by the process's number"
)

TASK = Task(
    options={"data": "nowhere", "target": "a"},
    folder=".",
    directory="run",
    cache=None,
    loggers=(),
    working_directory=".",
)


def test_a_run_that_was_finished_meanwhile_is_no_work_of_the_worker(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"data": "rotated-digits", "target": "0", "iterations": 1, "image_size": 8}
    options |= {"batch_size": 2, "device": "cpu", "threads": 1}
    where = {"directory": str(tmp_path / "run"), "cache": str(cache)}
    task = replace(TASK, options=options, **where)
    assert [work(task, lambda _: None) for _ in "ab"] == [
        Outcome("done"),
        Outcome("done", before=True),
    ]


def heard(launcher: LocalLauncher, seconds: float = 60.0) -> list[Event]:
    """The first events there are."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if events := launcher.wait(0.5):
            return events
    raise AssertionError("nothing was heard")


def test_workers_are_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # A job of 12 processors on a machine of 64, as batch systems give them out.
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert worker_count(None, gpus=0, runs_per_gpu=1, threads=1) == 8
    assert worker_count(None, gpus=0, runs_per_gpu=1, threads=5) == 2
    assert worker_count(None, gpus=0, runs_per_gpu=1, threads=99) == 1
    assert worker_count(None, gpus=4, runs_per_gpu=3, threads=5) == 12
    assert worker_count(5, gpus=4, runs_per_gpu=3, threads=1) == 5
    for wrong in ({"asked": 0}, {"threads": 0}, {"runs_per_gpu": 0}):
        with pytest.raises(ArgumentError, match="is at least 1, found 0"):
            worker_count(**{"asked": None, "gpus": 1, "runs_per_gpu": 1, "threads": 1} | wrong)


def test_the_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus("auto") == ("0", "1")
    assert visible_gpus("cpu") == ()
    with pytest.raises(ArgumentError, match="shares out the GPUs itself"):
        visible_gpus("cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert visible_gpus("cuda") == ("3", "GPU-5a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_gpus("auto") == ()


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str | None] = []
    monkeypatch.setattr(launcher_module, "_Worker", devices.append)
    LocalLauncher(5, ("0", "3"))
    LocalLauncher(2)
    assert devices == ["0", "3", "0", "3", "0", None, None]


def test_a_cluster_has_room_where_a_run_fits_on_one_of_its_nodes() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 7.0, "GPU": 1.0}, {"GPU": 2.0}]
    assert cluster_room(nodes, threads=2, runs_per_gpu=0) == 2 + 3
    assert cluster_room(nodes, threads=5, runs_per_gpu=0) == 1  # eleven processors, but apart
    assert cluster_room(nodes, threads=8, runs_per_gpu=0) == 0
    assert cluster_room(nodes, threads=2, runs_per_gpu=2) == 2
    assert cluster_room(nodes, threads=2, runs_per_gpu=9) == 3


def test_workers_that_end_as_they_start_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_ever(launcher: Launcher) -> None:
        while True:
            launcher.wait(0.5)

    monkeypatch.setattr(launcher_module, "_serve", sys.exit)  # which takes no two arguments
    with (
        pytest.raises(GradsurgeryError, match=r"end as they start \(exit code 1\)"),
        LocalLauncher(1) as launcher,
    ):
        wait_for_ever(launcher)


@by_number
def test_a_worker_is_replaced_after_its_first_word_and_ignores_ctrl_c() -> None:
    launcher = LocalLauncher(1)
    with launcher:
        process = launcher._workers[0].process
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)  # amid its imports
        launcher.submit("a", TASK)
        (event,) = heard(launcher)
        assert isinstance(event.news, Outcome)
        assert event.news.state == "failed"
        assert "no data set 'nowhere'" in event.news.error
        assert launcher._workers[0].process is process
        os.kill(process.pid, signal.SIGKILL)
        launcher.submit("b", TASK)
        (event,) = heard(launcher)
        assert event == Event("b", Outcome("lost", "its process ended with -9"))
        replaced = launcher._workers[0].process.pid
        assert replaced is not None
    with suppress(ProcessLookupError):
        os.kill(replaced, 0)
        raise AssertionError("a worker is left")


@by_number
def test_a_worker_that_is_asked_to_end_does_so_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"data": "rotated-digits", "target": "75", "iterations": 10**5, "device": "cpu"}
    task = replace(TASK, options=options, directory=str(tmp_path / "run"))
    with LocalLauncher(1) as launcher:
        process = launcher._workers[0].process
        launcher.submit("a", task)
        while (
            not isinstance(news := heard(launcher)[-1].news, TrainingProgress)
            or news.stage != "training"
        ):
            assert not isinstance(news, Outcome), news
        assert (tmp_path / "run" / ".lock").exists()
        assert process.pid is not None
        end = time.monotonic() + 30
        while process.is_alive() and time.monotonic() < end:
            os.kill(process.pid, signal.SIGTERM)  # again and again, also while it ends
            time.sleep(0.002)
        events: list[Event] = []
        while not events or not isinstance(events[-1].news, Outcome):
            events += heard(launcher)
        assert events[-1].news == Outcome("lost", "its process ended with 143")
        assert not list(tmp_path.rglob(".*"))
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_is_asked_to_end_leaves_no_lock_of_a_library(tmp_path: Path) -> None:
    """What is left is told by the tracker of the launcher's process, as that ends."""
    (tmp_path / "locking.py").write_text(
        "import multiprocessing\n\nLOCK = multiprocessing.RLock()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import replace\n"
        "from gradsurgery.sweep.launcher import LocalLauncher\n"
        "from tests.sweep.test_launcher import TASK, heard\n"
        "if __name__ == '__main__':\n"
        "    with LocalLauncher(1) as launcher:\n"
        "        options = {'data': 'locking:Source', 'target': 'a'}\n"
        f"        place = {str(tmp_path)!r}\n"
        "        launcher.submit('a', replace(TASK, options=options, working_directory=place))\n"
        "        print(heard(launcher)[0].news.error)\n"
    )
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([str(tmp_path), root, *sys.path])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
    )
    assert "locking" in done.stdout
    assert done.stderr == ""
