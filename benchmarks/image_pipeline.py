"""A training batch from the decoded cache against decoding its images, on PACS.

    GRADSURGERY_PACS=FOLDER python benchmarks/image_pipeline.py

Both ways give the network's input for the same 384 images (128 of each of three domains) at
224x224; they run in turn, each in one thread, and are compared by their medians. The images of the
decoding way lie encoded in memory: no disk is measured.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from gradsurgery.data import DomainBatches, draw_split, image_loader, open_source, prepare
from gradsurgery.data.pixels import gather
from gradsurgery.training.device import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCES = ("art_painting", "cartoon", "photo")
SIZE, BATCH, BAR = 224, 128, 20
ROUNDS = int(os.environ.get("ROUNDS", "9"))


def seconds(work: Callable[[int], object], step: int) -> float:
    start = time.perf_counter()
    work(step)
    return time.perf_counter() - start


def main() -> None:
    root = os.environ.get("GRADSURGERY_PACS")
    if not root:
        sys.exit("GRADSURGERY_PACS is not set: the folder or Parquet files of PACS are missing")
    keep_freed_memory()  # as the command line does
    source = open_source(f"pacs:{root}")
    images = prepare(source, SIZE)
    split = draw_split(images)
    batches = DomainBatches(images, split.train, domains=SOURCES, batch_size=BATCH, seed=0)
    encoded = dict(source.contents())
    transform = transforms.Compose(
        [
            transforms.Resize((227, 227)),
            transforms.Resize((SIZE, SIZE)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def load(position: int) -> torch.Tensor:
        with Image.open(BytesIO(encoded[position])) as image:
            return transform(image.convert("RGB"))

    device = torch.device("cpu")
    loader = image_loader(images, MEAN, STD, device=device, channels_last=True)

    def positions(step: int) -> NDArray[np.int64]:
        return batches.indices_at(step).reshape(-1)

    def from_cache(step: int) -> torch.Tensor:
        return loader.fetch(positions(step))()[0]

    def decoded(step: int) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        images = torch.stack([load(i) for i in positions(step)])
        torch.set_num_threads(before)
        return images

    if not torch.equal(from_cache(0), decoded(0)):
        sys.exit("the two ways differ")
    print("both ways give the same bits")
    ways = {
        "decoding": decoded,
        "gathering alone": lambda step: gather(images.images, positions(step)),
        "from the cache": from_cache,
    }
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        print(f"decoding in one thread, the cache in {threads}")
        print_rates(ways)
    print(f"the bar is {BAR} times")


def print_rates(ways: dict[str, Callable[[int], object]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(-1, ROUNDS):  # the first round warms up
        for name, way in ways.items():
            times[name].append(seconds(way, max(step, 0)))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, value in median.items():
        ratio = median["decoding"] / value
        rate = len(SOURCES) * BATCH / value
        print(f"{name:30} {1000 * value:7.1f} ms {rate:8,.0f} images/s  {ratio:5.1f} times")


if __name__ == "__main__":
    main()
