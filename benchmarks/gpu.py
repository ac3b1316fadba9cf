"""What a step costs on a GPU, against the published code, TorchJD and the plain loop.

    python benchmarks/gpu.py rules steps compiled command-line launches sharing [--out FILE]
    python benchmarks/gpu.py rules:20 steps:150 --networks alexnet:128 resnet50:32
    python benchmarks/gpu.py --table FILE …

A part may be given the seconds that it may take; what does not fit is left out. Every part prints
as it goes, adds a line of JSON to the file for each measurement, and at the end the table of the
file is printed. All contestants of a comparison take turns in one process.

- rules: the rules alone on 57 million components, in multiples of the sum of the D gradients.
- steps: one training step of each method, with and without a CUDA graph, in torch's default
  precision (TF32 in convolutions alone), TF32 and bfloat16; and the peak of allocated memory.
- compiled: the plain loop on the pooled batch, compiled by `torch.compile`.
- command-line: what a step takes in a whole run, against the bare step.
- launches: kernel launches, synchronisations and copies of a step, as CUDA's profiler sees them.
- sharing: steps a second of several processes, or threads, on one card.

`--device cpu --tiny` goes through the same code in seconds, for its test.
"""

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gpu_runs
import gpu_sharing
import torch
from contestants import OTHERS, random_batches
from gpu_contestants import METHODS, Entry, entries_of, prepared
from gpu_tables import print_tables
from rules import stacked_signs
from timing import turns

import gradsurgery as gs

NETWORKS = (
    "alexnet:128",
    "resnet50:32",
    "tf_efficientnet_lite0:32",
    "alexnet:32",
    "vit_small_patch16_224:32",
)
Emit = Callable[..., None]


def rules(options: argparse.Namespace, emit: Emit, left: Callable[[], float]) -> None:
    for domains in (3, 8):
        if left() <= 0:
            return
        generator = torch.Generator().manual_seed(domains)
        gradients = torch.empty(domains, options.params, device=options.device)
        gradients.normal_(generator=torch.Generator(options.device).manual_seed(domains))
        gradients.sub_(gradients.mean(0), alpha=1.05)  # conflicting pairs
        out = torch.empty_like(gradients[0])
        draws = torch.Generator(options.device).manual_seed(0)
        found: dict[str, Callable[..., torch.Tensor]] = {
            "agr-sum": gs.AgrSum(),
            "agr-rand": gs.AgrRand(generator=draws),
            "pcgrad": gs.PCGrad(generator=generator),
            "and-mask": gs.ANDMask(),
            "as published: agr-sum": stacked_signs,
        }
        if "TorchJD: PCGrad" in OTHERS:
            from torchjd.aggregation import PCGrad

            found["TorchJD: PCGrad"] = PCGrad()
        contestants: dict[str, Callable[[], object]] = {
            "sum": partial(torch.sum, gradients, 0, out=out),
            **{name: partial(rule, gradients) for name, rule in found.items()},
        }
        timings = turns(contestants, options.rounds, device=options.device)
        for name, timing in timings.items():
            emit("rules", rule=name, domains=domains, params=options.params, **asdict(timing))


def steps(options: argparse.Namespace, emit: Emit, left: Callable[[], float]) -> None:
    measure_steps(options, emit, left, compiled=False)


def compiled(options: argparse.Namespace, emit: Emit, left: Callable[[], float]) -> None:
    measure_steps(options, emit, left, compiled=True)


def measure_steps(
    options: argparse.Namespace, emit: Emit, left: Callable[[], float], *, compiled: bool
) -> None:
    for group in entries_of(options.device, compiled=compiled):
        for spec in options.networks:
            if left() > 0:
                measure_group(spec, group, options, emit)
            gc.collect()


def measure_group(spec: str, entries: list[Entry], options: argparse.Namespace, emit: Emit) -> None:
    """The entries take turns; their peak memory is that of each alone."""
    network, size = spec.split(":")
    batches = random_batches(options.domains, int(size), options.image_size, options.device)
    contestants, gib = {}, {}
    for entry in entries:
        try:
            with peak_memory(options.device) as peak:
                step = prepared(entry, network, batches, options.image_size, options.device)
                for _ in range(2):
                    step()
            contestants[entry], gib[entry] = step, peak()
        except Exception as error:
            report_failure(f"{spec} {entry.label}", error)
    timings = turns(contestants, options.rounds, device=options.device)
    for entry, timing in timings.items():
        emit(
            "steps",
            network=network,
            size=int(size),
            label=entry.label,
            **asdict(entry),
            **asdict(timing),
            gib=gib[entry],
        )


