"""A real Airflow (`make airflow`) with an SQLite database runs the DAGs in a copy of the working tree."""

import contextlib
import email
import email.policy
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AIRFLOW = ROOT / ".venv/airflow/bin/airflow"
DAG_FILE = ROOT / "deploy/airflow/dags/mlops_credit_pipeline.py"
DAG = "mlops_credit_pipeline"
RETRAINING = "mlops_retraining"
ON_NEW_DATA = "mlops_credit_pipeline_on_new_data"
STAGES = ("prepare", "featurize", "train", "evaluate")
RAW = "data/raw/german_credit_modified.csv"

pytestmark = pytest.mark.integration


class MailServer(socketserver.ThreadingTCPServer):
    """As much of SMTP as a client without encryption and password needs."""

    daemon_threads = True

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 test\r\n")
            while line := self.rfile.readline():
                command = line[:4].upper().strip()
                if command == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text = b"".join(iter(self.rfile.readline, b".\r\n"))
                    self.server.messages.append(email.message_from_bytes(text, policy=email.policy.default))
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.messages: list[email.message.EmailMessage] = []


@pytest.fixture(scope="module")
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Project:
    """A committed copy of the working tree with its data, and an Airflow home for it."""

    def __init__(self, path: Path, home: Path, mail: MailServer) -> None:
        self.path, self.home = path, home
        connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": mail.server_address[1]}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "DVC_", "GIT_"))}
        self.environment = clean | {
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAG_FILE.parent),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(connection | {"extra": {"disable_ssl": True, "disable_tls": True}}),
            "AIRFLOW_VAR_MLOPS_PROJECT_PATH": str(path),
            "AIRFLOW_VAR_MLOPS_PYTHON": sys.executable,
            "AIRFLOW_VAR_MLOPS_EMAIL": "risk@example.org, ops@example.org",
            "AIRFLOW_VAR_MLOPS_OWNER": "risk-team",
        }
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
        ).stdout.decode()
        for name in filter(None, files.split("\0")):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", "base")
        self.run(sys.executable, "-m", "dvc", "pull", "-q", "--allow-missing")
        self.set_param("model", "logistic_regression")
        self.airflow("db", "migrate")

    def set_param(self, name: str, value: str) -> None:
        """Set ``train.<name>``."""
        file = self.path / "params.yaml"
        text, found = re.subn(rf"^  {name}: .*$", f"  {name}: {value}", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert found == 1
        file.write_text(text, encoding="utf-8")

    def metrics(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.path / "metrics").glob("*.json")}

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.path, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=300
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def airflow(self, *arguments: str, check: bool = True, **variables: str) -> str:
        done = self.run(str(AIRFLOW), *arguments, check=check, **variables)
        return done.stdout + done.stderr

    def query(self, sql: str, *values: str) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as database:
            return database.execute(sql, values).fetchall()

    def states(self, run: str) -> dict[str, str]:
        return dict(self.query("select task_id, state from task_instance where run_id = ?", run))

    def last_run(self, dag: str) -> tuple[str, str]:
        """Name and state."""
        return self.runs(dag)[-1]

    def runs(self, dag: str) -> list[tuple[str, str]]:
        return self.query("select run_id, state from dag_run where dag_id = ? order by id", dag)

    def tries(self, run: str) -> dict[str, int]:
        return dict(self.query("select task_id, try_number from task_instance where run_id = ?", run))

    def log(self, dag: str, run: str, task: str, attempt: int = 1) -> str:
        file = self.home / f"logs/dag_id={dag}/run_id={run}/task_id={task}/attempt={attempt}.log"
        return file.read_text(encoding="utf-8")

    def wait(self, what: str, reached: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                logs = "".join(f"--- {log.name}\n{log.read_text()[-3000:]}\n" for log in self.home.glob("*.out"))
                runs = self.query("select run_id, task_id, state, try_number from task_instance")
                pytest.fail(f"no {what} within {seconds} s\n{runs}\n{logs}")
            time.sleep(0.3)

    @contextlib.contextmanager
    def services(self) -> Iterator[None]:
        """Airflow as it is run for good; the API server is what tasks report to."""
        with socket.create_server(("127.0.0.1", 0)) as api, socket.create_server(("127.0.0.1", 0)) as logs:
            ports = api.getsockname()[1], logs.getsockname()[1]
        variables = {
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{ports[0]}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(ports[0]),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": "one secret that all services of this test share, and nobody else: " * 2,
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(ports[1]),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": "0",
            # Long enough for the test to see that a task waits for its next try.
            "AIRFLOW_VAR_MLOPS_RETRY_MINUTES": "0.1",
            "AIRFLOW_VAR_MLOPS_POKE_MINUTES": "0.05",
        }
        with contextlib.ExitStack() as stack:
            running = []
            for service in ("api-server", "dag-processor", "scheduler", "triggerer"):
                output = stack.enter_context((self.home / f"{service}.out").open("w"))
                command = [str(AIRFLOW), service, *(["--skip-serve-logs"] if service == "triggerer" else [])]
                running.append(
                    subprocess.Popen(
                        command,
                        cwd=self.path,
                        env=self.environment | variables,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            try:
                yield
            finally:
                for stop in (signal.SIGTERM, signal.SIGKILL):
                    for process in running:
                        # The group: what a service started ends with it.
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, stop)
                    for process in running:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(timeout=10)


@pytest.fixture(scope="module")
def project(mail, tmp_path_factory) -> Project:
    if not AIRFLOW.exists():
        # Skip on a person's machine, fail in CI.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no .venv/airflow; `make airflow` installs it")
    return Project(tmp_path_factory.mktemp("a project"), tmp_path_factory.mktemp("airflow"), mail)


@pytest.fixture(scope="module")
def services(project) -> Iterator[None]:
    with project.services():
        yield


def test_dags_test_runs_every_stage_and_gives_the_metrics_of_dvc(project):
    project.run(sys.executable, "-m", "dvc", "repro", "--pull")
    metrics = project.metrics()
    printed = project.airflow("dags", "test", DAG, "--conf", '{"force": true}')
    run, state = project.last_run(DAG)
    assert state == "success", printed
    assert project.states(run) == dict.fromkeys(("check_new_data", *STAGES), "success")
    positions = [printed.index(f"Running stage '{stage}'") for stage in STAGES]
    assert positions == sorted(positions)
    assert len(metrics) == 4
    assert project.metrics() == metrics
    # Airflow's own API server uses a client that its framework will replace.
    assert [line for line in printed.splitlines() if "deprecat" in line.lower() and "StarletteDeprecation" not in line] == []


def test_retraining_with_rows_that_are_no_use_fails_at_once_and_a_rejection_is_skipped(project, new_rows, tmp_path):
    project.run(sys.executable, "-m", "dvc", "repro", "--pull")
    project.run("git", "commit", "-qam", "logistic regression")
    options = {"AIRFLOW_VAR_MLOPS_RETRAIN_OPTIONS": "--no-push", "AIRFLOW_VAR_MLOPS_RETRY_MINUTES": "0.01"}
    printed = project.airflow("dags", "test", RETRAINING, "--conf", '{"rows": "absent.csv"}', check=False, **options)
    assert "AirflowFailException: DataError: " in printed, "Airflow must not try again"
    new_rows(300, 3, noise=True).to_csv(tmp_path / "noise.csv", index=False)
    printed = project.airflow("dags", "test", RETRAINING, "--conf", json.dumps({"rows": str(tmp_path / "noise.csv")}), **options)
    assert "rejected; champion is" in printed
    run, _ = project.last_run(RETRAINING)
    assert project.states(run) == {"retrain": "skipped"}
    assert project.run("git", "tag").stdout == ""


def test_the_dags_are_what_they_should_be(project):
    code = f"""
import json, runpy, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    dags = runpy.run_path({str(DAG_FILE)!r})
def told(dag):
    return {{
        "edges": {{task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks}}, "catchup": dag.catchup,
        "start": dag.start_date.isoformat(), "tags": sorted(dag.tags), "at once": [dag.max_active_runs, dag.max_active_tasks],
        "tasks": sorted({{(t.owner, t.retries, t.retry_delay.seconds, t.depends_on_past) for t in dag.tasks}}),
        "description": dag.description,
    }}
sensor = dags["weekly"].get_task("check_new_data")
print(json.dumps([
    told(dags["weekly"]), told(dags["on_new_data"]), dags["SCHEDULE"],
    [sensor.mode, sensor.poke_interval, sensor.timeout],
    [str(w.message) for w in caught if w.filename == {str(DAG_FILE)!r} or "Airflow" in w.category.__name__],
]))
"""
    python = [str(AIRFLOW.parent / "python"), "-c", code]
    printed = project.run(*python).stdout
    weekly, on_new_data, schedule, sensor, warned = json.loads(printed.splitlines()[-1])
    assert warned == []
    edges = weekly.pop("edges")
    assert edges.pop("check_new_data") == []
    assert list(edges) == list(STAGES)
    assert edges["prepare"] == ["check_new_data"]
    assert edges["train"] == ["featurize", "prepare"]
    assert weekly.pop("description") != on_new_data.pop("description")
    assert weekly == {
        "catchup": False,
        "start": "2025-01-01T00:00:00+00:00",
        "tags": ["classification", "credit", "mlops"],
        "at once": [1, 1],
        "tasks": [["risk-team", 2, 300, False]],
    }
    assert on_new_data == weekly | {"edges": edges | {"check_new_data": []}}
    assert (schedule, sensor) == ("@weekly", ["reschedule", 300, 3600])
    printed = project.run(*python, AIRFLOW_VAR_MLOPS_SINGLE_TASK="true").stdout
    assert json.loads(printed.splitlines()[-1])[0]["edges"] == {"check_new_data": [], "dvc_repro": ["check_new_data"]}


def test_the_scheduler_waits_for_data_retries_while_the_workspace_is_busy_and_gives_the_metrics_of_dvc(project, services, mail):
    without_sampler = project.metrics()["train.json"]
    project.set_param("imbalance", "BorderlineSMOTE")
    raw, away = project.path / RAW, project.path / "away"
    raw.rename(away)
    mail.messages.clear()
    project.wait("DAG", lambda: project.query("select 1 from serialized_dag where dag_id = ?", DAG))
    earlier = project.runs(DAG)
    # The last week's run starts at once; it is the one to follow.
    project.airflow("dags", "unpause", DAG)
    project.wait("run", lambda: len(project.runs(DAG)) > len(earlier))
    run = project.last_run(DAG)[0]
    assert run.startswith("scheduled__")
    project.wait("waiting sensor", lambda: project.states(run)["check_new_data"] == "up_for_reschedule")
    with (project.path / ".dvc/tmp/airflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        away.rename(raw)
        project.wait("retry", lambda: project.states(run)["prepare"] == "up_for_retry")
    project.wait("end", lambda: project.last_run(DAG)[1] in {"success", "failed"})
    assert project.states(run) == dict.fromkeys(("check_new_data", *STAGES), "success")
    # A rescheduled sensor may be counted anew by a scheduler that is short of time.
    tries = {task: number for task, number in project.tries(run).items() if task != "check_new_data"}
    assert tries == {"prepare": 2, "featurize": 1, "train": 1, "evaluate": 1}
    assert "is busy" in project.log(DAG, run, "prepare")
    for stage in ("train", "evaluate"):
        assert f"Running stage '{stage}'" in project.log(DAG, run, stage)
    assert mail.messages == []
    metrics = project.metrics()
    assert metrics["train.json"] != without_sampler
    project.run(sys.executable, "-m", "dvc", "repro", "--force")
    assert project.metrics() == metrics


def test_announced_data_is_run_and_wrong_data_fails_at_once_and_is_mailed(project, services, mail):
    raw, marker = project.path / RAW, project.path / "logs/new_data"
    content = raw.read_bytes()
    mail.messages.clear()
    project.airflow("dags", "unpause", ON_NEW_DATA)

    def announce(new: bytes) -> tuple[str, str]:
        raw.unlink()
        raw.write_bytes(new)
        earlier = len(project.runs(ON_NEW_DATA))
        marker.touch()
        project.wait("run", lambda: len(project.runs(ON_NEW_DATA)) > earlier)
        project.wait("end", lambda: project.last_run(ON_NEW_DATA)[1] in {"success", "failed"})
        assert not marker.exists()
        return project.last_run(ON_NEW_DATA)

    try:
        run, state = announce(content.rsplit(b"\n", 2)[0] + b"\n")
        assert (run.startswith("asset_triggered__"), state) == (True, "success")
        assert project.states(run) == dict.fromkeys(("check_new_data", *STAGES), "success")
        assert "Running stage 'prepare'" in project.log(ON_NEW_DATA, run, "prepare")
        assert mail.messages == []
        run, state = announce(b"no,such\ncolumns,here\n")
    finally:
        raw.unlink()
        raw.write_bytes(content)
    assert state == "failed"
    assert project.states(run) == {"check_new_data": "success", "prepare": "failed"} | dict.fromkeys(
        STAGES[1:], "upstream_failed"
    )
    assert project.tries(run)["prepare"] == 1
    project.wait("mail", lambda: mail.messages, 20)
    (message,) = mail.messages
    assert message["To"] == "risk@example.org, ops@example.org"
    assert message["Subject"] == f"{ON_NEW_DATA}: prepare failed"
    assert f"DataError: {RAW}" in message.get_body(("html",)).get_content()
