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


def test_they_run(tmp_path, monkeypatch):
    """One after the other in one kernel, which forgets every name in between."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("GRADSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    together = read(NOTEBOOKS[0])
    for path in NOTEBOOKS[1:]:
        together.cells += [nbformat.v4.new_code_cell("%reset -f"), *read(path).cells]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's client, not of the notebooks
        nbclient.NotebookClient(
            together, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
    code = [cell for cell in together.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
