"""An image of every class and domain, without decoding the others."""

import numpy as np
from numpy.typing import NDArray

from gradsurgery.data.decode import BadImageError
from gradsurgery.data.source import Source


def example_images(source: Source, size: int) -> dict[tuple[str, str], NDArray[np.uint8]]:
    """The first image that can be decoded of every (class, domain), uint8 [size, size, 3], RGB.

    Reads the source in its storage order, and no further than until it has them all. A pair whose
    images all cannot be decoded is absent.

    >>> from gradsurgery.data import open_source
    >>> len(example_images(open_source("rotated-digits"), 14))  # 10 digits at 6 angles
    60
    """
    listing = source.listing
    found: dict[tuple[str, str], NDArray[np.uint8]] = {}
    wanted = len(source.classes) * len(source.domains)
    for position, content in source.contents():
        label = source.classes[int(listing.label[position])]
        key = (label, source.domains[int(listing.domain[position])])
        if key in found:
            continue
        try:
            found[key] = source.decode(position, content, size)
        except BadImageError:
            continue
        if len(found) == wanted:
            break
    return found
