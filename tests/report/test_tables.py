import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gradsurgery.algorithms import METHODS
from gradsurgery.data.derived import PRESETS
from gradsurgery.documents.selection import CRITERIA
from gradsurgery.errors import ArgumentError
from gradsurgery.report.rendering import section_markdown, to_latex, to_markdown
from gradsurgery.report.section import Entry, Listing, Section, Table, Text
from gradsurgery.report.tables import (
    candidates_table,
    choice_cautions,
    choices_table,
    comparison_csv,
    comparison_table,
    paper_figures,
    paper_row,
    signed,
    significance_csv,
    significance_table,
)
from gradsurgery.results import Cell, ComparisonTable, compare_runs, take_inventory
from gradsurgery.results.selection import select
from gradsurgery.results.tables import rename_methods
from tests.results.runs import run


def squeezed(text):
    """Without the spaces that align the columns of Markdown, a dash for each line of them."""
    return re.sub(r"-{2,}", "-", re.sub(r" {2,}", " ", text))


def markdown(tables, **options):
    return squeezed(to_markdown([comparison_table(table, **options) for table in tables]))


def latex(tables, **options):
    return to_latex([comparison_table(table, **options) for table in tables])


def table_of(data="pacs", method="agr-sum", target="photo", **options):
    cell = Cell((50.0,), planned=1)
    fields = {"protocol": {}, "differences": {}, "model": "best", "seeds": (0,), "averages": {}}
    fields |= {"baseline": "deep-all", "frame": pd.DataFrame()} | options
    return ComparisonTable(
        data=data, methods=(method,), targets=(target,), cells={(method, target): cell}, **fields
    )


@pytest.fixture
def tables(written, tmp_path):
    """Two methods on two targets with two seeds; agr-sum lacks a seed and a target."""
    for seed, (photo, sketch) in enumerate([(0.6, 0.5), (0.8, 0.3)]):
        written("deep-all", "photo", seed, photo)
        written("deep-all", "sketch", seed, sketch)
    written("agr-sum", "photo", 0, 0.75)
    return compare_runs(take_inventory([tmp_path]).runs)


# deep-all: photo (60 + 80) / 2 = 70, std sqrt((100 + 100) / 1) = 14.14;
# sketch (50 + 30) / 2 = 40, std 14.14; average (70 + 40) / 2 = 55
EXPECTED_MARKDOWN = """\
**pacs: target accuracy (%) of the best model, mean ± std over 2 seeds; \
no test, for deep-all or all the others lack seeds**

| method | photo | sketch | average |
|:-|-:|-:|-:|
| deep-all | 70.00 ± 14.14 | 40.00 ± 14.14 | 55.00 |
| agr-sum | 75.00 (n=1 of 2) | – | – |

n=…: seeds are missing; in no average, rank or test, never the best
"""

EXPECTED_LATEX = r"""% needs \usepackage{booktabs}; names in other scripts, lualatex and a font

% pacs: target accuracy (%) of the best model, mean ± std over 2 seeds; \
no test, for deep-all or all the others lack seeds
\begin{tabular}{lrrr}
\toprule
method & photo & sketch & average \\
\midrule
deep-all & 70.00 $\pm$ 14.14 & 40.00 $\pm$ 14.14 & 55.00 \\
agr-sum & 75.00 (n=1 of 2) & -- & -- \\
\bottomrule
\end{tabular}
\par{\footnotesize n=\dots{}: seeds are missing; in no average, rank or test, never the best}
"""


def test_markdown(tables):
    assert markdown(tables) == EXPECTED_MARKDOWN


def test_latex(tables):
    assert latex(tables) == EXPECTED_LATEX.replace(" \\\n", " ", 2)


def test_names_are_text_in_latex():
    row = [Entry("[50%_a] & #1 {b} | ~^\\ $"), Entry("-1.5"), Entry("[-0.5, -0.1]")]
    text = to_latex([Table("", ["*", "a-1", "p"], [row])])
    # a bracket or a star behind \\\\ would be an argument of it
    assert r"{}[50\%\_a] \& \#1 \{b\} \textbar{} \textasciitilde{}\textasciicircum{}" in text
    assert r"\textbackslash{} \$ & $-$1.5 & [$-$0.5, $-$0.1] \\" in text
    assert r"{}* & a-1 & p \\" in text


