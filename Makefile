# Every target creates the environment that it needs. Required: python3 with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?= optimizer=sam rho=0.05
DEVICE ?= cuda
DATA ?=
FASHION ?= /usr/share/datasets
STUDIES ?= gpu_resnet18
JOBS ?= 3
FOLDERS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-all mutants lint format docs smoke bench guard upgrade faults faults-long fuzz gpu gpu-table4 reproduce-smoke evidence-smoke gpu-evidence clean

help: ## list the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-15s %s\n", $$1, $$2}'

run: $(VENV)/.run ## train one run: make run ARGS="optimizer=sam rho=0.05"
	$(BIN)/sam-train $(ARGS)

test: $(VENV)/.dev ## run the fast tests
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/.dev ## run all tests that need no GPU, also the slow ones
	$(BIN)/python -m pytest -n 2 -m "not gpu"

mutants: $(VENV)/.dev ## break one rule of the code at a time and check that its tests fail
	$(BIN)/python -m pytest -n 2 -m mutant tests/mutants

lint: $(VENV)/.dev ## check style (ruff) and types (mypy --strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## format all files (ruff)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## build the site into site/ (open site/index.html); a warning or a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

smoke: $(VENV)/.run ## run a few steps of every shipped option through the command line
	sh scripts/checks/smoke.sh $(BIN)

bench: $(VENV)/.dev ## run the benchmarks (six minutes); FASHION=FOLDER with Fashion-MNIST adds the end-to-end comparison
	$(BIN)/python scripts/benchmarks/startup.py --quick
	$(BIN)/python -W ignore scripts/benchmarks/data.py --quick
	$(BIN)/python -W ignore scripts/benchmarks/jpeg.py --quick $(if $(DATA),--images $(DATA))
	$(BIN)/python -W ignore scripts/benchmarks/step.py --quick
	$(BIN)/python -W ignore scripts/benchmarks/ranks.py --quick
	$(BIN)/python -W ignore scripts/growth/measure_growth.py --quick
	if ls $(FASHION)/fashion-mnist/train-images* >/dev/null 2>&1; then $(BIN)/python scripts/benchmarks/end_to_end.py $(FASHION) --quick; fi

guard: $(VENV)/.dev ## check that the step and the data path have not become slower (ratios with wide bounds)
	$(BIN)/python scripts/checks/speed_guard.py

upgrade: $(VENV)/.dev ## run the fast tests with the newest Hydra, OmegaConf and TensorBoard, also pre-releases (ARGS="tests/config" for a part)
	rm -rf outputs/upgrade
	$(BIN)/python -m pip install --quiet --pre --no-deps --target outputs/upgrade hydra-core omegaconf tensorboard
	PYTHONPATH=outputs/upgrade $(BIN)/python -c "import hydra, omegaconf, tensorboard as t; print(hydra.__version__, omegaconf.__version__, t.__version__)"
	PYTHONPATH=outputs/upgrade $(BIN)/python -m pytest -n 2 $(if $(filter command environment,$(origin ARGS)),$(ARGS))

faults: $(VENV)/.dev ## kill and damage runs, and compare how they continue (four minutes)
	$(BIN)/python scripts/reliability/faults.py

faults-long: $(VENV)/.dev ## the same with 250 kills (25 minutes)
	$(BIN)/python scripts/reliability/faults.py --long

fuzz: $(VENV)/.dev ## random command lines, damaged folders, full disks and kills (five minutes); ARGS="--seed 7 --minutes 60" for others
	$(BIN)/python scripts/reliability/fuzz.py --parts settings lines folders disk kills $(if $(filter command environment,$(origin ARGS)),$(ARGS))

gpu: $(VENV)/.dev ## run tests, benchmarks and training on a GPU in nine minutes (DATA=FOLDER with CIFAR-10 images); DEVICE=cpu: a small version
	$(BIN)/python -W ignore scripts/checks/gpu.py --device $(DEVICE) $(if $(DATA),--data $(DATA))

gpu-table4: $(VENV)/.dev ## run the paper's Table 4 on a GPU, nine minutes per call (DATA=FOLDER with CIFAR-10 images); DEVICE=cpu: a small version
	$(BIN)/python scripts/studies/reproduce.py --table 4 --rows basic --minutes 9 --out outputs/table4 \
		$(if $(filter cpu,$(DEVICE)),--scale smoke,--scale gpu --jobs 8 device=$(DEVICE) $(if $(DATA),data.root=$(DATA)))

evidence-smoke: $(VENV)/.dev ## run a few steps of every arm of a study on small made-up images
	$(BIN)/python -W ignore scripts/studies/evidence.py human_noise --scale smoke --jobs 2 --out outputs/evidence-smoke

# before the environment is made: without images the studies for a GPU cannot begin
ifneq ($(and $(filter gpu-evidence,$(MAKECMDGOALS)),$(filter-out cpu,$(DEVICE))),)
$(if $(and $(DATA),$(wildcard $(DATA)/)),,$(error DATA=$(DATA) is no folder: make gpu-evidence DATA=FOLDER, with CIFAR-10 images in it (DEVICE=cpu needs none)))
endif

gpu-evidence: $(VENV)/.dev ## run studies on a GPU, nine minutes per call (DATA=FOLDER with CIFAR-10 images; STUDIES, JOBS, FOLDERS="cifar10n=FOLDER lite0=FOLDER"); DEVICE=cpu: a few steps
	$(BIN)/python -W ignore scripts/studies/evidence.py $(STUDIES) --jobs $(JOBS) $(if $(filter cpu,$(DEVICE)),--scale smoke \
		--out outputs/evidence-smoke,--device $(DEVICE) --minutes 9 --word compile=capture \
		--word data.cache=outputs/evidence/cache $(foreach folder,cifar10=$(DATA) $(FOLDERS),--folder $(folder)))

reproduce-smoke: $(VENV)/.dev ## run three steps of every row of the paper's tables
	$(BIN)/python scripts/studies/reproduce.py --table all --scale smoke --out outputs/reproduce

clean: ## remove the environment and caches; outputs/ is kept
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@ $(VENV)/.run
