import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsurgery.algorithms import METHODS
from gradsurgery.data.presets import PRESETS
from gradsurgery.report import (
    comparisons_to_latex,
    comparisons_to_markdown,
    to_csv,
    to_latex,
    to_markdown,
)
from gradsurgery.results import (
    Cell,
    ComparisonTable,
    compare_runs,
    comparison_frame,
    comparison_rows,
    paper_figures,
    paper_row,
    read_runs,
)


def table_of(data="pacs", method="agr-sum", target="photo", **options):
    cell = Cell(mean=50.0, std=None, runs=1, planned=1, complete=True, best=False)
    fields = {"settings": {}, "model": "best", "seeds": (0,), "averages": {}} | options
    fields = {"baseline": "deep-all"} | fields
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
    return compare_runs(read_runs([tmp_path]))


# deep-all: photo (60 + 80) / 2 = 70, std sqrt((100 + 100) / 1) = 14.14;
# sketch (50 + 30) / 2 = 40, std 14.14; average (70 + 40) / 2 = 55
EXPECTED_MARKDOWN = """\
**pacs: target accuracy (%) of the best model, mean ± std over 2 seeds; \
no test, for deep-all or all the others lack seeds**

| method | photo | sketch | average |
|:--|--:|--:|--:|
| deep-all | 70.00 ± 14.14 | 40.00 ± 14.14 | 55.00 |
| agr-sum | 75.00 (n=1 of 2) | – | – |

n=…: seeds are missing; in no average, rank or test, never the best
"""

