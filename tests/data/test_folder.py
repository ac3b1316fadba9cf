import json
import os
import re
import shutil
from pathlib import Path

import pytest

from gradsurgery.data import draw_split, open_source, prepare
from gradsurgery.documents.record import SplitFile
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
                 "art/cat/._0.png", "Thumbs.db", "art/desktop.ini"):  # fmt: skip
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "__MACOSX" / "set" / "art").mkdir(parents=True)  # in archives that a Mac has packed
    (root / "__MACOSX" / "set" / "art" / "._0.png").write_bytes(b"x")
    for folder in ("@eaDir/0.png", "art/@eaDir/0.png", "art/cat/@eaDir/0.png"):  # of Synology
        (root / folder).mkdir(parents=True)
        (root / folder / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"x")
    for folder in ("$RECYCLE.BIN/S-1-5", "System Volume Information"):
        (root / folder).mkdir(parents=True)
        (root / folder / "deleted.png").write_bytes(b"x")
    for layout in ("", "{domain}/{class}/**/{name}"):
        source = open_source(str(root), layout=layout)
        assert source.counts().tolist() == [[3, 3], [3, 3]]


def test_names_that_look_the_same_are_refused(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    (root / "art/cat").rename(root / "art" / "caf\xe9")
    (root / "photo/cat").rename(root / "photo" / "cafe\u0301")  # copied from a Mac
    with pytest.raises(DataError, match=r"class names 'cafe\\u0301' and 'caf\\xe9' look the same"):
        open_source(str(root), classes="all")
    (root / "art/caf\xe9").rename(root / "art" / "dog ")
    with pytest.raises(DataError, match="class names 'dog' and 'dog ' look the same"):
        open_source(str(root), classes="all")
    (root / "art/dog ").rename(root / "art" / " ")
    with pytest.raises(DataError, match="a class has an empty name"):
        open_source(str(root), classes="all")


def test_a_class_that_is_written_otherwise_elsewhere_is_named(make_folder, tmp_path):
    root = make_folder(tmp_path / "set", classes=("alarm_clock", "dog"))
    (root / "art/alarm_clock").rename(root / "art" / "Alarm Clock")
    same = "Alarm Clock and alarm_clock differ in spelling alone: if they are one, rename them"
    with pytest.raises(DataError, match=f"alarm_clock has no image in domain art, .*; {same}"):
        open_source(str(root))
    (root / "photo/dog").rename(root / "photo/aardvark")  # a gap without a spelling of its own
    with pytest.raises(DataError, match=f"class aardvark has no image in domain art, .*; {same}"):
        open_source(str(root))
    signs = make_folder(tmp_path / "signs", classes=("+", "-"))
    (signs / "art/+").rename(signs / "art" / "_")
    with pytest.raises(DataError, match=r"class \+ has no image in domain art, ") as caught:
        open_source(str(signs))
    assert "differ in spelling alone" not in str(caught.value)


@pytest.mark.parametrize(
    "suffix",
    ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "JPG", "Png", "avif", "jp2", "mpo"],
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


@pytest.mark.parametrize(("domains", "found"), [((), "0 domains"), (("art",), "1 domain")])
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
    with pytest.raises(
        DataError, match="more is a folder inside class cat of domain art"
    ) as caught:
        open_source(str(root))
    assert str(caught.value).endswith('--layout, as "{domain}/{class}/**/{name}"')


@pytest.mark.parametrize(
    ("places", "layout"),
    [
        (("train/art", "test/art", "train/ink"), "*/{domain}/{class}/{name}"),
        (("art/train", "art/test", "ink/train"), "{domain}/*/{class}/{name}"),
    ],
)
def test_the_layout_that_is_named_for_a_set_in_parts_reads_it(tmp_path, places, layout):
    for place in places:
        for label in ("cat", "dog"):
            path = tmp_path / "set" / place / label / f"{place.replace('/', '-')}.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
    with pytest.raises(DataError, match=f"--layout, as {re.escape(json.dumps(layout))}"):
        open_source(str(tmp_path / "set"))
    source = open_source(str(tmp_path / "set"), layout=layout)
    assert (source.domains, source.classes) == (("art", "ink"), ("cat", "dog"))
    assert source.counts().tolist() == [[2, 2], [1, 1]]


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


@pytest.mark.parametrize("spec", ["", "coded-digits:"])
def test_an_empty_name_is_not_the_folder_one_is_in(spec, make_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(make_folder(tmp_path / "set"))
    if not spec:
        with pytest.raises(ArgumentError, match="the name of the data set is empty; accepted are"):
            open_source(spec)
    else:
        assert open_source(spec).name != "set"


def test_what_is_not_read_is_listed(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    for name in ("a.psd", "b.xyz", "nameless", ".hidden.psd"):
        (root / "art/cat" / name).write_bytes(b"x")
    for name in ("gone.png", "art/gone", "art/cat/gone.png", "art/cat/loop.png"):
        (root / name).symlink_to(root / name if "loop" in name else root / "nowhere")
    (root / "README.md").write_text("not among the images")
    (root / "art/cat/zeros.png").symlink_to("/dev/zero")
    os.mkfifo(root / "art/cat/pipe.png")
    source = open_source(str(root))
    assert source.counts().tolist() == [[3, 3], [3, 3]]
    assert {file.identity: file.reason for file in source.left_out} == {
        "art/cat/a.psd": ".psd is not read",
        "art/cat/b.xyz": ".xyz is not read",
        "art/cat/nameless": "its name has no ending",
        "gone.png": "a broken link",
        "art/gone": "a broken link",
        "art/cat/gone.png": "a broken link",
        "art/cat/loop.png": "a broken link",
        "art/cat/zeros.png": "not a regular file",
        "art/cat/pipe.png": "not a regular file",
    }
    assert prepare(source, 8, tmp_path / "cache").left_out == source.left_out


def test_a_class_without_an_image_in_any_domain_is_listed(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    for place in ("art/cow", "photo/cow", "photo/hen"):
        (root / place).mkdir()
    (root / "photo/hen/0.psd").write_bytes(b"x")
    source = open_source(str(root))
    assert source.classes == ("cat", "dog")
    assert [(each.identity, each.reason) for each in source.left_out] == [
        ("photo/hen/0.psd", ".psd is not read"),
        ("class cow", "0 images, none in any domain"),
        ("class hen", "0 images, none in any domain"),
    ]


def test_a_class_of_files_that_are_not_read_names_them(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    for i in range(3):
        (root / f"photo/dog/{i}.png").rename(root / f"photo/dog/{i}.psd")
    with pytest.raises(
        DataError, match=r"class dog has no image in .* left out: 3, .*0\.psd \(\.psd is not read"
    ):
        open_source(str(root))


def test_names_that_are_no_text_and_names_with_control_characters(make_folder, tmp_path):
    root = make_folder(tmp_path / "set")
    (root / "art/cat/0.png").rename(root / "art/cat" / os.fsdecode(b"caf\xe9.png"))
    (root / "photo").rename(root / "v1.0\x1b[31m, \nx")
    source = open_source(str(root))
    assert source.domains == ("art", r"v1.0\x1b[31m, \nx")
    assert r"art/cat/caf\xe9.png" in source.listing.identities
    images = prepare(source, 8, tmp_path / "cache")
    split = draw_split(images)
    split.save(tmp_path / "split.json")
    assert SplitFile.load(tmp_path / "split.json").digest == split.digest
    for position, content in source.contents():
        assert content == Path(source.location(position)).read_bytes()


def test_names_that_read_the_same_are_refused(make_folder, tmp_path):
    root = make_folder(tmp_path / "set", domains=("art", "a\x01", r"a\x01"))
    with pytest.raises(DataError, match="two domain names read"):
        open_source(str(root))


@pytest.mark.parametrize("spec", ["x" * 5000, "a\0b", "~nobody-of-this-name/x", "a\nb", ""])
def test_any_text_is_one_line(spec):
    with pytest.raises(ArgumentError, match="no data set") as caught:
        open_source(spec or "\x1b")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800
