"""The navigation of mkdocs.yml, as far as its pages exist."""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any


def on_files(files: Any, config: Any) -> Any:
    """Leave out the pages that do not exist, and list those that a pattern stands for."""
    config.nav = existing(config.nav, {file.src_uri for file in files.documentation_pages()})
    return files


def existing(items: list[Any], pages: set[str]) -> list[Any]:
    """The entries whose pages exist, patterns replaced by the pages that no entry names."""
    return list(_kept(items, pages - set(_named(items)), pages))


def _named(items: Any) -> Iterator[str]:
    if isinstance(items, str):
        yield items
        return
    for item in items.values() if isinstance(items, dict) else items:
        yield from _named(item)


def _kept(items: list[Any], unnamed: set[str], pages: set[str]) -> Iterator[Any]:
    for item in items:
        title, content = next(iter(item.items())) if isinstance(item, dict) else (None, item)
        if isinstance(content, list):
            if kept := list(_kept(content, unnamed, pages)):
                yield {title: kept}
        elif content in pages:
            yield item
        elif "*" in content:
            folder = PurePosixPath(content).parent
            yield from sorted(
                page
                for page in unnamed
                if PurePosixPath(page).parent == folder and fnmatch(page, content)
            )
