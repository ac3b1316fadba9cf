"""The command that repeats a run."""

import shlex
from typing import Any

_SPECIAL = ("data", "target", "method", "seed", "settings", "without")


def train_command(configuration: dict[str, Any]) -> str:
    """`gradsurgery train …` with every option of a record's configuration.

    All options are written out, so that the command stays the same run when defaults change.

    >>> train_command({"data": "my pictures", "target": "photo", "method": "agr-sum", "seed": 1,
    ...                "settings": {"agr-sum.reduction": "mean"}, "skip_bad": True})
    "gradsurgery train 'my pictures' --target=photo --method=agr-sum --seed=1 --skip-bad --set \
agr-sum.reduction=mean"
    """
    words = ["gradsurgery", "train", str(configuration["data"])]
    for name in ("target", "method", "seed"):
        words.append(f"--{name}={configuration[name]}")
    for name, value in configuration.items():
        option = f"--{name.replace('_', '-')}"
        if name in _SPECIAL or value is None or value is False:
            continue
        words.append(option if value is True else f"{option}={_text(value)}")
    for domain in configuration.get("without") or ():
        words.append(f"--without={domain}")  # one may begin with a dash
    for name, value in (configuration.get("settings") or {}).items():
        words += ["--set", f"{name}={_text(value)}"]
    return shlex.join(words)


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)
