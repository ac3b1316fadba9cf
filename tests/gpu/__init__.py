"""What can only be seen on a GPU, against float64 on the processor.

`GRADSURGERY_TEST_DEVICE=cpu` goes through the same tests on the processor, to try the tests.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

DEVICE = torch.device(os.environ.get("GRADSURGERY_TEST_DEVICE", "cuda"))

needs_gpu = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"
)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in float64 on the processor; NaN passes no bound."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Inside, torch raises where the host waits for the device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it does not see all of them
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
