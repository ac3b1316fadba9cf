"""The code of a page runs: its blocks in their order, in one namespace.

Commands are called, with a few steps of training in the place of many, but for those that name what
a reader has and this machine has not.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from gradsurgery.cli import sweep
from gradsurgery.cli.main import app
from gradsurgery.documents.plan import Plan
from gradsurgery.sweep.launcher import Event, Launcher, Task, work
from tests.website import stand_ins

BLOCK = re.compile(r"^```([\w.]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
THEIRS = re.compile(r"\b(pacs|PACS|FOLDER)\b")


def run_code(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run the page in `folder`; the names that it defined."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GRADSURGERY_CACHE", str(folder / "cache"))
    monkeypatch.setattr(sweep, "LocalLauncher", HereAndNow)
    monkeypatch.setattr("gradsurgery.training.device.keep_freed_memory", lambda: False)
    stand_ins.install(monkeypatch)
    names: dict = {"__name__": "page"}
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
        elif language == "yaml":
            assert Plan(**yaml.safe_load(text)).data
            Path("plan.yaml").write_text(shortened(text), encoding="utf-8")
        elif language == "":
            call_commands(text, monkeypatch)
    return names


def shortened(text: str) -> str:
    """Two steps of one seed: what is tested is that it runs, not what comes out."""
    text = re.sub(r"(iterations|validate[-_]every)(:? )\d+", r"\1\g<2>2", text)
    return re.sub(r"(seeds:? )\d+", r"\g<1>1", text)


def call_commands(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(shortened(line), comments=True)
        if words == ["export", "PYTHONPATH=."]:
            monkeypatch.syspath_prepend(str(Path.cwd()))
        if words[:1] == ["gradsurgery"] and not THEIRS.search(line):
            words += ["--dry-run"] if words[1] == "deploy" else []  # many runs, tested elsewhere
            assert not app(words[1:], standalone_mode=False)


class HereAndNow(Launcher):
    """Does runs in the test's own process, where torch is imported already."""

    def __init__(self, workers: int, gpus: tuple[str, ...] = ()) -> None:
        self.workers = 1
        self.tasks: list[tuple[str, Task]] = []

    def __exit__(self, *_: object) -> None:
        self.tasks.clear()

    def submit(self, key: str, task: Task) -> None:
        self.tasks.append((key, task))

    def wait(self, seconds: float) -> list[Event]:
        key, task = self.tasks.pop()
        return [Event(key, work(task, lambda progress: None))]
