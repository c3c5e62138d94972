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
	@awk 'BEGIN {FS = ":.*## "} /^## /{printf "\n%s\n", substr($$0, 4)} /^[a-zA-Z_-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Set-up (every target below does it by itself)
.PHONY: init requirements
init: $(VENV)/core.done ## Make .venv with the pinned core and the console commands

requirements: $(VENV)/dev.done ## Compile the pinned requirements anew from pyproject.toml and requirements/*.in
	$(COMPILE) requirements/uv.in -o requirements/uv.txt
	$(COMPILE) -c requirements/constraints.in pyproject.toml requirements/build.in -o requirements/core.txt
	for extra in report tuning mlflow serving monitoring parquet dask; do \
		$(BIN)/python scripts/extra.py $$extra | $(COMPILE) -c requirements/core.txt - -o requirements/$$extra.txt || exit; done
	$(COMPILE) -c requirements/core.txt -c requirements/report.txt -c requirements/tuning.txt requirements/dev.in -o requirements/dev.txt
	for set in s3 ssh servers workflows api; do $(COMPILE) -c requirements/core.txt requirements/$$set.in -o requirements/$$set.txt || exit; done
	$(COMPILE) -c requirements/core.txt requirements/bentoml.in -o requirements/bentoml.txt
	for set in evidently nannyml; do $(COMPILE) requirements/$$set.in -o requirements/$$set.txt || exit; done
	$(BIN)/python scripts/extra.py serving | $(COMPILE) -c requirements/core.txt -c requirements/serving.txt - requirements/image.in -o requirements/image.txt
	$(COMPILE) requirements/deploy.in -o requirements/deploy.txt
	$(COMPILE) --no-deps requirements/dask-operator.in -o requirements/dask-operator.txt
	$(COMPILE) deploy/airflow/requirements.in -o deploy/airflow/requirements.txt

