"""Kill -9 of workers and launchers, Ctrl-C, and two sweeps at once, in real processes.

`GRADSURGERY_KILLS=full` runs the long version: 8 methods x 5 targets x 3 seeds, 20 workers and 5
launchers killed at random.
"""

import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.sweep.processes import SWEEP, children, kill, records, results, started, until, workers

FULL = os.environ.get("GRADSURGERY_KILLS") == "full"
SIZE = (
    ["--methods", "all", "--targets", "0,15,30,45,60", "--seeds", "3", "--set", "irm.anneal=50"]
    if FULL
    else ["--methods", "deep-all,agr-rand", "--targets", "0,75", "--seeds", "2"]
)
OPTIONS = ["--iterations", "36", "--validate-every", "3", "--image-size", "12", "--workers", "2"]
RUNS = 120 if FULL else 8
WORKER_KILLS, LAUNCHER_KILLS = (20, 5) if FULL else (3, 1)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="finds processes through /proc"
)


@pytest.fixture(autouse=True)
def _quiet_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a sweep that nothing has happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    alone = command(folder, cache, "--workers", "1")
    subprocess.run(alone, check=True, capture_output=True, cwd=cache)
    assert records(folder) == RUNS
    return folder


def command(folder: Path, cache: Path, *more: str) -> list[str]:
    return [
        *SWEEP,
        *SIZE,
        *OPTIONS,
        "--out",
        str(folder),
        "--cache",
        str(cache),
        "--no-report",
        *more,
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_sweep_survives_the_death_of_its_workers_and_of_its_launcher(
    undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    drawn, log, folder = random.Random(0), tmp_path / "log", tmp_path / "runs"
    left, deaths = WORKER_KILLS, LAUNCHER_KILLS
    while deaths >= 0:
        with started(command(folder, cache), log) as sweep:
            share = -(-left // (deaths + 1))
            for kills in range(share):
                goal = RUNS * (WORKER_KILLS - left + kills) // (WORKER_KILLS + 1)
                until(lambda goal=goal: records(folder) >= goal and workers(sweep.pid))
                kill(drawn.choice(workers(sweep.pid)))
            left -= share
            if deaths:
                until(lambda: any(folder.rglob("checkpoint.pt")))
                kill(sweep.pid)
            else:
                assert sweep.wait(timeout=600) == 0, log.read_text()
            deaths -= 1
    assert results(folder) == results(undisturbed)


def test_an_interrupted_sweep_ends_cleanly_and_goes_on(
    undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    log, folder = tmp_path / "log", tmp_path / "runs"
    with started(command(folder, cache), log) as sweep:
        until(lambda: records(folder) >= 1)
        ours = workers(sweep.pid)
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: to all of them
        assert sweep.wait(timeout=60) == 130
        assert not any(Path(f"/proc/{pid}").exists() for pid in ours)
    assert "interrupted; repeat the same command to continue" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob(".lock"))
    subprocess.run(command(folder, cache), check=True, capture_output=True, cwd=tmp_path)
    assert results(folder) == results(undisturbed)


def test_two_sweeps_on_one_folder_share_the_work(
    undisturbed: Path, cache: Path, tmp_path: Path
) -> None:
    folder, logs = tmp_path / "runs", [tmp_path / "a", tmp_path / "b"]
    with (
        started(command(folder, cache, "--workers", "1"), logs[0]) as a,
        started(command(folder, cache, "--workers", "1"), logs[1]) as b,
    ):
        assert (a.wait(timeout=600), b.wait(timeout=600)) == (0, 0), logs[0].read_text()
    assert results(folder) == results(undisturbed)
    texts = [log.read_text() for log in logs]
    trained = sum(text.count("validation") - text.count("by another process") for text in texts)
    assert trained == RUNS


def test_a_sweep_on_ray_gives_the_same_records(
    undisturbed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a cluster that is gone: starts its own
    folder, log = tmp_path / "runs", tmp_path / "log"
    with started(command(folder, cache, "--launcher", "ray"), log) as sweep:
        until(lambda: records(folder) >= 1 and workers(sweep.pid))
        kill(workers(sweep.pid)[0])
        assert sweep.wait(timeout=600) == 0, log.read_text()
    assert results(folder) == results(undisturbed)


def test_a_ray_cluster_that_loses_a_node_loses_nothing(
    undisturbed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    # A token that is there would be asked for by the head and not be sent by the others.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder, log, port = tmp_path / "runs", tmp_path / "log", free_port()
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1"]
    head = [*ray, "--head", f"--port={port}", "--include-dashboard=false"]
    cluster = ["--launcher", "ray", "--ray-address", f"127.0.0.1:{port}"]
    with ExitStack() as stack:
        stack.enter_context(started(head, tmp_path / "head"))
        until(lambda: listening(port))
        node = stack.enter_context(
            started([*ray, f"--address=127.0.0.1:{port}"], tmp_path / "node")
        )
        sweep = stack.enter_context(started(command(folder, cache, *cluster), log))
        until(lambda: records(folder) >= 1 and workers(node.pid))
        for process in [node.pid, *children(node.pid)]:
            kill(process)
        assert sweep.wait(timeout=900) == 0, log.read_text()
    assert results(folder) == results(undisturbed)
    assert "; again" in log.read_text()


def test_a_cluster_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    address = ["--launcher", "ray", "--ray-address", "127.0.0.1:1"]
    arguments = [*SWEEP, "--iterations", "2", "--seeds", "1", *address, "--out", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: no Ray cluster at 127.0.0.1:1" in done.stderr.splitlines()[-1]
