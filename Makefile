# `make demo` and `make test` set up .venv when it is missing or older than the files that say what belongs in it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint types kernels-without-jit pytest clean
.DELETE_ON_ERROR:

demo: $(READY)
	@$(BIN)/opcycle simulate npu-hbm2 llama3-8b-decode -o results/demo

test: lint types kernels-without-jit pytest

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "opcycle needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

kernels-without-jit: $(READY)
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -q -m kernels -n 2

pytest: $(READY)
	$(BIN)/pytest -q -n 2 --dist loadfile

clean:
	rm -rf $(VENV) results build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
