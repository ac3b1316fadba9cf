"""The runs that a model selection chose, ready to be compared."""

import json
from typing import TYPE_CHECKING, Any

from gradsurgery.results.records import CONDITIONS, method_label
from gradsurgery.results.selection import Choice, Selection

if TYPE_CHECKING:
    import pandas as pd


def selected_runs(runs: "pd.DataFrame", selection: Selection) -> "pd.DataFrame":
    """The rows of `read_runs` with the chosen hyperparameters, for `compare_runs`.

    What was searched no longer parts the runs: it is neither in their `settings` nor in the name
    of their method, as each has its own choice; `settings` says by which criterion instead. Runs
    for which nothing could be chosen are left out.
    """
    chosen = {
        _place(choice.data, choice.target, choice.method, choice.conditions): choice
        for choice in selection.choices
        if choice.candidate is not None
    }
    searched = {name for choice in selection.choices for name in choice.searched}
    rows = []
    for row in runs.to_dict("records"):
        hyperparameters = json.loads(row["hyperparameters"])
        settings = json.loads(row["settings"])
        conditions = {name: settings[name] for name in CONDITIONS if name in settings}
        choice = chosen.get(_place(row["data"], row["target"], row["method_name"], conditions))
        if row["without"] or choice is None or not _is(choice, hyperparameters):
            continue
        settings = {name: value for name, value in settings.items() if name not in searched}
        given = {k: v for k, v in hyperparameters.items() if "." in k and k not in searched}
        rows.append(
            row
            | {
                "method": method_label(row["method_name"], given),
                "settings": json.dumps(
                    settings | {"selection": selection.criterion}, sort_keys=True
                ),
            }
        )
    import pandas as pd

    return pd.DataFrame(rows, columns=runs.columns)


def _place(data: str, target: str, method: str, conditions: dict[str, Any]) -> tuple[str, ...]:
    return (data, target, method, json.dumps(conditions, sort_keys=True))


def _is(choice: Choice, hyperparameters: dict[str, Any]) -> bool:
    return choice.candidate is not None and choice.candidate.hyperparameters == hyperparameters
