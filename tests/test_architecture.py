"""Imports follow the way a run flows, and nothing heavy is imported before it is used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from gradsurgery.kernels import flat

PACKAGE = Path(__file__).parent.parent / "src" / "gradsurgery"
BASE = {"errors", "seeds", "atomic", "doors", "hyperparameters"}
NETWORKS = {"kernels", "rules", "engine", "algorithms", "backbones", "data"}
MAY_IMPORT = {
    "errors": set(),
    "seeds": set(),
    "atomic": {"errors"},
    "doors": {"errors"},
    "hyperparameters": {"errors"},
    "kernels": {"errors"},
    "rules": {"errors", "doors", "hyperparameters", "kernels"},
    "engine": {"errors", "kernels", "rules"},
    "algorithms": {"errors", "doors", "hyperparameters", "rules", "engine"},
    "data": BASE | {"kernels", "documents"},
    "backbones": BASE,
    "documents": BASE,
    "gradients": BASE | NETWORKS | {"documents"},
    "training": BASE | NETWORKS | {"documents", "kernels"},
    "sweep": BASE | NETWORKS | {"documents", "training"},
    "studies": BASE | NETWORKS | {"documents", "gradients", "training"},
    "deployment": BASE | NETWORKS | {"documents", "training"},
    "results": BASE | {"documents"},
    "report": BASE | {"documents", "results"},
    "__main__": {"cli"},
    "cli": BASE
    | NETWORKS
    | {"documents", "gradients", "training", "sweep", "studies", "results", "report", "deployment"},
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


def test_annotated_shapes_are_checked_under_the_tests():
    with pytest.raises(BeartypeCallHintViolation, match="size of dimension domains"):
        flat.projections(torch.eye(3), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(BeartypeCallHintViolation, match="orders"):
        flat.projections(torch.eye(3), torch.zeros(3, 2))


def test_the_names_of_the_public_api_exist():
    import gradsurgery as gs

    assert all(getattr(gs, name).__doc__ for name in gs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'agr_sum'"):
        _ = gs.agr_sum


def test_a_name_of_the_pages_needs_no_further_import():
    code = "import gradsurgery as gs\nprint(gs.backbones.set_training_mode.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set_training_mode"


ROOT = PACKAGE.parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def named_files(text: str) -> list[str]:
    return re.findall(r"`([\w/.-]+\.(?:py|c|md|json|safetensors|pt))(?::\w+)?`", text)


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_files_that_the_page_names_exist():
    written = {"record.json", "split.json", "model.safetensors", "configuration.json"}
    for name in named_files(PAGE):
        places = (PACKAGE / name, ROOT / name)
        assert name in written or any(place.exists() for place in places), name


def test_the_functions_that_the_page_names_exist():
    for name, function in re.findall(r"`([\w/]+\.py):(\w+)`", PAGE):
        assert re.search(rf"(def|class) {function}\b", (PACKAGE / name).read_text()), function


def test_a_gradient_and_a_run_take_short_trips():
    trip = section("A gradient's trip")
    steps = {
        name for line in trip.split("\n") if re.match(r"\d+\.", line) for name in named_files(line)
    }
    assert 0 < len(steps) <= 12
    assert len({name for name in named_files(trip) if name.endswith((".py", ".c"))}) <= 19
    trip = section("A run's trip").split("\nA sweep")[0]
    assert len(re.findall(r"^\d+\.", trip, re.MULTILINE)) <= 15
    assert 0 < len(re.findall(r"`[\w/]+\.py:\w+`", trip)) <= 17


FILES = sorted(PACKAGE.rglob("*.py"))


def test_the_house_stays_small():
    assert len(FILES) <= 179


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_and_a_function_can_be_read_at_once(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 70, f"{node.name} has {length} lines"


TOPICS = {
    ".": {"architecture", "arguments", "benchmarks", "docs", "evidence", "fair_settings"}
    | {"other_packages", "python_versions", "wheel"},
    "algorithms": {"annealing", "doors", "draws", "label_smoothing", "lacking_classes", "model"}
    | {"objectives", "precision", "states", "surgery", "terms"},
    "cli": {"compare", "first_version", "print_config"},
    "data": {"docs_data", "odd_names", "own_source"},
    "documents": {"documents"},
    "engine": {"agreement_by_parameter", "launches", "matrix", "no_say", "shared_pass"},
    "gpu": {"loaders", "rules", "training"},
    "gradients": {"layers", "random_networks", "samples_apart", "whose_rows"},
    "report": {"browser"},
    "results": {"known_answers"},
    "rules": {"rules"},
    "sweep": {"processes", "sweep"},
    "training": {"conflict_log", "every_method", "more_steps", "pooled_batch_norm", "resume"}
    | {"single_domain"},
    "website": {"integrations", "notebooks", "pages", "site"},
}
"""What test files are about that mirror no single module."""


def test_a_test_file_mirrors_a_module_or_is_of_a_topic():
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        room = file.parent.relative_to(ROOT / "tests")
        words = file.stem.split("_")[1:]
        modules = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
        mirrors = any((PACKAGE / room / f"{module}.py").exists() for module in modules)
        assert mirrors or modules[-1] in TOPICS[str(room)], file.relative_to(ROOT)
    for room, topics in TOPICS.items():
        for topic in topics:
            assert (ROOT / "tests" / room / f"test_{topic}.py").exists(), f"{room}: {topic}"


def test_a_test_file_that_cannot_be_imported_is_an_error(tmp_path):
    (tmp_path / "test_broken.py").write_text("import no_such_module\ndef test_it(): pass\n")
    (tmp_path / "test_fine.py").write_text("def test_it():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2  # pytest's own, of an error in collecting
    assert "ERROR" in done.stdout
