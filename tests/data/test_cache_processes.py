"""Real processes that share a cache, and real processes that are killed."""

import multiprocessing
import time

import numpy as np
import pytest

from gradsurgery.data import open_source, prepare

SIZE = 48


@pytest.fixture(scope="module")
def processes():
    """Processes forked from a small server: they start at once and share no thread with pytest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradsurgery.data"])
    return context


@pytest.fixture
def source(make_folder, tmp_path):
    return open_source(str(make_folder(tmp_path / "set", each=30, side=150)))


def test_processes_that_start_together_decode_once(processes, source, tmp_path):
    decoded = processes.Queue()
    running = [
        processes.Process(
            target=prepare, args=(source, SIZE, tmp_path / "cache", 1, False, decoded.put)
        )
        for _ in range(3)
    ]
    for process in running:
        process.start()
    count = len(source.listing.identities)
    assert sorted(decoded.get(timeout=60) for _ in range(count)) == list(range(1, count + 1))
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    assert decoded.empty()
    images = prepare(source, SIZE, tmp_path / "cache")
    expected = prepare(source, SIZE, tmp_path / "other")
    assert images.digest == expected.digest
    assert np.array_equal(images.images, expected.images)


def test_a_repeat_after_kill_9_gives_the_same(processes, source, tmp_path):
    expected = prepare(source, SIZE, tmp_path / "expected")
    files = {name: (expected.folder / name).read_bytes() for name in ("images.bin", "meta.json")}
    start = time.perf_counter()
    timed = processes.Process(target=prepare, args=(source, SIZE, tmp_path / "timed", 1))
    timed.start()
    timed.join(60)
    duration = time.perf_counter() - start
    killed_at_work = 0
    for i, moment in enumerate(np.random.default_rng(0).uniform(0.05, 1, size=12)):
        cache = tmp_path / f"cache-{i}"
        process = processes.Process(target=prepare, args=(source, SIZE, cache, 1))
        process.start()
        time.sleep(float(moment) * duration)
        process.kill()
        process.join(60)
        killed_at_work += any(cache.glob(".*.tmp"))
        images = prepare(source, SIZE, cache)
        assert images.digest == expected.digest
        for name, content in files.items():
            assert (images.folder / name).read_bytes() == content
        assert [path for path in cache.rglob("*") if path.name.endswith(".tmp")] == []
    assert killed_at_work > 0
