"""The pages of the library's names, which mkdocstrings fills from the docstrings."""

from importlib import import_module

PACKAGES = {
    "gradsurgery": "The library",
    "gradsurgery.rules": "Rules",
    "gradsurgery.algorithms": "Objectives and algorithms",
    "gradsurgery.engine": "Engine",
    "gradsurgery.backbones": "Backbones",
    "gradsurgery.data": "Data",
    "gradsurgery.training": "Training",
    "gradsurgery.results": "Results",
    "gradsurgery.documents.record": "Records",
    "gradsurgery.documents.tally": "Counts of a record",
    "gradsurgery.errors": "Errors",
}
"""What has a page: the package itself, and the rooms that a program may want to enter."""


def pages() -> dict[str, str]:
    """A page for each package, of the names it makes public and no page before it has."""
    made: dict[str, str] = {}
    told: set[str] = set()
    for package, title in PACKAGES.items():
        module = import_module(package)
        names = getattr(module, "__all__", None) or _own_names(module)
        names = [name for name in names if name not in told]
        told.update(names)
        lines = [f"# {title}", f"`import {package}`"]
        lines += [f"::: {package}.{name}" for name in names]
        made[f"api/{package}.md"] = "\n\n".join(lines) + "\n"
    return made


def _own_names(module: object) -> list[str]:
    members = vars(module).items()
    own = (n for n, m in members if getattr(m, "__module__", None) == vars(module)["__name__"])
    return [name for name in own if not name.startswith("_")]
