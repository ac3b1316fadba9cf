"""Pictures that are there more than once."""

import json
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from gradsurgery.data import draw_split, open_source, prepare, split_of
from gradsurgery.data.duplicates import (
    NEAR,
    _close_pairs,
    alike,
    copies_in_run,
    dropped,
    identical_files,
    inspect_images,
    look_of,
    looks_of,
)
from gradsurgery.data.splits import as_split
from gradsurgery.documents.configuration import RunConfiguration

SIZE = 32


def scene(seed):
    """Patches of colour: a picture like no other one."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    """a and b with ten cats and dogs each, of which none is like another."""
    seed = 0
    for domain in "ab":
        for label in ("cat", "dog"):
            folder = tmp_path / "set" / domain / label
            folder.mkdir(parents=True)
            for i in range(10):
                seed += 1
                scene(seed).save(folder / f"{i}.png")
    return tmp_path / "set"


def copy(root, source, target):
    (root / target).write_bytes((root / source).read_bytes())


def images_of(root):
    return prepare(open_source(str(root)), SIZE, root.parent / "cache")


def test_without_copies_there_is_nothing_to_say(root):
    images = images_of(root)
    identical, near = copies_in_run(images, looks_of(images), draw_split(images), ["a"], "b")
    assert identical.images == 0
    assert near is not None
    assert near.images == 0
    assert not dropped(images)


def test_copies_across_classes_domains_and_parts(root):
    copy(root, "a/cat/0.png", "b/cat/x.png")
    copy(root, "a/cat/1.png", "b/dog/y.png")
    copy(root, "a/dog/0.png", "a/dog/z.png")
    found = inspect_images(open_source(str(root)))
    assert found.identical.images == 6
    assert found.identical.across_domains == {"a and b": 2}
    assert found.identical.across_classes == 1
    assert found.identical.across_parts == 0  # there is no split yet
    assert found.identical.examples[0] == [f"{root}/a/cat/1.png", f"{root}/b/dog/y.png"]
    assert found.alike is not None
    assert found.alike.images == 0  # they are the same file
    assert found.bad == ()


def test_of_copies_one_stays_and_of_contradictory_ones_none(root):
    copy(root, "a/cat/0.png", "b/cat/x.png")
    copy(root, "a/cat/1.png", "b/dog/y.png")
    copy(root, "a/dog/0.png", "a/dog/z.png")
    images = images_of(root)
    gone = sorted(images.identities[i] for i in dropped(images))
    assert gone == ["a/cat/1.png", "a/dog/z.png", "b/cat/x.png", "b/dog/y.png"]
    options = RunConfiguration(data="x", target="b", drop_duplicates=True, test_on="all")
    split = split_of(options, images, 0)
    assert sorted(split.unused) == gone
    assert len(split.test["b"]) == 20
    assert copies_in_run(images, looks_of(images), split, ["a"], "b")[0].images == 0


def test_a_domain_that_is_a_copy_of_another(root):
    for path in sorted((root / "a").rglob("*.png")):
        copy(root, path.relative_to(root), f"b/{path.parts[-2]}/{path.name}")
    images = images_of(root)
    split = draw_split(images)
    identical, _ = copies_in_run(images, looks_of(images), split, ["a"], "b")
    learned = {name[2:] for name in split.identities["a"]["train"]}
    tested = {name[2:] for name in split.identities["b"]["test"]}
    assert identical.of_target == len(learned & tested)
    whole = split_of(RunConfiguration(data="x", target="b", test_on="all"), images, 0)
    identical, _ = copies_in_run(images, looks_of(images), whole, ["a"], "b")
    assert identical.of_target == 14  # 70 % of 20


def test_pictures_of_another_size_brightness_and_compression_look_alike(root):
    original = Image.open(root / "a/cat/0.png")
    brighter = ImageEnhance.Brightness(original.resize((70, 70))).enhance(1.1)
    file = BytesIO()
    brighter.save(file, "JPEG", quality=70)
    (root / "b/cat/again.jpg").write_bytes(file.getvalue())
    found = inspect_images(open_source(str(root)), workers=2)
    assert found.identical.images == 0
    assert found.alike is not None
    assert found.alike.examples == [[f"{root}/a/cat/0.png", f"{root}/b/cat/again.jpg"]]
    images = images_of(root)
    part = split_of(RunConfiguration(data="x", target="b", test_on="all"), images, 0)
    near = copies_in_run(images, looks_of(images), part, ["a"], "b")[1]
    assert near is not None
    assert near.across_domains == {"a and b": 1}


def test_look_alikes_are_counted_once_whatever_pairs_they_make(root):
    original = Image.open(root / "a/cat/0.png")
    for quality in (60, 80, 95):
        original.save(root / f"b/cat/{quality}.jpg", quality=quality)
    found = inspect_images(open_source(str(root))).alike
    assert found is not None
    assert found.images == 4
    assert found.across_domains == {"a and b": 1}
    names = ["a/cat/0.png", "b/cat/60.jpg", "b/cat/80.jpg", "b/cat/95.jpg"]
    assert found.examples == [[f"{root}/{name}" for name in names]]


def test_look_alikes_of_a_picture_that_is_not_used_itself(root):
    original = Image.open(root / "a/cat/0.png")
    for corner, domain in enumerate("ab"):  # other files of the same perceptual hash
        original.putpixel((corner, 0), (0, 0, 0))
        original.save(root / domain / "cat/x.png")
    images = images_of(root)
    parts = ["train" if name.startswith("a") else "test" for name in images.identities]
    parts[images.identities.index("a/cat/0.png")] = None
    near = copies_in_run(images, looks_of(images), as_split(images, parts), ["a"], "b")[1]
    assert near is not None
    assert (near.images, near.across_parts, near.of_target) == (2, 1, 1)


def test_line_drawings_of_other_things_do_not_look_alike():
    """Their perceptual hashes may be close, which is not enough."""
    first, second = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    for x in range(10, 54):
        first.putpixel((x, 20), (0, 0, 0))
        second.putpixel((20, x), (0, 0, 0))
    looks = [look_of(np.asarray(image)) for image in (first, second)]
    assert not list(alike([looks[0][:8] + looks[0][8:], looks[0][:8] + looks[1][8:]], "ab"))
    assert list(alike([looks[0], looks[0]], "ab")) == [(0, 1)]


def test_looks_are_kept_beside_the_images(root):
    images = images_of(root)
    looks = looks_of(images)
    assert looks == [look_of(pixels) for pixels in images.images]
    assert (images.folder / "looks.json").exists()
    assert looks_of(images) == looks
    short = '{"version": 1, "looks": ' + json.dumps(["AAAA"] * len(looks)) + "}"
    for damaged in ("damaged", short):
        (images.folder / "looks.json").write_text(damaged)
        assert looks_of(images) == looks


def test_small_images_are_not_compared(make_images):
    assert looks_of(make_images({"a": [3], "b": [3]})) is None


def test_images_that_cannot_be_decoded_are_named(root):
    (root / "a/cat/0.png").write_bytes(b"no image")
    for name in ("b/cat/e1.png", "b/dog/e2.png"):
        (root / name).touch()
    found = inspect_images(open_source(str(root)))
    names = ["a/cat/0.png", "b/cat/e1.png", "b/dog/e2.png"]
    assert [file.identity for file in found.bad] == [f"{root}/{name}" for name in names]
    assert found.identical.images == 0  # two empty files are no picture


bits = st.integers(0, 2**64 - 1)


@given(st.lists(bits, max_size=12), st.lists(st.integers(0, 63), max_size=7), st.randoms())
def test_close_pairs_are_those_of_all_pairs(numbers, flips, random):
    if numbers:
        near = numbers[0]
        for flip in flips:
            near ^= 1 << flip
        numbers.append(near)
    numbers = list(dict.fromkeys(numbers))
    random.shuffle(numbers)
    expected = {
        (i, j)
        for j in range(len(numbers))
        for i in range(j)
        if (numbers[i] ^ numbers[j]).bit_count() <= NEAR
    }
    assert _close_pairs(np.array(numbers, dtype=np.uint64)) == expected


def test_identical_files():
    assert identical_files("abcacb") == [[0, 3], [1, 5], [2, 4]]