def test_csv_reads_back_unrounded(tables):
    frame = pd.read_csv(io.StringIO(comparison_csv(tables)))
    cells = frame.set_index(["method", frame["target"].fillna("")])
    assert cells.loc[("deep-all", "photo"), "mean_accuracy_percent"] == pytest.approx(70)
    assert cells.loc[("deep-all", "photo"), "std_percent"] == pytest.approx(200**0.5)
    assert cells.loc[("deep-all", ""), "mean_accuracy_percent"] == pytest.approx(55)
    counts = ["runs", "planned", "complete", "best"]
    assert list(cells.loc[("agr-sum", "photo"), counts]) == [1, 2, 0, 0]
    assert list(cells.loc[("deep-all", "photo"), counts]) == [2, 2, 1, 0]
    assert pd.isna(cells.loc[("agr-sum", "photo"), "std_percent"])
    assert frame["p"].isna().all()
    assert len(frame) == 4


@pytest.fixture
def compared(written, tmp_path):
    """Two methods against Deep-All over six seeds.

    agr-sum: six of six up, by 1 … 6 points: p = 2/2⁶ = 0.03125, W⁺ 21 of 21, mean 3.5 points;
    irm: no difference, p = 1. Holm over the two: 0.0625 and 1, so a star without a dagger.
    """
    for seed in range(6):
        written("deep-all", "sketch", seed, 0.5)
        written("agr-sum", "sketch", seed, 0.51 + seed / 100)
        written("irm", "sketch", seed, 0.5)
    return compare_runs(take_inventory([tmp_path]).runs)


@pytest.fixture
def dagger(written, tmp_path):
    """One method, 20 of 20 up by a point: p = 2/2²⁰, its own family."""
    for seed in range(20):
        written("deep-all", "sketch", seed, 0.5, folder="dagger")
        written("agr-sum", "sketch", seed, 0.51, folder="dagger")
    return compare_runs(take_inventory([tmp_path / "dagger"]).runs)


def test_stars_and_daggers_in_markdown(compared, dagger):
    text = markdown(compared)
    assert "; paired Wilcoxon test against deep-all, with Holm's correction**" in text
    # 51 … 56: mean 53.5, std sqrt(17.5 / 5) = 1.87
    assert "| agr-sum | **53.50 ± 1.87**\\* |" in text
    assert "| irm | 50.00 ± 0.00 |" in text
    note = "\\* p < 0.05, one test taken alone; † also after Holm's correction over the table's 2"
    assert note.replace("<", "\\<") in text
    assert "| agr-sum | **51.00 ± 0.00**\\*† |" in markdown(dagger)


def test_stars_and_daggers_in_latex(compared, dagger):
    text = latex(compared)
    assert r"agr-sum & \textbf{53.50 $\pm$ 1.87}$^{*}$ \\" in text
    assert (
        r"\par{\footnotesize * p \textless{} 0.05, one test taken alone; \textdagger{} al" in text
    )
    assert r"agr-sum & \textbf{51.00 $\pm$ 0.00}$^{*}$$^{\dagger}$ \\" in latex(dagger)


def test_statistics_in_csv(compared):
    frame = pd.read_csv(io.StringIO(comparison_csv(compared)), dtype={"difference_points": str})
    rows = frame.set_index("method")
    row = rows.loc["agr-sum"]
    assert float(row["difference_points"]) == pytest.approx(3.5)
    assert 1 < row["interval_low_points"] < 3.5 < row["interval_high_points"] < 6
    assert (row["p"], row["p_holm"], row["effect_size"]) == (0.03125, 0.0625, 1)
    assert (row["pairs"], row["zeros"], row["baseline"]) == (6, 0, "deep-all")
    assert (rows.loc["irm", "zeros"], rows.loc["irm", "p"]) == (6, 1)
    assert pd.isna(rows.loc["deep-all", "p"])


def test_the_statistics_as_a_table_of_their_own(compared, dagger):
    frame = pd.read_csv(io.StringIO(significance_csv(compared)))
    assert list(frame["method"]) == ["agr-sum", "irm"]
    row = frame.iloc[0]
    assert (row["data"], row["target"], row["baseline"]) == ("pacs", "sketch", "deep-all")
    assert (row["p"], row["p_holm"], row["n"], row["zeros"]) == (0.03125, 0.0625, 6, 0)
    assert row["difference"] == pytest.approx(3.5)
    caption, _, _, _, line, *_ = squeezed(to_markdown([significance_table(compared)])).splitlines()
    assert caption == "**pacs: differences from deep-all on the same seeds**"
    assert line.startswith(r"| sketch | agr-sum | +3.50 | \[+")
    assert line.endswith(r" | 0.031\* | 0.062 | +1.00 | 6 | 0 |")
    table = significance_table(dagger)
    (cells,) = table.rows
    assert [entry.text + entry.marks for entry in cells[4:6]] == ["1.9e-06*", "1.9e-06†"]
    assert r"agr-sum & +1.00 & [+1.00, +1.00] & 1.9e-06$^{*}$ & 1.9e-06$^{\dagger}$" in to_latex(
        [table]
    )
    several = significance_table([*compared, *dagger])
    assert (several.columns[0], several.rows[0][0].text) == ("data", "pacs")
    assert "effect size" in to_markdown([significance_table([])])
    assert len(significance_csv([]).splitlines()) == 1


