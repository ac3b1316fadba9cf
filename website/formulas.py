"""Formulas as MathML, which browsers set themselves: no script, and nothing from the network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Put MathML in the place of LaTeX."""

    def rendered(found: re.Match[str]) -> str:
        display = "block" if found["tag"] == "div" else "inline"
        formula = convert(html.unescape(found["latex"]).strip(), display=display)
        return f'<{found["tag"]} class="formula">{formula}</{found["tag"]}>'

    return FORMULA.sub(rendered, content)
