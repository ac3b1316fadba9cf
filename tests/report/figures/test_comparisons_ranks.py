import itertools

import pytest

from gradsurgery.report.figures.comparisons import draw_ranks
from gradsurgery.report.figures.style import method_styles
from gradsurgery.results.ranking import Ranking

# Demšar 2006, section 3.2.2: four classifiers on 14 data sets, critical difference 1.25.
RANKS = {"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
CLIQUES = [["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]]


def drawn(ranks, critical_difference=1.0, cliques=()):
    ordered = sorted(ranks, key=ranks.get)
    ranking = Ranking(
        methods=tuple(ordered),
        ranks=tuple(ranks[method] for method in ordered),
        cells=("x", "y"),
        left_out=("z",),
        statistic=None,
        p=None,
        critical_difference=critical_difference,
        cliques=tuple(map(tuple, cliques)),
    )
    drawing = draw_ranks(ranking, "2 cells", method_styles(ordered))
    assert "Left out, as a method is not complete there: z." in drawing.caption
    (axes,) = drawing.figure.axes
    return axes


def lines(axes, gid):
    return [line for line in axes.lines if (line.get_gid() or "").startswith(gid)]


def test_ranks_lie_on_the_axis_and_names_carry_them():
    axes = drawn(RANKS, critical_difference=1.25, cliques=CLIQUES)
    points = [line.get_xydata()[0].tolist() for line in axes.lines if len(line.get_xdata()) == 1]
    assert sorted(points) == [[rank, 0] for rank in sorted(RANKS.values())]
    texts = {" ".join(text.get_text().split()) for text in axes.texts}
    assert {"C4.5+m+cf 1.96", "C4.5+m 2.00", "3.14 C4.5", "2.89 C4.5+cf"} <= texts
    assert {"1", "2", "3", "4"} <= texts


def test_the_bar_is_as_long_as_the_critical_difference():
    axes = drawn(RANKS, critical_difference=1.25, cliques=CLIQUES)
    (bar,) = lines(axes, "critical-difference")
    assert max(bar.get_xdata()) - min(bar.get_xdata()) == pytest.approx(1.25)


def test_a_bar_longer_than_the_axis_says_so():
    ranks = {"deep-all": 1.6, "agr-sum": 1.4}
    axes = drawn(ranks, critical_difference=1.39)
    assert any("longer than the axis" in text.get_text() for text in axes.texts)


def test_cliques_reach_over_their_methods_on_levels_of_their_own():
    cliques = [["C4.5+m+cf", "C4.5+m"], ["C4.5+m", "C4.5+cf"]]
    axes = drawn(RANKS, critical_difference=0.9, cliques=cliques)
    first, second = lines(axes, "clique")
    for line, names in ((first, cliques[0]), (second, cliques[1])):
        ends = [RANKS[name] for name in names]
        assert min(line.get_xdata()) == pytest.approx(min(ends), abs=0.06)
        assert max(line.get_xdata()) == pytest.approx(max(ends), abs=0.06)
    assert first.get_ydata()[0] > second.get_ydata()[0]


def test_names_do_not_cover_one_another():
    ranks = {f"method {i}": 1.0 + i for i in range(12)}
    axes = drawn(ranks)
    places = [text.get_position() for text in axes.texts if "method" in text.get_text()]
    assert len(set(places)) == 12
    for side in ("left", "right"):
        heights = sorted(
            text.get_position()[1]
            for text in axes.texts
            if "method" in text.get_text() and text.get_ha() == side
        )
        assert min(b - a for a, b in itertools.pairwise(heights)) > 0.15
