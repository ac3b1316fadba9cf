"""What a sweep costs beside its runs: wall time against (sum of the runs' times / workers).

    python benchmarks/sweep_overhead.py [--runs 100] [--seconds 2] [--launcher local ray]

Every launcher does the same runs of about `--seconds` each, as a command in a process of its own
that starts with nothing, the images decoded beforehand. The alternative, a `gradsurgery train` for
every run, is measured on the first `--alone` of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "gradsurgery"]
TARGETS = ("0", "15", "30", "45", "60")


def timed(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def run_seconds(folder: Path) -> list[float]:
    """What the runs in `folder` took, by their records."""
    return [json.loads(p.read_text())["cost"]["seconds"] for p in folder.rglob("record.json")]


def options(iterations: int) -> list[str]:
    return ["--iterations", str(iterations), "--device", "cpu"]


def iterations_for(seconds: float, folder: Path) -> int:
    """So many that a run takes about `seconds`, from one of 300 iterations."""
    arguments = ["train", "rotated-digits", "--target", "75", *options(300)]
    timed([*arguments, "--out", str(folder / "warm")])  # decodes the images too
    timed([*arguments, "--seed", "1", "--out", str(folder / "timed")])
    return max(20, round(300 * seconds / run_seconds(folder / "timed")[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--alone", type=int, default=10)
    parser.add_argument("--launcher", nargs="+", default=["local", "ray"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        iterations = iterations_for(chosen.seconds, folder)
        seeds = chosen.runs // len(TARGETS)
        print(f"{seeds * len(TARGETS)} runs of {iterations} iterations, {chosen.workers} workers")
        for launcher in chosen.launcher:
            arguments = ["sweep", "rotated-digits", "--methods", "agr-sum", "--no-report"]
            arguments += ["--targets", ",".join(TARGETS), "--seeds", str(seeds)]
            arguments += ["--workers", str(chosen.workers), "--launcher", launcher]
            wall = timed([*arguments, *options(iterations), "--out", str(folder / launcher)])
            print_ratio(f"sweep, {launcher}", wall, run_seconds(folder / launcher), chosen.workers)
        wall = 0.0
        for seed in range(chosen.alone):
            arguments = ["train", "rotated-digits", "--target", "0", "--seed", str(seed)]
            wall += timed([*arguments, *options(iterations), "--out", f"{folder}/alone/{seed}"])
        print_ratio("a process for every run", wall, run_seconds(folder / "alone"), workers=1)


def print_ratio(name: str, wall: float, seconds: list[float], workers: int) -> None:
    ideal = sum(seconds) / workers
    print(
        f"  {name:26s} {len(seconds):4d} runs of {sum(seconds) / len(seconds):5.2f} s, "
        f"wall {wall:7.1f} s, {wall / ideal:5.2f} x (sum of run times / workers)"
    )


if __name__ == "__main__":
    main()
