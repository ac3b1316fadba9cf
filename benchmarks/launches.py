"""Kernel launches, synchronisations and copies of one training step, by network and method.

    python benchmarks/launches.py [--networks resnet50 …] [--methods agr-sum …] [--domains 3]
        [--without-triton]

No accelerator is needed: `launch_recorder.py` counts what the step asks torch and our own kernels
for on tensors that are taken for an accelerator's. "beyond" is what is left after the launches of
the D forward and backward passes and the optimiser (Deep-All: of the plain loop on the pooled
batch). `--without-triton` counts what is done in torch's own operations where Triton is missing, of
which `torch.cat` alone takes more launches for more parameters. With `--device cuda` the same table
is made of what CUDA's profiler sees; `--by-operation` says which operations they are.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from contestants import adam, method_step, passes, pooled, random_batches, untrained
from launch_recorder import Counts, Recording, accelerated, second_step

from gradsurgery.kernels import network as kernels_network

NETWORKS = ("small-cnn", "alexnet", "resnet50", "tf_efficientnet_lite0", "vit_small_patch16_224")
METHODS = (
    "deep-all",
    "agr-sum",
    "agr-rand",
    "agr-ema",
    "pcgrad",
    "gradvac",
    "cagrad",
    "mgda",
    "and-mask",
)
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")


def steps(
    method: str, network: str, *, domains: int, size: int, image_size: int, device: str
) -> dict[str, Callable[[], object]]:
    """The method's step, and the passes and the optimiser of it alone."""
    batches = random_batches(domains, size, image_size, device)
    model = untrained(network, image_size, device)
    optimizer = adam(model.parameters())
    plain = pooled if method == "deep-all" else passes
    return {
        "plain": partial(plain, model, batches, optimizer),
        method: method_step(method, model, batches, optimizer),
    }


def seen_by_recorder(step: Callable[[], object], *, triton: bool = True) -> Recording:
    """What the second step asks for."""
    with accelerated(triton=triton):
        return second_step(step)


def seen_by_profiler(step: Callable[[], object]) -> Recording:
    """What CUDA's own profiler sees of the third step."""
    from torch.profiler import ProfilerActivity, profile

    step()
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    recording = Recording()
    for event in profiler.key_averages():
        if event.key in _LAUNCHES:
            recording.launches[event.key] += event.count
        elif event.key in _WAITS:
            recording.synchronisations[event.key] += event.count
        elif event.key.startswith("Memcpy") and "DtoD" not in event.key:
            recording.copies[event.key] += event.count
    return recording


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--domains", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64, help="the counts do not depend on it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--without-triton", action="store_true")
    parser.add_argument("--by-operation", action="store_true")
    options = parser.parse_args()
    seen = partial(seen_by_recorder, triton=not options.without_triton)
    if options.device == "cuda":
        if options.without_triton:
            kernels_network.has_triton = lambda: False
        seen = seen_by_profiler
    print(f"torch {torch.__version__}, D = {options.domains}, counted on {options.device}")
    print(f"{'':38s} launches  beyond  synchronisations  copies")
    for network in options.networks:
        for method in options.methods:
            found = {
                name: seen(step)
                for name, step in steps(
                    method,
                    network,
                    domains=options.domains,
                    size=2,
                    image_size=options.image_size,
                    device=options.device,
                ).items()
            }
            beyond = found[method].counts - found["plain"].counts
            print_row(f"{network} {method}", found[method].counts, beyond)
            if options.by_operation:
                print_operations(found[method], found["plain"])


def print_row(name: str, counts: Counts, beyond: Counts) -> None:
    print(
        f"{name:38s} {counts.launches:8d} {beyond.launches:7d} {beyond.synchronisations:17d} "
        f"{beyond.copies:7d}",
        flush=True,
    )


def print_operations(found: Recording, plain: Recording) -> None:
    """What is beyond the plain passes, by name."""
    for what in ("launches", "synchronisations", "copies"):
        more = getattr(found, what) - getattr(plain, what)
        for name, count in more.most_common():
            print(f"    {what[:16]:16s} {count:6d} {name}")


if __name__ == "__main__":
    main()
