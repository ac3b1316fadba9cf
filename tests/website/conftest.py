"""The site, built once for all tests that look at it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.chromium import Chromium, find_chromium

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the built site; a warning of the build is an error."""
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml", "nbformat"):
        pytest.importorskip(package, reason=f"{package} is not installed; the extra docs has it")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chromium]:
    """A headless Chromium."""
    if (command := find_chromium()) is None:
        pytest.skip("there is no chromium on this machine")
    chromium = Chromium(command, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()
