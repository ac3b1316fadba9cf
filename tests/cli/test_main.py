"""How errors leave the command: one line, which names the code of somebody that failed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gradsurgery import doors
from gradsurgery.cli import main

Command = Callable[..., tuple[int, str, str]]
SHORT = ["--iterations", "2", "--validate-every", "1", "--batch-size", "4", "--device", "cpu"]

MODULE = """
import sys
import gradsurgery as gs
from torch import nn

def exits(*_): sys.exit(0)
def fails(gradients): raise ZeroDivisionError("no\\nway")

class Failing(gs.Rule):
    def __call__(self, gradients): return fails(gradients)

class Abstract(gs.Objective): pass

class Listing(gs.Objective):
    def losses(self, forward, batches, step): return []

class Bare(gs.Objective):
    def __init__(self): pass
    def losses(self, forward, batches, step): yield 1

class Exiting(gs.Objective):
    def losses(self, forward, batches, step):
        sys.exit(0)
        yield

class Made(gs.Source):
    def __init__(self):
        domains = [domain for domain in "abc" for _ in range(20)]
        super().__init__("made", domains, ["x", "y"] * 30, [str(i) for i in range(60)])
    def encoded(self): return (b"%d" % i for i in range(60))
    def decode(self, position, content, size): sys.exit(0)

class Opened(Made):
    def __init__(self): sys.exit(0)

class Empty(Made):
    def encoded(self): return None

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(14 * 14 * 3, classes)
    def forward(self, images):
        if self.training: raise RuntimeError("in training")
        return self.last(images.flatten(1))
