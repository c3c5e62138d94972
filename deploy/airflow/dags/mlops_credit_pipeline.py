"""The DVC pipeline as Airflow DAGs: one task per stage of dvc.yaml, weekly, and another DAG for new data.

Every setting is an Airflow variable, which an environment variable can stand for: ``mlops_email`` or
``AIRFLOW_VAR_MLOPS_EMAIL``. README.md lists them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.triggers.file import FileDeleteTrigger
from airflow.sdk import DAG, Asset, AssetWatcher, BaseSensorOperator, Param, Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException

logger = logging.getLogger(__name__)

PROJECT = Path(Variable.get("mlops_project_path", default=str(Path(__file__).resolve().parents[3])))
PYTHON = Path(Variable.get("mlops_python", default=str(PROJECT / ".venv/bin/python")))
OWNER = Variable.get("mlops_owner", default="mlops")
EMAIL = Variable.get("mlops_email", default="")
EMAIL_FROM = Variable.get("mlops_email_from", default="airflow@localhost")
SCHEDULE = Variable.get("mlops_schedule", default="@weekly")
RETRY_DELAY = timedelta(minutes=float(Variable.get("mlops_retry_minutes", default="5")))
POKE_INTERVAL = timedelta(minutes=float(Variable.get("mlops_poke_minutes", default="5")))
SINGLE_TASK = Variable.get("mlops_single_task", default="false").lower() in {"1", "true", "yes"}
# The trigger deletes the file that it watches: a marker that says "new data is in place", never the data.
MARKER = Variable.get("mlops_new_data_marker", default=str(PROJECT / "logs/new_data"))

# mlops_project.errors: wrong again in five minutes, whatever Airflow does.
LASTING = {"ContractError", "DataError", "ParamsError"}


def upstream_stages(stages: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return, in an order in which they can run, each stage of dvc.yaml with the stages whose outputs it reads."""

    def paths(stage: str, *kinds: str) -> set[PurePosixPath]:
        """A path is a text, or the key of its options."""
        entries = [entry for kind in kinds for entry in stages[stage].get(kind, [])]
        return {PurePosixPath(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries}

    def reads(stage: str, other: str) -> bool:
        # Either may name a folder that holds the other.
        made = paths(other, "outs", "metrics", "plots")
        return any(dep.is_relative_to(out) or out.is_relative_to(dep) for dep in paths(stage, "deps") for out in made)

    upstream = {stage: [other for other in stages if other != stage and reads(stage, other)] for stage in stages}
    return {stage: upstream[stage] for stage in TopologicalSorter(upstream).static_order()}


def repro(stage: str | None, params: dict[str, Any]) -> None:
    """Run ``dvc repro`` for a stage, or for all; what it prints goes to the task's log.

    Raises
    ------
    AirflowFailException
        If data, contract or params are wrong: Airflow does not try again.
    AirflowException
        If another run holds the workspace, or DVC or a stage failed otherwise: Airflow tries again.
    """
    command = [str(PYTHON), "-m", "dvc", "repro"]
    if params["force"]:
        # The stages before it had their own task.
        command += ["--force"] if stage is None else ["--force", "--single-item"]
    else:
        command += ["--pull"]
    # The stages' `python` is the project's.
    env = os.environ | {"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    last_error = PROJECT / "logs/last_error.json"
    lock_file = PROJECT / ".dvc/tmp/airflow.lock"
    lock_file.parent.mkdir(exist_ok=True)
    with lock_file.open("w") as lock:
        # One workspace, and two DAGs that may both want it.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AirflowException(f"{PROJECT} is busy: another run holds {lock_file.name}") from None
        last_error.unlink(missing_ok=True)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command + ([stage] if stage else []), cwd=PROJECT, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                for line in process.stdout or ():
                    logger.info("%s", line.rstrip())
            except BaseException:
                # A task that is stopped stops DVC, which stops its stage.
                process.terminate()
                raise
        if process.returncode == 0:
            return
        error = json.loads(last_error.read_text(encoding="utf-8")) if last_error.exists() else {}
    reason = f"{error['class']}: {error['message']}" if error else f"dvc repro exited with {process.returncode}; see the log"
    raise (AirflowFailException if error.get("class") in LASTING else AirflowException)(reason)


class RawFileSensor(BaseSensorOperator):
    """Wait until a file is there. Unlike FileSensor it needs no connection, which a fresh database does not have."""

    def __init__(self, *, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def poke(self, context: Any) -> bool:
        return os.path.isfile(self.path)


def pipeline(dag_id: str, schedule: str | list[Asset], description: str) -> DAG:
    """Return a DAG that waits for the raw file and then runs the stages, one after the other."""
    notifier = SmtpNotifier(
        from_email=EMAIL_FROM,
        to=[address.strip() for address in EMAIL.split(",")],
        subject="{{ dag.dag_id }}: {{ ti.task_id }} failed",
        html_content="<p>Run {{ run_id }}, task {{ ti.task_id }}, try {{ ti.try_number }}:</p><pre>{{ exception | e }}</pre>",
    )
    with DAG(
        dag_id=dag_id,
        description=description,
        doc_md=__doc__,
        schedule=schedule,
        start_date=datetime(2025, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        # The stages share one workspace.
        max_active_tasks=1,
        tags=["mlops", "credit", "classification"],
        params={"force": Param(False, type="boolean", description="Run stages whose inputs have not changed, too")},
        default_args={
            "owner": OWNER,
            "depends_on_past": False,
            "retries": 2,
            "retry_delay": RETRY_DELAY,
            "on_failure_callback": [notifier] if EMAIL else [],
        },
    ) as dag:
        raw = PROJECT / yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))["data"]["raw"]
        new_data = RawFileSensor(
            task_id="check_new_data",
            path=str(raw),
            poke_interval=POKE_INTERVAL,
            timeout=timedelta(hours=1),
            mode="reschedule",
        )
        if SINGLE_TASK:
            new_data >> PythonOperator(task_id="dvc_repro", python_callable=repro, op_args=[None])
            return dag
        stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        tasks: dict[str, PythonOperator] = {}
        for stage, upstream in upstream_stages(stages).items():
            tasks[stage] = PythonOperator(task_id=stage, python_callable=repro, op_args=[stage])
            tasks[stage].set_upstream([tasks[other] for other in upstream] or [new_data])
    return dag


weekly = pipeline("mlops_credit_pipeline", SCHEDULE, "Credit-risk pipeline of dvc.yaml: raw applications to a judged model")

new_data_asset = Asset(
    "mlops_credit_raw_data",
    watchers=[AssetWatcher(name="new_data_marker", trigger=FileDeleteTrigger(filepath=MARKER, poke_interval=10))],
)
on_new_data = pipeline("mlops_credit_pipeline_on_new_data", [new_data_asset], "The same, when new raw data is announced")