def test_what_is_printed_as_zero_has_one_sign():
    assert (signed(-0.004), signed(-0.0), signed(0.004)) == ("+0.00", "+0.00", "+0.00")
    assert (signed(-0.006), signed(1)) == ("-0.01", "+1.00")


def test_where_the_runs_differ_from_the_papers_is_said_beside_its_figures(written, tmp_path):
    """The paper's AlexNet, 1,000 iterations (Mansilla et al. 2021, section 4.2), at 224 pixels."""
    changes = {"backbone": "resnet18", "image_size": 112, "iterations": 1000, "split_seed": 4}
    own = {f"configuration__{name}": value for name, value in changes.items()}
    for method in ("deep-all", "agr-sum"):
        written(method, **own)
    tables = compare_runs(take_inventory([tmp_path]).runs)
    _, note = markdown(tables, paper=True).rsplit("paper: ", 1)
    expected = (
        "differ from those (in brackets) in backbone resnet18 (alexnet), image_size 112 (224)"
    )
    assert note.strip().endswith(expected)
    assert expected.replace("_", r"\_") in latex(tables, paper=True)
    assert "in brackets" not in markdown(tables)


def test_the_papers_figures_are_beside_ours(compared):
    lines = markdown(compared, paper=True).splitlines()
    position = next(i for i, line in enumerate(lines) if line.startswith("| agr-sum |"))
    assert lines[position + 1] == r"| agr-sum, paper | 57.35 ± 3.29\* |"
    assert "| deep-all, paper | 54.90 ± 3.28 |" in lines
    assert any(line.startswith("paper: Mansilla et al. 2021, Table 1") for line in lines)
    assert r"agr-sum, paper & 57.35 $\pm$ 3.29$^{*}$ \\" in latex(compared, paper=True)
    assert r"irm, paper & 53.86 $\pm$ 4.22 \\" in latex(compared, paper=True)
    frame = pd.read_csv(io.StringIO(comparison_csv(compared, paper=True))).set_index("method")
    beside = ["paper_mean_percent", "paper_std_percent", "paper_significant"]
    assert list(frame.loc["agr-sum", beside]) == [57.35, 3.29, 1]
    assert "paper" not in markdown(compared)


def test_methods_are_called_as_a_paper_calls_them(compared):
    """The same figures, tests and paper's figures, under other names in the same order."""
    names = {"deep-all": "ERM", "agr-sum": "Ours"}
    called = rename_methods(compared, names)
    before, after = (
        pd.read_csv(io.StringIO(comparison_csv(tables, paper=True)))
        for tables in (compared, called)
    )
    assert set(after["method"]) == {"ERM", "Ours", "irm"}
    pd.testing.assert_frame_equal(before.replace(names), after)
    assert "| ERM, paper | 54.90 ± 3.28 |" in markdown(called, paper=True)
    assert "paired Wilcoxon test against ERM" in called[0].title
    assert called[0].methods == tuple(names.get(each, each) for each in compared[0].methods)
    with pytest.raises(ArgumentError, match="there is no mldg; there are agr-sum"):
        rename_methods(compared, {"mldg": "MLDG"})
    with pytest.raises(ArgumentError, match="two would have one name"):
        rename_methods(compared, {"agr-sum": "deep-all"})


def test_that_the_paper_has_no_figure_is_said(written, tmp_path):
    for method in ("deep-all", "agr-sum"):
        written(method, data__name="shops")
    tables = compare_runs(take_inventory([tmp_path]).runs)
    said = "paper: Mansilla et al. 2021, Table 1, has no figure for these methods on shops"
    assert said in markdown(tables, paper=True)
    assert "paper" not in markdown(tables)


