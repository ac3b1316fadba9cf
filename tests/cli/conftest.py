"""The command line, run in the test's own process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsurgery.cli.main import run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    tmp_path: Path,
) -> Command:
    """Run the command line in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("GRADSURGERY_CACHE", str(cache))
    monkeypatch.setattr("gradsurgery.training.device.keep_freed_memory", lambda: False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradsurgery", *arguments])
        with pytest.raises(SystemExit) as caught:
            run()
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    return call
