# One command each; every target sets up what it needs.
#   make serve   install, fetch the default model, serve it on this machine's CPU
#   make docs    build the documentation's site into build/site
#   make test    everything CI runs: lint, types, import contracts, tests
# Override what is installed with TORCH=…, and the interpreter with PYTHON=….

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
TORCH ?= torch==2.13.0
# Hundreds of processes of the tests read these sources: they are compiled once, whoever forbids it.
unexport PYTHONDONTWRITEBYTECODE
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# A test process for each core: most tests are served by one thread.
JOBS ?= -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
KIT = $(BIN)/python -m pytest -q --pyargs headstock.testing.suite

.PHONY: serve test lint types imports unit kit reports signatures test-slow chaos lock sbom bench clients native hardware tpu-test tpu-compile torchtpu-test ascend-test docs clean

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
	$(BIN)/bandit -q -c pyproject.toml -r core models backends -x core/headstock/testing/templates

types: $(VENV)/.dev
	$(BIN)/basedpyright

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.dev native
	$(BIN)/python -m headstock.cli pull smollm2
	$(BIN)/python -m pytest $(JOBS) -m "not slow" $(ARGS)

# The conformance kit on every backend that this machine has; toy is deliberately odd. Two at a time:
# a kit computes small things on one core (xeon's on all), and measures no speed but that a probe ends
# within 2 s. Those that stand in for a kind of backend serve one family of two.
KITS = reference toy xeon functional acme npu
KIT_JOBS ?= 2
WITH_toy = --headstock-plugin=headstock_toy -k "not qwen3"
WITH_functional = --headstock-plugin=headstock_functional -k "not qwen3"
WITH_acme = --headstock-plugin=headstock_acme -k "not qwen3"
WITH_npu = --headstock-plugin=headstock_npu_on_cpu -k "not qwen3"

kit: $(VENV)/.dev native
	$(MAKE) --no-print-directory -j$(KIT_JOBS) $(if $(filter output-sync,$(.FEATURES)),-O) $(KITS:%=kit-%)

kit-%: $(VENV)/.dev native
	OMP_NUM_THREADS=1 $(KIT) --headstock-backend=$* $(WITH_$*)

# What docs/backends.md shows, from the kit on what this machine has.
REPORTS = docs/reports
reports: $(VENV)/.dev native
	@mkdir -p $(REPORTS) build
	for name in reference xeon; do \
		$(KIT) --headstock-backend=$$name --headstock-report=build/kit-$$name.json \
		&& $(BIN)/python -m headstock.testing.table keep build/kit-$$name.json hardware $(REPORTS) || exit 1; \
	done
	$(KIT) --headstock-backend=npu --headstock-plugin=headstock_npu_on_cpu \
		--headstock-report=build/kit-npu.json
	$(BIN)/python -m headstock.testing.table keep --backend ascend build/kit-npu.json \
		"stand-in kernels" $(REPORTS)
	$(BIN)/python -m headstock.testing.table write $(REPORTS) docs/backends.md

# What plugins may use, for a newer HOOK_API; --unreleased where it is not out yet.
signatures: $(VENV)/.dev
	$(BIN)/python -m headstock.testing.signatures tests/contract/signatures.txt --renew $(ARGS)

test-slow: $(VENV)/.dev native
	$(BIN)/python -m headstock.cli pull smollm2
	$(BIN)/python -m pytest $(JOBS) -m slow $(ARGS)

# What kills, stops and starves: the quick ones are in `make test`, too.
chaos: $(VENV)/.dev native
	$(BIN)/python -m headstock.cli pull smollm2
	$(BIN)/python -m pytest -m chaos $(ARGS)

# What CI was tested with, each file by its digest; see CONTRIBUTING.
lock: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --extra xeon --extra dev --generate-hashes --no-annotate \
		--no-header --no-emit-index-url --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 $(ARGS) -o requirements/ci.lock

# What is installed here, as a CycloneDX document for a release.
sbom: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)-sbom
	$(VENV)-sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom
	mkdir -p dist
	$(VENV)-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		-o dist/sbom.json $(BIN)/python
	rm -rf $(VENV)-sbom

bench: $(VENV)/.dev native
	$(BIN)/python benchmarks/cpu.py $(ARGS)

# Strict: a link that leads nowhere, or a page outside the menu, fails.
docs: $(VENV)/.serve
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(BIN)/python -m mkdocs build --strict

# Packages of others against a served model, each in an environment of its own; writes docs/clients.md.
clients: $(VENV)/.dev native
	$(BIN)/python -m headstock.cli pull smollm2
	$(BIN)/python tests/clients/run.py $(ARGS)

hardware:
	python3 benchmarks/run_hardware.py $(ARGS)

# torch-xla on its own CPU device, in an environment of its own: it fits one PyTorch alone (7 GB).
TPU_VENV ?= .venv-tpu
TPU_BIN := $(TPU_VENV)/bin
# Compiling takes minutes where others compute beside it: no test has a time limit of its own.
TPU_RUN = XLA_FLAGS=--xla_backend_optimization_level=0 $(TPU_BIN)/python -m pytest -q --timeout=0

$(TPU_VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[tpu-test]"
	@touch $@

tpu-test: $(TPU_VENV)/.dev
	$(TPU_RUN) tests/hardware/tpu tests/kernels/test_pallas_attention.py $(ARGS)
	$(TPU_RUN) --pyargs headstock.testing.suite --headstock-backend=tpu --headstock-option=pjrt=cpu $(ARGS)

# The kernel compiled for TPUs that are not here: libtpu, and a JAX that writes what it reads.
AOT_VENV ?= .venv-tpu-compile
AOT_BIN := $(AOT_VENV)/bin
AOT_RUN = JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 $(AOT_BIN)/python -m

$(AOT_VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(AOT_VENV)
	$(AOT_BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(AOT_BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[tpu-compile]"
	@touch $@

tpu-compile: $(AOT_VENV)/.dev
	$(AOT_RUN) pytest -q --timeout=0 tests/kernels/test_pallas_attention.py $(ARGS)

# The published torch-npu beside this PyTorch, over do-nothing libraries of CANN: no NPU is needed.
NPU_FOLDER ?= build/torch-npu

$(NPU_FOLDER)/.done: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target $(NPU_FOLDER) torch-npu==2.13.0
	@touch $@

ascend-test: $(NPU_FOLDER)/.done
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 PYTHONPATH=$(NPU_FOLDER) \
		$(BIN)/python -m pytest -q tests/hardware/ascend $(ARGS)

# The published torch-tpu and libtpu beside this PyTorch, without a TPU: imported, and refused.
TORCHTPU_FOLDER ?= build/torch-tpu

$(TORCHTPU_FOLDER)/.done: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
		--target $(TORCHTPU_FOLDER) torch-tpu==0.2.0 libtpu==0.0.52 absl-py frozendict immutabledict portpicker
	@touch $@

torchtpu-test: $(TORCHTPU_FOLDER)/.done
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 PYTHONPATH=$(TORCHTPU_FOLDER) \
		$(BIN)/python -m pytest -q --timeout=0 tests/hardware/tpu/test_torchtpu_import.py $(ARGS)

clean:
	rm -rf $(VENV) $(TPU_VENV) $(AOT_VENV) build dist .pytest_cache .ruff_cache .hypothesis
