"""The rules alone on stored gradients, against summing them.

    python benchmarks/rules.py [--params 57030000] [--domains 3 8] [--rounds 7] [--busy 2]

Peers, measured in the same rounds: TorchJD's aggregators (where installed) and the way the
published code works, a stack of signs and whole-tensor temporaries. The first table writes into
an output that exists, the second includes the allocation of the output, which costs more than the
arithmetic on many machines. With `--busy N` so many other processes keep a core busy meanwhile,
as on a machine that is shared.
"""

import argparse
import importlib.util
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from timing import interleaved, print_ratios

import gradsurgery as gs
from gradsurgery.rules.agreement import agreement_sum
from gradsurgery.rules.gramian import gramian_of, weighted_sum


def stacked_signs(gradients: torch.Tensor) -> torch.Tensor:
    """Agr-Sum in whole-tensor operations, as one would write it first."""
    signs = torch.stack([torch.sign(gradient) for gradient in gradients])
    agrees = torch.where(signs.sum(0).abs() == len(gradients), 1, 0)
    return torch.stack(list(gradients)).sum(0) * agrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=int, default=57_030_000)
    parser.add_argument("--domains", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy", type=int, default=0, help="processes that run beside it")
    options = parser.parse_args()
    with busy_processes(options.busy):
        measure(options)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Inside, so many processes compute for nothing."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(options: argparse.Namespace) -> None:
    print(f"{options.busy} busy processes beside it")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, P = {options.params:,}")
    for domains in options.domains:
        generator = torch.Generator().manual_seed(domains)
        gradients = torch.randn(domains, options.params, generator=generator)
        gradients.sub_(gradients.mean(0), alpha=1.05)  # conflicting pairs
        out = torch.zeros(options.params)
        rows = gradients.unbind(0)
        pcgrad = gs.PCGrad()

        def project(rows=rows, out=out, rule=pcgrad) -> None:
            weighted_sum(rows, rule.weights(gramian_of(rows)), out=out)

        print(f"D = {domains}, output exists")
        in_place: dict[str, Callable[[], object]] = {
            "sum of the D gradients": lambda g=gradients, o=out: torch.sum(g, 0, out=o),
            "Agr-Sum": lambda g=gradients, o=out: agreement_sum(g, out=o),
            "Gramian": lambda r=rows: gramian_of(r),
            "PCGrad": project,
        }
        print_ratios(interleaved(in_place, options.rounds), "sum of the D gradients")

        print(f"D = {domains}, output allocated")
        fresh: dict[str, Callable[[], object]] = {
            "sum of the D gradients": lambda g=gradients: g.sum(0),
            "Agr-Sum": lambda g=gradients: gs.AgrSum()(g),
            "Agr-Rand": lambda g=gradients: gs.AgrRand()(g),
            "PCGrad": lambda g=gradients: gs.PCGrad()(g),
            "stacked signs (as published)": lambda g=gradients: stacked_signs(g),
        }
        if importlib.util.find_spec("torchjd"):
            from torchjd import aggregation

            for peer in (aggregation.Sum(), aggregation.GradDrop(), aggregation.PCGrad()):
                fresh[f"TorchJD {type(peer).__name__}"] = lambda g=gradients, p=peer: p(g)
        print_ratios(interleaved(fresh, options.rounds), "sum of the D gradients")
        print_extra_memory(gradients, out)


def print_extra_memory(gradients: torch.Tensor, out: torch.Tensor) -> None:
    """Growth of the process's peak while Agr-Sum runs, in multiples of P floats."""
    if not reset_peak():
        return
    before = peak_bytes()
    agreement_sum(gradients, out=out)
    print(f"  extra memory of Agr-Sum: {(peak_bytes() - before) / out.nbytes:.3f} P floats")


def reset_peak() -> bool:
    """Set Linux's high-water mark of this process back to the present; False elsewhere."""
    try:
        with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
            file.write("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The process's high-water mark."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
