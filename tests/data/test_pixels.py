import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import transforms

from gradsurgery.data import normalize
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels.compiled import library

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(params=["compiled", "in pieces"], autouse=True)
def implementation(request, monkeypatch):
    """Both ways to the same bits."""
    if request.param == "in pieces":
        monkeypatch.setattr(sys.modules["gradsurgery.data.pixels"], "library", lambda: None)
    elif library() is None:
        pytest.skip("the package was installed without a C compiler")


def torchvisions(images, mean, std):
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    return torch.stack([steps(image.numpy()) for image in images])


def test_every_pixel_value_is_bit_equal_to_torchvision():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    images = values.contiguous()
    assert torch.equal(normalize(images, *IMAGENET), torchvisions(images, *IMAGENET))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 2), min_size=3, max_size=3),
)
def test_any_shape_mean_and_std_are_bit_equal_to_torchvision(batch, height, width, mean, std):
    random = np.random.default_rng(height * width)
    images = torch.from_numpy(random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8))
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    assert torch.equal(result, torchvisions(images, mean, std))


def test_many_images_in_several_pieces():
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (10, 131, 197, 3), dtype=np.uint8))
    assert torch.equal(normalize(images, *IMAGENET), torchvisions(images, *IMAGENET))


def test_no_images():
    images = torch.zeros((0, 4, 5, 3), dtype=torch.uint8)
    assert normalize(images, *IMAGENET).shape == (0, 3, 4, 5)


def test_images_that_are_not_contiguous():
    images = torch.randint(0, 256, (6, 9, 7, 3), dtype=torch.uint8)[::2, :, 1:]
    assert torch.equal(normalize(images, *IMAGENET), torchvisions(images, *IMAGENET))


def test_impossible_numbers_are_refused():
    images = torch.zeros((1, 2, 2, 3), dtype=torch.uint8)
    for mean, std in (((0.0, 0.0), (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))):
        with pytest.raises(ArgumentError, match="expected three numbers"):
            normalize(images, mean, std)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_gives_the_same_bits():
    images = torch.randint(0, 256, (5, 9, 7, 3), dtype=torch.uint8)
    assert torch.equal(normalize(images.cuda(), *IMAGENET).cpu(), normalize(images, *IMAGENET))
