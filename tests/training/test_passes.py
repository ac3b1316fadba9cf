"""Runs with one pass for all domains."""

import pytest
import torch

from gradsurgery.errors import ArgumentError
from gradsurgery.training import train
from tests.training.test_resume import interrupted

BATCH_NORM = {"backbone": "resnet10t", "weights": "none", "image_size": 32, "iterations": 4}


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, configured, images, outcome):
    configuration = configured(passes="pooled", method="agr-rand")
    whole = train(configuration, tmp_path / "whole", opened=images)
    interrupted(tmp_path / "parts", configuration, images, step=6)
    parts = train(configuration, tmp_path / "parts", opened=images)
    assert outcome(parts, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


def test_both_ways_train_alike(tmp_path, configured, images):
    options = {"method": "pcgrad", "iterations": 4, "weights": "none"}
    curves = [
        train(configured(passes=passes, **options), tmp_path / passes, opened=images).curves
        for passes in ("separate", "pooled")
    ]
    assert curves[0].train_loss == pytest.approx(curves[1].train_loss, rel=1e-4)


def test_batch_normalisation_by_the_pooled_batch(tmp_path, configured, images):
    pooled = configured(**BATCH_NORM, method="agr-sum", passes="pooled")
    assert pooled.batch_norm == "pooled"
    assert configured(**BATCH_NORM).batch_norm == "per-domain"
    record = train(pooled, tmp_path / "agr-sum", opened=images)
    assert record.configuration.batch_norm == "pooled"
    assert torch.tensor(record.curves.train_loss).isfinite().all()


@pytest.mark.parametrize(
    ("batch_norm", "passes"), [("pooled", "separate"), ("per-domain", "pooled")]
)
def test_contradictions_are_refused(batch_norm, passes, tmp_path, configured, images):
    configuration = configured(**BATCH_NORM, batch_norm=batch_norm, passes=passes)
    with pytest.raises(ArgumentError, match=f"'{batch_norm}' needs passes"):
        train(configuration, tmp_path / "run", opened=images)
