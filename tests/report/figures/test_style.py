import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from gradsurgery.errors import OutputError
from gradsurgery.report.figures import style
from gradsurgery.report.figures.style import (
    MethodStyle,
    method_styles,
    new_figure,
    save,
    styled,
    wrapped,
)

PAPER = ("deep-all", "agr-sum", "agr-rand", "pcgrad", "irm", "mldg", "mixup", "group-dro")

# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def lab(color, blindness):
    """CIE L*a*b* under D65 of a colour as someone with the blindness sees it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    seen = np.clip(BLINDNESS[blindness] @ np.array(linear), 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ seen
    )
    x, y, z = (
        c ** (1 / 3) if c > 0.008856 else 7.787 * c + 16 / 116
        for c in xyz / np.array([0.9505, 1.0, 1.089])
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def drawing():
    with styled():
        figure, axes = new_figure(2, 1.5)
        axes[0, 0].plot([0, 1], [1, 0], label="a $name$ with <tags> & dollars $")
        axes[0, 0].legend()
    return figure


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_ten_methods_differ_to_every_eye(blindness):
    styles = method_styles([*PAPER, "vrex", "fishr"])  # as many as there are colours
    colors = [lab(style.color, blindness) for style in styles.values()]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2)]
    assert min(distances) > 10  # a difference of 2.3 is just noticeable


def test_styles_are_different_and_the_papers_are_always_the_same():
    others = [f"irm+rule-{i}" for i in range(32)]
    styles = method_styles([*others, *PAPER])
    for pair in itertools.combinations(MethodStyle._fields, 2):  # also in grey, and without a line
        assert (
            len({tuple(getattr(style, name) for name in pair) for style in styles.values()}) == 40
        )
    assert all(styles[name] == method_styles([name])[name] for name in PAPER)
    assert method_styles(reversed([*others, *PAPER])) == styles


@pytest.mark.parametrize("others", [["vrex", "fishr", "cagrad"], ["median", "mgda", "fish", "sd"]])
def test_no_colour_is_used_twice_while_another_is_left(others):
    styles = method_styles(["deep-all", "agr-sum", *others])
    assert len({style.color for style in styles.values()}) == len(styles)


def test_files_are_the_same_bytes_again_whatever_the_users_settings(tmp_path):
    first = [path.read_bytes() for path in save(drawing(), tmp_path / "a.b")]
    with mpl.rc_context({"font.size": 20, "savefig.dpi": 50, "svg.hashsalt": "other"}):
        paths = save(drawing(), tmp_path / "a.b")
    assert [path.read_bytes() for path in paths] == first
    assert [path.name for path in paths] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_an_svg_is_well_formed_asks_for_no_font_and_has_no_date(tmp_path):
    _, path, _ = save(drawing(), tmp_path / "figure")
    text = path.read_text(encoding="utf-8")
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert "text" not in tags
    assert "date" not in tags


def test_the_panels_lie_alike_in_every_file(tmp_path):
    laid_out, figure = drawing(), drawing()
    with styled():
        laid_out.draw_without_rendering()
    save(figure, tmp_path / "figure")
    first, last = (each.axes[0].get_position().bounds for each in (laid_out, figure))
    assert last == pytest.approx(first, abs=0.01)


def test_a_pdf_has_its_letters_as_truetype_and_no_date(tmp_path):
    *_, path = save(drawing(), tmp_path / "figure")
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    assert b"/Subtype /Type3" not in content  # which IEEE and ACM refuse
    assert b"/CreationDate" not in content


def test_the_users_settings_stay_as_they_are():
    before = dict(mpl.rcParams)
    drawing()
    assert dict(mpl.rcParams) == before


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"figure\.png"):
        save(drawing(), tmp_path / "file" / "figure")


def test_long_names_are_broken_and_cut():
    assert wrapped("a" * 100, width=10) == "\n".join(["a" * 10, "a" * 10, "a" * 9 + "…"])
    assert wrapped("mine:WarmVREx+mine:SoftSum") == "mine:WarmVREx+\nmine:SoftSum"
    assert wrapped("irm+agr-sum, a + b", 30) == "irm+agr-sum, a + b"
    assert wrapped("irm (irm.penalty=10)") == "irm\n(irm.penalty=10)"
    assert wrapped("") == ""


@pytest.mark.filterwarnings("error")
def test_characters_that_the_font_lacks_are_taken_from_another_that_is_there(monkeypatch, caplog):
    """U+233D is in STIX, which comes with matplotlib, and not in DejaVu Sans."""
    stix = Path(mpl.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")

    def drawn(fonts: list[str], name: str) -> bytes:
        monkeypatch.setattr(style.font_manager, "findSystemFonts", lambda: fonts)
        style._families.cache_clear()
        with style.styled():
            figure, axes = style.new_figure(2, 1)
            axes[0, 0].set_xticks([0], [name])
            style.set_heading(figure, name)
        return style.encoded(figure, "pdf")

    assert b"STIXGeneral" in drawn([str(stix)], "\u233d a")
    assert b"STIXGeneral" not in drawn([], "\u233d a")
    assert drawn([str(stix)], "a b") == drawn([], "a b")
    regular = stix.with_name("STIXSizFiveSymReg.ttf")  # has no bold face, which the heading is in
    assert b"STIXSizeFiveSym" in drawn([str(regular)], "\u20ec a")
    assert not caplog.records
    style._families.cache_clear()


def test_a_figure_of_hundreds_of_rows_is_drawn_with_fewer_dots(tmp_path):
    figure, _ = new_figure(1, 400)  # 80,000 pixels at 200 an inch, where the most are 65,535
    png, *_ = save(figure, tmp_path / "tall")
    with Image.open(png) as picture:
        assert picture.size == (150, 60_000)
    png, *_ = save(new_figure(1, 2)[0], tmp_path / "usual")
    with Image.open(png) as picture:
        assert picture.size == (200, 400)
