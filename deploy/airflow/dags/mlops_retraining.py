"""The retraining loop as an Airflow DAG: `mlops-retrain` with new labelled rows or the outcomes of the prediction log.

Settings are Airflow variables, as in ``mlops_credit_pipeline``; README.md lists them. A run takes its own by ``--conf``.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Param, Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

logger = logging.getLogger(__name__)

PROJECT = Path(Variable.get("mlops_project_path", default=str(Path(__file__).resolve().parents[3])))
PYTHON = Path(Variable.get("mlops_python", default=str(PROJECT / ".venv/bin/python")))
EMAIL = Variable.get("mlops_email", default="")
# Of mlops-retrain, separated by spaces: --no-push, --serve LINK, --reload URL, --require-approval.
OPTIONS = Variable.get("mlops_retrain_options", default="")
RETRY_DELAY = timedelta(minutes=float(Variable.get("mlops_retry_minutes", default="5")))

# Wrong again in five minutes, whatever Airflow does.
LASTING = {"ContractError", "DataError", "ParamsError"}
REJECTED = 3
COMMAND = "import sys; from mlops_project.monitoring.retrain_cli import main; sys.exit(main())"


def retrain(params: dict[str, Any], run_id: str) -> None:
    """Run ``mlops-retrain``; what it prints goes to the task's log.

    Raises
    ------
    AirflowSkipException
        If the challenger is rejected: the champion stays, and that is no failure.
    AirflowFailException
        If the new rows are no use: Airflow does not try again.
    AirflowException
        If another run is at work, or it failed otherwise: Airflow tries again.
    """
    command = [str(PYTHON), "-c", COMMAND, *([params["rows"]] if params["rows"] else ["--from-log"])]
    command += ["--concept-drift"] if params["concept_drift"] else []
    for report in filter(None, params["drift"].split()):
        command += ["--drift", report]
    command += ["--only-if-drift"] if params["only_if_drift"] else []
    command += ["--trigger", f"airflow {run_id}", *OPTIONS.split()]
    environment = os.environ | {"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                logger.info("%s", line.rstrip())
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 0:
        return
    if process.returncode == REJECTED:
        raise AirflowSkipException("the challenger was rejected; the champion stays")
    last_error = PROJECT / "logs/last_error.json"
    error = json.loads(last_error.read_text(encoding="utf-8")) if last_error.exists() else {}
    reason = f"{error['class']}: {error['message']}" if error else f"mlops-retrain exited with {process.returncode}; see the log"
    raise (AirflowFailException if error.get("class") in LASTING else AirflowException)(reason)


with DAG(
    dag_id="mlops_retraining",
    description="New labelled rows to a challenger, and to a promotion if it is better",
    doc_md=__doc__,
    schedule=Variable.get("mlops_retrain_schedule", default="@monthly"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["mlops", "credit", "retraining"],
    params={
        "rows": Param("", type="string", description="File of new labelled rows; empty: outcomes of the prediction log"),
        "drift": Param("", type="string", description="JSON reports of the monitoring, separated by spaces"),
        "only_if_drift": Param(False, type="boolean", description="Do nothing unless a report says drift"),
        "concept_drift": Param(False, type="boolean", description="Concept drift is confirmed: the new rows decide"),
    },
    default_args={
        "owner": Variable.get("mlops_owner", default="mlops"),
        "retries": 2,
        "retry_delay": RETRY_DELAY,
        "on_failure_callback": [
            SmtpNotifier(
                from_email=Variable.get("mlops_email_from", default="airflow@localhost"),
                to=[address.strip() for address in EMAIL.split(",")],
                subject="{{ dag.dag_id }}: {{ ti.task_id }} failed",
                html_content="<p>Run {{ run_id }}, try {{ ti.try_number }}:</p><pre>{{ exception | e }}</pre>",
            )
        ]
        if EMAIL
        else [],
    },
) as dag:
    PythonOperator(task_id="retrain", python_callable=retrain)
