"""All inner products of 24 per-sample gradients: gs.gradient_gram and the other ways, with memory.

    OMP_NUM_THREADS=2 python benchmarks/gradient_gram.py [--rounds 5] [--slow-rounds 2] [--cpu-time]

Times are interleaved. Memory is the high-water mark of a process of its own above what it holds
with the network and the images in place.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from timing import interleaved, print_ratios
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.rules.gramian import gramian_of

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: torchvision.models.alexnet(num_classes=7),
    "resnet18": lambda: timm.create_model("resnet18", num_classes=7),
    "vit-small": lambda: timm.create_model("vit_small_patch16_224", num_classes=7),
}
Clock = Callable[[], float]
Comparison = Callable[[Tensor, Tensor], Tensor]
LOSS = nn.CrossEntropyLoss(reduction="none")


def plain(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One forward and backward pass, as a training step has it."""
    model.zero_grad()
    LOSS(model(x), y).mean().backward()
    model.zero_grad()


def gram(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return gs.gradient_gram(model, LOSS, x, y).total


def vmapped(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Per-sample gradients of torch.func, multiplied in accurate blocks."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), (sample[None],))
        return nn.functional.cross_entropy(logits, label[None])

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    return torch.stack([gramian_of(row.flatten(1).unbind()) for row in rows.values()]).sum(0)


def stored(model: nn.Module, x: Tensor, y: Tensor, compare: Comparison = torch.dot) -> Tensor:
    """One backward pass a sample, flat gradients, compared in pairs."""
    rows = []
    for i in range(len(x)):
        loss = LOSS(model(x[i : i + 1]), y[i : i + 1]).sum()
        found = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    pairs = torch.zeros(len(x), len(x), dtype=torch.float64)
    for i, left in enumerate(rows):
        for j, right in enumerate(rows[: i + 1]):
            pairs[i, j] = pairs[j, i] = compare(left, right)
    return pairs


def stored_cosines(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same with torch's cosine similarity for every pair, as studies of gradients have it."""
    return stored(model, x, y, partial(nn.functional.cosine_similarity, dim=0))


WAYS = {
    "plain": plain,
    "gram": gram,
    "vmap": vmapped,
    "stored, dot": stored,
    "stored, cosine": stored_cosines,
}


def setting(network: str, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    return model, torch.randn(samples, 3, 224, 224), torch.arange(samples) % 7


def resident() -> float:
    """The high-water mark of this process in MiB; getrusage has that of its parent in it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def print_memory(network: str, way: str, samples: int) -> None:
    model, x, y = setting(network, samples)
    with torch.no_grad():
        model(x[:1])  # loads the kernels
    before = resident()
    WAYS[way](model, x, y)
    extra, whole = resident() - before, resident()
    print(f"  {network:10s} N = {samples:3d} {way:8s} {extra:8.0f} MiB extra, {whole:8.0f} in all")


def compare(network: str, samples: int, rounds: int, slow_rounds: int, clock: Clock) -> None:
    model, x, y = setting(network, samples)
    ways = {name: lambda way=way: way(model, x, y) for name, way in WAYS.items()}
    fast = interleaved({name: ways[name] for name in ("plain", "gram")}, rounds, clock)
    print(f"{network}, N = {samples} at 224, {torch.get_num_threads()} threads", flush=True)
    print_ratios(fast, "plain")
    slow = interleaved({name: ways[name] for name in ("gram", "vmap")}, slow_rounds, clock)
    print_ratios(slow, "gram", only="vmap")
    if network == "alexnet":
        for name in ("stored, dot", "stored, cosine"):
            slowest = interleaved({"gram": ways["gram"], name: ways[name]}, 1, clock)
            print_ratios(slowest, "gram", only=name)
    found, expected = gram(model, x, y), vmapped(model, x, y)
    lengths = expected.diagonal().sqrt()
    error = ((found - expected).abs() / (lengths[:, None] * lengths)).max().item()
    print(f"  largest difference to vmap, relative to the two lengths: {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for busy machines")
    parser.add_argument("--memory", nargs=3, metavar=("NETWORK", "WAY", "SAMPLES"))
    arguments = parser.parse_args()
    if arguments.memory:
        network, way, samples = arguments.memory
        print_memory(network, way, int(samples))
        return
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    for network in NETWORKS:
        compare(network, 24, arguments.rounds, arguments.slow_rounds, clock)
    print("memory, each in a process of its own")
    for network in NETWORKS:
        for way, samples in (("plain", 24), ("gram", 24), ("vmap", 24), ("gram", 192)):
            if network == "alexnet" or samples == 24:
                command = [sys.executable, __file__, "--memory", network, way, str(samples)]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
