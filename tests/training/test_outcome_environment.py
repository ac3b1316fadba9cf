import json
import os
import subprocess
import sys
from pathlib import Path

import gradsurgery

# Python as it is where neither the source tree nor one of its libraries is installed.
UNINSTALLED = """
import importlib.metadata, runpy
known = importlib.metadata.distribution

def distribution(name):
    if name in ("gradsurgery", "timm"):
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

importlib.metadata.distribution = distribution
runpy.run_module("gradsurgery", run_name="__main__", alter_sys=True)
"""


def test_a_source_tree_that_is_not_installed_trains_and_writes_its_record(tmp_path: Path) -> None:
    source = Path(gradsurgery.__file__).parent.parent
    options = ["--iterations=1", "--device=cpu", "--image-size=8", f"--cache={tmp_path / 'cache'}"]
    command = [sys.executable, "-c", UNINSTALLED, "train", "rotated-digits", "--target=75"]
    subprocess.run(
        [*command, *options, f"--out={tmp_path}"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    environment = json.loads((tmp_path / "record.json").read_text())["environment"]
    assert environment["gradsurgery"] == gradsurgery.__version__
    assert environment["timm"] is None
    assert environment["torch"]
