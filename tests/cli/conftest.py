"""The command line, run in the test's own process."""

import shutil
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradsurgery.cli.main import run

Command = Callable[..., tuple[int, str, str]]


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


@pytest.fixture
def finished(
    command: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Sequence[str]], None]:
    """Run a training command in the current directory, where its `--out` is `run`.

    The same one again is not run again: what it wrote is put there.
    """

    def put(arguments: Sequence[str]) -> None:
        digest = sha256(repr(arguments).encode()).hexdigest()[:16]
        kept = tmp_path_factory.getbasetemp() / f"finished-{digest}"
        if not kept.exists():
            assert command(*arguments)[0] == 0
            shutil.copytree("run", kept)
        else:
            shutil.copytree(kept, "run")

    return put


@pytest.fixture
def train_small(command: Command) -> Command:
    """As `command("train", …)`, a small network for two steps where nothing else is said."""
    options = ["--backbone", "small-cnn", "--weights", "none", "--image-size", "8"]
    options += ["--iterations", "2", "--batch-size", "4", "--device", "cpu"]
    return lambda *more: command("train", *options, *more)


@pytest.fixture
def model(train_small: Command, tmp_path: Path) -> str:
    """The folder of a short run on photos/, noise that is dark or light in three domains."""
    random = np.random.default_rng(0)
    for domain in ("a", "b", "c"):
        for c, label in enumerate(("dark", "light")):
            folder = tmp_path / "photos" / domain / label
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 120, (9, 9, 3)) + 130 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    assert train_small("photos", "--target", "c", "--out", "run")[0] == 0
    return "run"
