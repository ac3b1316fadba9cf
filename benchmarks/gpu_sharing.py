"""Steps a second of several runs on one card: processes, processes under MPS, and threads.

Called by `gpu.py`. The processes start once, each with every workload; then 1, 2, 4 and 8 of them
train at the same time while the others wait. Threads share a process, each with a stream, a model
and an optimiser of its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from contestants import random_batches
from gpu_contestants import Entry, prepared

COUNTS = (1, 2, 4, 8)


class Workload(NamedTuple):
    """A run of a sweep, without its images."""

    network: str
    size: int
    image_size: int
    entry: Entry

    @property
    def label(self) -> str:
        """How it is called in tables."""
        return f"{self.network} at {self.image_size}, {self.size} a domain, {self.entry.label}"


def workloads(tiny: bool) -> list[Workload]:
    if tiny:
        return [Workload("small-cnn", 2, 14, Entry("agr-sum"))]
    small, large = ("tf_efficientnet_lite0", 32, 112), ("resnet50", 32, 224)
    graphed, plain = Entry("agr-sum", graph=True), Entry("agr-sum")
    return [Workload(*small, graphed), Workload(*small, plain), Workload(*large, graphed)]


def measure(device: str, tiny: bool, emit: Callable[..., None], left: Callable[[], float]) -> None:
    """Emit the steps a second for each workload, way of sharing and number of runs."""
    counts = (1, 2) if tiny else COUNTS
    seconds = 0.1 if tiny else 2.0

    def measure_together(way: str, pool: list[Worker]) -> None:
        for count in counts if pool else ():
            for number, workload in enumerate(workloads(tiny)):
                if left() < seconds:
                    return
                for worker in pool[:count]:
                    worker.tell(f"{number} {seconds} 1")
                rates = [float(worker.answer()) for worker in pool[:count]]
                _emit(emit, way, workload, count, sum(rates))

    with mps() as served, worker_pool(counts[-1], device, tiny, left, served) as pool:
        measure_together("processes, MPS", pool)
    with worker_pool(counts[-1], device, tiny, left, {}) as pool:
        measure_together("processes", pool)
        for count in counts[1:] if pool else ():
            for number, workload in enumerate(workloads(tiny)):
                if left() > seconds:
                    steps = pool[0].ask(f"{number} {seconds} {count}")
                    _emit(emit, "threads", workload, count, steps)


def _emit(emit: Callable[..., None], way: str, workload: Workload, runs: int, steps: float) -> None:
    emit("sharing", way=way, workload=workload.label, runs=runs, steps_a_second=float(steps))


class Worker:
    """A process that trains for as long as it is told."""

    def __init__(self, device: str, tiny: bool, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__, device, "tiny" if tiny else "full"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def tell(self, line: str) -> None:
        """What to do next."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """The next line that is an answer."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise RuntimeError(f"a worker ended with {self.process.wait()}")

    def ask(self, line: str) -> float:
        """A number for an answer."""
        self.tell(line)
        return float(self.answer())


@contextmanager
def worker_pool(
    size: int, device: str, tiny: bool, left: Callable[[], float], environment: dict[str, str]
) -> Iterator[list[Worker]]:
    """So many workers that are ready; none where there is no time for them, or no MPS."""
    if left() < 0 or environment.get("missing"):
        yield []
        return
    pool = [Worker(device, tiny, environment) for _ in range(size)]
    killer = threading.Timer(min(left(), 600.0) + 20, lambda: [w.process.kill() for w in pool])
    killer.daemon = True
    killer.start()
    try:
        for worker in pool:
            worker.answer()
        yield pool
    finally:
        killer.cancel()
        for worker in pool:
            worker.process.kill()
            worker.process.wait()


@contextmanager
def mps() -> Iterator[dict[str, str]]:
    """NVIDIA's multi-process service of our own: the variables with which processes use it."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        print("no MPS here", flush=True)
        yield {"missing": "MPS"}
        return
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment = {**os.environ, **places}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # it lives on
        started = subprocess.run([control, "-d"], env=environment, timeout=20, check=False, **quiet)
        try:
            yield places if started.returncode == 0 else {"missing": "MPS"}
        finally:
            subprocess.run(
                [control], input="quit -t 2\n", text=True, env=environment, timeout=20, check=False
            )


def serve(device: str, tiny: bool) -> None:
    """What a worker does: "WORKLOAD SECONDS THREADS" in, steps a second out."""
    built: dict[tuple[int, int], Callable[[], object]] = {}

    def step_for(number: int, thread: int) -> Callable[[], object]:
        if (number, thread) not in built:
            work = workloads(tiny)[number]
            batches = random_batches(3, work.size, work.image_size, device)
            step = prepared(work.entry, work.network, batches, work.image_size, device)
            step()
            step()
            built[number, thread] = step
        return built[number, thread]

    for number in range(len(workloads(tiny))):
        try:
            step_for(number, 0)
        except Exception as error:
            print(f"no {workloads(tiny)[number].label}: {error}", file=sys.stderr, flush=True)
    print("> ready", flush=True)
    for line in sys.stdin:
        number, seconds, threads = line.split()
        try:
            steps = [step_for(int(number), thread) for thread in range(int(threads))]
            print(f"> {steps_a_second(steps, float(seconds), device)}", flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            print("> nan", flush=True)


def steps_a_second(steps: list[Callable[[], object]], seconds: float, device: str) -> float:
    """Of all threads together, each with a stream of its own."""
    counts = [0] * len(steps)
    wait: Any = torch.cuda.synchronize if device == "cuda" else lambda: None

    def work(thread: int) -> None:
        stream = torch.cuda.Stream() if device == "cuda" and len(steps) > 1 else None
        with torch.cuda.stream(stream):
            while time.perf_counter() < end:
                for _ in range(4):  # not more than a few steps ahead of the device
                    steps[thread]()
                    counts[thread] += 1
                if stream is None:
                    wait()
                else:
                    stream.synchronize()

    wait()
    start = time.perf_counter()
    end = start + seconds
    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(1, len(steps))]
    for worker in workers:
        worker.start()
    work(0)
    for worker in workers:
        worker.join()
    wait()
    return sum(counts) / (time.perf_counter() - start)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2] == "tiny")
