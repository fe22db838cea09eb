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
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.inc csrc/*/*.cu csrc/*/*.cuh)
TIMEOUT := $(if $(shell command -v timeout),timeout $(LIMIT))
BENCHMARKS := $(if $(wildcard benchmarks/bench_*.py),benchmarks)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# tests of whole fits, whose outcome rounding decides: run under every instruction set that the processor has
FITS := tests/fit tests/starts tests/solvers tests/stack tests/test_register.py tests/plugins/test_cells.py tests/plugins/test_volumes.py

.PHONY: install demo test test-slow test-isa lint bench clean distclean

install: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wanted Python 3.11 or later, got $$($(PYTHON) --version 2>&1); pass PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(SOURCES) | $(BIN)/python
	@command -v $${CXX:-g++} >/dev/null || { echo "wanted a C++ compiler, found no $${CXX:-g++}; install g++" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet "setuptools>=80" wheel
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet "pybind11>=2.13" ninja "numpy>=2"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	@touch $(STAMP)

demo: install
	$(BIN)/regframe demo -o demo-output --overwrite

test: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(TIMEOUT) $(BIN)/python -m pytest tests $(BENCHMARKS) -n $(WORKERS) --dist worksteal -m "not slow" \
	  --benchmark-disable -o python_files="test_*.py bench_*.py" $(PYTEST_ARGS)

test-isa: install
	@for isa in $$($(BIN)/python -c "from regframe.testing.bench import instruction_sets; print(*instruction_sets())"); do \
	  echo "REGFRAME_ISA=$$isa"; \
	  REGFRAME_ISA=$$isa OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(FITS) -n $(WORKERS) --dist worksteal \
	    -m "not slow" -q $(PYTEST_ARGS) || exit 1; \
	done

test-slow: install
	$(BIN)/python -m pytest tests -m slow $(PYTEST_ARGS)

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

clean:
	rm -rf build dist demo-output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f regframe/*.so $(STAMP)
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
