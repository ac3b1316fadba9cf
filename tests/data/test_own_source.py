"""Sources from a package outside of this one."""

import importlib
import os
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from gradsurgery.data import open_source, prepare
from gradsurgery.errors import ArgumentError, DataError, GradsurgeryError

TEXT = '''
from pathlib import Path

import gradsurgery as gs
import numpy as np

__version__ = "0.3"


class Photos(gs.Source):
    def __init__(self):
        self.paths = sorted(Path("photos").glob("*/*/*.png"), reverse=True)
        places = [(path.parts[-3], path.parts[-2], path.name) for path in self.paths]
        super().__init__("photos", *zip(*places))

    def encoded(self):
        return (path.read_bytes() for path in self.paths)


class Flat(gs.Source):
    """Images of one colour each, kept as bytes of its own."""

    def __init__(self):
        rows = [(d, c, f"{i}") for d in "ab" for c in "xy" for i in range(2)]
        super().__init__("flat", *zip(*rows))

    def encoded(self):
        return (bytes([10 * i]) for i in range(8))

    def decode(self, position, content, size):
        return np.full((size, size, 3), content[0] + SHIFT, np.uint8)


class Misshapen(Flat):
    def decode(self, position, content, size):
        return np.zeros((size, size), np.uint8)


class Few(Flat):
    def encoded(self):
        return [b"1"] * 7


class Many(Flat):
    def encoded(self):
        return [b"1"] * 9


class Texts(Flat):
    def encoded(self):
        return ["1"] * 8


class Uncalled(gs.Source):
    def __init__(self):
        pass

    def encoded(self):
        return []


class Unequal(Flat):
    def __init__(self):
        gs.Source.__init__(self, "unequal", ["a"], ["b"], [])


class Argument(Flat):
    def __init__(self, folder):
        super().__init__()


class Failing(Flat):
    def __init__(self):
        raise FileNotFoundError("no disk\\nat all")


class Abstract(gs.Source):
    def __init__(self):
        pass


def flat():
    return Flat()


def nothing():
    return None


number = 3
SHIFT = 0
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    name = "sources_of_a_test"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{name}.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def test_a_source_of_ten_lines(package, make_folder, tmp_path):
    make_folder(tmp_path / "photos")
    source = open_source(f"{package}:Photos")
    folder = open_source("photos")
    assert source.listing.identities == folder.listing.identities
    assert dict(source.contents()) == dict(folder.contents())
    assert source.location(3) == source.listing.identities[3]
    assert source.provenance == {
        "object": f"{package}:Photos",
        "package": package,
        "version": "0.3",
        "sha256": sha256(Path(sys.modules[package].__file__).read_bytes()).hexdigest(),
    }
    first = prepare(source, 8, tmp_path / "cache")
    assert first.provenance == source.provenance
    assert first.digest == prepare(folder, 8, tmp_path / "cache").digest
    assert folder.provenance is None


def test_images_that_change_are_noticed(package, make_folder, tmp_path):
    make_folder(tmp_path / "photos")
    first = prepare(open_source(f"{package}:Photos"), 8, tmp_path / "cache").digest
    image = tmp_path / "photos/art/cat/0.png"
    image.write_bytes((tmp_path / "photos/art/cat/1.png").read_bytes())
    assert prepare(open_source(f"{package}:Photos"), 8, tmp_path / "cache").digest != first


@pytest.mark.parametrize("name", ["Flat", "flat"])
def test_a_source_that_decodes_bytes_of_its_own(package, tmp_path, name):
    images = prepare(open_source(f"{package}:{name}"), 4, tmp_path / "cache")
    assert images.images[:, 0, 0, 0].tolist() == [10 * i for i in range(8)]


def test_a_decoder_that_changes_is_noticed(package, tmp_path):
    prepare(open_source(f"{package}:Flat"), 4, tmp_path / "cache")
    file = tmp_path / "site" / f"{package}.py"
    file.write_text(TEXT.replace("SHIFT = 0", "SHIFT = 100"))
    sys.modules.pop(package)
    importlib.invalidate_caches()
    images = prepare(open_source(f"{package}:Flat"), 4, tmp_path / "cache")
    assert images.images[:, 0, 0, 0].tolist() == [100 + 10 * i for i in range(8)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "has no absent"),
        ("number", "expected a subclass of gradsurgery.Source"),
        ("np", "expected a subclass of gradsurgery.Source"),
        ("Path", "expected a subclass of gradsurgery.Source"),
        ("nothing", "gives a NoneType, expected a gradsurgery.Source"),
        ("Argument", "without arguments: missing a required argument: 'folder'"),
        ("Failing", r"cannot be opened, FileNotFoundError: no disk at all"),
        ("Abstract", "abstract"),
        ("Uncalled", r"lists no images; call super\(\)\.__init__"),
        ("Unequal", "lists 1 domains, 1 classes and 0 files"),
        ("Few", "lists 8 images and yields 7"),
        ("Many", "lists 8 images and yields 9"),
        ("Texts", "image 0 is a str, expected the bytes"),
        ("Misshapen", r"to uint8 \[4, 4\], expected uint8 \[4, 4, 3\]"),
    ],
)
def test_what_is_no_source_is_one_line(package, tmp_path, name, words):
    with pytest.raises(GradsurgeryError, match=words) as caught:
        prepare(open_source(f"{package}:{name}"), 4, tmp_path / "cache")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("spec", ["os.path:curdir", "sources_of_a_test:Photos"])
def test_a_folder_of_that_name_wins(package, make_folder, tmp_path, spec):
    make_folder(tmp_path / spec)
    assert open_source(spec).counts().sum() == 12


def test_anything_of_that_name_keeps_code_from_being_imported(package, tmp_path):
    os.mkfifo(tmp_path / f"{package}:Photos")
    with pytest.raises(ArgumentError, match="no folder, no table and no Parquet file"):
        open_source(f"{package}:Photos")
    assert package not in sys.modules


@pytest.mark.parametrize("spec", ["pacs:os", "vlcs:sources_of_a_test"])
def test_a_preset_wins(package, spec):
    with pytest.raises(ArgumentError, match=f"^{spec}: no such folder or file"):
        open_source(spec)


@pytest.mark.parametrize("spec", [r"C:\folder", "C:/folder", "photos:", ":Photos", "a b:c"])
def test_what_does_not_look_like_a_name_is_not_imported(spec, monkeypatch):
    from gradsurgery.data import open_source as module

    monkeypatch.setattr(
        sys.modules["gradsurgery.data.open_source"], "load_object", lambda *_, **__: 1 / 0
    )
    with pytest.raises(ArgumentError, match="no data set"):
        module(spec)


def test_entry_points_give_short_names(package, monkeypatch):
    from gradsurgery import doors

    entry = doors.EntryPoint("flat-ones", f"{package}:Flat", "gradsurgery.sources")
    monkeypatch.setattr(doors, "_entries", lambda kind: {"flat-ones": entry})
    assert open_source("flat-ones").name == "flat"
    with pytest.raises(ArgumentError, match=r"accepted are: .*flat-ones"):
        open_source("flat-one")
    assert np.array_equal(open_source("flat-ones").counts(), [[2, 2], [2, 2]])
    with pytest.raises(DataError):
        open_source("vlcs")
