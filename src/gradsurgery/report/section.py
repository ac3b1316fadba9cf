"""One part of a report, before anybody has decided whether it becomes Markdown or HTML."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A table of plain text; the first cell of a row names it."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """A title, sentences, tables and figures.

    Args:
        title: of the section.
        sentences: plain text.
        tables: in their order.
        figures: file names without a suffix, beside the record; each is there as PNG and SVG.
    """

    title: str
    sentences: list[str]
    tables: list[Table] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The section as Markdown, without its figures."""
        text = "".join(f"{sentence}\n" for sentence in self.sentences)
        tables = "".join(f"\n{markdown_table(table)}" for table in self.tables)
        return f"# {self.title}\n{text}{tables}"


def markdown_table(table: Table) -> str:
    """A table as Markdown, its title above it.

    >>> print(markdown_table(Table("Sizes", ["domain", "images"], [["photo", "7"]])), end="")
    **Sizes**
    <BLANKLINE>
    | domain | images |
    |---|---|
    | photo | 7 |
    """
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    body = ["| " + " | ".join(line) + " |" for line in cells]
    body[1] = "|" + "---|" * len(table.header)
    return f"**{table.title}**\n\n" + "\n".join(body) + "\n"
