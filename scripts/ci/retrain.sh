#!/usr/bin/env bash
# Make a challenger from new rows (ROWS: a file, or an address that DVC reads; empty: outcomes of the prediction log, if its reports
# say drift) and leave it waiting for its approval. Its id goes to GITHUB_OUTPUT, the report to the job's summary.
set -euo pipefail
. "$(dirname "$0")/git_token.sh"
if [ -z "${ROWS:-}" ] && [ -z "${MLOPS_LOG_URL:-}${MLOPS_LOG_URL_FILE:-}" ]; then
    echo "neither new rows nor a prediction log (MLOPS_LOG_URL): nothing to retrain with"
    exit
fi
what=(--from-log --drift log --only-if-drift)
if [ -n "${ROWS:-}" ]; then
    rows=$(mktemp -d)/${ROWS##*/}
    python -m dvc get-url --quiet "$ROWS" "$rows"
    what=("$rows")
fi
[ "${CONCEPT_DRIFT:-false}" != true ] || what+=(--concept-drift)
# A run that waits is shown as a branch; the versions of others come first.
git fetch --quiet --tags origin
report=$(mktemp) code=0
mlops-retrain run "${what[@]}" --require-approval > "$report" || code=$?
cat "$report"
{ echo '```text'; cat "$report"; echo '```'; } >> "${GITHUB_STEP_SUMMARY:-/dev/null}"
# 3: rejected, the champion stays.
[ "$code" -eq 0 ] || [ "$code" -eq 3 ] || exit "$code"
sed -n 's/^  mlops-retrain approve \(.*\)$/run=\1/p' "$report" >> "${GITHUB_OUTPUT:-/dev/null}"
