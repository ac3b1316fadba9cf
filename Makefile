# `make demo` and `make test` do all the set-up on a machine with Python 3.11, pip and git.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint install clean

demo: $(READY)
	$(BIN)/gradsurgery sweep rotated-digits --methods deep-all,agr-sum,agr-rand,pcgrad \
	  --targets 75 --seeds 3 --workers 2 --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

install: $(READY)

# Built anew only when the metadata or the C code changed; the Python code is installed in place.
$(READY): pyproject.toml hatch_build.py $(wildcard src/gradsurgery/kernels/*.c)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
