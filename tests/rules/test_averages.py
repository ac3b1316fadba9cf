"""Median and trimmed mean against the definitions of Yin et al. 2018."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.rules.averages import sort_columns
from tests import oracles
from tests.rules.matrices import matrices


def test_worked_examples():
    gradients = torch.tensor([[1.0, -9.0], [5.0, 1.0], [2.0, 4.0], [100.0, 2.0]])
    assert gs.Median()(gradients).tolist() == [3.5, 1.5]  # (2 + 5)/2 and (1 + 2)/2
    assert gs.TrimmedMean()(gradients).tolist() == [3.5, 1.5]
    assert gs.TrimmedMean(trim=0)(gradients).tolist() == [27.0, -0.5]
    assert gs.Median()(gradients[:3]).tolist() == [2.0, 1.0]


@given(matrices())
def test_median_is_the_median(gradients):
    expected = [statistics.median(column) for column in gradients.T.tolist()]
    torch.testing.assert_close(gs.Median()(gradients), torch.tensor(expected).double())


@given(st.integers(0, 2), st.data())
def test_trimmed_mean_is_its_definition(trim, data):
    gradients = data.draw(matrices(min_domains=2 * trim + 1, max_domains=7))
    expected = torch.tensor(oracles.trimmed_mean(gradients.tolist(), trim), dtype=torch.float64)
    update = gs.TrimmedMean(trim=trim)(gradients)
    torch.testing.assert_close(update, expected)


@given(matrices(min_domains=1, max_domains=9))
def test_columns_are_sorted(gradients):
    rows = gradients.clone()
    sort_columns(rows.unbind(0), torch.empty_like(rows[0]))
    assert torch.equal(rows, gradients.sort(dim=0).values)


@pytest.mark.parametrize("domains", [3, 4])
def test_longer_than_a_piece(domains):
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(domains, (1 << 18) + 3, generator=generator)
    middle = gradients.sort(dim=0).values[1 : domains - 1].mean(0)
    torch.testing.assert_close(gs.Median()(gradients), middle)
    torch.testing.assert_close(gs.TrimmedMean()(gradients), middle)
