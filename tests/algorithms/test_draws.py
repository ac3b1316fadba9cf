"""The draws of Mixup and MLDG: their distributions, by tests with a stated rate of false alarms.

The seeds are fixed, so a test that passes goes on to pass; of all seeds it fails for that share.
"""

from collections import Counter
from itertools import permutations
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution
from scipy.stats import chisquare, kstest, norm

from gradsurgery.algorithms.objectives.mixup import beta, random_ring

FALSE_ALARMS = 1e-4


def draws(alpha: float, count: int = 4000) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return np.array([beta(alpha, generator) for _ in range(count)])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_distributed_as_beta(alpha):
    values = draws(alpha)
    assert kstest(values, beta_distribution(alpha, alpha).cdf).pvalue > FALSE_ALARMS


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_have_the_moments_of_beta(alpha):
    values, limit = draws(alpha), norm.isf(FALSE_ALARMS / 2)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(values.mean() - 0.5) < limit * sqrt(variance / len(values))
    fourth = beta_distribution(alpha, alpha).expect(lambda x: (x - 0.5) ** 4)
    error = sqrt((fourth - variance**2) / len(values))
    assert abs(((values - 0.5) ** 2).mean() - variance) < limit * error


def test_tiny_alpha_gives_one_image_or_the_other():
    values = draws(1e-4, 200)
    assert np.isfinite(values).all()
    assert set(values.round(9)) == {0.0, 1.0}


def test_huge_alpha_gives_halves():
    assert draws(1e8, 50) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("domains", [2, 3, 4, 7])
def test_each_domain_is_once_first_and_once_second(domains):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ring = random_ring(domains, generator)
        assert [first for first, _ in ring] == list(range(domains))
        assert sorted(second for _, second in ring) == list(range(domains))
        following, at, seen = dict(ring), 0, []
        while at not in seen:
            seen.append(at)
            at = following[at]
        assert len(seen) == domains  # one ring, not several


@pytest.mark.parametrize("domains", [3, 4])
def test_every_ring_is_reached_alike(domains):
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(random_ring(domains, generator)) for _ in range(1200))
    rings = set()
    for rest in permutations(range(1, domains)):
        order = (0, *rest)
        rings.add(tuple(sorted(zip(order, (*order[1:], 0), strict=True))))
    assert set(counts) == rings
    assert chisquare(list(counts.values())).pvalue > FALSE_ALARMS


def test_draws_are_the_generators_alone():
    def drawn() -> tuple[list[tuple[int, int]], float]:
        generator = torch.Generator().manual_seed(11)
        return random_ring(5, generator), beta(0.2, generator)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = drawn()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert drawn() == first
