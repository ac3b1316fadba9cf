"""Three small data sets made from scikit-learn's handwritten digits, with no download."""

import math
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from typing_extensions import override

from gradsurgery.data.source import Source
from gradsurgery.documents.document import Choices
from gradsurgery.errors import ArgumentError
from gradsurgery.seeds import derive_seed, named_generator, random_order

SEED = 0
VERSION = 1
"""Of what is drawn, in the names of decoded images."""
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
        dealt = np.empty(len(label), dtype=np.int64)
        dealt[random_order(len(label), SEED, name, "domain")] = np.arange(len(label)) % len(domains)
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
        flipped = _draw(len(digit), SEED, name, "label") < LABEL_NOISE
        label = np.where(flipped, digit < 5, digit >= 5).astype(np.int64)
        super().__init__(name, tuple(AGREEMENT), ("0-4", "5-9"), label)
        agreement = np.array([AGREEMENT[domain] for domain in self.domains])
        draw = _draw(len(digit), SEED, name, "colour")[self.listing.rows]
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
    # `sklearn.datasets.load_digits` reads this file too, after two seconds of imports.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",", dtype=np.int64)
    return rows[:, :-1].astype(np.uint8).reshape(-1, 8, 8), rows[:, -1]


def _draw(count: int, seed: int, *names: str) -> NDArray[np.float64]:
    """So many numbers from 0 to 1."""
    draws: NDArray[np.float64] = torch.rand(
        count, generator=named_generator(seed, *names), dtype=torch.float64, device="cpu"
    ).numpy()
    return draws


NAME = "coded-digits"
TARGET = "random"
TARGET_SHARE = 3  # one digit in three is the target's: its accuracy is what is looked at
STRIP_SHARE = 4  # the strip is a quarter of the image's height
PIXELS = 8 * 8


class CodedDigitsOptions(Choices):
    """What `coded-digits:NAME=VALUE,…` may say."""

    part: ClassVar[str] = f"parameter of {NAME}"

    domains: int = Field(12, ge=2, le=32, description="Source domains, each with its own code.")
    bits: int = Field(64, ge=1, le=1024, description="Length of a code.")
    noise: float = Field(
        0.3, ge=0, le=1, description="Standard deviation of the digits' pixels, white being 1."
    )
    share: float = Field(
        1.0, ge=0, le=1, description="Probability that a source image carries its code."
    )
    seed: int = Field(0, ge=0, description="Of the codes, the noise, and which digit lies where.")

    @classmethod
    def parsed(cls, text: str) -> "CodedDigitsOptions":
        """The options that `text` spells, "domains=8,noise=0.2"; raises `ArgumentError`.

        >>> CodedDigitsOptions.parsed("domains=8").bits
        64
        """
        given: dict[str, str] = {}
        for part in text.split(",") if text else ():
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name and equals and value) or name in given:
                raise ArgumentError(
                    f"{NAME} takes NAME=VALUE, each once, as {NAME}:domains=8,noise=0.2; found "
                    f"{part!r:.60}"
                )
            given[name] = value
        numbers: dict[str, Any] = given  # pydantic reads them
        return cls(**numbers)

    @property
    def text(self) -> str:
        """The options that are not at their default, as `parsed` reads them."""
        chosen = self.model_dump(exclude_defaults=True)
        return ",".join(f"{name}={value}" for name, value in chosen.items())


