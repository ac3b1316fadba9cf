"""Imports follow the way a run flows, and nothing heavy is imported before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "gradsurgery"
BASE = {"errors", "seeds", "atomic", "versioned", "layout", "doors", "hyperparameters"}
NETWORKS = {"kernels", "rules", "engine", "algorithms", "backbones", "data"}
MAY_IMPORT = {
    "errors": set(),
    "seeds": set(),
    "atomic": {"errors"},
    "versioned": {"errors"},
    "layout": set(),
    "doors": {"errors"},
    "hyperparameters": {"errors"},
    "kernels": {"errors"},
    "rules": {"errors", "doors", "hyperparameters", "kernels"},
    "engine": {"errors", "rules"},
    "algorithms": {"errors", "doors", "hyperparameters", "rules", "engine"},
    "data": BASE | {"kernels"},
    "backbones": BASE,
    "documents": BASE,
    "gradients": BASE | NETWORKS | {"documents"},
    "training": BASE | NETWORKS | {"documents"},
    "sweep": BASE | NETWORKS | {"documents", "training"},
    "studies": BASE | NETWORKS | {"documents", "gradients", "training"},
    "results": BASE | {"documents"},
    "report": BASE | {"documents", "results"},
    "__main__": {"cli"},
    "cli": BASE
    | NETWORKS
    | {"documents", "gradients", "training", "sweep", "studies", "results", "report"},
}


def imported_parts(file: Path) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("gradsurgery.")}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_follow_the_direction_of_a_run(part):
    files = [file for file in PACKAGE.rglob("*.py") if part_of(file) == part]
    assert files
    for file in files:
        unexpected = imported_parts(file) - MAY_IMPORT[part] - {part, "__version__"}
        assert not unexpected, f"{file.relative_to(PACKAGE)} imports {unexpected}"


def test_every_part_of_the_package_has_its_place():
    parts = {part_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import gradsurgery.cli.main", ["torch", "pandas", "PIL", "datasets"]),
        (
            "import gradsurgery, gradsurgery.training; gradsurgery.backward",
            ["datasets", "matplotlib", "pandas", "timm", "sklearn"],
        ),
    ],
)
def test_heavy_modules_are_imported_where_they_are_used(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_of_the_public_api_exist():
    import gradsurgery as gs

    assert all(getattr(gs, name).__doc__ for name in gs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'agr_sum'"):
        _ = gs.agr_sum
