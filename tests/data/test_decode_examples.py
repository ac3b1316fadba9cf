from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradsurgery.data import example_images, open_source


def test_an_image_of_every_class_and_domain(tmp_path):
    colors = {
        ("a", "dog"): "red",
        ("a", "cat"): "lime",
        ("b", "dog"): "blue",
        ("b", "cat"): "black",
    }
    for (domain, label), color in colors.items():
        place = tmp_path / domain / label
        place.mkdir(parents=True)
        for name in ("1.png", "2.png"):
            Image.new("RGB", (20, 10), color).save(place / name)
    images = example_images(open_source(str(tmp_path)), 8)
    assert set(images) == {(label, domain) for domain, label in colors}
    assert images["dog", "b"].shape == (8, 8, 3)
    assert (images["dog", "a"] == np.array([255, 0, 0])).all()
    assert (images["dog", "b"] == np.array([0, 0, 255])).all()


def test_an_image_that_cannot_be_decoded_gives_way_to_the_next(tmp_path):
    for domain in ("a", "b"):
        place = tmp_path / domain / "dog"
        place.mkdir(parents=True)
        (place / "1.png").write_bytes(b"no image")
        if domain == "a":
            Image.new("RGB", (20, 10), "red").save(place / "2.png")
    assert set(example_images(open_source(str(tmp_path)), 8)) == {("dog", "a")}


def colored(tmp_path, gap=("b", "cat")):
    """Two domains of two classes with three images each, one of which is not there."""
    for domain in ("a", "b"):
        for label in ("cat", "dog"):
            for name in ("1.png", "2.png", "3.png") if (domain, label) != gap else ():
                place = tmp_path / domain / label
                place.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 10), "red").save(place / name)
    return open_source(str(tmp_path), classes="all")


def test_of_files_those_alone_are_read_that_are_shown(tmp_path, monkeypatch):
    source, read = colored(tmp_path), []
    plain = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or plain(path))
    assert set(example_images(source, 8)) == {("cat", "a"), ("dog", "a"), ("dog", "b")}
    assert len(read) == 3  # a gap does not keep it reading
    assert set(example_images(source, 8, ["dog"], ["b"])) == {("dog", "b")}
    assert len(read) == 4


def test_what_is_stored_behind_the_last_one_is_not_read(monkeypatch):
    source, read = open_source("rotated-digits"), []
    encoded = list(source.encoded())
    monkeypatch.setattr(source, "encoded", lambda: (read.append(1) or each for each in encoded))
    labels, domains = source.listing.label, source.listing.domain
    assert len(example_images(source, 14, source.classes[:2], source.domains[:1])) == 2
    firsts = [
        next(
            i
            for i, position in enumerate(source.positions)
            if (labels[position], domains[position]) == (c, 0)
        )
        for c in range(2)
    ]
    assert len(read) == max(firsts) + 1


@pytest.mark.parametrize("kind", ["files", "derived", "generated"])
def test_contents_of_some_images_are_those_of_all_of_them(tmp_path, kind):
    if kind == "generated":
        source = open_source("rotated-digits")
    elif kind == "files":
        source = colored(tmp_path)
    else:
        colored(tmp_path)
        source = open_source(str(tmp_path), classes="common")
        assert source.classes == ("dog",)
    everything = list(source.contents())
    only = {position for position, _ in everything[1::2]}
    assert list(source.contents(only)) == everything[1::2]
    assert [position for position, _ in everything] == source.positions.tolist()
