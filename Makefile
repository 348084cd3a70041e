# The two commands of the README: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test bench

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/.ready

demo: setup
	$(BIN)/segadapt demo --config configs/demo.yaml $(ARGS)

test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# In this order, matching_step first; ARGS=--quick shows with tiny sizes that all of them work.
BENCHMARKS := matching_step matching_share regions bank_lookup pseudo_labels evaluation reading end_to_end start_up scaling

bench: setup
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(ARGS); done
	@echo "== all"; $(BIN)/python benchmarks/table.py $(ARGS)
