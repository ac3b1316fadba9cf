"""Names, paths and patterns that mean nothing get one line."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import gradsurgery as gs
from gradsurgery.data import open_source, unknown_domain
from gradsurgery.data.tables import order_of_classes
from gradsurgery.documents.data_options import listed_names
from gradsurgery.errors import ArgumentError, DataError


def test_a_path_in_a_table_is_of_a_regular_file(tmp_path):
    rows = {"image": ["/dev/zero"] * 4, "label": ["a", "b"] * 2, "domain": ["x", "x", "y", "y"]}
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    source = open_source(str(tmp_path / "p.parquet"))
    with pytest.raises(DataError, match="cannot read /dev/zero: it is not a regular file"):
        next(iter(source.encoded()))


@pytest.mark.parametrize("place", ["hf://./data", "hf://../..", "hf://a/.."])
def test_the_hubs_names_are_no_paths(place):
    with pytest.raises(ArgumentError, match="expected hf://owner/name"):
        open_source(place)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "x" * 140_000])
def test_a_list_of_names_is_one_line(text):
    with pytest.raises(ArgumentError, match="is no list of names"):
        listed_names(text)
    with pytest.raises(ArgumentError, match="is no list of names"):
        gs.RunConfiguration(data="x", target="y", columns=f"label={text}")


def test_patterns_that_find_nothing_are_named(tmp_path):
    for name in ("a_x_1", "b_x_1", "x_2"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"finds no domain or class in x_2\.png"):
        open_source(str(tmp_path), layout="(?P<domain>[ab])?_?(?P<class>x).*")
    with pytest.raises(ArgumentError, match="is no regular expression"):
        open_source(str(tmp_path), layout="(?P<domain>.{1,99999999999})(?P<class>.)")


def test_numbers_of_any_length_are_in_order():
    long = "9" * 5000
    assert order_of_classes([], {long, "10", "9"}) == ["9", "10", long]


ODD = """
import gradsurgery as gs
for odd in (1, True, b"x"):
    for call in (gs.rule, gs.open_source):
        try:
            call(odd)
        except gs.ArgumentError as error:
            print(error)
    for options in ({"layout": odd}, {"columns": odd}):
        try:
            gs.open_source("rotated-digits", **options)
        except gs.ArgumentError as error:
            print(error)
"""


def test_arguments_of_other_kinds_are_named():
    # in a process of its own, where annotations are not checked as in the tests
    done = subprocess.run([sys.executable, "-c", ODD], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 12
    assert said[:4] == [
        "a rule is named by text, as 'agr-sum', found 1",
        "the data set is text, found 1",
        "the layout is text, found 1",
        "columns are a mapping of names, found 1",
    ]


def test_a_path_object_is_a_data_set(make_folder, tmp_path):
    make_folder(tmp_path, "ab")
    assert open_source(Path(tmp_path)).domains == ("a", "b")


def test_a_device_is_no_document_and_no_picture(tmp_path):
    from gradsurgery.data import BadImageError, Preparation
    from gradsurgery.documents.record import Record

    with pytest.raises(DataError, match="/dev/zero is not a regular file; name a record of a run"):
        Record.load(Path("/dev/zero"))
    with pytest.raises(BadImageError, match="it is not a regular file"):
        Preparation(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).pixels("/dev/zero")


def test_a_domain_that_is_written_in_other_characters_than_it_looks(make_folder, tmp_path):
    name = "K\u00e4se"
    decomposed = unicodedata.normalize("NFD", name)  # as files that come from a Mac are called
    root = make_folder(tmp_path / "photos", domains=("art", decomposed))
    source = open_source(str(root))
    message = unknown_domain(source.name, name, source.domains)
    assert message.endswith(r"written in other characters, 'Ka\u0308se': rename it")
    assert "looks the same" not in unknown_domain(source.name, "Kase", source.domains)
