"""Names as folders, and what is said of an option that cannot be."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.document import folder_name
from gradsurgery.documents.plan import Plan
from gradsurgery.errors import ArgumentError

NAMES = st.text(st.sampled_from("a./\\%2FE\0\x1b :"), min_size=1) | st.text(min_size=1)


@given(NAMES, NAMES)
def test_different_names_have_different_folders(first, second):
    names = {first, second}
    folders = {folder_name(name) for name in names}
    assert len(folders) == len(names)
    for folder in folders:
        assert "/" not in folder
        assert not folder.startswith(".")
        assert len(os.fsencode(folder)) <= 120
        assert Path("x", folder).parent == Path("x")


def test_long_names_have_different_folders():
    first, second = folder_name("é" * 300 + "a"), folder_name("é" * 300 + "b")
    assert first != second
    assert max(len(os.fsencode(first)), len(os.fsencode(second))) <= 120


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("grid", {"lr": [1]}, "grid: unknown option 'lr'; there is learning_rate"),
        ("grid", {"seed": [1]}, "grid: seed has a place of its own in the plan, seeds"),
        ("grid", {"device": ["cpu"]}, "grid: device does not itself change what is learned"),
        ("grid", {"learning_rate": []}, "grid: learning_rate has no values, or one of them twice"),
    ],
)
def test_what_a_part_of_a_plan_cannot_be_follows_its_name(part, value, message):
    with pytest.raises(ArgumentError) as caught:
        Plan(**{"data": ["pacs"], part: value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("columns", "pth=a", "columns: unknown column 'pth'; there is path"),
        ("columns", "label=", "columns: label has no name; give label=NAME"),
        ("columns", "label", "columns must name columns as label=species,domain=camera"),
        ("split", "70/20", "split must divide into training (above 0), validation and test images"),
        ("lr", 1, "unknown option 'lr'; there is learning_rate"),
        ("iterations", 0, "iterations must be greater than or equal to 1, found 0"),
    ],
)
def test_what_an_option_cannot_be_follows_its_name(option, value, message):
    with pytest.raises(ArgumentError) as caught:
        RunConfiguration(**{"data": "pacs", "target": "sketch", option: value})
    assert str(caught.value).startswith(message)
