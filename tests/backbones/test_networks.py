import torch

from gradsurgery.backbones import build_backbone


def test_it_is_small_and_maps_images_to_logits():
    model = build_backbone("small-cnn", classes=10, weights="none", seed=0, image_size=28).model
    # 3x3 convolutions 3-16-32-64, a scale and a shift a channel, a linear layer 64-10
    expected = 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_an_image_has_the_same_logits_in_any_company():
    model = build_backbone("small-cnn", classes=3, weights="none", seed=0).model.train()
    images = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images)[:2], model(images[:2]))


def test_it_learns():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 3, 16, 16, generator=generator) * 0.1
    images[labels == 1, :, 4:12, 4:12] += 1
    model = build_backbone("small-cnn", classes=2, weights="none", seed=0).model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).float().mean() == 1
