"""The experiments of Mansilla et al. (ICCV 2021) as plans."""

from typing import Any

from gradsurgery.errors import ArgumentError

DATA_SETS = ("pacs", "vlcs", "office-home")
SURGERY = ("agr-sum", "agr-rand", "pcgrad")

# Options that are not given are the paper's: AlexNet, 1,000 iterations, 128 images per domain, …
_TABLE1: dict[str, Any] = {"methods": ["all"], "targets": "all", "seeds": 20}
PAPER_PLANS: dict[str, dict[str, Any]] = {
    "table1": _TABLE1,
    "figure3": _TABLE1,
    "figure4": {
        "methods": list(SURGERY),
        "targets": "all",
        "seeds": 20,
        "grid": {"batches": ["multi", "single"]},
    },
    # The paper gives what its search chose, 1e-5 and 5e-5, not where it searched.
    "grid-search": {
        "methods": ["deep-all", *SURGERY],
        "targets": "all",
        "seeds": 3,
        "grid": {"learning_rate": [1e-3, 1e-4, 1e-5], "weight_decay": [5e-3, 5e-4, 5e-5]},
    },
}
"""By the name of the table or figure; `figure3` draws the runs of `table1`."""


def paper_plan(
    name: str, data: list[str] | None = None, seeds: str | None = None
) -> dict[str, Any]:
    """The parts of a named plan, on other data sets or with other seeds where they are given.

    Raises `ArgumentError` for a name that is not in `PAPER_PLANS`.

    >>> paper_plan("figure4", ["rotated-digits"])["grid"]
    {'batches': ['multi', 'single']}
    """
    if name not in PAPER_PLANS:
        raise ArgumentError(f"no plan is called {name!r}; they are {', '.join(PAPER_PLANS)}")
    parts = {"data": data or list(DATA_SETS), **PAPER_PLANS[name]}
    return parts if seeds is None else parts | {"seeds": seeds}
