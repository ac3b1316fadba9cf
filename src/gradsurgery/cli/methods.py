"""`gradsurgery methods`: what there is to choose from."""


def methods() -> None:
    """List the methods, with what they do and where they come from."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gradsurgery.algorithms import METHODS

    table = Table("method", "what it does", "source", box=box.SIMPLE_HEAD)
    for method in METHODS.values():
        table.add_row(Text(method.name), Text(method.summary), Text(method.source))
    Console().print(table)
