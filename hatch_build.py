"""Compiles src/gradsurgery/kernels for the installed package, where a C compiler is at hand.

Without one the package installs all the same, and does the same in more passes over memory.
"""

import hashlib
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = [
    *("-O3", "-fno-trapping-math", "-fno-math-errno", "-std=c11", "-shared", "-fPIC"),
    "-ffp-contract=off",  # clang would round a product and a sum once where the processor can
]


class CompileNative(BuildHookInterface[Any]):
    """Adds `gradsurgery/kernels/libgradsurgery.so` to the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say why not."""
        folder = Path(self.root) / "src" / "gradsurgery" / "kernels"
        library = folder / "libgradsurgery.so"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        sources = sorted(map(str, folder.glob("*.c")))
        command = [*compiler, *FLAGS, f'-DSOURCES="{digest_of(folder)}"', *sources, "-lm", "-o"]
        library.unlink(missing_ok=True)
        try:
            subprocess.run([*command, library], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the compiled loops are left out: {error}")
            return
        build_data["artifacts"].append("src/gradsurgery/kernels/libgradsurgery.so")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def digest_of(folder: Path) -> str:
    """The sha256 of the sources, as kernels/compiled.py takes it of those beside it."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".c", ".h"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
