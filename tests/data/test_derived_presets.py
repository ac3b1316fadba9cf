import os
from dataclasses import replace
from pathlib import Path

import pytest

from gradsurgery.data import PRESETS, open_source, prepare
from gradsurgery.data import derived as presets_module
from gradsurgery.data.derived import matching_preset
from gradsurgery.errors import DataError


@pytest.mark.parametrize(
    ("name", "total", "classes"),
    [("pacs", 9991, 7), ("vlcs", 10729, 5), ("office-home", 15588, 65)],
)
def test_the_papers_numbers(name, total, classes):
    preset = PRESETS[name]
    assert sum(preset.images.values()) == total
    assert len(set(preset.classes)) == classes


@pytest.mark.parametrize(
    ("name", "found", "canonical"),
    [
        ("pacs", ["A", "C", "P", "S"], ["art_painting", "cartoon", "photo", "sketch"]),
        ("pacs", ["art", "Art Painting"], ["art_painting", "art_painting"]),
        ("vlcs", ["CALTECH", "labelme", "SUN", "PASCAL"],
         ["Caltech101", "LabelMe", "SUN09", "VOC2007"]),
        ("office-home", ["art", "Clipart", "product", "Real World", "real_world", "RealWorld", "R"],
         ["Art", "Clipart", "Product"] + 4 * ["Real-World"]),
        ("office-home", ["world"], [None]),
    ],
)  # fmt: skip
def test_names_found_in_the_wild(name, found, canonical):
    assert [PRESETS[name].domain(domain) for domain in found] == canonical


def test_class_names_found_in_the_wild():
    assert PRESETS["office-home"].label("alarm clock") == "Alarm_Clock"
    assert PRESETS["office-home"].label("toothbrush") == "ToothBrush"
    assert PRESETS["pacs"].label("cat") is None


@pytest.fixture
def small_pacs(monkeypatch):
    """PACS with two images of each class, so that a test can write it."""
    small = replace(PRESETS["pacs"], images=dict.fromkeys(PRESETS["pacs"].images, 14))
    monkeypatch.setitem(presets_module.PRESETS, "pacs", small)
    return small


def test_canonical_names_and_the_first_resizing(small_pacs, make_folder, tmp_path):
    classes = [name.title() for name in small_pacs.classes]
    make_folder(tmp_path / "x", ("S", "p", "Art Painting", "cartoon"), classes, each=2)
    source = open_source(f"pacs:{tmp_path / 'x'}")
    assert source.name == "pacs"
    assert source.domains == small_pacs.domains
    assert source.classes == small_pacs.classes
    assert source.listing.identities[0] == "art_painting/dog/0.png"
    assert source.resize_first == 227
    assert source.location(0) == str(tmp_path / "x/Art Painting/Dog/0.png")
    images = prepare(source, 8, tmp_path / "cache")
    plain = prepare(open_source(str(tmp_path / "x")), 8, tmp_path / "cache")
    assert images.digest != plain.digest
    assert images.identities == source.listing.identities
    for position, content in source.contents():
        assert content == Path(source.location(position)).read_bytes()


def test_a_wrong_count_names_domain_expected_and_found(small_pacs, make_folder, tmp_path):
    root = make_folder(tmp_path / "x", small_pacs.domains, small_pacs.classes, each=2)
    (root / "photo/dog/1.png").unlink()
    with pytest.raises(DataError, match="domain photo has 13 images, expected the paper's 14"):
        open_source(f"pacs:{root}")


@pytest.mark.parametrize(
    ("domains", "classes", "reason"),
    [
        (("art", "clipart", "photo", "sketch"), None, "unknown domain clipart, expected art_paint"),
        (("art", "photo", "sketch"), None, "found 0 times the domain cartoon"),
        (("art", "A", "cartoon", "photo", "sketch"), None, "found 2 times the domain art_painting"),
        (None, ("dog", "cat"), "unknown class cat"),
        (None, ("dog", "house"), "found 0 times the class elephant"),
    ],
)
def test_other_domains_or_classes_are_errors(
    small_pacs, make_folder, tmp_path, domains, classes, reason
):
    make_folder(tmp_path / "x", domains or small_pacs.domains, classes or small_pacs.classes)
    with pytest.raises(DataError, match=reason):
        open_source(f"pacs:{tmp_path / 'x'}")


def test_vlcs_is_not_on_the_hub():
    with pytest.raises(DataError, match="vlcs:PATH"):
        open_source("vlcs")


@pytest.mark.skipif("GRADSURGERY_PACS" not in os.environ, reason="GRADSURGERY_PACS is not set")
def test_pacs_has_the_papers_counts():
    root = os.environ["GRADSURGERY_PACS"]
    source = open_source(f"pacs:{root}")
    assert source.counts().sum(axis=1).tolist() == [2048, 2344, 1670, 3929]
    assert matching_preset(open_source(root)) is PRESETS["pacs"]
