#!/usr/bin/env bash
# Prepare, train and predict by the console commands: scripts/run_pipeline.sh [model] (default: logistic_regression, with SMOTE).
# Each step is also written to logs/<step>_<timestamp>.log. Notices: see scripts/notify.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
# shellcheck source=scripts/notify.sh
source scripts/notify.sh

case ${1:-} in -h | --help) sed -n '2,3s/^# //p' scripts/run_pipeline.sh; exit ;; esac
model=${1:-logistic_regression}
timestamp=$(date +%Y%m%d_%H%M%S)
processed=data/processed
mkdir -p logs
finish() {
    local code=$?
    [ "$code" -eq 0 ] || notify failure "pipeline with $model failed with exit code $code"
    exit "$code"
}
trap finish EXIT

step() { # number, name, command …
    echo "[$1/4] $2"
    "${@:3}" 2>&1 | tee "logs/$2_$timestamp.log"
}

step 1 prepare_data mlops-prepare-data --save
step 2 prepare_features mlops-prepare-features --train $processed/Xtraintest.csv --save-preprocessor
step 3 train mlops-train --model "$model" --smote --smote-method BorderlineSMOTE
step 4 predict mlops-predict --model models/best_model.joblib --X-test $processed/Xtest.csv --y-test $processed/ytest.csv --save
notify success "pipeline with $model done"
echo "done: model in models/, predictions and figures in predictions/, logs in logs/*_$timestamp.log"