EXPECTED_LATEX = r"""% pacs: target accuracy (%) of the best model, mean ± std over 2 seeds; \
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
    assert to_markdown(tables) == EXPECTED_MARKDOWN


def test_latex(tables):
    assert to_latex(tables) == EXPECTED_LATEX.replace(" \\\n", " ", 1)


def test_csv_reads_back_unrounded(tables):
    frame = pd.read_csv(io.StringIO(to_csv(tables)))
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
def tested(written, tmp_path):
    """Two methods against Deep-All over six seeds.

    agr-sum: six of six up, by 1 … 6 points: p = 2/2⁶ = 0.03125, W⁺ 21 of 21, mean 3.5 points;
    irm: no difference, p = 1. Holm over the two: 0.0625 and 1, so a star without a dagger.
    """
    for seed in range(6):
        written("deep-all", "sketch", seed, 0.5)
        written("agr-sum", "sketch", seed, 0.51 + seed / 100)
        written("irm", "sketch", seed, 0.5)
    return compare_runs(read_runs([tmp_path]))


@pytest.fixture
def dagger(written, tmp_path):
    """One method, 20 of 20 up by a point: p = 2/2²⁰, its own family."""
    for seed in range(20):
        written("deep-all", "sketch", seed, 0.5, folder="dagger")
        written("agr-sum", "sketch", seed, 0.51, folder="dagger")
    return compare_runs(read_runs([tmp_path / "dagger"]))


def test_stars_and_daggers_in_markdown(tested, dagger):
    text = to_markdown(tested)
    assert "; paired Wilcoxon test against deep-all, with Holm's correction**" in text
    # 51 … 56: mean 53.5, std sqrt(17.5 / 5) = 1.87
    assert "| agr-sum | **53.50 ± 1.87**\\* |" in text
    assert "| irm | 50.00 ± 0.00 |" in text
    note = "\\* p < 0.05, one test taken alone; † also after Holm's correction over the table's 2"
    assert note.replace("<", "\\<") in text
    assert "| agr-sum | **51.00 ± 0.00**\\*† |" in to_markdown(dagger)


def test_stars_and_daggers_in_latex(tested, dagger):
    text = to_latex(tested)
    assert r"agr-sum & \textbf{53.50 $\pm$ 1.87}$^{*}$ \\" in text
    assert (
        r"\par{\footnotesize * p \textless{} 0.05, one test taken alone; \textdagger{} al" in text
    )
    assert r"agr-sum & \textbf{51.00 $\pm$ 0.00}$^{*}$$^{\dagger}$ \\" in to_latex(dagger)


def test_statistics_in_csv(tested):
    frame = pd.read_csv(io.StringIO(to_csv(tested)), dtype={"difference_points": str})
    rows = frame.set_index("method")
    row = rows.loc["agr-sum"]
    assert float(row["difference_points"]) == pytest.approx(3.5)
    assert 1 < row["interval_low_points"] < 3.5 < row["interval_high_points"] < 6
    assert (row["p"], row["p_holm"], row["effect_size"]) == (0.03125, 0.0625, 1)
    assert (row["pairs"], row["zeros"], row["baseline"]) == (6, 0, "deep-all")
    assert (rows.loc["irm", "zeros"], rows.loc["irm", "p"]) == (6, 1)
    assert pd.isna(rows.loc["deep-all", "p"])


def test_the_statistics_as_a_table_of_their_own(tested, dagger):
    frame = comparison_frame(tested)
    assert list(frame["method"]) == ["agr-sum", "irm"]
    row = frame.iloc[0]
    assert (row["data"], row["target"], row["baseline"]) == ("pacs", "sketch", "deep-all")
    assert (row["p"], row["p_holm"], row["n"], row["zeros"]) == (0.03125, 0.0625, 6, 0)
    assert row["difference"] == pytest.approx(3.5)
    line = comparisons_to_markdown(tested).splitlines()[2]
    assert line.startswith(r"| pacs | sketch | agr-sum − deep-all | +3.50 | \[+")
    assert line.endswith(r" | 0.031\* | 0.062 | +1.00 | 6 | 0 |")
    rows = comparison_rows(dagger)
    assert rows[0][5:7] == ["1.9e-06*", "1.9e-06†"]
    latex = comparisons_to_latex(dagger)
    assert (
        r"agr-sum $-$ deep-all & +1.00 & [+1.00, +1.00] & 1.9e-06* & 1.9e-06\textdagger{}" in latex
    )
    assert comparison_frame([]).empty


def test_the_papers_figures_are_beside_ours(tested):
    lines = to_markdown(tested, paper=True).splitlines()
    position = next(i for i, line in enumerate(lines) if line.startswith("| agr-sum |"))
    assert lines[position + 1] == r"| agr-sum, paper | 57.35 ± 3.29\* |"
    assert "| deep-all, paper | 54.90 ± 3.28 |" in lines
    assert any(line.startswith("paper: Mansilla et al. 2021, Table 1") for line in lines)
    assert r"irm, paper & 53.86 $\pm$ 4.22 \\" in to_latex(tested, paper=True)
    frame = pd.read_csv(io.StringIO(to_csv(tested, paper=True))).set_index("method")
    beside = ["paper_mean_percent", "paper_std_percent", "paper_significant"]
    assert list(frame.loc["agr-sum", beside]) == [57.35, 3.29, 1]
    assert "paper" not in to_markdown(tested)


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
    tables = compare_runs(read_runs([tmp_path]))
    assert len(re.findall(r"learning\\?_rate 0\.0?1:", to_markdown(tables))) == 2
    frame = pd.read_csv(io.StringIO(to_csv(tables)))
    assert sorted(frame["learning_rate"]) == [0.01, 0.1]


def test_latex_escapes_names():
    text = to_latex([table_of(method=r"a_b&c%d#e$f{g}h~i^j\k", target="art_painting")])
    assert r"a\_b\&c\%d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k &" in text
    assert r"art\_painting" in text


def test_markdown_escapes_what_would_change_the_table_or_the_type():
    text = to_markdown([table_of(method="a|b*c", target="_x_ art_painting")])
    assert r"| a\|b\*c |" in text
    assert r"\_x\_ art_painting" in text


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
    frame = pd.read_csv(io.StringIO(to_csv([table])), keep_default_na=False, dtype=str)
    assert list(frame[["dataset", "method", "target"]].iloc[0]) == [data, method, target]
    unescaped = re.compile(r"(?<!\\)(?:\\\\)*\|")
    body = to_markdown([table]).splitlines()[2:]
    assert len(body) == 3
    assert all(len(unescaped.findall(line)) == 3 for line in body)
    rows = [line for line in to_latex([table]).split("\n") if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in rows] == [1, 1]
    assert not any(re.search(r"(?<!\\)[%#_]", line) for line in rows)
