# Every target sets up what it needs in .venv: a machine with Python 3.11 or later, g++ and make is enough.

PYTHON ?= python3
# installed before anything is built: the ops are compiled against it, and serve every later torch
TORCH ?= torch==2.13.0
# seconds that `make test` may take
LIMIT ?= 720
# processes that `make test` runs, one thread each
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed
PIP = $(BIN)/python -m pip install --no-warn-script-location
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.inc csrc/*/*.cu csrc/*/*.cuh)
TIMEOUT := $(if $(shell command -v timeout),timeout $(LIMIT))
BENCHMARKS := $(if $(wildcard benchmarks/bench_*.py),benchmarks)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# tests start many processes: what one of them has compiled, the next ones load
unexport PYTHONDONTWRITEBYTECODE

# tests of whole fits, whose outcome rounding decides: run under every instruction set that the processor has
FITS := tests/fit tests/starts tests/solvers tests/stack tests/test_register.py tests/plugins/test_cells.py tests/plugins/test_volumes.py

# tests for `make test-sanitized`: with memory watched (all, where none are named), and with threads watched
SANITIZED ?=
RACES ?= tests/test_host.py tests/test_ops.py tests/test_information.py tests/test_correlation.py tests/maps

.PHONY: docs wheel check-wheel audit install demo test test-slow test-isa test-sanitized lint bench clean distclean

install: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wanted Python 3.11 or later, got $$($(PYTHON) --version 2>&1); pass PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# the package, compiled, with what every command of the README needs: what is done is said, and pip shows its progress
$(RUNTIME): $(SOURCES) | $(BIN)/python
	@command -v $${CXX:-g++} >/dev/null || { echo "wanted a C++ compiler, found no $${CXX:-g++}; install g++" >&2; exit 2; }
	@echo "[1/4] tools that build"
	@$(PIP) "setuptools>=80" wheel "pybind11>=2.13" ninja "numpy>=2"
	@echo "[2/4] torch: 0.2 to 2 GB, minutes on a slow line"
	@$(PIP) $(TORCH)
	@echo "[3/4] what regframe reads and draws with, and regframe itself, compiled: about two minutes"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e ".[view,anndata,itk]"
	@touch $(RUNTIME)

# all tools of the developers on top
$(STAMP): $(RUNTIME)
	@echo "tools of the developers, and every reader that the tests use: minutes"
	@$(PIP) "regframe[dev]"  # regframe is there: only what the extra names is installed, nothing is compiled again
	@touch $(STAMP)

demo: $(RUNTIME)
	@echo "[4/4] one real alignment, into demo-output"
	@$(BIN)/regframe demo -o demo-output --overwrite

test: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(TIMEOUT) $(BIN)/python -m pytest tests $(BENCHMARKS) -n $(WORKERS) --dist worksteal -m "not slow" \
	  --benchmark-disable -o python_files="test_*.py bench_*.py" $(PYTEST_ARGS)

test-isa: install
	@for isa in $$($(BIN)/python -c "from regframe.testing.bench import instruction_sets; print(*instruction_sets())"); do \
	  echo "REGFRAME_ISA=$$isa"; \
	  REGFRAME_ISA=$$isa OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(FITS) -n $(WORKERS) --dist worksteal \
	    -m "not slow" -q $(PYTEST_ARGS) || exit 1; \
	done

# the whole suite with memory and undefined behaviour watched, then the threaded kernels with races watched: an hour or two of a core
test-sanitized: install
	@code=0; PYTHON="$(CURDIR)/$(BIN)/python" PYTEST_ARGS="$(PYTEST_ARGS)" .ci/sanitized address $(SANITIZED) || code=1; \
	  PYTHON="$(CURDIR)/$(BIN)/python" PYTEST_ARGS="$(PYTEST_ARGS)" .ci/sanitized thread $(RACES) || code=1; exit $$code

test-slow: install
	$(BIN)/python -m pytest tests -m slow $(PYTEST_ARGS)
	@$(MAKE) test-sanitized

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# a table and a figure of all that was measured; the rivals only where REGFRAME_RIVALS names a Python that has them
bench: install
	@mkdir -p build
	rm -f build/bench.jsonl
	REGFRAME_BENCH_JSON=$(CURDIR)/build/bench.jsonl $(BIN)/python -m pytest benchmarks -o python_files="bench_*.py" -s $(PYTEST_ARGS)
	$(BIN)/python benchmarks/make_table.py build/bench.jsonl -o benchmarks/RESULTS.md

# the sdist and this machine's wheel, in dist/, and whether they hold: both twice the same bytes, and run where there is no compiler
wheel: $(RUNTIME)
	@$(PIP) --quiet "regframe[release]"
	PYTHON="$(CURDIR)/$(BIN)/python" .ci/wheel

check-wheel: wheel
	PYTHON="$(CURDIR)/$(BIN)/python" OUT=build/again .ci/wheel
	@for file in build/again/*.whl build/again/*.tar.gz; do cmp "$$file" "dist/$${file##*/}" && echo "$${file##*/}: the same bytes twice" || exit 1; done
	for file in build/again/*.whl; do .ci/check_wheel "dist/$${file##*/}" "$(CURDIR)/$(BIN)/python" || exit 1; done

# the documentation as a site, in build/site/index.html: no network, warnings are errors
docs: $(RUNTIME)
	@$(PIP) --quiet "regframe[docs]"
	$(BIN)/python docs/make_site.py build/site

# what an installation is made of (CycloneDX) and whether anything is known against it
audit: $(RUNTIME)
	@mkdir -p build
	@$(PIP) --quiet pip-audit cyclonedx-bom
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file build/sbom.cdx.json
	$(BIN)/pip-audit --local --skip-editable

clean:
	rm -rf build dist demo-output demo-output-run demo-data *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f regframe/*.so $(STAMP) $(RUNTIME)
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
