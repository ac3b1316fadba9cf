"""Training images changed at random: ours, a batch at a time, against torchvision's, one by one.

    python benchmarks/augmentation.py [--sizes 224 32] [--images 96] [--device cpu] [--rounds 7]

Both change the same images by the same recipe; they take turns, and medians are compared. On a
processor it is one thread. The launches are those that an accelerator would be asked for, counted
by `launch_recorder.py` without one.
"""

import argparse
from functools import partial

import numpy as np
import torch
from launch_recorder import accelerated, second_step
from timing import turns
from torchvision.transforms import v2

from gradsurgery.data import Augmentation
from gradsurgery.training.device import keep_freed_memory

RECIPES = {
    "flip": [v2.RandomHorizontalFlip()],
    "crop": [],
    "domainbed": [v2.ColorJitter(0.3, 0.3, 0.3, 0.3), v2.RandomGrayscale(0.1)],
}


def one_by_one(transform: v2.Transform, pixels: torch.Tensor) -> torch.Tensor:
    changed = torch.empty_like(pixels)
    for i, image in enumerate(pixels):
        changed[i] = transform(image.permute(2, 0, 1)).permute(1, 2, 0)
    return changed


def contestants(name: str, size: int, pixels: torch.Tensor) -> dict:
    crop = v2.RandomResizedCrop(size, scale=(0.7, 1.0), antialias=True)
    first = [] if name == "flip" else [crop, v2.RandomHorizontalFlip()]
    transform = v2.Compose([*first, *RECIPES[name]])
    augmentation, positions = Augmentation(name, size=size, seed=0), np.arange(len(pixels))
    return {
        "ours": lambda: augmentation.at(positions, 1)(pixels),
        "torchvision": partial(one_by_one, transform, pixels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 32])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {options.images} images on {options.device}")
    print(f"{'':22s}{'ms an image':>24s}{'ratio':>8s}{'launches a batch':>28s}")
    for size in options.sizes:
        pixels = torch.randint(0, 256, (options.images, size, size, 3), dtype=torch.uint8)
        for name in RECIPES:
            ways = contestants(name, size, pixels.to(options.device))
            times = turns(ways, options.rounds, device=options.device)
            ours, theirs = (times[way].ms / options.images for way in ways)
            with accelerated():
                launches = [
                    second_step(way).counts.launches
                    for way in contestants(name, size, pixels).values()
                ]
            print(
                f"{name:12s}{size:6d} px {ours:12.3f} {theirs:11.3f} {theirs / ours:7.1f} "
                f"{launches[0]:15d} {launches[1]:11d}",
                flush=True,
            )


if __name__ == "__main__":
    main()
