"""Pictures a second of `TrainedModel.stream` and of torchvision's ImageFolder with a DataLoader.

    python benchmarks/prediction.py RUN FOLDER --workers 2

RUN: of `gradsurgery train`; FOLDER: of pictures, class/picture or deeper. Both take the same
pictures, parts of 1,000 in turn, decode with as many workers (threads here, processes there) and
compute with one thread. The classes that both predict are compared.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

import gradsurgery as gs
from gradsurgery.deployment.pictures import Picture

PART = 1000


def ours(model: gs.TrainedModel, files: list[Path], workers: int) -> list[int]:
    pictures = (Picture(str(file), file) for file in files)
    parts = model.stream(pictures, workers=workers)
    return [int(i) for part in parts for i in part.probabilities.argmax(1)]


@torch.no_grad()
def theirs(model: gs.TrainedModel, data: Subset, workers: int) -> list[int]:
    batches = DataLoader(data, batch_size=128, num_workers=workers)
    return [int(i) for images, _ in batches for i in model.module(images).argmax(1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--most", type=int, help="pictures; all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = gs.load_model(options.run, device="cpu")
    first = model.preprocess.resize_first
    sides = [side for side in (first, model.preprocess.size) if side]
    resizes = [Resize((side, side)) for side in sides]
    normalize = Normalize(model.preprocess.mean, model.preprocess.std)
    data = ImageFolder(options.folder, Compose([*resizes, ToTensor(), normalize]))
    count = min(len(data), options.most or len(data))
    positions = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    seconds = {"gradsurgery": 0.0, "ImageFolder + DataLoader": 0.0}
    same = done = 0
    remaining = iter(positions.tolist())
    while part := list(islice(remaining, PART)):
        files = [Path(data.samples[i][0]) for i in part]
        start = time.perf_counter()
        predicted = ours(model, files, options.workers)
        middle = time.perf_counter()
        expected = theirs(model, Subset(data, part), options.workers)
        seconds["gradsurgery"] += middle - start
        seconds["ImageFolder + DataLoader"] += time.perf_counter() - middle
        done += len(part)
        print(done, {name: round(taken, 1) for name, taken in seconds.items()}, flush=True)
        same += sum(a == b for a, b in zip(predicted, expected, strict=True))
    for name, taken in seconds.items():
        print(f"{name:26} {count / taken:8.1f} pictures a second, {taken:.1f} s")
    print(f"{same} of {count} pictures are given the same class")


if __name__ == "__main__":
    main()
