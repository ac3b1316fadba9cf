"""Docstrings as Markdown: lists of arguments become lists, examples become code."""

import re
from typing import Any

from griffe import Docstring, Extension, Object

ENTRY = re.compile(r"(?P<names>[a-z_]\w*(, [a-z_]\w*)*): (?P<text>.*)")
"""`name: …`, `one, other: …`: an argument, an attribute or a hyperparameter."""


class MarkdownDocstrings(Extension):
    """Rewrites the docstrings of the package where it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring = Docstring(
                markdown(obj.docstring.value),
                lineno=obj.docstring.lineno,
                endlineno=obj.docstring.endlineno,
                parent=obj,
            )


def markdown(text: str) -> str:
    """The text with `name: …` as items of a list, and `>>>` in fences."""
    lines: list[str] = []
    in_list = in_example = False
    for line in text.splitlines():
        entry = ENTRY.fullmatch(line)
        if in_example and not line.strip():
            lines.append("```")
            in_example = False
        if not in_example and line.startswith(">>> "):
            lines += ["", "```pycon"]
            in_example = True
        if in_example:
            lines.append(line)
        elif entry:
            names = ", ".join(f"`{name}`" for name in entry["names"].split(", "))
            lines += [] if in_list else [""]
            lines.append(f"- {names}: {entry['text']}")
            in_list = True
        else:
            if in_list and line.strip() and not line.startswith(" "):
                lines.append("")
            in_list = in_list and (not line.strip() or line.startswith(" "))
            lines.append(line)
    return "\n".join([*lines, "```"] if in_example else lines)
