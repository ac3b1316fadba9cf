"""What a person reads: tables as text, figures, a page."""

from gradsurgery.report.render import (
    comparisons_to_latex,
    comparisons_to_markdown,
    to_csv,
    to_latex,
    to_markdown,
)

__all__ = [
    "comparisons_to_latex",
    "comparisons_to_markdown",
    "to_csv",
    "to_latex",
    "to_markdown",
]
