"""The stored tables are whole, and what the pages show of them is drawn from them."""

import importlib.util
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gradsurgery.results.statistics import compare_paired

FOLDER = Path(__file__).parent.parent / "docs" / "evidence" / "phase-diagram"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("phase_diagram", FOLDER / "phase_diagram.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_run_of_the_phase_diagram_has_its_pair(script):
    runs = pd.read_csv(FOLDER / "runs.csv")
    assert len(script.gains()) * 2 == len(runs)
    known = runs[runs["code_seed"] == 0]
    settings = known.groupby(["domains", "share", "noise", "iterations"])["seed"].nunique()
    assert len(settings) == 3 * 4 * 3 * 2
    assert settings.nunique() == 1


def test_a_gain_is_the_difference_of_two_runs_with_one_seed(script):
    runs = pd.read_csv(FOLDER / "runs.csv")
    gains = script.gains()
    one = gains.iloc[0]
    same = (
        runs[["data", "target", "iterations", "seed"]]
        == one[["data", "target", "iterations", "seed"]]
    ).all(axis=1)
    pair = runs[same].set_index("method")["best_target"]
    assert one["gain"] == pytest.approx(100 * (pair["agr-sum"] - pair["deep-all"]))


@pytest.mark.skipif(
    matplotlib.__version_info__ < (3, 11), reason="the stored figure is matplotlib 3.11's"
)
def test_the_figure_is_drawn_from_the_stored_table(script, tmp_path):
    script.figure(tmp_path)
    drawn, stored = (
        np.asarray(Image.open(folder / "phase-diagram.png").convert("L"), dtype=float)
        for folder in (tmp_path, FOLDER)
    )
    assert drawn.shape == stored.shape  # glyphs differ a little between releases of matplotlib
    assert np.abs(drawn - stored).mean() < 2


def test_what_is_fitted_is_a_straight_line(script):
    table = pd.DataFrame({"x": [0.0, 1.0, 2.0], "gain": [1.0, 3.0, 5.0]})
    said = script.fitted(table, pd.DataFrame({"x": [10.0]}), ["x"])
    np.testing.assert_allclose(said, [21])


def test_a_prediction_is_judged_against_the_mean(script):
    gain, mean = np.array([1.0, 2.0, 3.0]), np.full(3, 2.0)
    assert script.judged(gain, gain, mean) == "+1.00 (+1.00)"
    # squared errors 0 + 0 + 4 against 1 + 0 + 1, and the same order
    assert script.judged(gain, np.array([1.0, 2.0, 5.0]), mean) == "−1.00 (+1.00)"
    assert script.judged(gain, gain[::-1], mean) == "−3.00 (−1.00)"  # 4 + 0 + 4 against 2


def test_no_setting_judges_itself(script):
    table = pd.DataFrame({"domains": [3, 3, 6], "x": [0.0, 1.0, 5.0], "gain": [0.0, 1.0, 9.0]})
    gain, said, mean = script.by_number_of_domains(table, ["x"])
    np.testing.assert_allclose(gain, [0, 1, 9])
    np.testing.assert_allclose(mean, [9, 9, 0.5])
    assert said[2] == pytest.approx(5)  # the line through (0, 0) and (1, 1)


def test_each_method_has_the_learning_rate_of_its_own_validation(script):
    """Agr-Sum takes 0.01 (validation 0.9), Deep-All 0.001 (0.9): means over seeds 0.5 and 0.4."""
    about = {"data": "d", "target": "t"}
    rows = [
        ("agr-sum", 0.001, 0.8, 0.6),
        ("agr-sum", 0.01, 1.0, 0.4),
        ("agr-sum", 0.01, 0.8, 0.6),
        ("deep-all", 0.001, 0.9, 0.4),
        ("deep-all", 0.01, 0.7, 0.9),
        ("pcgrad", 0.01, 1.0, 1.0),
    ]
    names = ("method", "learning_rate", "best_validation", "best_target")
    runs = pd.DataFrame([about | dict(zip(names, row, strict=True)) for row in rows])
    assert script.own_rates(runs) == {("d", "t"): pytest.approx(10)}
    assert script.own_rates(runs[runs["method"] == "agr-sum"]) == {}


def rows_below(heading):
    """Of the page's table below it, without what marks a figure."""
    page = (FOLDER.parent / "pacs.md").read_text(encoding="utf-8").replace("−", "-")
    section = page.partition(f"## {heading}\n")[2].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[re.sub(r"[*†\\]", "", cell).strip() for cell in line.split("|")] for line in lines[1:]]


@pytest.fixture(scope="module")
def probes():
    runs = pd.read_csv(FOLDER.parent / "pacs" / "linear-probe.csv")
    of_domains = runs[runs["batches"] == "multi"].copy()
    of_domains["accuracy"] = 100 * of_domains["target_accuracy"]
    return of_domains


def by_seed(runs, method):
    return runs[runs["method"] == method].pivot(index="seed", columns="target", values="accuracy")


@pytest.mark.parametrize(
    ("heading", "seeds", "shown"),
    [
        ("Twenty seeds on frozen features", 20, "{:.2f} ± {:.2f}"),
        ("Other methods", 6, "{:.1f}"),
    ],
)
def test_the_page_on_pacs_shows_the_runs_on_frozen_features(probes, heading, seeds, shown):
    runs = probes[(probes["learning_rate"] == 1e-3) & (probes["seed"] < seeds)]
    rows = rows_below(heading)
    assert len(rows) >= 7
    for _, method, *cells in rows:
        of = by_seed(runs, method)
        assert len(of) == seeds
        assert cells[:4] == [shown.format(of[t].mean(), of[t].std()) for t in sorted(of)]
        averages = of.mean(axis=1)
        assert cells[4] == shown.partition(" ")[0].format(averages.mean())
        if method != "deep-all":
            theirs = by_seed(runs, "deep-all").mean(axis=1)
            over = compare_paired(averages.tolist(), theirs.tolist(), seed=0)
            assert cells[5] == f"{over.difference:+.1f} [{over.low:+.1f}, {over.high:+.1f}]"


def test_the_page_on_pacs_shows_the_runs_at_other_learning_rates(probes):
    rows = [cells for _, *cells, _ in rows_below("At other learning rates")]
    for rate, *cells in rows[:5]:
        runs = probes[(probes["learning_rate"] == float(rate)) & (probes["seed"] < 6)]
        means = runs.groupby("method")[["accuracy", "validation_accuracy"]].mean()
        shown = [means.loc[method] for method in ("deep-all", "agr-sum", "agr-rand")]
        assert cells == [f"{m.iloc[0]:.1f} ({100 * m.iloc[1]:.1f})" for m in shown]
    tried = probes[probes["seed"] < 6].groupby(["method", "target", "learning_rate"])
    means = tried[["accuracy", "validation_accuracy"]].mean()
    for (_, *cells), by in zip(rows[5:], ("validation_accuracy", "accuracy"), strict=True):
        best = means.loc[means.groupby(["method", "target"])[by].idxmax()].groupby("method").mean()
        shown = [best.loc[method, "accuracy"] for method in ("deep-all", "agr-sum", "agr-rand")]
        assert cells == [f"{accuracy:.1f}" for accuracy in shown]
