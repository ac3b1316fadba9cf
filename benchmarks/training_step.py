"""One training step: time and peak memory of each method against Deep-All.

    python benchmarks/training_step.py [--backbone alexnet] [--batch-size 8 32] [--memory]

All contestants use the same fused Adam and take turns in one process; with `--memory` each also
runs in a process of its own, whose high-water mark is printed. Peers: TorchJD (where installed),
and stored flat gradients compared in whole-tensor operations, the way the published code works.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from contestants import OTHERS, Batches, adam, method_step, random_batches, untrained
from timing import interleaved, print_ratios

from gradsurgery.algorithms import METHODS, OTHER_METHODS
from gradsurgery.training.device import keep_freed_memory, peak_memory_bytes


def step_of(name: str, backbone: str, batches: Batches) -> Callable[[], object]:
    """One training step of a contestant on a model of its own."""
    model = untrained(backbone)
    optimizer = adam(model.parameters())
    if name in OTHERS:
        return partial(OTHERS[name], model, batches, optimizer)
    return method_step(name, model, batches, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="alexnet", help="or vit_small_patch16_224, …")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--domains", type=int, nargs="+", default=[3])
    parser.add_argument("--methods", nargs="+", default=None, help="all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep-freed-memory", action="store_true", help="as the command line does")
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    parser.add_argument("--only-peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keep_freed_memory:
        keep_freed_memory()
    if options.only_peak:
        step = step_of(
            options.only_peak,
            options.backbone,
            random_batches(options.domains[0], options.batch_size[0]),
        )
        for _ in range(3):
            step()
        print(peak_memory_bytes(torch.device("cpu")))  # ru_maxrss would be the parent's too
        return
    names = options.methods or [*METHODS, *OTHER_METHODS, *OTHERS]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.backbone} at 224"
    )
    for domains in options.domains:
        for size in options.batch_size:
            print(f"D = {domains}, {size} per domain")
            batches = random_batches(domains, size)
            # one by one against the first, so that only two models are there at a time
            print(f"  {names[0]:44s}")
            for name in names[1:] or names:
                pair = {n: step_of(n, options.backbone, batches) for n in (names[0], name)}
                print_ratios(interleaved(pair, options.rounds), names[0], only=name)
            if options.memory:
                print_peaks(names, domains, size, options)


def print_peaks(names: list[str], domains: int, size: int, options: argparse.Namespace) -> None:
    """The high-water mark of a process that takes three steps."""
    for name in names:
        command = [sys.executable, __file__, "--only-peak", name, "--backbone", options.backbone]
        command += ["--batch-size", str(size), "--domains", str(domains)]
        command += ["--keep-freed-memory"] if options.keep_freed_memory else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  {name:44s} {int(done.stdout) / 2**20:10.0f} MiB at the peak")


if __name__ == "__main__":
    main()
