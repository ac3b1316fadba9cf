"""The measurements for a GPU go through on the processor, with everything small."""

import json
import subprocess
import sys
from pathlib import Path

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
