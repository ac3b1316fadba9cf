"""Spans cover everything once, and what goes wrong in a thread is raised."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
