# Sourced by run_pipeline*.sh. notify success|failure MESSAGE: run PIPELINE_ON_SUCCESS or PIPELINE_ON_FAILURE, a command that finds
# the message in PIPELINE_MESSAGE, and post the message to PIPELINE_WEBHOOK, if they are set. A failing notice fails nothing.
# shellcheck shell=bash
notify() {
    local outcome=$1 hook=PIPELINE_ON_${1^^}
    export PIPELINE_MESSAGE=$2
    if [ -n "${!hook:-}" ]; then
        bash -c "${!hook}" || echo "notice: the command in $hook failed" >&2
    fi
    if [ -n "${PIPELINE_WEBHOOK:-}" ]; then
        python -c 'import json, sys; print(json.dumps({"status": sys.argv[1], "text": sys.argv[2]}))' "$outcome" "$2" \
            | curl --fail --silent --show-error --max-time 10 --header 'Content-Type: application/json' --data @- "$PIPELINE_WEBHOOK" \
            > /dev/null || echo "notice: $PIPELINE_WEBHOOK could not be reached" >&2
    fi
}
