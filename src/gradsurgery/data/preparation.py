"""What a trained network is given: any picture, made what training made of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gradsurgery.data.decode import decode_image, resized_rgb
from gradsurgery.data.formats import BadImageError
from gradsurgery.data.pixels import normalize
from gradsurgery.documents.data_options import Resize
from gradsurgery.errors import ArgumentError, one_line

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Preparation:
    """Decodes a picture, resizes and normalises it as training did; a torchvision transform.

    size: side of the network's images, pixels. mean, std: of the channels, as in `normalize`.
    resize_first: side to which pictures are resized before, if at all.
    resize: how pictures that are not square become so, as in `decode_image`.

    A picture is a path, the bytes of a file, a PIL image of any mode, an array uint8
    [height, width, 3] (RGB), [height, width, 4] (RGBA) or [height, width] (gray, also uint16), or
    a tensor of torch, uint8 [3, height, width]. With torchvision's `ImageFolder` give it
    `loader=PIL.Image.open` too: its own loader turns transparency black.

    >>> prepare = Preparation(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> white = np.full((20, 30, 3), 255, np.uint8)
    >>> prepare(white).shape, prepare(white).unique()
    (torch.Size([3, 8, 8]), tensor([1.]))
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize_first: int | None = None
    resize: Resize = "squash"

    def __call__(self, picture: Any) -> Float[Tensor, "3 size size"]:
        """The picture as the network takes it; raises `BadImageError` where it is none."""
        pixels = torch.from_numpy(self.pixels(picture)[None].copy())
        return normalize(pixels, self.mean, self.std)[0]

    def pixels(self, picture: Any) -> UInt8[np.ndarray, "size size 3"]:
        """The picture decoded and resized, RGB.

        Raises `BadImageError`, the reason alone, where it is no whole picture, and `ArgumentError`
        for an object of another kind.
        """
        from PIL import Image

        if isinstance(picture, str | Path):
            try:
                if Path(picture).exists() and not Path(picture).is_file():  # a device has no end
                    raise BadImageError("it is not a regular file")
                picture = Path(picture).read_bytes()
            except (OSError, ValueError) as error:
                raise BadImageError(f"it cannot be read: {one_line(error)}") from error
        if isinstance(picture, bytes):
            return decode_image(picture, self.size, self.resize_first, self.resize)
        if isinstance(picture, Tensor):
            picture = _channels_last(picture)
        if isinstance(picture, np.ndarray):
            picture = _as_image(picture)
        if not isinstance(picture, Image.Image):
            raise ArgumentError(
                f"a picture is a {type(picture).__name__}; give a path, bytes, a PIL image or an "
                "array uint8 [height, width, 3]"
            )
        try:
            return resized_rgb(
                picture, _bit_depth(picture), self.size, self.resize_first, self.resize
            )
        except BadImageError:
            raise
        except Exception as error:  # one that was opened and is damaged
            raise BadImageError(f"it is damaged: {one_line(error)}") from error


def _channels_last(picture: Tensor) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[0] not in (1, 3, 4):
        raise ArgumentError(
            f"a picture is a tensor {list(picture.shape)}; expected uint8 [3, height, width]"
        )
    return np.asarray(picture.detach().cpu().permute(1, 2, 0))


def _as_image(picture: np.ndarray) -> "Image.Image":
    from PIL import Image

    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    gray = picture.ndim == 2
    fits = picture.dtype == np.uint8 and (
        gray or (picture.ndim == 3 and picture.shape[2] in (3, 4))
    )
    if not (fits or (gray and picture.dtype == np.uint16)) or 0 in picture.shape:
        raise ArgumentError(
            f"a picture is an array {picture.dtype} {list(picture.shape)}; expected uint8 "
            "[height, width, 3], RGB from 0 to 255"
        )
    return Image.fromarray(np.ascontiguousarray(picture))


def _bit_depth(picture: "Image.Image") -> int:
    """Of a PNG that was opened elsewhere, where `to_rgb` must know it."""
    ambiguous = picture.mode in ("L", "RGB") and picture.info.get("transparency") is not None
    if picture.format != "PNG" or not ambiguous:
        return 8
    try:
        with Path(getattr(picture, "filename", "")).open("rb") as file:
            header = file.read(25)
        if header[12:16] == b"IHDR":
            return header[24]
    except OSError:
        pass
    raise BadImageError(
        "one of its colours is transparent; give its path, or the bytes of its file"
    )
