import io
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsurgery.reports import (
    Cell,
    ComparisonTable,
    compare_runs,
    read_runs,
    to_csv,
    to_latex,
    to_markdown,
)


def table_of(data="pacs", method="agr-sum", target="photo", **options):
    cell = Cell(mean=50.0, std=None, runs=1, complete=True, best=False)
    fields = {"settings": {}, "model": "best", "seeds": (0,), "averages": {}} | options
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
**pacs: target accuracy (%) of the best model, mean ± std over 2 seeds**

| method | photo | sketch | average |
|:--|--:|--:|--:|
| deep-all | 70.00 ± 14.14 | 40.00 ± 14.14 | 55.00 |
| agr-sum | **75.00** (n=1) | – | – |
"""

EXPECTED_LATEX = r"""% pacs: target accuracy (%) of the best model, mean ± std over 2 seeds
\begin{tabular}{lrrr}
\toprule
method & photo & sketch & average \\
\midrule
deep-all & 70.00 $\pm$ 14.14 & 40.00 $\pm$ 14.14 & 55.00 \\
agr-sum & \textbf{75.00} (n=1) & -- & -- \\
\bottomrule
\end{tabular}
"""


def test_markdown(tables):
    assert to_markdown(tables) == EXPECTED_MARKDOWN


def test_latex(tables):
    assert to_latex(tables) == EXPECTED_LATEX


def test_csv_reads_back_unrounded(tables):
    frame = pd.read_csv(io.StringIO(to_csv(tables)))
    cells = frame.set_index(["method", frame["target"].fillna("")])
    assert cells.loc[("deep-all", "photo"), "mean_accuracy_percent"] == pytest.approx(70)
    assert cells.loc[("deep-all", "photo"), "std_percent"] == pytest.approx(200**0.5)
    assert cells.loc[("deep-all", ""), "mean_accuracy_percent"] == pytest.approx(55)
    assert list(cells.loc[("agr-sum", "photo"), ["runs", "complete", "best"]]) == [1, 0, 1]
    assert pd.isna(cells.loc[("agr-sum", "photo"), "std_percent"])
    assert len(frame) == 4


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
