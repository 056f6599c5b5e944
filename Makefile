# Every target makes the environment that it needs; only python3 with venv and pip has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?= optimizer=sam rho=0.05
DEVICE ?= cuda

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint format smoke gpu clean

help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/.run ## train: make run ARGS="optimizer=sam rho=0.05"
	$(BIN)/sam-train $(ARGS)

test: $(VENV)/.dev ## the fast tests
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/.dev ## all tests that need no GPU, the slow ones too
	$(BIN)/python -m pytest -n 2 -m "not gpu"

lint: $(VENV)/.dev ## style (ruff) and types (mypy --strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

smoke: $(VENV)/.run ## a few steps of everything that is shipped, through the command line
	sh scripts/smoke.sh $(BIN)

gpu: $(VENV)/.dev ## the tests that need a CUDA device; DEVICE=cpu rehearses them
	SAM_RUNNER_TEST_DEVICE=$(DEVICE) $(BIN)/python -m pytest -m gpu

clean: ## remove the environment and caches; outputs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.run
