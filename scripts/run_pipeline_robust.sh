#!/usr/bin/env bash
# As run_pipeline.sh, for schedulers: scripts/run_pipeline_robust.sh [model] (default: logistic_regression, with SMOTE). Checks what
# it needs, logs to logs/<timestamp>/, leaves nothing half-done behind, and keeps the exit code of the step that failed.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
# shellcheck source=scripts/notify.sh
source scripts/notify.sh

case ${1:-} in -h | --help) sed -n '2,3s/^# //p' scripts/run_pipeline_robust.sh; exit ;; esac
if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
    echo "error: found $*, expected the name of one model; see scripts/run_pipeline_robust.sh --help" >&2
    exit 2
fi
model=${1:-logistic_regression}
logs=logs/$(date +%Y%m%d_%H%M%S)
mkdir -p logs
until mkdir "$logs" 2> /dev/null; do # another run may have begun in the same second
    [ -e "$logs" ] || { echo "error: logs/ cannot be written" >&2; exit 1; }
    sleep 1
    logs=logs/$(date +%Y%m%d_%H%M%S)
done

log() { printf '%s [%s] %s\n' "$(date '+%F %T')" "$1" "$2" | tee -a "$logs/pipeline.log"; }

child=
finish() {
    local code=$?
    trap - EXIT
    [ -z "$child" ] || kill "$child" 2> /dev/null || true # a step that is still at work
    if [ "$code" -eq 0 ]; then
        log INFO "done: model in models/, predictions and figures in predictions/"
        notify success "pipeline with $model done"
    else
        log ERROR "failed with exit code $code; see $logs"
        notify failure "pipeline with $model failed with exit code $code; see $PWD/$logs"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { # number, name, command …
    local code=0
    log INFO "step $1/4: $2"
    # In the background, since a trap waits for what is in the foreground.
    "${@:3}" > "$logs/step$1_$2.log" 2>&1 &
    child=$!
    wait "$child" || code=$?
    child=
    if [ "$code" -eq 0 ]; then
        log INFO "✓ $2"
    else
        log ERROR "✗ $2: $(tail -n 1 "$logs/step$1_$2.log")"
        exit "$code"
    fi
}

log INFO "model $model, logs in $logs"
for name in prepare-data prepare-features train predict; do
    command -v "mlops-$name" > /dev/null || { log ERROR "mlops-$name: not found; run \`make init\`"; exit 127; }
done
raw=$(python -c 'from mlops_project.config import load_params, validate_inputs
raw = load_params().data.raw
validate_inputs(["params.yaml", load_params().data.contract, raw])
print(raw)' 2> "$logs/inputs.log") || { log ERROR "inputs: $(tail -n 1 "$logs/inputs.log")"; exit 1; }

processed=data/processed
step 1 prepare_data mlops-prepare-data --input "$raw" --save
step 2 prepare_features mlops-prepare-features --train $processed/Xtraintest.csv --save-preprocessor
step 3 train mlops-train --model "$model" --smote --smote-method BorderlineSMOTE
step 4 predict mlops-predict --model models/best_model.joblib --X-test $processed/Xtest.csv --y-test $processed/ytest.csv --save
