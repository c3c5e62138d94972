#!/usr/bin/env bash
# Prepare, train and predict by the console commands: scripts/run_pipeline.sh [model] (default: logistic_regression, with SMOTE).
# Each step is also written to logs/<step>_<timestamp>.log. Notices: see scripts/notify.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
# shellcheck source=scripts/notify.sh
source scripts/notify.sh

case ${1:-} in -h | --help) sed -n '2,3s/^# //p' scripts/run_pipeline.sh; exit ;; esac
if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
    echo "error: found $*, expected the name of one model; see scripts/run_pipeline.sh --help" >&2
    exit 2
fi
model=${1:-logistic_regression}
timestamp=$(date +%Y%m%d_%H%M%S)
processed=data/processed
mkdir -p logs
child=
finish() {
    local code=$?
    trap - EXIT
    [ -z "$child" ] || kill -- "-$child" 2> /dev/null || true # a step that is still at work
    [ "$code" -eq 0 ] || notify failure "pipeline with $model failed with exit code $code"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { # number, name, command …
    echo "[$1/4] $2"
    # In the background, since a trap waits for what is in the foreground, and in a process group of its own, to be ended whole.
    set -m
    "${@:3}" 2>&1 | tee "logs/$2_$timestamp.log" &
    child=$(jobs -p %%) # the group; $! is tee
    set +m
    wait %%
    child=
}

step 1 prepare_data mlops-prepare-data --save
step 2 prepare_features mlops-prepare-features --train $processed/Xtraintest.csv --save-preprocessor
step 3 train mlops-train --model "$model" --smote --smote-method BorderlineSMOTE
step 4 predict mlops-predict --model models/best_model.joblib --X-test $processed/Xtest.csv --y-test $processed/ytest.csv --save
notify success "pipeline with $model done"
echo "done: model in models/, predictions and figures in predictions/, logs in logs/*_$timestamp.log"
