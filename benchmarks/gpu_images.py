"""What it costs to bring a batch to a GPU as the network takes it: milliseconds a batch.

    python benchmarks/gpu_images.py [--images 10000] [--size 224] [--batch 384]

Random pixels, once held on the card and once streamed, with the channels last and not, by the
kernel and by torch's operations. `host` is the time that the computing thread takes, `device` that
of the card; beside them the time that the card's memory takes for the bytes that must move.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch

from gradsurgery.data import ImageSet
from gradsurgery.data.loader import ResidentLoader, ResidentSets, StreamingLoader, prefetched
from gradsurgery.kernels import network

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEVICE = torch.device("cuda")
ROUNDS = 30


def random_set(count: int, size: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    zeros = np.zeros(count, np.int64)
    names = tuple(map(str, range(count)))
    return ImageSet("random", ("a",), ("b",), pixels, names, zeros, zeros, size, "random")


def times(loader: Any, drawn: list[np.ndarray]) -> tuple[float, float]:
    """Milliseconds of the host and of the device for a batch, in the steady state."""
    loader.fetch(drawn[0])()
    torch.cuda.synchronize()
    host, events = 0.0, []
    for _, fetched in prefetched(lambda i: loader.fetch(drawn[i]), 1, len(drawn)):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start = time.perf_counter()
        begin.record()
        fetched()
        end.record()
        host += time.perf_counter() - start
        events.append((begin, end))
    torch.cuda.synchronize()
    device = sorted(begin.elapsed_time(end) for begin, end in events)[len(events) // 2]
    return 1000 * host / len(drawn), device


def copy_seconds(nbytes: int) -> float:
    """Milliseconds that the card takes to write as many bytes."""
    memory = torch.empty(nbytes, dtype=torch.uint8, device=DEVICE)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    memory.zero_()
    begin.record()
    for _ in range(10):
        memory.zero_()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=384)
    options = parser.parse_args()
    images = random_set(options.images, options.size)
    random = np.random.default_rng(1)
    drawn = [random.integers(0, options.images, options.batch) for _ in range(ROUNDS)]
    start = time.perf_counter()
    resident = ResidentSets(lambda _: 10**13).get(images, DEVICE)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    print(f"{images.images.nbytes / 1e9:.2f} GB put on the card in {seconds:.2f} s")
    moved = 5 * options.batch * images.images[0].nbytes  # a byte is read, a float32 is written
    print(f"the bytes of a batch alone: {copy_seconds(moved):.3f} ms")
    triton = network.has_triton()
    for kernel in dict.fromkeys((triton, False)):
        network.has_triton = lambda kernel=kernel: kernel
        for last in (True, False):
            layout = {"channels_last": last}
            held = ResidentLoader(images, MEAN, STD, DEVICE, resident=resident, **layout)
            streamed = StreamingLoader(images, MEAN, STD, DEVICE, **layout)
            for name, loader in (("held", held), ("streamed", streamed)):
                host, device = times(loader, drawn)
                way = "kernel" if kernel else "torch"
                order = "channels last" if last else "contiguous"
                print(f"{name:9} {way:7} {order:14} host {host:7.3f}  device {device:7.3f}")


if __name__ == "__main__":
    main()
