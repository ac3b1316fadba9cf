"""A report as one HTML page that needs nothing else: no network, no other file."""

from gradsurgery.report.page.blocks import (
    Block,
    Details,
    Entry,
    Figure,
    Listing,
    Table,
    Text,
)
from gradsurgery.report.page.render import Page, Section, render_page

__all__ = [
    "Block",
    "Details",
    "Entry",
    "Figure",
    "Listing",
    "Page",
    "Section",
    "Table",
    "Text",
    "render_page",
]
