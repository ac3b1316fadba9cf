"""A small CNN for digit images, which trains in seconds on a CPU."""

from jaxtyping import Float
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three 3x3 convolutions of 16, 32 and 64 channels, average pooling and a linear layer.

    About 24,000 parameters. Group norm keeps every image to itself, so that a batch of one domain
    and a batch of several give an image the same logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 16), nn.MaxPool2d(2), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64)
        )
        self.classifier = nn.Linear(64, classes)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """The logits, `[batch, classes]`, of images of 4 pixels or more."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # The norm's shift takes the place of the convolution's bias.
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.GroupNorm(4, outputs), nn.ReLU(inplace=True)