class CodedDigits(Source):
    """A set made so that domains disagree on a shortcut and agree on what counts.

    Every image is a noisy digit of scikit-learn above a strip of bits. In the source domains
    "code-1", "code-2", … the strip spells the class in a code of that domain alone; in the domain
    "random", which is meant as the target, every image has bits of its own. A network that reads
    the codes is right on all sources and wrong on the target, and no component of the network reads
    two codes alike but by chance.

    options: see `CodedDigitsOptions`. Each digit lies in one domain: a third of every class in
        "random", the others are dealt out to the sources in turn. An image whose strip carries no
        code has random bits.
    """

    def __init__(self, options: CodedDigitsOptions | None = None) -> None:
        self.options = options = options or CodedDigitsOptions.parsed("")
        pixels, digit = load_pixels()
        sources = [f"code-{d + 1}" for d in range(options.domains)]
        dealt = _dealt(digit, options)
        self._bits = _bits(digit, dealt, options)
        # numpy's draws are the same on every processor: torch's differ in their last bits.
        noise = np.random.default_rng(derive_seed(options.seed, NAME, "noise"))
        noisy = np.clip(pixels / 16 + options.noise * noise.standard_normal(pixels.shape), 0, 1)
        self._pixels = np.rint(255 * noisy).astype(np.uint8)
        super().__init__(
            f"{NAME}:{options.text}" if options.text else NAME,
            [[*sources, TARGET][d] for d in dealt.tolist()],
            [str(label) for label in digit.tolist()],
            [f"{i:04d}" for i in range(len(digit))],
            domain_order=[*sources, TARGET],
        )

    @override
    def encoded(self) -> Iterator[bytes]:
        """Yield each digit's 64 pixels, its bits, and the version of what is drawn of them."""
        for pixels, bits in zip(self._pixels, self._bits, strict=True):
            yield pixels.tobytes() + bits.tobytes() + f"{NAME}/{VERSION}".encode()

    @override
    def signature(self) -> str:
        return f"{NAME}/{VERSION}/{self.options.model_dump_json()}"

    @override
    def decode(self, position: int, content: bytes, size: int) -> NDArray[np.uint8]:
        """Draw the digit, and below it the strip; raises `ArgumentError` where it has no room."""
        rows, columns = strip_shape(self.options.bits)
        least = max(columns, STRIP_SHARE * rows)
        if size < least:
            raise ArgumentError(
                f"a strip of {self.options.bits} bits has no room in images of {size} pixels; give "
                f"--image-size {least} or more, or fewer bits"
            )
        values = np.frombuffer(content, np.uint8)
        digit = Image.fromarray(values[:PIXELS].reshape(8, 8))
        height = size // STRIP_SHARE
        side = size - height
        page = Image.new("L", (size, size))
        page.paste(digit.resize((side, side), Image.Resampling.BICUBIC), ((size - side) // 2, 0))
        image = np.array(page)
        cells = np.zeros(rows * columns, np.uint8)
        cells[: self.options.bits] = 255 * values[PIXELS : PIXELS + self.options.bits]
        at_row, at_column = np.arange(height) * rows // height, np.arange(size) * columns // size
        image[side:] = cells.reshape(rows, columns)[at_row][:, at_column]
        return np.repeat(image[:, :, None], 3, axis=2)


def strip_shape(bits: int) -> tuple[int, int]:
    """Rows and columns of the strip's cells, which are about square.

    >>> strip_shape(64), strip_shape(10)
    ((4, 16), (2, 5))
    """
    rows = max(1, round(math.sqrt(bits / STRIP_SHARE)))
    return rows, math.ceil(bits / rows)


def _dealt(digit: NDArray[np.int64], options: CodedDigitsOptions) -> NDArray[np.int64]:
    """The domain of each digit, the target's being the last; every class is dealt out in turn."""
    dealt = np.full(len(digit), options.domains)
    turn = 0
    for label in range(10):
        members = np.flatnonzero(digit == label)
        order = random_order(len(members), options.seed, NAME, "domain", label)
        others = members[order[len(members) // TARGET_SHARE :]]
        dealt[others] = (turn + np.arange(len(others))) % options.domains
        turn += len(others)
    return dealt


def _bits(
    digit: NDArray[np.int64], dealt: NDArray[np.int64], options: CodedDigitsOptions
) -> NDArray[np.uint8]:
    """The strip of each image, [images, bits] of 0 and 1."""
    strips = _random_bits(len(digit), options, "strips")
    carries = _draw(len(digit), options.seed, NAME, "share") < options.share
    for domain in range(options.domains):
        codes = _random_bits(10, options, "code", domain)
        here = (dealt == domain) & carries
        strips[here] = codes[digit[here]]
    return strips


def _random_bits(count: int, options: CodedDigitsOptions, *purpose: str | int) -> NDArray[np.uint8]:
    generator = named_generator(options.seed, NAME, *purpose)
    bits: NDArray[np.uint8] = torch.randint(
        2, (count, options.bits), generator=generator, dtype=torch.uint8, device="cpu"
    ).numpy()
    return bits
