# One command each; every target sets up what it needs.
#   make serve   install, fetch the default model, serve it on this machine's CPU
#   make test    everything CI runs: lint, types, import contracts, tests
# Override what is installed with TORCH=…, and the interpreter with PYTHON=….

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
KIT = $(BIN)/python -m pytest -q --pyargs headstock.testing.suite

.PHONY: serve test lint types imports unit kit test-slow bench native hardware clean

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Headstock needs Python 3.11 or newer. -> Install it, or set PYTHON=/path/to/python3."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first, so that the CPU build can be chosen without an index of its own.
$(VENV)/.serve: pyproject.toml hatch_build.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[xeon]"
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[xeon,dev]"
	@touch $@

# Without a compiler on the system, a package brings one; without that PyTorch computes.
native: $(VENV)/.serve
	@$(BIN)/python -m headstock_xeon.build --check \
	|| $(BIN)/python -m pip install --quiet --disable-pip-version-check ziglang 2>/dev/null || true
	@$(BIN)/python -m headstock_xeon.build --if-possible

serve: $(VENV)/.serve native
	$(BIN)/headstock serve $(ARGS)

test: lint types imports unit kit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/basedpyright

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.dev native
	$(BIN)/python -m headstock.cli pull smollm2
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

# The conformance kit on every backend that this machine has; toy is deliberately odd.
kit: $(VENV)/.dev native
	$(KIT) --headstock-backend=reference
	$(KIT) --headstock-backend=toy --headstock-plugin=headstock_toy
	$(KIT) --headstock-backend=xeon

test-slow: $(VENV)/.dev native
	$(BIN)/python -m headstock.cli pull smollm2
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(VENV)/.dev native
	$(BIN)/python benchmarks/cpu.py $(ARGS)

hardware:
	python3 benchmarks/run_hardware.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
