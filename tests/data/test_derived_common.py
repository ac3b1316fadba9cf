"""Domains that lack a class."""

import shutil

import numpy as np
import pytest

from gradsurgery.data import draw_split, open_source, prepare
from gradsurgery.errors import ArgumentError, DataError


@pytest.fixture
def gap(make_folder, tmp_path):
    """photo has no cow."""
    root = make_folder(tmp_path / "set", classes=("cat", "cow", "dog"), each=4)
    shutil.rmtree(root / "photo/cow")
    return root


def test_by_default_a_gap_is_refused_with_the_cure(gap):
    with pytest.raises(DataError, match=r"cow has no image in domain photo.*--classes common"):
        open_source(str(gap))


def test_common_classes(gap, tmp_path):
    source = open_source(str(gap), classes="common")
    assert source.classes == ("cat", "dog")
    assert source.counts().tolist() == [[4, 4], [4, 4]]
    assert [(f.identity, f.reason) for f in source.left_out] == [
        ("class cow", "4 images, none in photo")
    ]
    images = prepare(source, 8, tmp_path / "cache")
    shutil.rmtree(gap / "art/cow")
    plain = prepare(open_source(str(gap)), 8, tmp_path / "cache")
    assert images.identities == plain.identities
    assert (images.images == plain.images).all()
    assert images.left_out == source.left_out


def test_the_images_of_common_classes_are_those_of_their_files(gap, tmp_path):
    images = prepare(open_source(str(gap), classes="common"), 8, tmp_path / "cache")
    shutil.rmtree(gap / "art/cow")
    assert prepare(open_source(str(gap)), 8, tmp_path / "cache").digest == images.digest


def test_all_classes_keep_the_gap(gap, tmp_path):
    source = open_source(str(gap), classes="all")
    assert source.counts().tolist() == [[4, 4, 4], [4, 0, 4]]
    images = prepare(source, 8, tmp_path / "cache")
    assert images.gaps
    sizes = draw_split(images).sizes()
    assert sizes["photo"] == {"train": 4, "validation": 2, "test": 2}
    assert sizes["art"] == {"train": 6, "validation": 3, "test": 3}


def test_a_data_set_without_gaps_is_the_same_whatever_is_asked(make_folder, tmp_path):
    root = str(make_folder(tmp_path / "set"))
    digests = {
        prepare(open_source(root, classes=classes), 8, tmp_path / "cache").digest
        for classes in ("same", "common", "all")
    }
    assert len(digests) == 1


def test_no_class_in_common(make_folder, tmp_path):
    root = make_folder(tmp_path / "set", classes=("cat", "dog"))
    shutil.rmtree(root / "art/cat")
    shutil.rmtree(root / "photo/dog")
    with pytest.raises(DataError, match="domain art has no images"):
        open_source(str(root), classes="common")


def test_what_draws_itself_has_no_resize():
    with pytest.raises(ArgumentError, match="decodes images by itself"):
        open_source("rotated-digits", resize="crop")


def test_resizing_is_a_data_set_of_its_own_in_the_cache(make_folder, tmp_path):
    root = str(make_folder(tmp_path / "set", side=30))
    found = {
        mode: prepare(open_source(root, resize=mode), 8, tmp_path / "cache")
        for mode in ("squash", "crop", "pad")
    }
    assert len({images.digest for images in found.values()}) == 3
    assert not np.array_equal(found["crop"].images, found["pad"].images)
    again = prepare(open_source(root, resize="crop"), 8, tmp_path / "cache")
    assert again.digest == found["crop"].digest
    assert again.resize == "crop"
