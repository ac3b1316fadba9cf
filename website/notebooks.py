"""The notebooks of docs/notebooks as pages, with a link to the file."""

from pathlib import Path

import nbformat

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"


def pages() -> dict[str, str]:
    """The Markdown of every notebook, by the page's place."""
    return {f"notebooks/{path.stem}.md": _markdown(path) for path in sorted(FOLDER.glob("*.ipynb"))}


def _markdown(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    texts = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in cells
    ]
    texts.insert(1, f"[Download the notebook]({path.name}){{ download }}")
    return "\n\n".join(texts) + "\n"
