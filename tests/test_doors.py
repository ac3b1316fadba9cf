"""Objects of other packages by name."""

import hashlib
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gradsurgery import doors
from gradsurgery.doors import entry_names, is_door, load_object, provenance
from gradsurgery.errors import ArgumentError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `neighbour` 1.2 with a rule, which it also registers."""
    home = tmp_path / "site"
    (home / "neighbour").mkdir(parents=True)
    (home / "neighbour" / "__init__.py").write_text("")
    (home / "neighbour" / "rules.py").write_text(
        textwrap.dedent(
            """
            class Mine:
                class Inner: ...
            number = 3
            def first(gradients): return gradients[0]
            """
        )
    )
    (home / "neighbour" / "broken.py").write_text("raise RuntimeError('no\\nluck')")
    (home / "neighbour" / "needy.py").write_text("import not_there_at_all")
    info = home / "neighbour_dist-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: neighbour-dist\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("neighbour\n")
    (info / "entry_points.txt").write_text(
        "[gradsurgery.rules]\nfirst-one = neighbour.rules:first\nlost = neighbour.gone:Rule\n"
    )
    (home / "script.py").write_text("class Loose: ...")
    monkeypatch.syspath_prepend(home)
    caches = [doors._entries, doors._distributions]
    for cached in caches:
        cached.cache_clear()
    yield "neighbour"
    for cached in caches:
        cached.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] in ("neighbour", "script")]:
        del sys.modules[name]


def loaded(name, fits=lambda _: True):
    return load_object(name, "rule", fits=fits, expected="a rule")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a:B", True),
        ("a.b_2.c:B.C", True),
        ("käse.regeln:Regel", True),
        ("agr-sum", False),
        ("a.b", False),
        ("a:", False),
        (":B", False),
        ("a:b:c", False),
        ("a-b:C", False),
        ("a: B", False),
        ("hf://owner/name", False),
        ("C:\\photos", False),
        ("a:B\n", False),
    ],
)
def test_the_form_of_a_door(name, expected):
    assert is_door(name) == expected


def test_a_module_and_a_name(package):
    assert loaded("neighbour.rules:Mine").__name__ == "Mine"
    assert loaded("neighbour.rules:Mine.Inner").__qualname__ == "Mine.Inner"


def test_an_entry_point(package):
    assert entry_names("rule") == ["first-one", "lost"]
    assert entry_names("source") == []
    assert "neighbour.rules" not in sys.modules  # listing imports nothing
    assert loaded("first-one")([1, 2]) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.at.all:Rule", "no module nowhere; install the package, or add the folder"),
        ("neighbour.gone:Rule", "no module neighbour.gone; install"),
        ("rules.py:Mine", "no module rules; leave .py out of its name, as rules:Name"),
        ("here:Mine", "no module here; it is in this folder, which .* after export PYTHONPATH=."),
        ("lost", r"'lost' \(neighbour.gone:Rule\): there is no module neighbour.gone"),
        ("neighbour.needy:Rule", "needs the module not_there_at_all, which is not installed"),
        ("neighbour.broken:Rule", "fails with RuntimeError: no luck; mend the module"),
        ("neighbour.rules:Mind", "neighbour.rules has no Mind; there is Mine"),
        ("neighbour.rules:number", "is of type int; expected a rule"),
        ("neighbour.rules:Mine", r"is the class Mine\(object\); expected a rule"),
        ("neighbour.rules:first", "is the function first; expected a rule"),
        ("unheard-of", "unknown rule 'unheard-of'; give package.module:Name.*first-one, lost"),
    ],
)
def test_what_cannot_be_used_gets_one_line(package, name, words, tmp_path, monkeypatch):
    (tmp_path / "here.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # "" is this folder
    with pytest.raises(ArgumentError, match=words) as caught:
        loaded(name, fits=lambda _: False)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_provenance(package):
    expected = {"object": "neighbour.rules:Mine", "package": "neighbour-dist", "version": "1.2"}
    mine = loaded("neighbour.rules:Mine")
    file = Path(sys.modules["neighbour.rules"].__file__)
    expected["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text("changed = 'after it was imported'\n")
    assert provenance(mine) == expected
    assert provenance(mine()) == expected
    assert provenance(loaded("first-one"))["object"] == "neighbour.rules:first"
    loose = {"object": "script:Loose", "package": "script", "version": None}
    assert provenance(loaded("script:Loose")).items() >= loose.items()
    assert load_object(expected["object"], "rule", fits=callable, expected="") is mine


def test_a_module_that_is_loaded_again_is_of_its_new_file(package):
    first = provenance(loaded("neighbour.rules:Mine"))["sha256"]
    module = sys.modules["neighbour.rules"]
    file = Path(module.__file__)
    for number in range(3):
        file.write_text(f"class Mine: number = {number}  # {'.' * number}\n")
        assert provenance(module.Mine)["sha256"] == first  # what is run is still the former
        importlib.reload(module)
        first = hashlib.sha256(file.read_bytes()).hexdigest()
        assert provenance(module.Mine)["sha256"] == first


def test_looking_imports_nothing_heavy():
    code = "import sys, gradsurgery.doors; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
