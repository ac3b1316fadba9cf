"""Which pictures are meant."""

from pathlib import Path

import numpy as np
import pytest

from gradsurgery.deployment.pictures import listed_pictures
from gradsurgery.errors import ArgumentError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("b/2.PNG", "b/deep/er/1.jpg", "a.webp", ".hidden/1.png", "b/.1.png", "z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    return tmp_path


def names(given, root: Path) -> list[str]:
    return [name.replace(f"{root}/", "") for name, _ in listed_pictures(given)[0]]


def test_a_folder_is_gone_through_to_any_depth_in_order(root):
    pictures, left_out = listed_pictures(root)
    assert [str(path.relative_to(root)) for _, path in pictures] == [
        "a.webp",
        "b/2.PNG",
        "b/deep/er/1.jpg",
        "z.png",
    ]
    assert [(Path(file.identity).name, file.reason) for file in left_out] == [
        ("back", "a link to a folder"),
        ("notes.txt", ".txt is not read"),
    ]


def test_a_link_that_leads_to_itself_is_left_out(root):
    (root / "round").symlink_to("round")
    pictures, left_out = listed_pictures(root)
    assert len(list(pictures)) == 4
    assert ("round", "a broken link") in [(Path(f.identity).name, f.reason) for f in left_out]


def test_what_is_named_twice_is_one_picture(root):
    given = [root / "z.png", root, str(root / "b"), root / "z.png"]
    assert names(given, root) == ["z.png", "a.webp", "b/2.PNG", "b/deep/er/1.jpg"]


def test_a_file_that_is_named_is_meant_whatever_its_name(root):
    assert names([root / "notes.txt", root / "absent"], root) == ["notes.txt", "absent"]


def test_a_folder_without_pictures_is_an_error(root):
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file; name a folder with pictures"):
        names(root / "empty", root)
    with pytest.raises(DataError, match="holds no file"):  # the other one, in b, is not its
        names([root / "b", root / "empty"], root)
    (root / "empty" / "a.txt").touch()
    with pytest.raises(DataError, match="empty holds no picture, but 1 other file;"):
        names([root / "b", root / "empty"], root)


def test_an_array_of_four_dimensions_is_a_batch(root):
    batch = np.zeros((3, 4, 5, 3), np.uint8)
    assert names(batch, root) == ["image 0", "image 1", "image 2"]
    assert names(batch[0], root) == ["image 0"]


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 4, 4, 3), np.uint8)])
def test_nothing_is_an_error(nothing, root):
    with pytest.raises(ArgumentError, match="no image is given"):
        names(nothing, root)


def test_names_are_printable(root):
    (root / "a\nb.png").touch()
    assert "a\\nb.png" in names(root, root)


def test_what_can_be_read_is_asked_once_and_not_for_every_folder(root, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "gradsurgery.deployment.pictures.readable_suffixes",
        lambda: asked.append(1) or frozenset({".jpg"}),
    )
    assert names([root], root) == ["b/deep/er/1.jpg"]  # a folder of four
    assert len(asked) == 1
