"""What Triton makes of our kernels for a card, on any machine: registers, spills, wide loads.

    python benchmarks/compiled_kernels.py [--capability 90] [--kernels gramian_program …]

The interpreter, which the tests of the kernels use, takes more than the compiler does; and what
needs more registers runs with fewer programs at a time. Nothing is run here.
"""

import argparse
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # which has to be known before triton is imported

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gradsurgery.kernels import combine_programs, gather, products_programs
from gradsurgery.kernels.combine_programs import TILE, WARPS
from gradsurgery.kernels.network import BLOCK, COUNTING

POINTERS = {
    "table": "*i64", "sizes": "*i32", "bases": "*i64", "owners": "*i32", "begins": "*i32",
    "marks": "*i32", "found": "*fp32", "found_before": "*fp32", "partials": "*fp64",
    "constants": "*fp64", "seed": "*i64", "tensors": "i32", "domains": "i32", "parts": "*fp64",
    "weights": "*fp64", "flags": "*i32", "out": "*fp32", "gramian": "*fp64", "orders": "*i64",
    "coefficients": "*fp64", "targets": "*fp64", "total": "*fp32", "second": "*fp32",
    "signs": "*i32", "summed": "*fp64", "counts": "*i64", "images": "*u8", "positions": "*i64",
    "pixels": "i32", "blocks": "i32", "reached": "i32",
}  # fmt: skip
"""The types of the kernels' arguments, of float32 gradients."""

Case = tuple[str, Any, dict[str, Any], dict[str, str]]


def combinations() -> Iterator[Case]:
    for rule, rows, resumed, final, divides in (
        ("agr-sum", 3, False, True, False),
        ("agr-sum", 4, False, False, False),
        ("agr-sum", 4, True, True, False),
        ("agr-sum", 8, False, True, False),
        ("agr-rand", 3, False, True, False),
        ("sum", 1, False, True, False),
        ("and-mask", 3, False, True, True),
        ("sand-mask", 3, False, True, False),
        ("graddrop", 3, False, True, False),
    ):
        constants = {
            "RULE": rule, "ROWS": rows, "RESUMED": resumed, "FINAL": final, "DIVIDES": divides,
            "COUNTS": final and rule in COUNTING, "SUMS": final and rule == "agr-rand",
            "ALIGNED": True, "DTYPE": tl.float32, "WIDE": tl.float32, "BLOCK": BLOCK, "TILE": TILE,
        }  # fmt: skip
        name = f"{rule} of {rows}{' more' if resumed else ''}{'' if final else ', kept'}"
        yield name, combine_programs.combine_program, constants, {}


def cases() -> Iterator[Case]:
    """Kernels by what they do, with their constants and the types that differ."""
    plain: dict[str, Any] = {"ALIGNED": True, "DTYPE": tl.float32, "BLOCK": BLOCK, "TILE": TILE}
    yield from combinations()
    yield "noise", combine_programs.noise_program, plain | {"WIDE": tl.float32}, {}
    for domains in (3, 8):
        of = {"DOMAINS": domains}
        products = plain | of | {"TILE": 256}
        yield f"gramian of {domains}", products_programs.gramian_program, products, {}
        yield f"weighted sum of {domains}", products_programs.weighted_sum_program, plain | of, {}
    yield "gather", products_programs.gather_program, plain, {}
    for aimed in (False, True):
        projected = {"AIMED": aimed, "WIDTH": 4}
        name = "gradvac" if aimed else "pcgrad"
        yield f"projections of {name}", products_programs.projections_program, projected, {}
    for last in (False, True):
        taken = {"LAST": last, "BLOCK": 1024}
        name = f"images, {'channels last' if last else 'contiguous'}"
        yield name, gather._gather_rgb, taken, {"table": "*fp32"}


def seen_of(case: Case, capability: int) -> str:
    """A line about the kernel as it is compiled."""
    name, kernel, constants, types = case
    constexprs = dict.fromkeys(constants, "constexpr")
    known = POINTERS | types | constexprs
    signature = {argument: known[argument] for argument in kernel.arg_names}
    start = time.perf_counter()
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": WARPS},
    )
    text, said = made.asm["ptx"], assembled(made.asm["ptx"])
    registers = re.search(r"Used (\d+) registers", said)
    spilt = re.search(r"(\d+) bytes spill stores", said)
    return (
        f"{name:24s} {registers[1] if registers else '?':>9s} {spilt[1] if spilt else '?':>7s} "
        f"{text.count('ld.global.v4'):10d} {text.count('fma.rn.f64'):8d} "
        f"{time.perf_counter() - start:8.1f}"
    )


def assembled(text: str) -> str:
    """What NVIDIA's assembler, which Triton brings, says of a program."""
    (assembler, *_) = Path(str(triton.__file__)).parent.glob("backends/nvidia/bin/ptxas*")
    architecture = re.search(r"\.target (\w+)", text)
    assert architecture
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(text)
        command = [
            assembler,
            "-v",
            f"--gpu-name={architecture[1]}",
            file,
            "-o",
            file.with_suffix(".o"),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90, help="of the card: 90 is Hopper's")
    parser.add_argument("--kernels", nargs="*", help="only those whose name begins so")
    options = parser.parse_args()
    print(f"{'':24s} registers spilt B wide loads f64 fma  seconds", flush=True)
    for case in cases():
        if not options.kernels or case[0].startswith(tuple(options.kernels)):
            print(seen_of(case, options.capability), flush=True)


if __name__ == "__main__":
    main()