def test_the_papers_average_needs_its_figure_for_every_target():
    cells = {"targets": ("photo", "sketch"), "method": "agr-sum"}
    table = replace(table_of(), targets=cells["targets"])
    # (86.18 + 57.35) / 2
    assert paper_row(table, "agr-sum")[-1].mean == pytest.approx(71.765)
    other = replace(table, targets=("photo", "moon"))
    assert paper_row(other, "agr-sum")[1:] == [None, None]
    assert paper_row(replace(table, data="digits"), "agr-sum") == []
    assert paper_row(table, "fishr") == []


def test_the_papers_table_is_whole_and_as_the_presets_call_it():
    figures = paper_figures()
    assert len(figures) == 3 * 4 * 8
    assert {(data, domain) for data, domain, _ in figures} == {
        (preset.name, domain) for preset in PRESETS.values() for domain in preset.domains
    }
    assert {method for *_, method in figures} == set(METHODS)
    # "about +1.9 points on PACS and +1.3 on Office-Home", as the paper says of its averages
    gains = {
        data: sum(
            figures[data, domain, "agr-sum"].mean - figures[data, domain, "deep-all"].mean
            for domain in PRESETS[data].domains
        )
        / 4
        for data in ("pacs", "office-home")
    }
    assert gains == {
        "pacs": pytest.approx(1.9, abs=0.06),
        "office-home": pytest.approx(1.3, abs=0.06),
    }


def test_settings_are_in_titles_and_columns(written, tmp_path):
    for rate in (0.1, 0.01):
        written(folder=str(rate), configuration__learning_rate=rate)
    tables = compare_runs(take_inventory([tmp_path]).runs)
    assert len(re.findall(r"learning\\?_rate 0\.0?1:", markdown(tables))) == 2
    frame = pd.read_csv(io.StringIO(comparison_csv(tables)))
    assert sorted(frame["learning_rate"]) == [0.01, 0.1]


def test_latex_escapes_names():
    text = latex([table_of(method=r"a_b&c%d#e$f{g}h~i^j\k", target="art_painting")])
    assert r"a\_b\&c\%d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k &" in text
    assert r"art\_painting" in text
    text = latex([table_of(method="a--b ---", target="`c` ''d,,")])  # no dashes and no quotes
    assert r"a-\/-b -\/-\/- &" in text
    assert r"& \textasciigrave{}c\textasciigrave{} '\/'d,\/, \\" in text


def test_markdown_escapes_what_would_change_the_table_or_the_type():
    text = markdown([table_of(method="a|b*c", target="_x_ art_painting")])
    assert r"| a\|b\*c |" in text
    assert r"\_x\_ art_painting" in text


ODD = ["~~a~~", "a &amp; b", "&#35;1", "`c`", "a|b", "<b>x</b>", "# d", "d #", "1. e", "23) e"]
ODD += ["- f", "+ f", "===", "---", "*g*", "_g_", "art_painting", "![h](i)", "R&D", "j\\", "\\&lt;"]


