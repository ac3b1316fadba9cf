"""The notebooks run from a fresh kernel, on built-in data, and are kept without outputs."""

import os
import warnings

import pytest

from tests.website.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_is_one_for_each_kind_of_user():
    assert [path.stem for path in NOTEBOOKS] == ["comparison", "images", "training-loop"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_valid_and_has_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("GRADSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's client, not of the notebook
        done = nbclient.NotebookClient(
            read(path),
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": tmp_path}},
        ).execute()
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