# The folder's own path is part of the environment: a copied or moved checkout sets up anew.
$(shell [ "$$(cat $(VENV)/home 2>/dev/null)" = "$(CURDIR)" ] || rm -f $(VENV)/home $(VENV)/*.done)

$(VENV)/home:
	@PATH="$(SYSTEM_PATH)" sh scripts/create_venv.sh $(VENV)
	@printf '%s' "$(CURDIR)" > $@

$(VENV)/core.done: $(VENV)/home requirements/core.txt requirements/uv.txt pyproject.toml
	@sh scripts/install.sh $(BIN)/python requirements/core.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# What a command needs on top of the core: dev, report, tuning.
$(VENV)/%.done: $(VENV)/core.done requirements/%.txt
	@sh scripts/install.sh $(BIN)/python requirements/$*.txt
	@touch $@

# For a rule of folder.done: an environment of its own in that folder, with the pins that the rule depends on.
define own_environment
	@rm -rf $(basename $@)
	@$(BIN)/python -m venv $(basename $@)
	@for pins in $(filter %.txt,$^); do sh scripts/install.sh $(basename $@)/bin/python $$pins || exit; done
endef

## The pipeline
.PHONY: pipeline report figures restore pull push sync embed resolve doctor
pipeline: init ## Run what changed, reuse the rest, print the metrics (FORCE=1 runs it all afresh)
	@$(BIN)/python scripts/reproduce.py $(if $(FORCE),--force)

report: $(VENV)/report.done ## Write reports/report.html, one page with all of metrics/, after `make pipeline`
	@$(BIN)/mlops-report

figures: init ## Write the figures of metrics/ into README.md and docs/model-card.md
	@$(BIN)/python scripts/figures.py

restore: init ## After a failed run: bring back the last committed state of metrics, lock and outputs
	git checkout -- dvc.lock metrics models
	@# Stages only: a raw file that was put in place stays.
	$(DVC) checkout --force prepare featurize train evaluate

resolve: init ## After a merge: make dvc.lock, metrics/, manifests and README's figures anew from the merged params and code
	@$(BIN)/python scripts/resolve.py

doctor: init ## Diagnose environment, branch, experiments, locks, data and remotes (FIX=1 mends what is safe)
	@TYPED_PATH="$(SYSTEM_PATH)" $(BIN)/python scripts/doctor.py $(if $(FIX),--fix)

pull: init ## Fetch data and models from the DVC remote
	$(DVC) pull

# What goes to the remote in Git is checked; any other takes all.
CHECK_EMBEDDED := $(BIN)/python scripts/check_embedded.py
push: init ## Send data and models to the DVC remote
	@[ "$$($(DVC) config core.remote)" != embedded ] || $(CHECK_EMBEDDED)
	$(DVC) push

embed: init ## For a release: write the remote in Git (.dvc/store) afresh from this state of the pipeline
	@$(CHECK_EMBEDDED)
	$(DVC) pull --quiet --remote embedded $(wildcard data/raw/*.dvc)
	$(DVC) repro
	@$(CHECK_EMBEDDED)
	rm -rf .dvc/store
	$(DVC) push --remote embedded

sync: init ## Fetch what is missing here from the DVC remote, and send it what is missing there
	$(DVC) pull --allow-missing
	@[ "$$($(DVC) config core.remote)" != embedded ] || $(CHECK_EMBEDDED)
	$(DVC) push

## Step by step, by the console commands (each has --help)
.PHONY: prepare-data prepare-features train predict
prepare-data: init ## Clean and split the raw table, as the prepare stage does
	@$(BIN)/mlops-prepare-data --save

prepare-features: init ## Fit the preprocessor, as the featurize stage does
	@$(BIN)/mlops-prepare-features --save-preprocessor

train: init ## Cross-validate and fit a model, as the train stage does (MODEL=xgboost)
	@$(BIN)/mlops-train $(if $(MODEL),--model $(MODEL))

predict: init ## Predict the held-out rows, to predictions/
	@$(BIN)/mlops-predict --save

## Service (docs/serving.md)
.PHONY: serve
serve: $(VENV)/serving.done ## Serve the model that the pipeline made, at http://127.0.0.1:8000 (ARGS="--port 9000")
	@# Without keys only for a look on this machine: mlops-serve refuses it elsewhere.
	@[ -e var/api-keys.json ] || [ -n "$$MLOPS_KEYS_FILE" ] || echo "no API keys yet: anybody on this machine may ask; see docs/serving.md"
	@exec $(BIN)/mlops-serve $$([ -e var/api-keys.json ] || [ -n "$$MLOPS_KEYS_FILE" ] || echo --insecure) $(ARGS)

.PHONY: drill
drill: $(VENV)/serving.done $(CLEAN) ## From drift to a new model, for real in a copy, in minutes (needs Prometheus; ARGS="--repeat 10")
	@$(BIN)/python scripts/drill.py $(ARGS)

## Team remote (docs/remotes.md)
.PHONY: remote gc
remote: init ## Make DVC_REMOTE_URL=s3://…, ssh://… or a folder the default remote of this clone
	@sh scripts/team_remote.sh

gc: init ## Remove from the cache and the default remote what nothing uses (DRY=1 lists it; SINCE=2026-06-01)
	@sh scripts/collect_garbage.sh

## Beside the pipeline
.PHONY: tune experiments
tune: $(VENV)/tuning.done ## Search hyper-parameters, and say what that gains (MODEL=xgboost TRIALS=50 WRITE=always)
	@# The rows as params.yaml has them now; no stage beyond.
	@$(DVC) repro --quiet --pull prepare
	@$(BIN)/mlops-tune $(if $(MODEL),--model $(MODEL)) $(if $(TRIALS),--trials $(TRIALS)) $(if $(WRITE),--write $(WRITE))

experiments: init ## Run the experiments of experiments.yaml and compare them with the params as they are (ONLY=NAME JOBS=1)
	@$(BIN)/python scripts/experiment_pipeline.py $(if $(ONLY),--only "$(ONLY)") $(if $(JOBS),--jobs $(JOBS))

# Steps of CI (.github/workflows, .gitlab-ci.yml; docs/ci.md)
CI_STEPS := ci-reproduce ci-review ci-push ci-release ci-image ci-retrain ci-approve
.PHONY: ci-setup $(CI_STEPS)
ci-setup: $(VENV)/dev.done
	@[ -z "$(CI)" ] || sh scripts/team_remote.sh

$(CI_STEPS): $(VENV)/core.done
	@bash scripts/ci/$(@:ci-%=%).sh

# The prediction log may be PostgreSQL.
ci-retrain: $(VENV)/serving.done

## Other orchestrators
# An environment of its own (deploy/airflow/README.md): its pins and the pipeline's need not agree.
AIRFLOW := $(VENV)/airflow
.PHONY: airflow
airflow: $(AIRFLOW).done ## Install Airflow in .venv/airflow; deploy/airflow/try.sh shows a run

$(AIRFLOW).done: $(VENV)/core.done deploy/airflow/requirements.txt
	$(own_environment)
	@touch $@

## Contributing
.PHONY: test test-integration test-cov lint check check-workflows check-deploy format benchmark benchmark-serving benchmark-drift benchmark-scale clean
# The tests dirty this table afresh, so that a team's own raw file cannot change them.
CLEAN := data/raw/german_credit_original.csv
$(CLEAN): | $(VENV)/core.done
	@$(DVC) pull --quiet --remote embedded $@.dvc

test: $(VENV)/dev.done $(VENV)/serving.done $(CLEAN) ## Run the tests (no server, under 5 minutes)
	@$(BIN)/python -m pytest -n auto -m "not integration"

# Clients of S3 and SSH and a server of S3, in an environment of their own: the core works without them.
REMOTES := $(VENV)/remotes
$(REMOTES).done: $(VENV)/core.done requirements/s3.txt requirements/ssh.txt requirements/servers.txt
	$(own_environment)
	@touch $@

# MLflow brings eighty packages; the core works without them.
MLFLOW := $(VENV)/mlflow
$(MLFLOW).done: $(VENV)/core.done requirements/core.txt requirements/mlflow.txt
	$(own_environment)
	@$(basename $@)/bin/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# With pyarrow, so not in the development environment ; with the search, which runs on a cluster, too.
DASK := $(VENV)/dask
$(DASK).done: $(VENV)/core.done requirements/core.txt requirements/tuning.txt requirements/dask.txt
	$(own_environment)
	@$(basename $@)/bin/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# The schemas of Kubernetes' DaskCluster, out of the operator's package; what it depends on is not needed to read them.
OPERATOR := $(VENV)/dask-operator
$(OPERATOR).done: $(VENV)/core.done requirements/dask-operator.txt
	@rm -rf $(OPERATOR)
	@$(UV) pip install --quiet --target $(OPERATOR) --require-hashes --no-deps -r requirements/dask-operator.txt
	@touch $@

# A server to compare with.
BENTOML := $(VENV)/bentoml
$(BENTOML).done: $(VENV)/core.done requirements/core.txt requirements/bentoml.txt
	$(own_environment)
	@$(basename $@)/bin/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# What finds drift elsewhere, to compare with; evidently does not import with pandas 3.1.
DRIFTERS := $(VENV)/evidently.done $(VENV)/nannyml.done
$(DRIFTERS): $(VENV)/%.done: $(VENV)/core.done requirements/%.txt
	$(own_environment)
	@touch $@

WORKFLOWS := $(VENV)/workflows
$(WORKFLOWS).done: $(VENV)/core.done requirements/workflows.txt
	$(own_environment)
	@touch $@

# checkov's pins are its own.
DEPLOY := $(VENV)/deploy
$(DEPLOY).done: $(VENV)/core.done requirements/deploy.txt
	$(own_environment)
	@touch $@

# Beside the environment, not in it: pandas would read text into other columns wherever pyarrow is installed.
PARQUET := $(VENV)/parquet
$(PARQUET).done: $(VENV)/dev.done requirements/parquet.txt
	@rm -rf $(PARQUET)
	@$(UV) pip install --quiet --target $(PARQUET) --require-hashes --no-deps -r requirements/parquet.txt
	@touch $@

# Makes requests out of the OpenAPI document, in an environment of its own: what it brings is nobody else's business.
API := $(VENV)/api
$(API).done: $(VENV)/core.done requirements/api.txt
	$(own_environment)
	@touch $@

# Files of tests that mostly wait, for clusters and servers of their own.
SIDE_BY_SIDE := tests/integration/test_dask.py tests/integration/test_growing_data.py
test-integration: $(PARQUET).done $(VENV)/dev.done $(VENV)/serving.done $(API).done $(DEPLOY).done $(OPERATOR).done $(REMOTES).done $(MLFLOW).done $(DASK).done $(AIRFLOW).done $(CLEAN) ## Run the tests that install or start real servers, and the long ones
	@$(BIN)/python -m pytest -m integration $(SIDE_BY_SIDE:%=--ignore=%) || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m integration -n 2 --dist loadfile $(SIDE_BY_SIDE)
	@PYTHONPATH=$(PARQUET) $(BIN)/python -m pytest -n auto -k "parquet or arrow or tables" -m "not integration" tests/unit tests/model tests/serving tests/pipeline/test_params_matter.py || [ $$? -eq 5 ]

test-cov: $(VENV)/dev.done $(VENV)/serving.done $(CLEAN) ## Run the tests with a coverage report in htmlcov/
	@$(BIN)/python -m pytest -n auto -m "not integration" --cov=mlops_project --cov-report=term --cov-report=html

lint: $(VENV)/dev.done ## Lint and format check
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

check: lint $(VENV)/serving.done ## All static checks: lint, format, types, import contracts
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

check-workflows: $(WORKFLOWS).done ## Lint CI workflows and shell scripts (needs Node.js; part of test-integration)
	@sh scripts/ci/check_workflows.sh $(WORKFLOWS)

check-deploy: $(DEPLOY).done $(OPERATOR).done ## Lint Dockerfile, Compose file and Kubernetes manifests, offline (part of test-integration)
	@sh scripts/ci/check_deploy.sh $(DEPLOY)

format: $(VENV)/dev.done ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

benchmark: $(VENV)/dev.done $(CLEAN) ## Measure quality, speed, coverage, verdicts and drift (minutes); prints tables
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/verdicts.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/drift.py
	$(BIN)/python benchmarks/duplicates.py

benchmark-serving: $(VENV)/dev.done $(VENV)/serving.done $(MLFLOW).done $(BENTOML).done $(CLEAN) ## Measure the service beside others (needs wrk; ARGS=--quick)
	@$(BIN)/python benchmarks/serving.py $(ARGS)

benchmark-drift: $(VENV)/dev.done $(DRIFTERS) ## Measure the cost of mlops-drift beside evidently and nannyml
	@$(BIN)/python benchmarks/drift_speed.py $(ARGS)

benchmark-scale: $(PARQUET).done $(VENV)/report.done $(CLEAN) ## Measure 10⁴ to 10⁷ rows and write docs/scale.md (an hour, 3 GB of disk; ARGS="--sizes 1e5 --rounds 1")
	@$(BIN)/python benchmarks/scale.py $(or $(ARGS),--plain 1e6 --predict 1e6 1e7) --write-docs

clean: ## Remove the environment and what tools left behind (data, models and the DVC cache stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis htmlcov .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
