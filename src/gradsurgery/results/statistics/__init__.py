"""Statistics of a comparison: functions of numbers alone."""

from gradsurgery.results.statistics.bootstrap import bootstrap_interval
from gradsurgery.results.statistics.holm import holm
from gradsurgery.results.statistics.paired import (
    SIGNIFICANCE,
    PairedComparison,
    compare_paired,
    corrected,
)
from gradsurgery.results.statistics.ranking import (
    Ranking,
    average_ranks,
    cliques,
    critical_difference,
    friedman,
    ranking,
)
from gradsurgery.results.statistics.wilcoxon import SignedRanks, least_p, signed_ranks

__all__ = [
    "SIGNIFICANCE",
    "PairedComparison",
    "Ranking",
    "SignedRanks",
    "average_ranks",
    "bootstrap_interval",
    "cliques",
    "compare_paired",
    "corrected",
    "critical_difference",
    "friedman",
    "holm",
    "least_p",
    "ranking",
    "signed_ranks",
]
