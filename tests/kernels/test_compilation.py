"""The Triton programs compile for a GPU, which takes none, and read whole blocks 16 bytes a time.

In processes of their own: where Triton's interpreter is switched on nothing is compiled.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PRELUDE = """
import re
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gradsurgery.kernels import combine_programs, network, products

POINTERS = {
    "table": "*i64", "sizes": "*i32", "bases": "*i64", "owners": "*i32", "begins": "*i32",
    "marks": "*i32", "found": "*fp32", "found_before": "*fp32", "signs": "*i32", "tensors": "i32",
    "partials": "*fp64", "constants": "*fp64", "seed": "*i64", "domains": "i32", "parts": "*fp64",
    "summed": "*fp64", "counts": "*i64", "weights": "*fp64", "skipped": "*i8", "flags": "*i32",
    "gramian": "*fp64", "orders": "*i64", "coefficients": "*fp64", "targets": "*fp64",
}

def loads(program, wide=tl.float32, **constants):
    "How many of the loads take 16 bytes at once."
    names = [name for name in program.arg_names if name not in constants]
    other = {"total": f"*fp{wide.primitive_bitwidth}", "second": f"*fp{wide.primitive_bitwidth}",
             "out": "*fp32"}
    signature = {name: ({**POINTERS, **other})[name] for name in names}
    signature |= {name: "constexpr" for name in constants}
    source = ASTSource(fn=program, signature=signature, constexprs=constants, attrs={})
    target = GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": combine_programs.WARPS})
    return len(re.findall(r"ld\\.global[.\\w:]*v[24]\\.b(?:32|64)", compiled.asm["ptx"]))

def combine(rule, rows, *, resumed=False, final=True, dtype=tl.float32, wide=tl.float32,
            aligned=True):
    return loads(
        combine_programs.combine_program, wide, RULE=rule, ROWS=rows, RESUMED=resumed,
        FINAL=final, COUNTS=final and rule in ("agr-sum", "agr-rand", "and-mask", "sand-mask"),
        SUMS=final and rule in ("agr-rand", "sand-mask"), ALIGNED=aligned, DTYPE=dtype,
        WIDE=wide, BLOCK=network.BLOCK, TILE=combine_programs.TILE,
    )
"""
PROGRAMS = {
    "component-wise rules": """
for rule in ("sum", "agr-sum", "agr-rand", "and-mask", "sand-mask", "graddrop"):
    assert combine(rule, 3) >= 6, rule
combine("agr-sum", 4, final=False)
combine("sand-mask", 4, resumed=True)
assert combine("agr-sum", 3, dtype=tl.bfloat16) >= 3
assert combine("agr-sum", 3, dtype=tl.float64, wide=tl.float64) >= 6
assert combine("agr-sum", 3, aligned=False) == 0
loads(combine_programs.noise_program, ALIGNED=True, DTYPE=tl.float32, WIDE=tl.float32,
      BLOCK=network.BLOCK)
""",
    "rules by inner products": """
for domains in (3, 12):
    common = dict(DOMAINS=domains, ALIGNED=True, DTYPE=tl.float32, BLOCK=network.BLOCK)
    assert loads(products._gramian, TILE=products._PRODUCTS_TILE, **common) > 0
    assert loads(products._weighted_sum, TILE=combine_programs.TILE, **common) > 0
loads(products._gather, ALIGNED=True, DTYPE=tl.float32, BLOCK=network.BLOCK)
for aimed in (False, True):
    loads(products._projections, AIMED=aimed, WIDTH=4)
""",
}


@pytest.mark.parametrize("programs", PROGRAMS)
def test_programs_compile_for_a_gpu(programs, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = tmp_path / "compile.py"
    script.write_text(PRELUDE + PROGRAMS[programs])
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
