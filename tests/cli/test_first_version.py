"""Folders that the first version wrote are read by the commands, and a sweep is continued."""

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Command

FIRST = Path(__file__).parent.parent / "documents" / "version1"


@pytest.mark.usefixtures("unrendered")
def test_commands_read_folders_of_the_first_version(command: Command, tmp_path: Path) -> None:
    for name in ("sweep", "runs", "failed"):
        shutil.copytree(FIRST / name, tmp_path / name)
    code, out, err = command("show", "runs/a/record.json")
    assert code == 0, err
    assert "agr-sum" in out
    code, out, err = command("show", "sweep")
    assert code == 0, err
    assert "irm" in out
    code, out, err = command("select", "sweep")
    assert code == 0, err
    code, out, err = command("report", "sweep", "--out", "report")
    assert code == 0, err
    assert (tmp_path / "report" / "report.html").exists()


def test_a_sweep_of_the_first_version_is_continued(command: Command, tmp_path: Path) -> None:
    shutil.copytree(FIRST / "sweep", tmp_path / "sweep")
    records = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("record.json")}
    missing = sorted(records)[0]
    missing.unlink()
    arguments = ["--methods", "deep-all,irm", "--targets", "75,0", "--seeds", "2", "--no-report"]
    arguments += ["--iterations", "6", "--validate-every", "3", "--batch-size", "8"]
    arguments += ["--image-size", "12", "--grid", "learning_rate=1e-3,5e-3", "--workers", "1"]
    code, _, err = command("sweep", "rotated-digits", *arguments, "--out", "sweep")
    assert code == 0, err
    assert {path: path.read_bytes() for path in records if path != missing} == {
        path: content for path, content in records.items() if path != missing
    }
    before, after = json.loads(records[missing]), json.loads(missing.read_bytes())
    assert after["result"].keys() == before["result"].keys()
    assert after["split"].pop("unused") == 0  # which the first version did not know
    assert after["split"] == before["split"]
