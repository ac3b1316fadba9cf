"""The statistics behind the stars of comparison tables, one row a test."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gradsurgery.results.comparison import DECIMALS, ComparisonTable
from gradsurgery.results.statistics import PairedComparison

if TYPE_CHECKING:
    import pandas as pd

HEADER = [
    "data",
    "target",
    "method − baseline",
    "difference (points)",
    "95 % interval",
    "p",
    "p (Holm)",
    "effect size",
    "n",
    "zeros",
]


def comparison_frame(tables: Sequence[ComparisonTable]) -> "pd.DataFrame":
    """One row for every test of the tables.

    Columns: `data` (with the settings that set its table apart), `target`, `method`, `baseline`,
    and the fields of `PairedComparison` in points: `difference`, `low`, `high`, `p`, `p_holm`,
    `effect_size`, `n`, `zeros`.
    """
    import pandas as pd

    fields = list(PairedComparison.__dataclass_fields__)
    rows = [
        [table.name, target, method, table.baseline, *(getattr(test, field) for field in fields)]
        for table, target, method, test in _tests(tables)
    ]
    return pd.DataFrame(rows, columns=["data", "target", "method", "baseline", *fields])


def comparison_rows(tables: Sequence[ComparisonTable]) -> list[list[str]]:
    """The rows of `comparison_frame` as text under `HEADER`, rounded."""
    return [
        [
            table.name,
            target,
            f"{method} − {table.baseline}",
            f"{test.difference:+.{DECIMALS}f}",
            f"[{test.low:+.{DECIMALS}f}, {test.high:+.{DECIMALS}f}]",
            p_text(test.p) + ("*" if test.significant else ""),
            p_text(test.p_holm) + ("†" if test.significant_corrected else ""),
            f"{test.effect_size:+.{DECIMALS}f}",
            str(test.n),
            str(test.zeros),
        ]
        for table, target, method, test in _tests(tables)
    ]


def p_text(p: float) -> str:
    """A p-value with two significant digits, `0.041` or `1.9e-06`."""
    return f"{p:.2g}"


def _tests(
    tables: Sequence[ComparisonTable],
) -> Iterator[tuple[ComparisonTable, str, str, PairedComparison]]:
    for table in tables:
        for target in table.targets:
            for method in table.methods:
                cell = table.cells.get((method, target))
                if cell is not None and cell.comparison is not None:
                    yield table, target, method, cell.comparison
