# `make demo` and `make test` do all the set-up on a machine with Python 3.11 or later, pip and git.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; \
  done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint docs install clean

demo: $(READY)
	$(BIN)/gradsurgery sweep coded-digits --methods deep-all,agr-sum,agr-rand,pcgrad \
	  --targets random --seeds 8 --workers 2 --out runs/demo

# Each of the many processes that tests start would compile the package anew, were that not kept.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site, in build/site: open index.html, no server is needed.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

install: $(READY)

# Built anew only when the metadata or the C code changed; the Python code is installed in place.
$(READY): pyproject.toml hatch_build.py $(wildcard src/gradsurgery/kernels/*.[ch])
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later is found; name one: make PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV), PyTorch too: a few minutes and about 7 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
