"""What a step takes in a whole run, as the command line does it. Called by `gpu.py`."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gradsurgery as gs
from gradsurgery.data import ImageSet

PRECISIONS = ("float32", "bfloat16")
METHODS = ("agr-sum", "deep-all")


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
        identities=tuple(f"d{d}/c{c}/{i}" for i, (d, c) in enumerate(zip(domain, label))),  # noqa: B905
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
    """Two runs of different length differ by steps alone: validation and tests are the same."""
    data = generated_images(image_size, images)
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            for method in METHODS:
                seconds, start = [], time.monotonic()
                for iterations in steps:
                    if left() <= 0:
                        return
                    options = {
                        "data": "generated",
                        "target": data.domains[-1],
                        "method": method,
                        "backbone": network,
                        "weights": "none",
                        "image_size": image_size,
                        "batch_size": batch_size,
                        "iterations": iterations,
                        "validate_every": iterations,
                        "precision": precision,
                        "device": device,
                    }
                    place = Path(folder) / f"{method}-{precision}-{iterations}"
                    record = gs.train(gs.RunConfiguration(**options), place, opened=data)
                    seconds.append(record.cost.seconds)
                emit(
                    "command-line",
                    network=network,
                    size=batch_size,
                    method=method,
                    precision=precision,
                    ms=1e3 * (seconds[1] - seconds[0]) / (steps[1] - steps[0]),
                    first_run_seconds=seconds[0],
                    both_runs_seconds=time.monotonic() - start,
                    cost=_numbers(record.cost),
                )


def _numbers(cost: Any) -> dict[str, Any]:
    return dict(cost.model_dump(mode="json"))
