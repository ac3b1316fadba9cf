import os

import pytest
import torch

from gradsurgery.errors import ArgumentError
from gradsurgery.sweep import local
from gradsurgery.sweep.local import visible_gpus, worker_count
from gradsurgery.sweep.ray_cluster import cluster_room


def test_workers_are_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert worker_count(None, gpus=0, runs_per_gpu=1, threads=1) == 8
    assert worker_count(None, gpus=0, runs_per_gpu=1, threads=5) == 2
    assert worker_count(None, gpus=0, runs_per_gpu=1, threads=99) == 1
    assert worker_count(None, gpus=4, runs_per_gpu=3, threads=5) == 12
    assert worker_count(5, gpus=4, runs_per_gpu=3, threads=1) == 5
    for wrong in ({"asked": 0}, {"threads": 0}, {"runs_per_gpu": 0}):
        with pytest.raises(ArgumentError, match="is at least 1, found 0"):
            worker_count(**{"asked": None, "gpus": 1, "runs_per_gpu": 1, "threads": 1} | wrong)


def test_the_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus("auto") == ("0", "1")
    assert visible_gpus("cpu") == ()
    with pytest.raises(ArgumentError, match="shares out the GPUs itself"):
        visible_gpus("cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert visible_gpus("cuda") == ("3", "GPU-5a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_gpus("auto") == ()


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str | None] = []
    monkeypatch.setattr(local, "_Worker", devices.append)
    local.LocalLauncher(5, ("0", "3"))
    local.LocalLauncher(2)
    assert devices == ["0", "3", "0", "3", "0", None, None]


def test_a_cluster_has_room_where_a_run_fits_on_one_of_its_nodes() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 7.0, "GPU": 1.0}, {"GPU": 2.0}]
    assert cluster_room(nodes, threads=2, runs_per_gpu=0) == 2 + 3
    assert cluster_room(nodes, threads=5, runs_per_gpu=0) == 1  # eleven processors, but apart
    assert cluster_room(nodes, threads=8, runs_per_gpu=0) == 0
    assert cluster_room(nodes, threads=2, runs_per_gpu=2) == 2
    assert cluster_room(nodes, threads=2, runs_per_gpu=9) == 3
