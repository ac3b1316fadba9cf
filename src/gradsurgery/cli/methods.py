"""`gradsurgery methods`: what there is to choose from."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradsurgery.algorithms import METHODS, OTHER_METHODS, settings_listing
from gradsurgery.doors import entry_names, entry_place
from gradsurgery.training.averaging import average_listing


def methods() -> None:
    """List the methods and the hyperparameters, with what they do and where they come from.

    Besides these names, any objective+rule is a method, e.g. mixup+agr-sum. The hyperparameters of
    ema and swad are those of the option --average. Of the rules and objectives that installed
    packages register the name and the place are listed; their code is not run.
    """
    console = Console()
    names = Table("method", "objective+rule", "what it does", "source", box=box.SIMPLE_HEAD)
    for listed in (METHODS, OTHER_METHODS):
        for method in listed.values():
            names.add_row(*map(Text, method))
        names.add_section()
    for kind in ("rule", "objective"):
        for name in entry_names(kind):
            parts = f"erm+{name}" if kind == "rule" else f"{name}+mean"
            names.add_row(
                *map(Text, (name, parts, f"{kind} of a package", entry_place(name, kind)))
            )
    console.print(names)
    console.print("Any objective+rule is a method, e.g. mixup+agr-sum or irm+torchjd:UPGrad.\n")
    settings = Table("--set", "default", "meaning", box=box.SIMPLE_HEAD)
    for setting in [*settings_listing(), *average_listing()]:
        settings.add_row(*map(Text, setting))
    console.print(settings)
