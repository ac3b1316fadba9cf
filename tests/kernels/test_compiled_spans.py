"""Spans cover everything once, and what goes wrong in a thread is raised."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.kernels.compiled import in_spans


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
