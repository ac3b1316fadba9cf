"""Explanations: which answers are shown, what is said of the map, what becomes of the files."""

import numpy as np
import pytest
import torch
from torch import nn

from gradsurgery.documents.studies import (
    Explanation,
    ExplanationOptions,
    Place,
    nearest_others,
)
from gradsurgery.errors import ArgumentError
from gradsurgery.report.evaluation_text import explanation_sentences
from gradsurgery.report.page_sections import study_sections
from gradsurgery.report.report import write_explanation
from gradsurgery.studies.explanation import Subject, explain_domains, explain_pictures
from tests.studies.image_sets import image_set

MEAN = STD = (0.5, 0.5, 0.5)


class Brightness(nn.Module):
    """Says class 1 of images that are bright in their first place, and class 0 of others."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(3, 3, 1)
        self.later = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(48, 2)
        with torch.no_grad():
            for layer in (self.maps, self.later):
                layer.weight.copy_(torch.eye(3)[:, :, None, None])
                layer.bias.zero_()
            self.head.weight.zero_()
            self.head.weight[1, 0] = 9.0
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.later(self.maps(x)).flatten(1))


def made(bright, domain, label):
    images = image_set(domain, label)
    images.images[:, 0, 0, 0] = np.where(bright, 255, 0)
    return images


def subject(classes=("c0", "c1")):
    return Subject("brightness", Brightness().eval(), classes, MEAN, STD)


@pytest.fixture
def images():
    """Of domain d0 two in ten answers are wrong, of d1 all."""
    label = [0, 1] * 10
    bright = np.array(label, dtype=bool)
    bright[[0, 5]] ^= True
    bright[10:] ^= True
    return made(bright, [0] * 10 + [1] * 10, label)


def everything(images):
    return {name: np.flatnonzero(images.domain == d) for d, name in enumerate(images.domains)}


def test_half_of_what_is_shown_is_wrong_where_there_are_so_many(images):
    options = ExplanationOptions(per_domain=4)
    found, shown = explain_domains(subject(), images, everything(images), options)
    wrong = {
        domain: sum(a.label != a.predicted for a in found.shown if a.domain == domain)
        for domain in images.domains
    }
    assert wrong == {"d0": 2, "d1": 4}
    assert len(found.shown) == 8
    for each in shown:
        position = images.identities.index(each.answer.identity)
        assert np.array_equal(each.pixels, images.images[position])
        assert each.answer.label == images.classes[images.label[position]]
        bright = images.images[position, 0, 0, 0] == 255
        assert each.answer.predicted == ("c1" if bright else "c0")
        # logits (0, ±9)
        assert each.answer.probability == pytest.approx(1 / (1 + np.exp(-9)))


def test_the_same_seed_shows_the_same_images(images):
    def identities(seed):
        options = ExplanationOptions(per_domain=4, seed=seed)
        found, _ = explain_domains(subject(), images, everything(images), options)
        return [answer.identity for answer in found.shown]

    assert identities(0) == identities(0)
    assert identities(0) != identities(1)


def test_files_are_written_read_and_shown_in_a_report(images, tmp_path):
    options = ExplanationOptions(per_domain=2)
    found, shown = explain_domains(subject(), images, everything(images), options, target="d1")
    write_explanation(found, shown, tmp_path)
    assert Explanation.load(tmp_path) == found
    (section,) = study_sections([tmp_path])
    assert section.title == "What brightness looks at on made"
    captions = [block.caption for block in section.blocks if hasattr(block, "source")]
    assert [caption.rpartition(": ")[2] for caption in captions] == ["answers.", "features."]


def test_pictures_without_a_class_are_explained(tmp_path):
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    pixels[1] = 255
    found, shown = explain_pictures(subject(), pixels, ["a.png", "b.png"], ExplanationOptions())
    assert [(a.identity, a.predicted, a.label) for a in found.shown] == [
        ("a.png", "c0", None),
        ("b.png", "c1", None),
    ]
    write_explanation(found, shown, tmp_path)
    assert not (tmp_path / "explanation-features.png").exists()


def test_other_classes_are_refused(images):
    with pytest.raises(ArgumentError, match="made has the classes c0, c1 and brightness x, y"):
        explain_domains(subject(("x", "y")), images, everything(images), ExplanationOptions())


def test_neighbours_are_compared_with_chance():
    # two pairs of neighbours, of one class each; the domains are dealt out across
    spots = [(0.0, 0.0), (1.0, 0.0), (9.0, 0.0), (10.0, 0.0)]
    places = [
        Place(domain=d, label=c, predicted=c, x=x, y=y)
        for d, c, (x, y) in zip("abab", "uuvv", spots, strict=True)
    ]
    found = Explanation(
        model="m", data="d", by="grad-cam", classes=["u", "v"], domains=["a", "b"],
        shown=[], places=places,
    )  # fmt: skip
    said = explanation_sentences(found)[-1]
    # by chance: of 3 others 1 has the same name
    assert "of its class in 100% (by chance 33%) and of its domain in 0% (by chance 33%)" in said
    found.places = [place.model_copy(update={"domain": "a"}) for place in places]
    said = explanation_sentences(found)[-1]
    assert said.endswith("is of its class in 100% (by chance 33%) of 4 images.")


def test_points_at_one_place_are_each_others_neighbours():
    nearest = nearest_others(np.array([[1.0, 1.0], [1.0, 1.0], [5.0, 5.0]]))
    assert nearest[:2].tolist() == [1, 0]
    assert nearest[2] in (0, 1)
