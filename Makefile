# Every target makes the environment that it needs; only python3 with venv and pip has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?= optimizer=sam rho=0.05
DEVICE ?= cuda
DATA ?=
FASHION ?= /usr/share/datasets

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint format smoke bench guard faults faults-long gpu gpu-table4 reproduce-smoke clean

help: ## this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-15s %s\n", $$1, $$2}'

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

bench: $(VENV)/.dev ## five minutes of benchmarks; FASHION=FOLDER of Fashion-MNIST adds the comparison from start to end
	$(BIN)/python scripts/bench_startup.py --quick
	$(BIN)/python -W ignore scripts/bench_data.py --quick $(if $(DATA),--images $(DATA))
	$(BIN)/python -W ignore scripts/bench_step.py --quick
	$(BIN)/python -W ignore scripts/bench_ranks.py --quick
	if ls $(FASHION)/fashion-mnist/train-images* >/dev/null 2>&1; then $(BIN)/python scripts/bench_end_to_end.py $(FASHION) --quick; fi

guard: $(VENV)/.dev ## ratios that a slower step or data path would break, with generous bounds
	$(BIN)/python scripts/guard.py

faults: $(VENV)/.dev ## kill runs in every way and compare what they go on to (four minutes); make faults-long: 250 kills
	$(BIN)/python scripts/faults.py

faults-long: $(VENV)/.dev
	$(BIN)/python scripts/faults.py --long

gpu: $(VENV)/.dev ## on a GPU, in nine minutes: tests, benchmarks, training (DATA=FOLDER of CIFAR-10); DEVICE=cpu rehearses
	$(BIN)/python -W ignore scripts/gpu.py --device $(DEVICE) $(if $(DATA),--data $(DATA))

gpu-table4: $(VENV)/.dev ## the paper's table of label noise (DATA=FOLDER of CIFAR-10), nine minutes a call; DEVICE=cpu rehearses
	$(BIN)/python scripts/reproduce.py --table 4 --rows basic --minutes 9 --out outputs/table4 \
		$(if $(filter cpu,$(DEVICE)),--scale smoke,--scale gpu --jobs 8 device=$(DEVICE) $(if $(DATA),data.root=$(DATA)))

reproduce-smoke: $(VENV)/.dev ## three steps of every row of the paper's tables
	$(BIN)/python scripts/reproduce.py --table all --scale smoke --out outputs/reproduce

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