class peak_memory:  # noqa: N801
    """Inside, the device's peak of allocated memory over what was there before, in GiB."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def __enter__(self) -> Callable[[], float]:
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        return self._peak

    def _peak(self) -> float:
        if not self._cuda:
            return 0.0
        return (torch.cuda.max_memory_allocated() - self._before) / 2**30

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def command_line(options: argparse.Namespace, emit: Emit, left: Callable[[], float]) -> None:
    network, size = options.networks[0].split(":")
    gpu_runs.measure(
        network,
        int(size),
        options.image_size,
        images=options.images,
        steps=tuple(options.run_steps),
        device=options.device,
        emit=emit,
        left=left,
    )


def launches(options: argparse.Namespace, emit: Emit, left: Callable[[], float]) -> None:
    from launches import seen_by_profiler, seen_by_recorder
    from launches import steps as steps_of

    see = seen_by_profiler if options.device == "cuda" else seen_by_recorder
    for spec in options.networks:
        network = spec.split(":")[0]
        for method in METHODS:
            if left() <= 0:
                return
            shape = {"domains": options.domains, "size": 2, "image_size": options.image_size}
            found = {
                name: see(step).counts
                for name, step in steps_of(method, network, **shape, device=options.device).items()
            }
            beyond = asdict(found[method] - found["plain"])
            emit("launches", network=network, method=method, **asdict(found[method]), beyond=beyond)


def sharing(options: argparse.Namespace, emit: Emit, left: Callable[[], float]) -> None:
    gpu_sharing.measure(options.device, options.tiny, emit, left)


PARTS = {
    "rules": rules,
    "steps": steps,
    "compiled": compiled,
    "command-line": command_line,
    "launches": launches,
    "sharing": sharing,
}


def report_failure(what: str, error: BaseException) -> None:
    print(f"FAILED {what}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    traceback.print_exc(limit=-3, file=sys.stdout)


def emitter(path: Path) -> Emit:
    """Prints a measurement and adds it to the file."""

    def emit(part: str, **values: Any) -> None:
        line = json.dumps({"part": part, **values})
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        shown = " ".join(f"{k}={_short(v)}" for k, v in values.items() if v is not None)
        print(f"{part} {shown}", flush=True)

    return emit


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def parts_with_deadlines(given: list[str]) -> Iterator[tuple[str, Callable[[], float]]]:
    for text in given:
        name, _, seconds = text.partition(":")
        end = time.monotonic() + float(seconds or "inf")
        yield name, lambda end=end: end - time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART[:SECONDS]", default=[*PARTS])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME:IMAGES")
    parser.add_argument("--domains", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--params", type=int, default=57_030_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=500, help="of each domain of the runs")
    parser.add_argument("--run-steps", type=int, nargs=2, default=(20, 140))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="everything small, for the CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--no-table", action="store_true", help="print no table at the end")
    parser.add_argument("--table", type=Path, nargs="+", help="only print the table of the files")
    options = parser.parse_args()
    if options.table:
        print_tables(options.table)
        return
    if options.tiny:
        options.networks, options.image_size = ("small-cnn:2",), 14
        options.params, options.rounds = 10_000, 1
        options.images, options.run_steps = 20, (1, 3)
    if unknown := [part for part in options.parts if part.split(":")[0] not in PARTS]:
        parser.error(f"unknown part {unknown[0]}; the parts are {', '.join(PARTS)}")
    emit = emitter(options.out)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU"
    emit("machine", card=card, torch=torch.__version__, cuda=torch.version.cuda)
    for name, left in parts_with_deadlines(options.parts):
        start = time.monotonic()
        try:
            PARTS[name](options, emit, left)
        except Exception as error:  # the other parts go on
            report_failure(name, error)
        gc.collect()
        print(f"-- {name} took {time.monotonic() - start:.0f} s", flush=True)
    if not options.no_table:
        print_tables([options.out])


if __name__ == "__main__":
    main()
