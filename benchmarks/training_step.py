"""One training step: time and peak memory of each method against Deep-All.

    python benchmarks/training_step.py [--backbone alexnet] [--batch-size 8 32] [--memory]

All contestants use the same fused Adam and take turns in one process; with `--memory` each also
runs in a process of its own, whose high-water mark is printed. Peers: TorchJD (where installed),
and stored flat gradients compared in whole-tensor operations, the way the published code works.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from rules import stacked_signs
from timing import interleaved, print_ratios
from torch import nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from gradsurgery.algorithms import METHODS, OTHER_METHODS, build_method
from gradsurgery.backbones import build_backbone, set_training_mode
from gradsurgery.training.device import keep_freed_memory, peak_memory_bytes

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def domain_batches(domains: int, size: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 224, 224, generator=generator),
            torch.randint(7, (size,), generator=generator),
        )
        for _ in range(domains)
    ]


def published_step(model: nn.Module, batches: Batches) -> None:
    """One flat stored gradient per domain, then whole-tensor operations."""
    flat = []
    parameters = list(model.parameters())
    for images, labels in batches:
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        flat.append(torch.cat([p.grad.clone().flatten() for p in parameters]))
    update = stacked_signs(torch.stack(flat))
    for parameter, part in zip(
        parameters, update.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter)


def torchjd_step(model: nn.Module, batches: Batches) -> None:
    """TorchJD's PCGrad."""
    from torchjd import autojac
    from torchjd.aggregation import PCGrad

    losses = [cross_entropy(model(images), labels) for images, labels in batches]
    model.zero_grad()
    if hasattr(autojac, "jac_to_grad"):
        autojac.backward(losses)
        autojac.jac_to_grad(model.parameters(), PCGrad())
    else:
        autojac.backward(losses, PCGrad())


def library_step(model: nn.Module, batches: Batches) -> None:
    """`gradsurgery.backward` in a loop of the user's own."""

    def losses() -> Iterator[torch.Tensor]:
        for images, labels in batches:
            yield cross_entropy(model(images), labels)

    gs.backward(losses(), model.parameters(), gs.AgrSum())


def contestants() -> list[str]:
    """Every method, then the peers."""
    peers = ["user's loop: agr-sum", "as published: agr-sum"]
    if importlib.util.find_spec("torchjd"):
        peers.append("TorchJD: PCGrad")
    return [*METHODS, *OTHER_METHODS, *peers]


def step_of(name: str, backbone: str, batches: Batches) -> Callable[[], object]:
    """One training step of a contestant on a model of its own."""
    model = build_backbone(backbone, classes=7, weights="none", seed=0).model
    set_training_mode(model, "frozen")

    def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-5, weight_decay=5e-5, fused=True)

    optimizer = make_optimizer(model.parameters())
    by_hand = {
        "user's loop: agr-sum": library_step,
        "as published: agr-sum": published_step,
        "TorchJD: PCGrad": torchjd_step,
    }
    if name not in by_hand:
        generator = torch.Generator().manual_seed(0)
        method = build_method(name, generator=generator, make_optimizer=make_optimizer)
        return lambda: method.step(model, batches, optimizer, step=1)

    def step() -> None:
        optimizer.zero_grad()
        by_hand[name](model, batches)
        optimizer.step()

    return step


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
            domain_batches(options.domains[0], options.batch_size[0]),
        )
        for _ in range(3):
            step()
        print(peak_memory_bytes(torch.device("cpu")))  # ru_maxrss would be the parent's too
        return
    names = options.methods or contestants()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.backbone} at 224"
    )
    for domains in options.domains:
        for size in options.batch_size:
            print(f"D = {domains}, {size} per domain")
            batches = domain_batches(domains, size)
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
