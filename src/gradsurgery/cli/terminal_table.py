"""Tables on a terminal: figures whole, names as they are."""

from typing import TYPE_CHECKING

from gradsurgery.errors import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def literal(text: str, style: str = "") -> "Text":
    """Text as it is: a name may hold what rich would take for markup, or a terminal obey."""
    from rich.text import Text

    return Text(printable(text), style=style)


def grid(*headers: str, left: int = 1) -> "Table":
    """A table under `headers`, the first `left` columns to the left and the others to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=bool(headers))
    for position, name in enumerate(headers):
        # Folded rather than cut: a figure must not end in dots in a narrow window.
        justify = "left" if position < left else "right"
        table.add_column(literal(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table
