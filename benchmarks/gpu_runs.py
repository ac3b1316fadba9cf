"""What a step takes in a whole run, as the command line does it. Called by `gpu.py`."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gradsurgery as gs
from gradsurgery.data import ImageSet

RUNS: tuple[dict[str, Any], ...] = (
    {"method": "agr-sum", "precision": "bfloat16"},
    {"method": "deep-all", "precision": "bfloat16"},
    {"method": "agr-sum", "precision": "tf32"},
    {"method": "deep-all", "precision": "tf32"},
    {"method": "agr-sum", "precision": "bfloat16", "cuda_graph": "off"},
    {"method": "agr-sum", "precision": "float32"},
    {"method": "deep-all", "precision": "float32"},
)


def generated_images(size: int, images: int, *, domains: int = 4, classes: int = 7) -> ImageSet:
    """Random pixels: `images` of every domain."""
    generator = np.random.default_rng(0)
    count = domains * images
    domain, label = np.arange(count) // images, np.arange(count) % images % classes
    return ImageSet(
        name="generated",
        domains=tuple(f"d{d}" for d in range(domains)),
        classes=tuple(f"c{c}" for c in range(classes)),
        images=generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        identities=tuple(f"d{domain[i]}/c{label[i]}/{i}" for i in range(count)),
        domain=domain,
        label=label,
        size=size,
        digest="generated",
    )


def measure(
    network: str,
    batch_size: int,
    image_size: int,
    *,
    images: int,
    steps: tuple[int, int],
    device: str,
    emit: Callable[..., None],
    left: Callable[[], float],
) -> None:
    """Two runs of different length: what their steps took, without what the first ones wait for."""
    data = generated_images(image_size, images)
    with tempfile.TemporaryDirectory() as folder:
        for chosen in RUNS:
            costs, start = [], time.monotonic()
            for iterations in steps:
                if left() <= 0:
                    return
                configuration = gs.RunConfiguration(
                    data="generated",
                    target=data.domains[-1],
                    backbone=network,
                    weights="none",
                    image_size=image_size,
                    batch_size=batch_size,
                    iterations=iterations,
                    validate_every=iterations,
                    device=device,
                    **chosen,
                )
                place = Path(folder) / "-".join(map(str, [*chosen.values(), iterations]))
                record = gs.train(configuration, place, opened=data)
                costs.append(record.cost)
            stepping = [
                cost.seconds_per_step * count for cost, count in zip(costs, steps, strict=True)
            ]
            emit(
                "command-line",
                network=network,
                size=batch_size,
                options=chosen,
                ms=1e3 * (stepping[1] - stepping[0]) / (steps[1] - steps[0]),
                short_run_seconds=costs[0].seconds,
                both_runs_seconds=time.monotonic() - start,
                cost=costs[1].model_dump(mode="json"),
            )
