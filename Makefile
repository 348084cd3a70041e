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
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python benchmarks/matching_step.py
	$(BIN)/python benchmarks/matching_share.py
	$(BIN)/python benchmarks/pseudo_label_memory.py