@pytest.mark.parametrize("name", [*ODD, " - f", "    k"])
def test_a_name_is_shown_as_it_is_wherever_it_stands_in_markdown(name):
    """As CommonMark with the tables and the strikethrough of GitHub has it."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    blocks = [Text(name), Listing([name]), Table(name, [name, "b"], [[Entry(name)] * 2], [name])]
    read = reader.parse(section_markdown(Section("identity", name, blocks)))
    shown = [each for each in read if each.type == "inline"]
    assert [each.type for each in read if each.type.endswith("_open") and each.level == 0] == [
        *("heading_open", "paragraph_open", "bullet_list_open"),
        *("paragraph_open", "table_open", "paragraph_open"),
    ]
    texts = ["".join(child.content for child in each.children) for each in shown]
    assert texts == [*[name.strip()] * 5, "b", *[name.strip()] * 3]
    styles = {child.type for each in shown for child in each.children}
    assert styles == {"text", "strong_open", "strong_close"}  # of the caption


def test_control_characters_are_shown_and_obeyed_by_nothing():
    table = table_of(method="\x1b[31mred", target="a\nb")
    assert r"\\x1b\[31mred" in markdown([table])
    assert "\x1b" not in markdown([table]) + latex([table])
    assert len(markdown([table]).splitlines()) == 5


def test_columns_of_other_than_numbers_are_to_the_left():
    rows = [
        [Entry("a"), Entry("−0.5"), Entry("[+1, +2]"), Entry("b"), Entry("–")],
        [Entry("a"), Entry("–"), Entry(""), Entry("3"), Entry("–")],
    ]
    sides = Table("", list("vwxyz"), rows).alignment
    assert sides == ["left", "right", "right", "left", "left"]
    assert Table("", [], rows).alignment == ["left"] * 5


@pytest.fixture
def selections():
    """0.1 is the source domains' choice, 0.2 the oracle's; 0.3 lacks a seed."""
    tried = {0.1: (0.75, 0.5, 0.25), 0.2: (0.5, 0.75, 0.75), 0.3: (1.0, 1.0, 1.0)}
    runs = [
        run("a", seed, accuracies=accuracies, learning_rate=rate)
        for rate, accuracies in tried.items()
        for seed in (range(1) if rate == 0.3 else range(2))
    ]
    return {name: select(pd.DataFrame(runs), name) for name in CRITERIA}


def by_name(table):
    """The rows as texts by the names of their columns."""
    return [{c: e.text for c, e in zip(table.columns, r, strict=True)} for r in table.rows]


def test_the_criteria_side_by_side(selections):
    training, oracle = by_name(choices_table(selections))
    assert training["chosen"] == "learning_rate 0.1 (of 3)"
    assert (training["score (%)"], training["target (%)"]) == ("75.00 ± 0.00", "50.00 ± 0.00")
    name = "leave-one-domain-out"
    (leave,) = by_name(choices_table({name: selections[name]}))
    assert leave["chosen"].startswith("not available: needs runs that leave out each source")
    assert (leave["score (%)"], leave["target (%)"]) == ("–", "–")
    assert choices_table(selections).notes[0] == f"{name} is {leave['chosen']}."
    assert oracle["criterion"] == "oracle (not attainable)"
    # the last model's, half of the best one's 75
    assert (oracle["chosen"], oracle["target (%)"]) == ("learning_rate 0.2 (of 3)", "37.50 ± 0.00")


def test_the_evidence(selections):
    rows = by_name(candidates_table({"training-domain": selections["training-domain"]}))
    rates = ["learning_rate 0.1", "learning_rate 0.2", "learning_rate 0.3"]
    assert [row["candidate"] for row in rows] == rates
    assert [row["verdict"] for row in rows] == ["chosen", "", "not eligible: lacks seed 1"]
    assert [row["n"] for row in rows] == ["2", "2", "1"]


def test_a_choice_at_the_edge_of_the_grid_is_named_but_for_the_oracles(selections):
    (sentence,) = choice_cautions(selections)
    assert sentence == (
        "learning_rate 0.1, chosen for irm on a (letters, training-domain), is the smallest of 3 "
        "values tried: widen the grid, for a smaller one may do better."
    )
    assert choices_table(selections).notes[1:] == [sentence]
    assert "the smallest of 3 values tried" in to_markdown([choices_table(selections)])


def test_a_result_that_lacks_seeds_says_so():
    runs = [run("a", seed, without=(source,)) for seed in range(2) for source in ("b", "c")]
    name = "leave-one-domain-out"
    found = choices_table({name: select(pd.DataFrame([*runs, run("a", 0)]), name)})
    (row,) = by_name(found)
    assert (row["score (%)"], row["target (%)"]) == ("50.00 ± 0.00", "50.00 (n=1 of 2)")


def test_conditions_are_named_where_they_differ():
    runs = [run(conditions={"backbone": name}, folder=name) for name in ("alexnet", "resnet50")]
    name = "training-domain"
    rows = by_name(choices_table({name: select(pd.DataFrame(runs), name)}))
    assert [row["method"] for row in rows] == ["irm, backbone alexnet", "irm, backbone resnet50"]
    assert all(row["chosen"] == "the only candidate" for row in rows)


# Printable names and those with separators; the control characters no file system shows are left.
names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.sampled_from('|,"&_\\%'),
    min_size=1,
    max_size=12,
).filter(lambda text: text == " ".join(text.split()))


@given(data=names, method=names, target=names)
@settings(max_examples=100, deadline=None)
def test_any_name_keeps_the_form(data, method, target):
    table = table_of(data, method, target)
    frame = pd.read_csv(io.StringIO(comparison_csv([table])), keep_default_na=False, dtype=str)
    assert list(frame[["dataset", "method", "target"]].iloc[0]) == [data, method, target]
    unescaped = re.compile(r"(?<!\\)(?:\\\\)*\|")
    body = markdown([table]).splitlines()[2:]
    assert len(body) == 3
    assert all(len(unescaped.findall(line)) == 3 for line in body)
    rows = [line for line in latex([table]).split("\n") if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in rows] == [1, 1]
    assert not any(re.search(r"(?<!\\)[%#_]", line) for line in rows)
