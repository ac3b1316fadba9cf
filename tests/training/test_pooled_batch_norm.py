"""Runs whose batch normalisation sees all domains at once."""

import pytest

from gradsurgery.training import train
from tests.training.test_resume import interrupted

BATCH_NORM = {
    "backbone": "resnet10t",
    "weights": "none",
    "image_size": 32,
    "iterations": 4,
    "batch_norm": "pooled",
}


@pytest.mark.parametrize("method", ["agr-rand", "pcgrad"])
def test_a_resumed_run_equals_the_uninterrupted_one(method, tmp_path, configured, images, outcome):
    configuration = configured(method=method, **BATCH_NORM)
    whole = train(configuration, tmp_path / "whole", opened=images)
    interrupted(tmp_path / "parts", configuration, images, step=3)
    parts = train(configuration, tmp_path / "parts", opened=images)
    assert outcome(parts, tmp_path / "parts") == outcome(whole, tmp_path / "whole")
