import html
import itertools
import re

import pytest

from gradsurgery.report.rendering import render_page
from gradsurgery.report.section import (
    MOST_SVG_BYTES,
    Details,
    Entry,
    Figure,
    Listing,
    Section,
    Table,
    Text,
    Verbatim,
    embedded,
)

EVIL = "<script>alert('1')</script> & \"quoted\" {{ 7 * 7 }}"


def page(*blocks, **parts):
    section = Section("part", parts.pop("title", "Part"), blocks)
    given = {"title": "T", "origin": "O", "summary": ["S"], "sections": [section]}
    return render_page(**given | parts)


@pytest.mark.parametrize(
    "block",
    [
        Text(EVIL),
        Listing([EVIL]),
        Verbatim(EVIL),
        Details(EVIL, [Text(EVIL)]),
        Figure("data:,", EVIL, EVIL, [EVIL]),
        Table(EVIL, [EVIL, EVIL], [[Entry(EVIL), Entry(EVIL, below=EVIL)]], [EVIL]),
        Table("t", ["a"], [[Entry(EVIL, code=True)]]),
        Table("t", ["a"], [[Entry(EVIL, EVIL, link=EVIL)]]),
    ],
    ids=lambda block: type(block).__name__,
)
def test_text_is_never_markup(block):
    text = page(block, title=EVIL, origin=EVIL, summary=[EVIL])
    assert text.count("<script") == 1  # the page's own
    assert html.escape(EVIL, quote=False).split(" &amp;")[0] in text.replace("&#39;", "'")
    assert "49" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S)


def test_sections_without_blocks_are_left_out():
    text = render_page(
        title="T", origin="O", summary=[], sections=[Section("none", "None at all", [])]
    )
    assert "None at all" not in text


def test_nothing_is_loaded_from_anywhere():
    text = page(Text("x"))
    assert "default-src 'none'" in html.unescape(text)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert not re.findall(r"https?://|@import|url\(", text)


def test_control_characters_are_shown_and_lines_stay():
    text = page(Table("t", ["a"], [[Entry("\x1b[31mred")]]), Verbatim("one\ntwo\x07"))
    assert "\\x1b[31mred" in text
    assert "one\ntwo\\x07" in text


def test_rows_are_sorted_by_numbers():
    text = page(Table("t", ["a", "b"], [[Entry("x"), Entry("12 %")]]))
    assert 'data-sort="x"' in text
    assert 'data-sort="12.0"' in text
    assert "data-sort" not in page(Table("t", ["a"], [[Entry("–")]])).split("tbody>")[1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("71.25 ± 1.06*†", 71.25),
        ("-0.52", -0.52),
        ("+1.5", 1.5),
        ("1.9e-06*", 1.9e-6),
        ("1,024", 1024.0),
    ],
)
def test_columns_are_sorted_by_the_number_a_text_begins_with(text, number):
    assert float(Entry(text).key) == number


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[+0.1, +0.2]", "[+0.1, +0.2]"),
        ("agr-sum", "agr-sum"),
        ("–", None),
        ("", None),
        (" ", None),
    ],
)
def test_what_is_no_number_is_sorted_as_text_and_a_dash_last(text, key):
    assert Entry(text).key == key


def test_a_large_svg_gives_way_to_a_smaller_png():
    large = b"x" * (MOST_SVG_BYTES + 1)
    assert embedded(large, b"png").startswith("data:image/png")
    assert embedded(large, large + b"x").startswith("data:image/svg")
    assert embedded(b"svg", b"").startswith("data:image/svg")


def test_headings_are_in_order_and_pictures_have_a_text():
    text = page(Figure("data:,", "what it shows", "caption"), Table("t", ["a"], [[Entry("x")]]))
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert levels.count(1) == 1
    assert 'alt="what it shows"' in text
