"""The code of docs/data.md runs, and what it asserts of itself holds."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python3\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", CODE)
def test_the_code_of_the_page_runs(code):
    assert re.search("^ *assert ", code, re.MULTILINE)  # by which it checks itself
    exec(code, {})


def test_the_page_has_code():
    assert CODE
