"""Spans cover everything once, and what goes wrong in a thread is raised."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.kernels import compiled
from gradsurgery.kernels.compiled import in_spans
from gradsurgery.rules.base import largest_size


@given(st.integers(0, 1000), st.integers(1, 200), st.integers(1, 5), st.integers(1, 6))
def test_spans_cover_everything_once(length, least, multiple, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        spans = sorted(in_spans(length, lambda a, b: (a, b), least=least, multiple=multiple))
    finally:
        torch.set_num_threads(before)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert all(start % multiple == 0 for start, _ in spans)


@pytest.mark.parametrize("bad", [0, 500])
def test_an_error_in_a_thread_is_raised(bad):
    def call(begin: int, end: int) -> int:
        if begin <= bad < end:
            raise MemoryError("no memory for this span")
        return end

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError, match="no memory"):
            in_spans(1000, call, least=10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("length", [1, 2, 9, 3 * compiled.LEAST + 5])  # the last in spans
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((-0.0,), 0.0),
        ((1e-45, 0.0), 1e-45),  # not normal
        ((2.0, -3.0), 3.0),
        ((-3e38, 2e38), 3e38),
        ((-float("inf"), 5.0), float("inf")),
        ((float("inf"), float("nan")), float("nan")),
        ((-float("nan"), -float("inf")), float("nan")),
    ],
)
def test_the_largest_size_of_a_gradient(values, expected, length, by_torch, dtype, monkeypatch):
    if by_torch:
        monkeypatch.setattr(compiled, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("no C compiler built the library")
    gradient = torch.zeros(length, dtype=dtype)
    for at, value in enumerate(values[:length]):
        gradient[at * (length // 2)] = value
    if length < len(values):
        expected = abs(values[0])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = largest_size(gradient)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=dtype), rtol=0, atol=0, equal_nan=True
    )


def test_no_product_is_fused_with_a_sum():
    """Results are the same on every processor, with a fused multiply-add or without."""
    rows = torch.randn(2, 1003, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    memory = torch.randn(2, 1003, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    name = compiled.name_for("judge_means", rows, memory)
    if name is None:
        pytest.skip("no C compiler built the library")
    expected = rows.numpy() + np.float64(0.9) * memory.numpy()  # NumPy rounds both
    marks = torch.empty(2, 1003, dtype=torch.bool)
    compiled.judge_means(name, rows, memory, 0.9, out=torch.empty_like(rows[0]), marks=marks)
    assert np.array_equal(rows.numpy(), expected)


@pytest.mark.parametrize("kind", ["agr-sum", "agr-rand", "agr-ema", "sum", "pcgrad"])
def test_memory_with_the_opposite_sign_is_not_read(kind):
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = gs.rule(kind)(torch._neg_view(rows))  # as .imag of a conjugate gives
    torch.testing.assert_close(found, gs.rule(kind)(-rows))


@pytest.mark.skipif(compiled.library() is None, reason="no C compiler built the library")
def test_a_library_of_other_sources_is_not_called(tmp_path, monkeypatch):
    """Its functions would read and write beyond what they are given."""
    folder = Path(compiled.__file__).parent
    for file in (*folder.glob("*.[ch]"), folder / "libgradsurgery.so"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    load = compiled.library.__wrapped__
    assert load() is not None
    with (tmp_path / "gramian.c").open("a") as source:
        source.write("\n")
    with pytest.warns(RuntimeWarning, match="of another version and not used"):
        assert load() is None
