"""Domain and class from the paths of files."""

import pytest

from gradsurgery.data import open_source, prepare
from gradsurgery.data.layout import Layout
from gradsurgery.errors import ArgumentError, DataError


@pytest.mark.parametrize(
    ("layout", "path", "domain", "label"),
    [
        ("{domain}/{class}/{name}", "shop/dog/1.jpg", "shop", "dog"),
        ("{class}/{domain}/{name}", "dog/shop/1.jpg", "shop", "dog"),
        ("{class}_{domain}_{id}.jpg", "dog_shop_1.jpg", "shop", "dog"),
        ("{domain}/{class}/{class}/{name}", "shop/animal/dog/1.jpg", "shop", "animal/dog"),
        ("{domain}/*/{class}/{name}", "shop/animal/dog/1.jpg", "shop", "dog"),
        ("{domain}/{class+}/{name}", "shop/animal/pet/dog/1.jpg", "shop", "animal/pet/dog"),
        ("**/{domain}/{class}/{name}", "a/b/shop/dog/1.jpg", "shop", "dog"),
        ("**/{domain}/{class}/{name}", "shop/dog/1.jpg", "shop", "dog"),
        ("{domain}/images/{class}-*.png", "shop/images/dog-1-2.png", "shop", None),
        ("{domain}.{class}.{id}.png", "a.b.1.png", "a", "b"),
        (r"(?P<class>[a-z]+)\d*_(?P<domain>\w)\.png", "dog12_x.png", "x", "dog"),
        ("{domain}/{class}/{name}", "shop/1.jpg", None, None),
        ("{class}_{domain}_{id}.jpg", "dog_shop_1.png", None, None),
    ],
)
def test_what_a_path_says(layout, path, domain, label):
    if label is None and domain is not None:  # "dog" or "dog-1"
        with pytest.raises(DataError, match="can be read as domain shop, class dog and as"):
            Layout(layout).read(path)
        return
    said = Layout(layout).read(path)
    assert (said and said.domain, said and said.label) == (domain, label)


def test_an_unclear_path_is_refused_not_guessed():
    readings = "domain clock, class alarm and as domain shop, class alarm_clock"
    with pytest.raises(DataError, match=f"can be read as {readings}"):
        Layout("{class}_{domain}_{id}.jpg").read("alarm_clock_shop_1.jpg")


@pytest.mark.parametrize(
    "layout",
    [
        "{domain}/{class}/{group}/{name}",
        "{domain}/{class}/{group}/*",
        r"(?P<domain>\w+)/(?P<class>\w+)/(?P<group>p\d+)/.*",
    ],
)
def test_a_group_is_said_too(layout):
    assert Layout(layout).read("shop/dog/p7/1.jpg") == ("shop", "dog", "shop/dog/p7/1.jpg", "p7")
    with pytest.raises(DataError, match="group p and as domain shop, class dog, group p_7"):
        Layout("{domain}/{class}/{group}_{id}.jpg").read("shop/dog/p_7_1.jpg")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("{domain}/{name}", "does not say the class"),
        ("{class}/x", "does not say the domain"),
        ("{domain}/{klass}/{name}", r"has the field \{klass\}"),
        ("{domain}/{class", "has a { that belongs to no field"),
        ("(?P<domain>a)(?P<class>b", "is no regular expression"),
        ("(?P<domain>a)", "does not say the class"),
        ("*", "does not say the domain"),
    ],
)
def test_what_is_no_layout(layout, message):
    with pytest.raises(ArgumentError, match=message):
        Layout(layout)


def test_a_folder_by_its_layout_has_the_images_of_the_folder(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    plain = open_source(str(root))
    written = open_source(str(root), layout="{domain}/{class}/{name}")
    assert written.listing.identities == plain.listing.identities
    cache = tmp_path / "cache"
    assert prepare(written, 8, cache).digest == prepare(plain, 8, cache).digest


def test_names_of_files(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in root.rglob("*.png"):
        path.rename(flat / f"{path.parts[-2]}_{path.parts[-3]}_{path.stem}.png")
    (flat / "readme.txt").write_text("x")
    (flat / "cat.png").write_bytes((flat / "cat_art_0.png").read_bytes())
    (flat / ".hidden").mkdir()
    (flat / ".hidden" / "cat_art_9.png").write_bytes(b"x")
    source = open_source(str(flat), layout="{class}_{domain}_{id}.png")
    assert source.domains == ("art", "photo")
    assert source.classes == ("cat", "dog")
    assert source.counts().tolist() == [[3, 3], [3, 3]]
    assert source.listing.identities[0] == "art/cat/cat_art_0.png"
    assert {file.identity: file.reason for file in source.left_out} == {
        "readme.txt": ".txt is not read",
        "cat.png": "not as the layout {class}_{domain}_{id}.png",
    }
    with pytest.raises(DataError, match=r"left out: 14, the first cat\.png"):
        open_source(str(flat), layout="{domain}/{class}/{name}")


def test_a_link_to_a_folder_above_is_gone_through_once(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    (root / "art/cat/loop").symlink_to(root)
    assert open_source(str(root), layout="{domain}/{class}/{name}").counts().sum() == 12
