"""Two small data sets made from scikit-learn's handwritten digits, with no download."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from gradsurgery.data.source import Source
from gradsurgery.seeds import named_generator

SEED = 0
VERSION = 1
ANGLES = ("0", "15", "30", "45", "60", "75")
AGREEMENT = {"+90%": 0.9, "+80%": 0.8, "+70%": 0.7, "-90%": 0.1}
LABEL_NOISE = 0.25
# As in MNIST, a digit fills 20/28 of the side: it can turn without leaving the image.
DIGIT_SHARE = 20 / 28


class DigitsSource(Source):
    """The 1,797 digits of scikit-learn, 8x8 pixels with values 0 to 16, dealt out to domains.

    Every digit lies in exactly one domain: they are shuffled by a named seed and dealt in turn.
    """

    def __init__(
        self, name: str, domains: Sequence[str], classes: Sequence[str], label: NDArray[np.int64]
    ) -> None:
        self._pixels = load_pixels()[0]
        order = torch.randperm(len(label), generator=named_generator(SEED, name, "domain"))
        dealt = np.empty(len(label), dtype=np.int64)
        dealt[order.numpy()] = np.arange(len(label)) % len(domains)
        super().__init__(
            name,
            [domains[i] for i in dealt.tolist()],
            [classes[i] for i in label.tolist()],
            [f"{i:04d}" for i in range(len(label))],
            domain_order=domains,
            class_order=classes,
        )

    @override
    def encoded(self) -> Iterator[bytes]:
        """Yield each digit's 64 values, and what else its picture depends on."""
        for pixels, position in zip(self._pixels, self.positions.tolist(), strict=True):
            suffix = f"{self.signature()}/{self._appearance(position)}"
            yield pixels.tobytes() + suffix.encode()

    @override
    def signature(self) -> str:
        return f"{self.name}/{VERSION}"

    def _appearance(self, position: int) -> str:
        return self.domains[int(self.listing.domain[position])]

    def _digit(self, position: int, size: int) -> NDArray[np.uint8]:
        """The digit at 20/28 of `size`, smoothly enlarged, white on black."""
        from PIL import Image

        values = self._pixels[self.listing.rows[position]].astype(np.int64)
        # A black rim lets strokes at the border fade instead of being cut.
        digit = Image.fromarray(np.pad(((values * 255 + 8) // 16).astype(np.uint8), 1))
        inner = max(1, round(size * DIGIT_SHARE * 10 / 8))
        page = Image.new("L", (size, size))
        place = (size - inner) // 2
        page.paste(digit.resize((inner, inner), Image.Resampling.BICUBIC), (place, place))
        return np.asarray(page)


class RotatedDigits(DigitsSource):
    """As RotatedMNIST (Ghifary et al. 2015): 10 classes, a domain is an angle in degrees.

    The angles are 0, 15, 30, 45, 60 and 75, counter-clockwise.
    """

    def __init__(self) -> None:
        label = load_pixels()[1]
        super().__init__("rotated-digits", ANGLES, [str(i) for i in range(10)], label)

    @override
    def decode(self, position: int, content: bytes, size: int) -> NDArray[np.uint8]:
        """Draw the digit, then turn it."""
        from PIL import Image

        angle = int(self.domains[self.listing.domain[position]])
        upright = Image.fromarray(self._digit(position, size))
        turned = upright.rotate(angle, Image.Resampling.BICUBIC)
        return np.asarray(turned.convert("RGB"))


class ColoredDigits(DigitsSource):
    """As Coloured MNIST (Arjovsky et al. 2019), where colour predicts the label, until it lies.

    The label says whether a digit is 0-4 or 5-9, and is flipped with probability 0.25. The colour
    (red for 5-9, green for 0-4) agrees with that noisy label with a probability that is the
    domain's: 0.9 in "+90%", 0.8 in "+80%", 0.7 in "+70%" and 0.1 in "-90%", which is meant as
    the target. "+90%", "+80%" and "-90%" are the three domains of the field; "+70%" gives a third
    source domain.
    """

    def __init__(self) -> None:
        name = "colored-digits"
        digit = load_pixels()[1]
        flipped = _draw(name, "label", len(digit)) < LABEL_NOISE
        label = np.where(flipped, digit < 5, digit >= 5).astype(np.int64)
        super().__init__(name, tuple(AGREEMENT), ("0-4", "5-9"), label)
        agreement = np.array([AGREEMENT[domain] for domain in self.domains])
        draw = _draw(name, "colour", len(digit))[self.listing.rows]
        agrees = draw < agreement[self.listing.domain]
        self.red = np.where(agrees, self.listing.label, 1 - self.listing.label) == 1

    def _appearance(self, position: int) -> str:
        return "red" if self.red[position] else "green"

    @override
    def decode(self, position: int, content: bytes, size: int) -> NDArray[np.uint8]:
        """Draw the digit in the red or in the green channel."""
        image = np.zeros((size, size, 3), dtype=np.uint8)
        image[:, :, 0 if self.red[position] else 1] = self._digit(position, size)
        return image


def load_pixels() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digits, uint8 [1797, 8, 8] from 0 to 16, and which digit each is."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def _draw(name: str, purpose: str, count: int) -> NDArray[np.float64]:
    generator = named_generator(SEED, name, purpose)
    draws: NDArray[np.float64] = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
    return draws
