"""Fixtures: records made by hand, and a browser, where the machine has one."""

import sys
from collections.abc import Iterator

import pytest

from tests.report.chromium import NAMES, Chromium, find_chromium
from tests.results.records import record, written

__all__ = ["browser", "record", "written"]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    command = find_chromium()
    if command is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, nor is $CHROMIUM set")
    if sys.platform == "win32":
        pytest.skip("the browser is driven through pipes that Windows does not have")
    chromium = Chromium(command, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()