"""


@pytest.fixture(autouse=True)
def _somebodys_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "somebodys.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doors, "_loaded", {})
    yield
    sys.modules.pop("somebodys", None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "erm+X:fails"], "the rule 'X:fails' fails: ZeroDivisionError: no way (at"),
        (["--method", "X:Failing"], "the rule 'X:Failing' fails: ZeroDivisionError: no way (at"),
        (
            ["--method", "X:Abstract"],
            "the rule 'X:Abstract' is the class Abstract(Objective) without",
        ),
        (["--method", "erm+X:exits"], "the rule 'X:exits' fails: it ends the program (sys.exit)"),
        (["--method", "erm+sys:exit"], "the rule 'sys:exit' fails: it ends the program"),
        (
            ["--method", "X:Listing+agr-sum"],
            "the method losses of the objective Listing yields the",
        ),
        (["--method", "X:Bare"], "the objective 'X:Bare' fails: TypeError"),
        (["--method", "X:Exiting+agr-sum"], "the objective 'X:Exiting' fails: it ends the"),
        (["--backbone", "X:Net"], "the backbone 'X:Net' fails: RuntimeError: in training (at"),
        (["--backbone", "X:exits"], "X:exits cannot be built for images of 14 pixels: it ends"),
        (["--backbone", "sys:exit"], "sys:exit cannot be built for images of 14 pixels: it ends"),
    ],
)
def test_code_of_somebody_that_fails_is_named(
    options: list[str], words: str, command: Command
) -> None:
    options = [option.replace("X:", "somebodys:") for option in options]
    code, _, err = command("train", "rotated-digits", "--target", "75", *options, *SHORT)
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: {words.replace('X:', 'somebodys:')}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Made", "the source 'somebodys:Made' fails: it ends the program"),
        ("Opened", "the source 'somebodys:Opened' cannot be opened, SystemExit: it ends"),
        ("Empty", "made: `encoded` gives a NoneType; let it yield the bytes of each"),
        ("exits", "the source 'somebodys:exits' cannot be opened, SystemExit: it ends"),
    ],
)
def test_a_source_of_somebody_that_fails_is_named(name: str, words: str, command: Command) -> None:
    code, _, err = command("data", "prepare", f"somebodys:{name}", "--image-size", "8")
    assert code == 1
    assert err.startswith(f"error: {words}")


def test_an_error_of_our_own_is_not_blamed_on_anybody(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradsurgery.cli import train

    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(train, "methods", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        command("methods")


def test_memory_that_there_is_not_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradsurgery.cli import train

    monkeypatch.setattr(train, "methods", lambda: np.empty(2**60, np.uint8))
    code, _, err = command("methods")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: out of memory: Unable to allocate 1.00 EiB")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("train --sed 3", "there is no option --sed, but --seed; see gradsurgery train --help"),
        (
            "train --lr 1",
            "there is no option --lr, but --learning-rate; see gradsurgery train --help",
        ),
        (
            "sweep --wd 0",
            "there is no option --wd, but --weight-decay; see gradsurgery sweep --help",
        ),
        ("train --xyz", "there is no option --xyz; see gradsurgery train --help"),
        (
            "train digits --seed x",
            ".*--seed'?: .*valid integer.*; see gradsurgery train --help",
        ),
        ("train digits --seed", "Option '--seed' requires an argument; see gradsurgery train --h"),
        ("train a b c", r"Got unexpected extra argument\S+ \(b c\); see gradsurgery train --help"),
        ("swep", "there is no command 'swep'; there is sweep; see gradsurgery --help"),
        ("xyz", "there is no command 'xyz'; there is train, .* data; see gradsurgery --help"),
        ("data inof", "there is no command 'inof'; there is info; see gradsurgery data --help"),
        (
            "reproduce table9",
            "there is no command 'table9'; there is table1; see gradsurgery reproduce --help",
        ),
        (
            "data cache xyz",
            "there is no command 'xyz'; there is list, prune; see gradsurgery data cache --help",
        ),
        ("sweep --retries -1", r".*--retries'?: .*\b0\b.*; see gradsurgery sweep"),
        ("show", r"PATH is missing, of gradsurgery show .*PATH.*; see gradsurgery show --help"),
        ("show --model worst x", ".*--model'?: 'worst' is not one of 'best', 'last'; see"),
        ("data info", "DATA is missing, of gradsurgery data info .*; see gradsurgery data info"),
        (f"train --seed {'9x' * 1000}", ".*--seed'?: .*9x9x.*; see gradsurgery train"),
    ],
)
def test_what_cannot_be_typed_is_one_line_with_the_cure(
    arguments: str, line: str, command: Command
) -> None:
    code, out, err = command(*arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.match(f"error: {line}", err), err
    assert len(err) <= 330


def test_a_command_without_anything_shows_what_there_is(command: Command) -> None:
    code, out, err = command()
    assert code == 2
    assert "sweep" in out + err
    assert command("--version")[0] == command("show", "--help")[0] == 0


def test_help_cuts_no_name_and_no_example_off(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = command("sweep", "--help")[1]
    assert "…" not in out.replace("ROLE=NAME,…", "")


@pytest.mark.parametrize("words", [("evaluate",), ("data", "info")])
def test_help_is_wrapped_at_the_width_of_the_terminal_alone(
    words: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    said = [line.strip() for line in command(*words, "--help")[1].split("╭")[0].splitlines()]
    usage, what, more = filter(None, said)
    assert usage.startswith("Usage")
    assert what.endswith(".")
    assert more.endswith(".")


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_somebody_says_otherwise(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    found: list[str] = []
    monkeypatch.setattr(main, "app", lambda **_: found.append(os.environ["OMP_WAIT_POLICY"]))
    with pytest.raises(SystemExit):
        main.run()
    assert found == [after]


def ended(code: str, *prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What becomes of `gradsurgery methods`, in a process of its own, where `methods` is `code`."""
    program = (
        "import sys; from gradsurgery.cli import main, train\n"
        f"def methods():\n    {code}\n"
        "train.methods = methods\nsys.argv = ['gradsurgery', 'methods']\nmain.run()"
    )
    command = [*prefix, sys.executable, "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_a_library_that_there_is_no_memory_for_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradsurgery.cli import train

    def absent(what: str) -> Callable[[], None]:
        def fail() -> None:
            raise ImportError(what)

        return fail

    said = "libtorch_cpu.so: failed to map segment from shared object"
    monkeypatch.setattr(train, "methods", absent(said))
    code, _, err = command("methods")
    assert (code, err) == (
        1,
        f"error: out of memory: {said}; give the process more (ulimit -v)\n",
    )
    monkeypatch.setattr(train, "methods", absent("no module of that name"))
    with pytest.raises(ImportError, match="no module of that name"):
        command("methods")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_command_that_is_told_to_end_leaves_no_file_half_written(
    name: str, tmp_path: Path
) -> None:
    code = (
        "import os, signal, pathlib; from gradsurgery.atomic import atomic_file\n"
        f"    with atomic_file(pathlib.Path({str(tmp_path / 'a')!r})) as left:\n"
        f"        left.write_text('half'); os.kill(os.getpid(), signal.{name}); print('on')"
    )
    heeding = (  # whoever started the tests may have it ignored
        f"import os, signal, sys; signal.signal(signal.{name}, signal.SIG_DFL); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    found = ended(code, sys.executable, "-c", heeding)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["somebodys.py"]


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('on')"
    found = ended(code, "sh", "-c", 'trap "" HUP; exec "$0" "$@"')
    assert (found.returncode, found.stdout) == (0, "on\n")


@pytest.mark.parametrize("closed", ["<&- >&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_files_of_others(closed: str, tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    code = (
        f"import os; file = open({path!r}, 'w'); assert file.fileno() > 2; sys.stdout.isatty()"
        "; print('lost', flush=True); os.system('echo lost'); file.write('kept')"
    )
    found = ended(code, "sh", "-c", f'exec "$0" "$@" {closed}')
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert (tmp_path / "a").read_text() == "kept"


def test_an_encoding_without_a_letter_is_no_traceback() -> None:
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    found = ended("print('H\\u00e4matom')", **ascii_only)
    assert (found.returncode, found.stdout) == (0, "H\\xe4matom\n")
    found = ended("import os; os.stat('H\\u00e4matom')", **ascii_only)
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    assert found.stderr.startswith("error: the environment's encoding ascii cannot write 'H\\xe4m")
    assert "set PYTHONUTF8=1" in found.stderr
