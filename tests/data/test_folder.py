import shutil

import pytest

from gradsurgery.data import open_source
from gradsurgery.errors import ArgumentError, DataError


def test_domains_classes_and_identities(make_folder, tmp_path):
    source = open_source(str(make_folder(tmp_path / "set")))
    assert source.name == "set"
    assert source.domains == ("art", "photo")
    assert source.classes == ("cat", "dog")
    assert source.counts().tolist() == [[3, 3], [3, 3]]
    assert source.listing.identities[:4] == ("art/cat/0.png", "art/cat/1.png", "art/cat/2.png",
                                             "art/dog/0.png")  # fmt: skip
    assert source.location(0) == str(tmp_path / "set/art/cat/0.png")


def test_contents_are_the_files(make_folder, tmp_path):
    source = open_source(str(make_folder(tmp_path / "set")))
    for position, content in source.contents():
        path = tmp_path / "set" / source.listing.identities[position]
        assert content == path.read_bytes()


def test_hidden_files_and_files_that_are_no_images_do_not_count(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    for name in (".DS_Store", "README.md", ".hidden.png", "art/notes.txt", "art/cat/Thumbs.db",
                 "art/cat/._0.png"):  # fmt: skip
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    assert open_source(str(root)).counts().tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize(
    "suffix", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "JPG", "Png"]
)
def test_image_suffixes(make_folder, tmp_path, suffix):
    root = make_folder(tmp_path / "set")
    (root / f"art/cat/new.{suffix}").write_bytes(b"x")
    assert open_source(str(root)).counts()[0, 0] == 4


def test_a_class_missing_from_a_domain_is_an_error(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    shutil.rmtree(root / "photo/dog")
    with pytest.raises(DataError, match="class dog has no image in domain photo"):
        open_source(str(root))


def test_an_empty_domain_is_an_error(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    (root / "sketch/cat").mkdir(parents=True)
    with pytest.raises(DataError, match="domain sketch has no images"):
        open_source(str(root))


@pytest.mark.parametrize(("domains", "found"), [((), "0 domains"), (("art",), "1 domains")])
def test_fewer_than_two_domains_are_an_error(make_folder, tmp_path, domains, found):
    root = tmp_path / "set"
    root.mkdir()
    make_folder(root, domains=domains)
    with pytest.raises(DataError, match=f"found {found}.*expected at least 2"):
        open_source(str(root))


@pytest.mark.parametrize("where", ["", "art"])
def test_an_image_outside_a_class_is_an_error(make_folder, tmp_path, where):
    root = make_folder(tmp_path / "set")
    (root / where / "stray.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"stray\.png lies directly in .*domain/class/image"):
        open_source(str(root))


def test_a_folder_inside_a_class_is_an_error(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    (root / "art/cat/more").mkdir()
    with pytest.raises(DataError, match="more is a folder inside class cat of domain art"):
        open_source(str(root))


@pytest.mark.parametrize("spec", ["nonsense", "/no/such/folder", "pacs2:/x", ""])
def test_an_unknown_spec_lists_what_is_accepted(spec, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if not spec:
        spec = "readme.txt"
        (tmp_path / spec).write_text("x")
    with pytest.raises(ArgumentError) as caught:
        open_source(spec)
    for name in (spec, "rotated-digits", "colored-digits", "pacs", "vlcs", "office-home", "hf://"):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)
