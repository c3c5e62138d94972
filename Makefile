# One command for each thing people do here; `make` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
SYSTEM_PATH := $(PATH)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One thread per process: at these sizes more only cost, and BLAS spins when the machine is busy.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
DVC := $(BIN)/python -m dvc
# The registry's certificate may be known to the system only.
UV := $(BIN)/python -m uv --system-certs
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --fork-strategy fewest --python-version 3.11

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^## /{printf "\n%s\n", substr($$0, 4)} /^[a-zA-Z_-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Set-up (every target below does it by itself)
.PHONY: init requirements
init: $(VENV)/core.done ## Make .venv with the pinned core and the console commands

requirements: $(VENV)/dev.done ## Compile the pinned requirements anew from pyproject.toml and requirements/*.in
	$(COMPILE) requirements/uv.in -o requirements/uv.txt
	$(COMPILE) pyproject.toml requirements/build.in -o requirements/core.txt
	$(COMPILE) -c requirements/core.txt requirements/tuning.in -o requirements/tuning.txt
	$(COMPILE) -c requirements/core.txt -c requirements/tuning.txt requirements/dev.in -o requirements/dev.txt

# The folder's own path is part of the environment: a copied or moved checkout sets up anew.
$(shell [ "$$(cat $(VENV)/home 2>/dev/null)" = "$(CURDIR)" ] || rm -f $(VENV)/home $(VENV)/*.done)

$(VENV)/home:
	@PATH="$(SYSTEM_PATH)" sh scripts/create_venv.sh $(VENV)
	@printf '%s' "$(CURDIR)" > $@

$(VENV)/core.done: $(VENV)/home requirements/core.txt requirements/uv.txt pyproject.toml
	@sh scripts/install.sh $(BIN)/python requirements/core.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/dev.done: $(VENV)/core.done requirements/dev.txt
	@sh scripts/install.sh $(BIN)/python requirements/dev.txt
	@touch $@

$(VENV)/tuning.done: $(VENV)/core.done requirements/tuning.txt
	@sh scripts/install.sh $(BIN)/python requirements/tuning.txt
	@touch $@

## The pipeline
.PHONY: pipeline figures restore pull push embed
pipeline: init ## Run what changed, reuse the rest, print the metrics (FORCE=1 runs it all afresh)
	@$(BIN)/python scripts/reproduce.py $(if $(FORCE),--force)

figures: init ## Write the figures of metrics/ into README.md
	@$(BIN)/python scripts/figures.py

restore: init ## After a failed run: bring back the last committed state of metrics, lock and outputs
	git checkout -- dvc.lock metrics
	@# Stages only: a raw file that was put in place stays.
	$(DVC) checkout --force prepare featurize train evaluate

pull: init ## Fetch data and models from the DVC remote
	$(DVC) pull

push: init ## Send data and models to the DVC remote
	$(DVC) push

embed: init ## For a release: write the remote in Git (.dvc/store) afresh from this state of the pipeline
	$(DVC) pull --quiet --remote embedded $(wildcard data/raw/*.dvc)
	$(DVC) repro
	rm -rf .dvc/store
	$(DVC) push --remote embedded

## Beside the pipeline
.PHONY: tune
tune: $(VENV)/tuning.done ## Search hyper-parameters, and say what that gains (MODEL=xgboost TRIALS=50 WRITE=always)
	@# The rows as params.yaml has them now; no stage beyond.
	@$(DVC) repro --quiet --pull prepare
	@$(BIN)/mlops-tune $(if $(MODEL),--model $(MODEL)) $(if $(TRIALS),--trials $(TRIALS)) $(if $(WRITE),--write $(WRITE))

## Contributing
.PHONY: test test-integration test-cov lint check format benchmark clean
# The tests dirty this table afresh, so that a team's own raw file cannot change them.
CLEAN := data/raw/german_credit_original.csv
$(CLEAN): | $(VENV)/core.done
	@$(DVC) pull --quiet --remote embedded $@.dvc

test: $(VENV)/dev.done $(CLEAN) ## Run the tests (no server, under 4 minutes)
	@$(BIN)/python -m pytest -n auto -m "not integration"

test-integration: $(VENV)/dev.done $(CLEAN) ## Run the tests that install or start real servers
	@$(BIN)/python -m pytest -m integration || [ $$? -eq 5 ]

test-cov: $(VENV)/dev.done $(CLEAN) ## Run the tests with a coverage report in htmlcov/
	@$(BIN)/python -m pytest -n auto -m "not integration" --cov=mlops_project --cov-report=term --cov-report=html

lint: $(VENV)/dev.done ## Lint and format check
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

check: lint ## All static checks: lint, format, types, import contracts
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

format: $(VENV)/dev.done ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

benchmark: $(VENV)/dev.done $(CLEAN) ## Measure quality, speed, coverage and verdicts (minutes); prints tables
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/verdicts.py

clean: ## Remove the environment and what tools left behind (data, models and the DVC cache stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis htmlcov .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
