"""What a sweep shows on a real terminal: a pseudo-terminal, and what is left on its screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROWS, COLUMNS = 40, 120


def on_terminal(arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """Run the command line with a terminal as its standard error: exit code, output, errors."""
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("there are no pseudo-terminals")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "gradsurgery", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        | {"TERM": "xterm", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)},
    )
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.stdout is not None
    with process.stdout as stdout:
        output = stdout.read().decode()
    return process.wait(), output, shown.decode()


def screen(shown: str) -> list[str]:
    """The lines that are left on a screen: of what a terminal knows, what is sent here."""
    lines, row, column = [""], 0, 0
    for code, control, text in re.findall(r"\x1b\[\??(\d*)[\d;]*([A-Za-z])|([^\x1b])", shown):
        if text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
        elif control == "A":
            row -= int(code or 1)
        elif control == "K":
            assert code == "2"
            lines[row] = ""
        else:
            assert control in "mhl", control  # colours, and whether the cursor is seen
    return [line.rstrip() for line in lines if line.strip()]


def test_a_sweep_is_shown_as_it_goes_and_leaves_a_line_for_each_run(
    tmp_path: Path, cache: Path
) -> None:
    arguments = ["compare", "rotated-digits", "--methods", "deep-all,agr-sum", "--targets", "75"]
    arguments += ["--seeds", "1", "--workers", "1", "--iterations", "4", "--image-size", "12"]
    arguments += ["--device", "cpu", "--cache", str(cache), "--out", "runs"]
    code, output, shown = on_terminal(arguments, tmp_path)
    assert code == 0, shown
    assert output.startswith("rotated-digits: target accuracy (%) of the best model, 1 seed")
    left = "\n".join(screen(shown))  # where something else may be told too
    result = r"accuracy on 75 \d+\.\d% \(validation \d+\.\d%, \d+\.\d s\)"
    ends = [rf"\[{n}/2\] rotated-digits 75 {method} seed 0: {result}" for n, method in (
        (1, "deep-all"), (2, "agr-sum")
    )]  # fmt: skip
    assert re.search("\n(.*\n)*".join([*ends, "runs: runs"]) + "$", left), left
    assert not re.search("━|decoding|running|done of", left), left
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    for words in ("0 done of 2  1 running  0 failed", "  rotated-digits 75 deep-all seed 0  start"):
        assert words in plain
    assert re.search(r"2 done of 2 .*time left 0:00:00", plain)
    assert re.search(r"  best on rotated-digits 75  \d+\.\d%  deep-all", plain)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back


def test_a_run_is_shown_by_a_bar_that_goes(tmp_path: Path, cache: Path) -> None:
    arguments = ["train", "rotated-digits", "--target", "75", "--method", "deep-all"]
    arguments += ["--iterations", "4", "--image-size", "12", "--device", "cpu", "--out", "run"]
    code, output, shown = on_terminal([*arguments, "--cache", str(cache)], tmp_path)
    assert code == 0, shown
    assert output.startswith("accuracy on 75 ")
    assert screen(shown) == []
    assert "preparing" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
