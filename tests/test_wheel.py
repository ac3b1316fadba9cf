"""The package as it is installed: built with and without a C compiler, used outside of the tree."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")

ROOT = Path(__file__).parent.parent
USE = """
import sys
import torch
import gradsurgery as gs
from gradsurgery.kernels.compiled import name_for

assert gs.__file__.startswith(sys.argv[1]), gs.__file__
gradients = torch.arange(-40000.0, 40000.0).reshape(2, 40000)
assert (name_for("agreement_sum", gradients) is not None) == (sys.argv[2] == "compiled")
agree = gradients.sign()[0] == gradients.sign()[1]
assert torch.equal(gs.AgrSum()(gradients), torch.where(agree, gradients.sum(0), 0.0))
"""


def build(folder: Path, compiler: str) -> Path:
    """The wheel that pip gets from the sources, without a network."""
    code = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    sources = folder / "sources"
    tracked = subprocess.run(
        ["git", "ls-files", "src", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split("\n")  # fmt: skip
    names = [name for name in tracked if name] or pytest.skip("this is no clone")
    for name in names:
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=sources,
        env=os.environ | {"CC": compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.parametrize("compiler", ["cc", "no-such-compiler"])
def test_a_wheel_works_in_an_environment_of_its_own(compiler, tmp_path):
    wheel = build(tmp_path, compiler)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    compiled = "gradsurgery/kernels/libgradsurgery.so" in names
    if compiler == "no-such-compiler":
        assert not compiled
        assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.startswith(("tests", "docs", "website"))]
    assert "gradsurgery/py.typed" in names

    # an environment of its own, with the other packages of this one
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    (site,) = (environment / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")
    kind = "compiled" if compiled else "plain"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", USE, str(site), kind], cwd=tmp_path, env=clean, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = [python, "-m", "gradsurgery", "--version"]
    said = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "0.1.0"
