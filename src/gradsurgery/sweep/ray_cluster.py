"""Runs as tasks of a Ray cluster: one that exists, or one started on this machine."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsurgery.errors import GradsurgeryError, MissingPackageError
from gradsurgery.sweep.launcher import Event, Launcher, Outcome, Task, work


class RayLauncher(Launcher):
    """Every run is a Ray task with the processors and the share of a GPU that it needs.

    The sweep's folder and the data lie on a file system that all nodes share. Where a node or a
    worker dies, its tasks are lost and their runs resume elsewhere. Raises `MissingPackageError`
    without Ray, `GradsurgeryError` where the cluster cannot be reached.

    Args:
        address: of the cluster, "auto" for the one this machine is part of; None starts one here.
        workers: how many tasks at a time; None is as many as the cluster has room for.
        threads: processors of a task.
        runs_per_gpu: tasks that share a GPU where the cluster has any; 0 for tasks without one.
    """

    def __init__(
        self, *, address: str | None, workers: int | None, threads: int, runs_per_gpu: int
    ) -> None:
        self._ray = imported_ray()
        self._connect(address, None if workers is None else workers * threads)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        on_gpus = bool(runs_per_gpu) and any(node.get("GPU") for node in nodes)
        gpu = 1 / runs_per_gpu if on_gpus else 0.0
        # A task that asks for a GPU would by default end its process: here it lives on.
        needs: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpu, "max_calls": 0}
        self._remote = self._ray.remote(max_retries=0, **needs)(_work)
        self._keys: dict[Any, str] = {}
        room = cluster_room(nodes, threads, runs_per_gpu if on_gpus else 0)
        if address is None and not room:
            self._ray.shutdown()
            raise GradsurgeryError(
                f"no run fits on this machine: each takes --threads {threads} processors, found "
                f"{nodes[0].get('CPU', 0):g}; take fewer"
            )
        self.workers = workers or max(1, room)  # a cluster may grow when there is work

    def submit(self, key: str, task: Task) -> None:
        """Hand the task to the cluster, which starts it where there is room."""
        self._keys[self._remote.remote(task)] = key

    def wait(self, seconds: float) -> list[Event]:
        """The outcomes of tasks; Ray passes no word on in between."""
        ready, _ = self._ray.wait(list(self._keys), num_returns=1, timeout=seconds)
        return [Event(self._keys.pop(reference), self._outcome(reference)) for reference in ready]

    def __exit__(self, *_: object) -> None:
        for reference in self._keys:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def _outcome(self, reference: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # not the run's, whose are outcomes
            return Outcome("failed", str(error.cause), str(error))
        except self._ray.exceptions.LocalRayletDiedError as error:
            raise GradsurgeryError(
                "this machine's Ray node has died; repeat the same command to go on, with another "
                "--ray-address where it was part of a cluster"
            ) from error
        except self._ray.exceptions.RayError as error:
            return Outcome("lost", " ".join(str(error).split())[:300])
        return outcome

    def _connect(self, address: str | None, processors: int | None) -> None:
        try:
            if address is None:
                self._ray.init(
                    address="local",  # with none, Ray would look for a cluster, a dead one too
                    num_cpus=processors,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                )
            else:
                _check_listening(address)
                self._ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, error) from error


def imported_ray() -> Any:
    """The package; raises `MissingPackageError` without it."""
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "--launcher ray needs the package ray; pip install 'gradsurgery[ray]'"
        ) from error
    return ray


def check_ray(address: str | None) -> None:
    """Raise, as `RayLauncher` does, without the package, and where nobody answers at `address`."""
    imported_ray()
    try:
        _check_listening(address or "")
    except OSError as error:
        raise _no_cluster(address, error) from error


def cluster_room(nodes: Sequence[Mapping[str, float]], threads: int, runs_per_gpu: int) -> int:
    """How many runs fit at a time, each on one node.

    nodes: the resources of each, as Ray names them; runs_per_gpu: 0 for runs without a GPU.

    >>> cluster_room([{"CPU": 7.0}, {"CPU": 2.0}], threads=4, runs_per_gpu=0)
    1
    """
    room = 0
    for node in nodes:
        by_processors = int(node.get("CPU", 0)) // threads
        by_gpus = int(node.get("GPU", 0)) * runs_per_gpu if runs_per_gpu else by_processors
        room += min(by_processors, by_gpus)
    return room


def _no_cluster(address: str | None, error: Exception) -> GradsurgeryError:
    reason = " ".join(str(error).split())
    return GradsurgeryError(
        f"no Ray cluster at {address or 'this machine'} ({reason}); check --ray-address, or leave "
        "it out to start one here"
    )


def _check_listening(address: str) -> None:
    """Raise `OSError` where nobody answers at "host:port", for which Ray would wait very long."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _work(task: Task) -> Outcome:
    if not Path(task.folder).exists():
        return Outcome(
            "failed",
            f"{task.folder} does not exist on this node; put the sweep's folder on a file system "
            "that all nodes share",
        )
    return work(task)
