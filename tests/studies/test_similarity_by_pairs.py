import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradsurgery.backbones import Backbone
from gradsurgery.errors import ArgumentError
from gradsurgery.results.statistics import mean_interval
from gradsurgery.studies.similarity import (
    draw_samples,
    mean_cosines,
    sample_cosines,
    within_and_across,
)
from tests.studies.image_sets import image_set


def linear_backbone(classes: int, side: int) -> Backbone:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))
    return Backbone("linear", model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False, None)


@given(
    domain=st.lists(st.integers(0, 2), min_size=2, max_size=9),
    seed=st.integers(0, 100),
)
def test_means_are_over_pairs_of_different_samples(domain: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(domain), len(domain), generator=generator, dtype=torch.float64)
    cosines = (values + values.T) / 2
    means = mean_cosines(cosines, torch.tensor(domain))
    for d in range(max(domain) + 1):
        for e in range(max(domain) + 1):
            pairs = [
                float(cosines[i, j])
                for i in range(len(domain))
                for j in range(len(domain))
                if i != j and domain[i] == d and domain[j] == e
            ]
            expected = sum(pairs) / len(pairs) if pairs else math.nan
            assert float(means[d, e]) == pytest.approx(expected, nan_ok=True)


def test_a_sample_without_a_direction_is_in_no_pair() -> None:
    cosines = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.2, 0.4, 1.0]])
    cosines[1] = torch.nan
    means = mean_cosines(cosines, torch.tensor([0, 0, 1]))
    assert means.isnan().tolist() == [[True, False], [False, True]]
    assert float(means[0, 1]) == pytest.approx(0.2)


def test_domains_and_pairs_of_domains_count_the_same() -> None:
    means = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.6, 0.3], [0.2, 0.3, torch.nan]])
    assert within_and_across(means) == pytest.approx((0.75, 0.2))
    assert within_and_across(torch.full((1, 1), 0.5)) == (0.5, None)


def test_cosines_are_those_of_the_cross_entropy_s_gradients() -> None:
    """For logits Wx + b the gradient is (p − e_y)(x, 1)ᵀ, so that inner products factor."""
    images = image_set([0, 0, 0, 1, 1], [1] * 5, side=4)
    backbone = linear_backbone(3, 4)
    found = sample_cosines(backbone, images, {"d0": np.arange(3), "d1": np.arange(3, 5)})
    x = torch.from_numpy(images.images).double() / 255
    x = ((x - 0.5) / 0.5).permute(0, 3, 1, 2).flatten(1)
    weight, bias = (p.detach().double() for p in backbone.model.parameters())
    residual = torch.softmax(x @ weight.T + bias, 1) - torch.tensor([0.0, 1.0, 0.0])
    rows = (residual[:, :, None] * torch.cat([x, torch.ones(5, 1)], 1)[:, None]).flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    cosines = rows @ rows.T
    expected = [
        [(cosines[0, 1] + cosines[0, 2] + cosines[1, 2]) / 3, cosines[:3, 3:].mean()],
        [cosines[:3, 3:].mean(), cosines[3, 4]],
    ]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_measuring_leaves_the_model_as_it_was() -> None:
    images = image_set([0, 0, 1, 1], [0] * 4)
    backbone = linear_backbone(2, 4)
    backbone.model.append(nn.Dropout())
    backbone.model.train()
    backbone.model[1].eval()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    sample_cosines(backbone, images, {"d0": np.array([0, 1]), "d1": np.array([2, 3])})
    assert [m.training for m in backbone.model] == [True, False, True]
    assert all(p.grad is None for p in backbone.model.parameters())
    assert all(torch.equal(before[k], v) for k, v in backbone.model.state_dict().items())


def test_samples_are_of_one_class_and_each_is_drawn_once() -> None:
    images = image_set([0] * 9 + [1] * 9, [0, 1, 1] * 6)
    pool = {"d0": np.arange(9), "d1": np.arange(9, 18)}
    drawn = [
        draw_samples(images, pool, label=1, domains=["d0", "d1"], count=4, seed=0, step=step)
        for step in (0, 0, 10)
    ]
    for chosen, skipped in drawn:
        assert skipped == {}
        for d, indices in enumerate(chosen.values()):
            assert len(set(indices.tolist())) == 4
            assert (images.label[indices] == 1).all()
            assert (images.domain[indices] == d).all()
    first, again, later = (chosen["d0"].tolist() for chosen, _ in drawn)
    assert first == again != later


def test_a_domain_with_too_few_images_is_left_out_with_the_reason() -> None:
    images = image_set([0] * 4 + [1] * 4, [0, 0, 1, 1, 0, 1, 1, 1])
    pool = {"d0": np.arange(4), "d1": np.arange(4, 8)}
    chosen, skipped = draw_samples(
        images, pool, label=0, domains=["d0", "d1"], count=2, seed=0, step=0
    )
    assert sorted(chosen["d0"].tolist()) == [0, 1]
    assert skipped == {"d1": "1 training images of class c0, 2 needed"}


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_the_interval_is_student_s(values: list[float]) -> None:
    from scipy import stats

    found = mean_interval(values)
    assert found.low is not None
    assert found.high is not None
    scale = float(stats.sem(values))
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), scale) if scale else None
    low, high = expected or (values[0], values[0])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_the_interval_of_two_runs_by_hand() -> None:
    found = mean_interval([1.0, 3.0])  # s = √2, s / √2 = 1, and t(0.975; 1) = 12.7062
    assert (found.low, found.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert mean_interval([1.5]) == (1.5, None, None, 1)
    with pytest.raises(ArgumentError, match="found none"):
        mean_interval([])
