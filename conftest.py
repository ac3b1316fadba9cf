"""What pytest leaves out: the examples in the modules that need Triton, where there is none."""

from importlib.util import find_spec

if find_spec("triton") is None:
    kernels = ("combine", "combine_programs", "gather", "products", "products_programs")
    collect_ignore = [f"src/gradsurgery/kernels/{name}.py" for name in kernels]
