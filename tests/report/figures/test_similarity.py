import pytest

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.similarity import SimilarityStudy
from gradsurgery.errors import DataError
from gradsurgery.report.figures.similarity import similarity_figure


def study(within: list[float], runs: int) -> SimilarityStudy:
    measurements = [
        {
            "step": 10 * place,
            "label": "cat",
            "domains": ["a", "b"],
            "cosines": [[value, 0.1], [0.1, value]],
            "within": value,
            "across": 0.1,
        }
        for place, value in enumerate(within)
    ]
    return SimilarityStudy.model_validate(
        {
            "data": "made",
            "domains": ["a", "b"],
            "classes": ["cat"],
            "configuration": RunConfiguration(data="made", target="c"),
            "options": {},
            "runs": [{"seed": seed, "measurements": measurements} for seed in range(runs)],
        }
    )


@pytest.mark.parametrize(("runs", "lines", "bands"), [(1, 2, 0), (2, 2 + 4, 0), (3, 2 + 6, 2)])
def test_lines_are_the_means_and_the_runs(runs: int, lines: int, bands: int) -> None:
    (axes,) = similarity_figure(study([0.3, 0.5], runs)).axes
    assert (len(axes.lines), len(axes.collections)) == (lines, bands)
    within = axes.lines[0]
    assert list(within.get_xdata()) == [0, 10]
    assert list(within.get_ydata()) == pytest.approx([0.3, 0.5])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["within a domain (0.400)", "across domains (0.100)"]


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(DataError, match="no measurement of made compares domains"):
        similarity_figure(study([], 1))
