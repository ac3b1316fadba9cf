import numpy as np
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


def test_reading_ends_when_there_is_one_of_each(monkeypatch):
    source = open_source("rotated-digits")
    contents, read = list(source.contents()), []

    def counted():
        for item in contents:
            read.append(item[0])
            yield item

    monkeypatch.setattr(source, "contents", counted)
    assert len(example_images(source, 14)) == 60
    assert len(read) <= len(contents)
