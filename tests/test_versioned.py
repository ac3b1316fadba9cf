import pytest

from gradsurgery.errors import DataError
from gradsurgery.versioned import read_versioned


def read(path):
    return read_versioned(path, "list of things", 3, cure="write it again")


def test_an_object_of_the_version(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"version": 3, "things": []}')
    assert read(path) == {"version": 3, "things": []}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"version": 2}', "is a list of things of version 2, expected 3"),
        ('{"version": true}', "is a list of things of version True, expected 3"),
        ('{"version": "3"}', "is a list of things of version '3', expected 3"),
        ("{}", "is no list of things: it has no version"),
        ("[1]", "is no list of things: it has no version"),
        ('{"version": 3', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_anything_else_is_one_line_that_names_the_file(tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as raised:
        read(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path)
