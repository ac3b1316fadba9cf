"""Gradient matrices as hypothesis draws them."""

import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# Small whole numbers make equal signs, exact zeros and cancelling sums frequent.
_VALUES = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-1e3, 1e3, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6),
)


def matrices(min_domains: int = 2, max_domains: int = 6, max_params: int = 24):
    """Float64 matrices [domains, params] without NaN or Inf."""
    shape = st.tuples(st.integers(min_domains, max_domains), st.integers(1, max_params))
    return hnp.arrays("float64", shape, elements=_VALUES).map(torch.from_numpy)
