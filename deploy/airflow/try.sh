#!/bin/sh
# Show the DAG at work: Airflow in an environment of its own, an SQLite database, one run of the pipeline in this
# checkout. Further arguments go to `airflow dags test`, such as --conf '{"force": true}'.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
make -s -C "$root" airflow
export AIRFLOW_HOME="${AIRFLOW_HOME:-$root/.venv/airflow-home}"
export AIRFLOW__CORE__DAGS_FOLDER="$here/dags" AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW_VAR_MLOPS_PROJECT_PATH="${AIRFLOW_VAR_MLOPS_PROJECT_PATH:-$root}"
airflow="$root/.venv/airflow/bin/airflow"
mkdir -p "$AIRFLOW_HOME"
# A new clone has no raw file, for which the sensor would wait; one that is there, changed or not, is left alone.
for tracked in "$root"/data/raw/*.dvc; do
    [ -e "${tracked%.dvc}" ] || (cd "$root" && .venv/bin/python -m dvc pull --quiet "$tracked")
done
"$airflow" db migrate >"$AIRFLOW_HOME/migrate.log" 2>&1 || { tail "$AIRFLOW_HOME/migrate.log" >&2; exit 1; }
"$airflow" dags reserialize
exec "$airflow" dags test mlops_credit_pipeline "$@"
