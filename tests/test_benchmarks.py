"""The measurements for a GPU go through on the processor, with everything small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def test_every_contestant_is_measured_and_shown(tmp_path):
    file = tmp_path / "gpu.jsonl"
    parts = ["rules", "steps", "command-line"]
    command = [sys.executable, str(SCRIPT), *parts, "--device", "cpu", "--tiny", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "FAILED" not in done.stdout
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rules = {row["rule"] for row in rows if row["part"] == "rules"}
    assert {"sum", "agr-sum", "agr-rand", "pcgrad", "and-mask", "as published: agr-sum"} <= rules
    steps = {row["name"] for row in rows if row["part"] == "steps"}
    assert {"deep-all", "agr-sum", "agr-rand", "pcgrad", "plain: pooled"} <= steps
    table = done.stdout.rpartition("no GPU")[2]
    assert all(name in table for name in (*rules, *steps, "by its record"))


def test_triton_compiles_our_kernels_for_a_card_without_one():
    """Its interpreter takes more than its compiler does."""
    pytest.importorskip("triton")
    script = SCRIPT.with_name("compiled_kernels.py")
    kernels = [
        "agr-sum of 3",
        "noise",
        "gramian of 8",
        "weighted sum of 3",
        "gather",
        "projections",
    ]
    command = [sys.executable, str(script), "--kernels", *kernels, "images"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line[:24].strip(): line[24:].split() for line in done.stdout.splitlines()[1:]}
    assert len(rows) == len(kernels) + 3
    for registers, spilt, *_ in rows.values():
        assert int(registers) <= 255
        assert spilt == "0"
    assert all(
        int(rows[name][2]) for name in ("agr-sum of 3", "noise", "gather")
    )  # 16 bytes a time
