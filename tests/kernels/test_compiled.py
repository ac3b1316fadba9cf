"""The kernels compile for a GPU; the interpreter, in which they are tested, takes more than that.

Needs no GPU: this file is also the script of a process that does not interpret them.
"""

import os
import subprocess
import sys
from typing import Any

import pytest

CASES = (
    ("float32", 3, ("agr-sum", "agr-rand", "sand-mask", "graddrop", "pcgrad", "gradvac")),
    ("float32", 5, ("agr-sum",)),  # in two parts
    ("bfloat16", 3, ("agr-rand", "pcgrad")),
    ("float64", 3, ("sand-mask",)),
)


def test_the_kernels_compile_for_a_gpu(tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    compiled = done.stdout.splitlines()
    assert {line.split()[0] for line in compiled} == {
        *("combine_program", "noise_program", "gather_rgb"),
        *("gramian", "weighted_sum", "projections", "gather"),
    }
    assert sum(line.startswith("combine_program") for line in compiled) == 4 + 2 + 1 + 1


def compile_for_a_gpu(kernel: Any, grid: int, *arguments: Any, **constants: Any) -> None:
    """In the place of a launch: compile what would be launched, once each."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {"num_warps": constants.pop("num_warps", 4)}
    names = kernel.arg_names
    signature = dict.fromkeys(names, "constexpr")
    for name, value in zip(names, arguments, strict=False):
        tensor = isinstance(value, torch.Tensor)
        signature[name] = f"*{_TYPES[str(value.dtype)]}" if tensor else "i32"
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    if (key := source.hash()) not in _seen:
        _seen.add(key)
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        print(kernel.__name__.removeprefix("_"), constants)  # noqa: T201


_seen: set[str] = set()
_TYPES = {
    "torch.bfloat16": "bf16",
    "torch.float32": "fp32",
    "torch.float64": "fp64",
    "torch.int8": "i8",
    "torch.uint8": "u8",
    "torch.int32": "i32",
    "torch.int64": "i64",
}


def main() -> None:
    import torch

    import gradsurgery as gs
    from gradsurgery.engine.accumulators import accumulator_for
    from gradsurgery.kernels import combine, gather, network, products

    for module in (combine, gather, network, products):
        module.launch = compile_for_a_gpu
    network.DEVICES = {"cpu"}
    for precision, domains, rules in CASES:
        parameters = [torch.zeros(size, dtype=getattr(torch, precision)) for size in (5000, 10)]
        for name in rules:
            accumulator = accumulator_for(gs.rule(name), parameters)
            for domain in range(domains):
                accumulator.receive_domain(domain, [p.clone() for p in parameters])
            accumulator.finish(domains, poison=True)
    flat = [torch.zeros(5000), torch.zeros(10)]
    products.gather(flat, (5000, 10), out=torch.zeros(5010))
    images, positions = torch.zeros(5, 8, 8, 3, dtype=torch.uint8), torch.zeros(2).long()
    for memory in (torch.contiguous_format, torch.channels_last):
        out = torch.zeros(2, 3, 8, 8).contiguous(memory_format=memory)
        gather.gather_rgb(images, positions, torch.zeros(3, 256), out)


if __name__ == "__main__":
    main()
