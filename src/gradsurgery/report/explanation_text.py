"""What there is to say of an explanation."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from gradsurgery.documents.studies import Explanation, Place
from gradsurgery.report.section import Listing, Section, counted

_HOW = {
    "grad-cam": "Grad-CAM at the last convolution",
    "integrated-gradients": "integrated gradients from grey",
}


def explanation_section(explanation: Explanation) -> Section:
    """The explanation as a section of a report; its figures lie beside the file."""
    title = f"What {explanation.model} looks at on {explanation.data}"
    return Section("explanation", title, [Listing(explanation_sentences(explanation))])


def explanation_sentences(explanation: Explanation) -> list[str]:
    """How answers were explained, and what neighbours on the map have in common."""
    shown = explanation.shown
    about = f"{counted(len(shown), 'answer')} explained by {_HOW[explanation.by]}"
    wrong = sum(answer.label is not None and answer.label != answer.predicted for answer in shown)
    if wrong:
        about += (
            f", {wrong} of them wrong: those are chosen on purpose, and say nothing of how many"
        )
    sentences = [f"{about}."]
    if len(explanation.places) > 1:
        sentences.append(_neighbours(explanation.places))
    return sentences


def _neighbours(places: Sequence[Place]) -> str:
    nearest = nearest_others(np.array([[place.x, place.y] for place in places]))
    of_class, by_chance = _shared([place.label for place in places], nearest)
    of_domain, at_random = _shared([place.domain for place in places], nearest)
    return (
        f"On the map of features, the nearest neighbour of an image is of its class in "
        f"{of_class:.0%} (by chance {by_chance:.0%}) and of its domain in {of_domain:.0%} (by "
        f"chance {at_random:.0%}) of {counted(len(places), 'image')}: the nearer the second is to "
        "chance, the less the features tell of the domain."
    )


def nearest_others(spots: Float64[np.ndarray, "points 2"]) -> Int64[np.ndarray, " points"]:
    """The position of each point's nearest other point."""
    from scipy.spatial import KDTree

    _, found = KDTree(spots).query(spots, k=2)
    own = np.arange(len(spots))
    # of points at one place, a point itself need not be the first
    nearest: NDArray[np.int64] = np.where(found[:, 0] == own, found[:, 1], found[:, 0])
    return nearest


def _shared(names: Sequence[str], nearest: Int64[np.ndarray, " points"]) -> tuple[float, float]:
    """The share of those whose neighbour has the same name, and what chance would give."""
    own = np.array(names)
    _, counts = np.unique(own, return_counts=True)
    total = len(own)
    return float((own == own[nearest]).mean()), float((counts * (counts - 1)).sum()) / (
        total * (total - 1)
    )
