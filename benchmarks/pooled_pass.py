"""The D gradients from one pass over all domains, and from one pass for each.

    OMP_NUM_THREADS=2 python benchmarks/pooled_pass.py [--sizes 8 32 128] [--rounds 3] [--cpu-time]

One backward pass with Agr-Sum for 3 domains; AlexNet at 224 (dropout off) and ResNet-18 at 96 with
frozen batch normalisation. Times are interleaved, after a first round of each that does not count.
"""

import argparse
import time
from collections.abc import Callable

import timm
import torch
import torchvision
from timing import interleaved, print_ratios
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=7), 224),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=7), 96),
}
Batches = list[tuple[Tensor, Tensor]]


def contestants(model: nn.Module, batches: Batches, rule: str) -> dict[str, Callable[[], None]]:
    pooled_model = gs.PooledModel(model)

    def wait() -> None:
        if batches[0][0].is_cuda:
            torch.cuda.synchronize()

    def separate() -> None:
        model.zero_grad()
        losses = (cross_entropy(model(x), y) for x, y in batches)
        gs.backward(losses, model.parameters(), gs.rule(rule))
        wait()

    def pooled() -> None:
        model.zero_grad()
        outputs = pooled_model([x for x, _ in batches])
        losses = [cross_entropy(z, y) for z, (_, y) in zip(outputs, batches, strict=True)]
        pooled_model.backward(losses, gs.rule(rule))
        wait()

    def deep_all() -> None:
        model.zero_grad()
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        cross_entropy(model(images), labels).backward()
        wait()

    return {"one pass per domain": separate, "one pass for all": pooled, "plain pooled": deep_all}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rule", default="agr-sum")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for busy machines")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for network in arguments.networks:
        torch.manual_seed(0)
        build, pixels = NETWORKS[network]
        model = build().eval().to(arguments.device)
        for size in arguments.sizes:
            batches = [
                (torch.randn(size, 3, pixels, pixels), torch.arange(size) % 7) for _ in range(3)
            ]
            batches = [(x.to(arguments.device), y.to(arguments.device)) for x, y in batches]
            print(f"{network} at {pixels}, {arguments.rule}, 3 domains × {size}", flush=True)
            ways = contestants(model, batches, arguments.rule)
            clock = time.process_time if arguments.cpu_time else time.perf_counter
            seconds = interleaved(ways, arguments.rounds, clock)
            print_ratios(seconds, "one pass per domain")


if __name__ == "__main__":
    main()
