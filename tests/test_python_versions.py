"""The source is good for every Python from 3.11 on: 3.12 to 3.14 forbid what 3.11 allowed."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    ROOT / "hatch_build.py",
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
]

# What 3.12, 3.13 and 3.14 removed from the standard library.
REMOVED = {
    *("aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils"),
    *("imghdr", "imp", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes", "smtpd"),
    *("sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib", "lib2to3", "pkg_resources"),
}
DEPRECATED = {"utcnow", "utcfromtimestamp", "iscoroutinefunction", "get_event_loop"}
COMPILE = """
import sys
for name in sys.argv[1:]:
    with open(name, encoding="utf-8") as file:
        compile(file.read(), name, "exec", dont_inherit=True)
"""


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_the_source_compiles_without_a_warning(minor: int) -> None:
    interpreter = shutil.which(f"python3.{minor}")
    if sys.version_info[:2] == (3, minor):
        interpreter = sys.executable
    works = interpreter and subprocess.run([interpreter, "-c", ""], check=False).returncode == 0
    if not interpreter or not works:
        pytest.skip(f"there is no Python 3.{minor} on this machine")
    command = [interpreter, "-W", "error", "-c", COMPILE, *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_is_used_that_later_versions_lack(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & REMOVED
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.module.split(".")[0] not in REMOVED
        if isinstance(node, ast.Attribute):
            assert node.attr not in DEPRECATED
        if isinstance(node, ast.Try):  # 3.14 warns of leaving a `finally` early
            ends = (ast.Return, ast.Break, ast.Continue)
            assert not any(isinstance(part, ends) for part in node.finalbody)
