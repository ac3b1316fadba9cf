"""A report as one HTML page that needs nothing else: no network, no other file."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.errors import printable
from gradsurgery.report.section import Section

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent / "templates"
MOST_SVG_BYTES = 600_000
"""Of a figure; a larger SVG gives way to the PNG where that is smaller."""


def render_page(
    *, title: str, origin: str, summary: Sequence[str], sections: Sequence[Section]
) -> str:
    """A page as one HTML document; sections without blocks are left out.

    Every text is escaped. The page's own policy lets a browser load nothing, not even from the
    page's folder, and run no script but the page's own.

    Args:
        title: of the page.
        origin: what it is made from.
        summary: the sentences on top.
        sections: below them.
    """
    style, script = _part("page.css"), _part("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_fingerprint(style)}",
            f"script-src {_fingerprint(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            origin=origin,
            summary=summary,
            sections=[section for section in sections if section.blocks],
            style=style,
            script=script,
            policy=policy,
        )
    )


def embedded(svg: bytes, png: bytes) -> str:
    """The picture as a data address: the SVG, sharp at any size, unless the PNG saves much.

    >>> embedded(b"<svg/>", b"PNG")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    if len(svg) > MOST_SVG_BYTES and len(png) < len(svg):
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=lambda value: _visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(text: str) -> str:
    """Control characters as escapes; the lines stay."""
    return "\n".join(map(printable, text.split("\n")))


def _part(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _fingerprint(text: str) -> str:
    """How a policy names the one inline style or script that it allows."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
