"""Worker processes of this machine, real ones."""

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from gradsurgery.errors import GradsurgeryError
from gradsurgery.sweep import local
from gradsurgery.sweep.launcher import Event, Launcher, Outcome, Task
from gradsurgery.sweep.local import LocalLauncher
from gradsurgery.training import TrainingProgress

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="kills by the process's number"
)

TASK = Task(
    options={"data": "nowhere", "target": "a"},
    folder=".",
    directory="run",
    cache=None,
    tensorboard=False,
    working_directory=".",
)


def heard(launcher: LocalLauncher, seconds: float = 60.0) -> list[Event]:
    """The first events there are."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if events := launcher.wait(0.5):
            return events
    raise AssertionError("nothing was heard")


def test_workers_that_end_as_they_start_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_ever(launcher: Launcher) -> None:
        while True:
            launcher.wait(0.5)

    monkeypatch.setattr(local, "_serve", sys.exit)  # which takes no two arguments
    with (
        pytest.raises(GradsurgeryError, match=r"end as they start \(exit code 1\)"),
        LocalLauncher(1) as launcher,
    ):
        wait_for_ever(launcher)


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


def test_a_worker_that_is_asked_to_end_does_so_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"data": "rotated-digits", "target": "75", "iterations": 10**5, "device": "cpu"}
    task = replace(TASK, options=options, directory=str(tmp_path / "run"))
    with LocalLauncher(1) as launcher:
        process = launcher._workers[0].process
        launcher.submit("a", task)
        while not isinstance(news := heard(launcher)[-1].news, TrainingProgress) or news.done < 2:
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
