import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from gradsurgery.documents.record import Record
from gradsurgery.report.rendering import OnTerminal
from gradsurgery.report.run_text import run_blocks, sparkline
from gradsurgery.report.section import Text, by_data_and_target, plain_table
from gradsurgery.report.tables import (
    choices_table,
    comparison_table,
    significance_table,
)
from gradsurgery.results import compare_runs, select_by_all, take_inventory
from tests.results.records import RECORD

WIDTHS = (40, 80, 200)


def shown(blocks, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(OnTerminal(blocks))
    return console.file.getvalue()


def words_of(blocks):
    """Every word of the blocks, which a terminal may part and never break."""
    texts = []
    for block in blocks:
        if isinstance(block, Text):
            texts.append(block.text)
        else:
            texts += [block.caption, *block.columns, *block.notes]
            texts += [e.text + e.marks for row in block.rows for e in row]
            texts += [e.below for row in block.rows for e in row]
    return {word for text in texts for word in text.split()}


def figures_of(table):
    """Every figure whole, as `53.50 ± 1.87*`."""
    entries = [entry for row in table.rows for entry in row[1:]]
    return {entry.text + entry.marks for entry in entries if entry.text[:1].isdigit()}


@pytest.fixture
def inventory(written, tmp_path):
    """Four methods on three targets with six seeds and two learning rates."""
    methods = ("deep-all", "agr-sum", "pcgrad", "mixup+agr-sum")
    for place, method in enumerate(methods):
        for target, seed in itertools.product(("art_painting", "photo", "sketch"), range(6)):
            best = 0.5 + place / 100 + seed / 200
            written(method, target, seed, best)
    written("deep-all", "photo", 0, 0.3, folder="two", configuration__learning_rate=0.1)
    return take_inventory([tmp_path])


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_and_no_figure_is_broken(width, inventory):
    tables = compare_runs(inventory.runs)
    blocks = [comparison_table(table, paper=True) for table in tables]
    blocks += [significance_table([table]) for table in tables if table.tests]
    blocks += by_data_and_target(choices_table(select_by_all(inventory).criteria))
    text = shown(blocks, width)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not words_of(blocks) - set(text.split()) - {"paper"}
    for block in blocks:
        assert all(any(figure in line for line in lines) for figure in figures_of(block))
    assert "…" not in text.replace("n=…", "")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_in_detail_is_whole(width):
    blocks = run_blocks(Record.model_validate(RECORD))
    text = shown(blocks, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert not words_of(blocks) - set(text.split())


def test_a_wide_table_is_a_table_and_a_narrow_one_a_line_a_figure():
    row = ["agr-sum", "70.00 ± 1.00", "50.00", "60.00"]
    table = plain_table("", ["method", "photo", "sketch", "cartoon"], [row])
    wide = [line.split() for line in shown([table], 50).splitlines()]
    assert ["method", "photo", "sketch", "cartoon"] in wide
    assert ["agr-sum", "70.00", "±", "1.00", "50.00", "60.00"] in wide
    narrow = [line.split() for line in shown([table], 26).splitlines()]
    assert narrow == [
        ["method", "agr-sum"],
        ["photo", "70.00", "±", "1.00"],
        ["sketch", "50.00"],
        ["cartoon", "60.00"],
        [],
    ]


def test_what_several_rows_begin_with_is_said_once():
    rows = [
        ["photo", "irm", "1"],
        ["photo", "irm", "1"],
        ["photo", "erm", "1"],
        ["sea", "erm", "2"],
    ]
    table = plain_table("", ["target", "method", "figure"], rows)
    wide = [line.split() for line in shown([table], 40).splitlines()][2:-1]
    assert wide == [["photo", "irm", "1"], ["1"], ["erm", "1"], ["sea", "erm", "2"]]
    narrow = [line.split() for line in shown([table], 18).splitlines()][2:-1]
    assert narrow == [
        *(["target", "photo"], ["irm", "1"], ["1"], ["erm", "1"]),
        *(["target", "sea"], ["erm", "2"]),
    ]


def test_long_names_stand_above_their_figures_which_stay_in_columns():
    name = "erm+mypackage.mymodule:SoftAgreement"
    rows = [["art_painting", name, "+9.03", "[+5.64, +12.26]"], ["art_painting", "b", "-1", "[0]"]]
    table = plain_table("", ["target", "method", "difference", "interval"], rows)
    wide = shown([table], 81).splitlines()  # 12 + 36 + 10 + 15, with gaps of 2
    assert wide[0] == f"{'target':12}  {'method':36}  difference  {'interval':>15}"
    assert wide[2:4] == [
        f"art_painting  {name}       +9.03  [+5.64, +12.26]",
        f"{'':14}{'b':36}{'-1':>12}{'[0]':>17}",
    ]
    first = [line.rstrip() for line in shown([table], 67).splitlines()]  # 2 + 36 + 10 + 15, gaps
    assert first[0] == f"  {'method':36}  difference  {'interval':>15}"
    assert first[2:5] == [
        "target art_painting",
        f"  {name}       +9.03  [+5.64, +12.26]",
        f"  {'b':36}{'-1':>12}{'[0]':>17}",
    ]
    both = [line.rstrip() for line in shown([table], 66).splitlines()]
    assert both[0] == f"    difference  {'interval':>15}"
    assert both[2:7] == [
        "target art_painting",
        f"  method {name}",
        f"    {'+9.03':>10}  [+5.64, +12.26]",
        "  method b",
        f"    {'-1':>10}  {'[0]':>15}",
    ]


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=20)


@given(names, st.integers(25, 120))
@settings(max_examples=60, deadline=None)
def test_names_of_any_script_stay_within_the_terminal(name, width):
    table = plain_table("", ["method", name, "t"], [[name, "70.00 ± 1.00", "50.00"]])
    assert max(map(cell_len, shown([table], width).splitlines())) <= width


def test_nothing_in_a_name_reaches_the_terminal_raw():
    table = plain_table("\x1b]0;title", ["\x07"], [["\x1b[31mred"]], notes=["\x9b1m"])
    text = shown([table, Text("\x1b[2J")], 80)
    assert not set(text) & {"\x1b", "\x07", "\x9b"}
    assert "\\x1b[31mred" in text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0, 7, 3.5], "▁█▅"),
        ([1, 1], "▁▁"),
        ([0, None, 1], "▁ █"),
        ([None], " "),
        ([], ""),
    ],
)
def test_sparklines(values, line):
    assert sparkline(values) == line


def test_a_long_sparkline_is_thinned_and_ends_at_the_last_value():
    line = sparkline([0.0] * 149 + [1.0])
    assert len(line) <= 60
    assert line.endswith("█")
