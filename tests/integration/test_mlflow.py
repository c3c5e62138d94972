"""A real MLflow tracking server (SQLite, a port of 127.0.0.1), and `mlops-mlflow-sync` in an environment with MLflow."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pandas as pd
import pytest

from mlops_project.modeling.model import load_model

ROOT = Path(__file__).resolve().parents[2]
# Made by `make test-integration`: core, MLflow and this package.
BIN = ROOT / ".venv/mlflow/bin"
MODEL = "credit-risk-model"

pytestmark = pytest.mark.integration


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Project:
    """A committed copy of the working tree with its outputs, and a server that may be up or not."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "GIT_"))}
        identity = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        paths = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), "MLFLOW_TRACKING_URI": self.uri}
        self.environment = clean | identity | paths | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in filter(None, self.run(*files, cwd=ROOT).split("\0")):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
        self.run("git", "init", "-q", "-b", "main")
        self.commit("base")
        self.run("python", "-m", "dvc", "repro", "-q", "--pull")
        self.commit("outputs")

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", message)

    def run(self, *command: str, cwd: Path | None = None, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=cwd or self.path, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def sync(self, *arguments: str, code: int = 0) -> str:
        return self.run("mlops-mlflow-sync", *arguments, code=code)

    def ask(self, expression: str) -> object:
        """Evaluate in the environment with MLflow, away from this package's sources; ``client`` is there."""
        script = f"import json, mlflow; client = mlflow.MlflowClient(); print(json.dumps({expression}))"
        return json.loads(self.run("python", "-c", script, cwd=self.folder).splitlines()[-1])

    def runs(self, where: str = "") -> list[str]:
        found = f"mlflow.search_runs(search_all_experiments=True, output_format='list', filter_string={where!r})"
        return self.ask(f"[run.info.run_id for run in {found}]")

    def state(self) -> object:
        """All that a second push could add to."""
        return self.ask(
            "[[[run.info.run_id, run.info.status, run.info.end_time, run.data.to_dictionary(), "
            "[str(output.model_id) for output in run.outputs.model_outputs]] "
            "for run in mlflow.search_runs(search_all_experiments=True, output_format='list')], "
            "[[one.name, one.version, one.run_id, list(one.aliases)] for one in client.search_model_versions()]]"
        )

    @contextmanager
    def server(self) -> Iterator[None]:
        log = self.folder / "log"
        command = [str(BIN / "python"), "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        command += ["--backend-store-uri=sqlite:///runs.db", "--artifacts-destination=artifacts"]
        with log.open("wb") as file:
            # A session of its own: the server has workers, which must go with it.
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            end = time.monotonic() + 120
            while not self.answers():
                assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
                assert time.monotonic() < end, log.read_text(encoding="utf-8")[-2000:]
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()

    def answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2) as answer:  # noqa: S310 - http on loopback
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def down(tmp_path_factory) -> Project:
    if not (BIN / "mlops-mlflow-sync").exists():
        reason = "no MLflow in .venv/mlflow; `make test-integration` installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    # A space in the path: everything must work there too.
    return Project(tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("a project"))


@pytest.fixture(scope="module")
def project(down) -> Iterator[Project]:
    with down.server():
        down.sync("--champion")
        yield down


def test_a_server_that_is_down_is_one_clear_line_and_costs_nothing(down):
    before = down.run("git", "status", "--porcelain", "--ignored", "--", "models", "metrics", "data")
    message = down.sync(code=1)
    assert message.count("\n") == 1
    assert message.startswith(f"error: {down.uri}: the MLflow server does not answer")
    assert down.run("git", "status", "--porcelain", "--ignored", "--", "models", "metrics", "data") == before


def test_the_run_is_found_by_params_metrics_and_tags(project):
    commit = project.run("git", "rev-parse", "HEAD").strip()
    runs = project.runs(
        f"tags.git_commit = '{commit}' and params.`train.model` = 'scorecard' and metrics.roc_auc_test_mean > 0.7"
    )
    assert len(runs) == 1
    run = project.ask(f"client.get_run({runs[0]!r}).data.to_dictionary()")
    train = json.loads((project.path / "metrics/train.json").read_text(encoding="utf-8"))
    evaluation = json.loads((project.path / "metrics/evaluate.json").read_text(encoding="utf-8"))
    for metric, values in train.items():
        found = [run["metrics"][f"{metric}_{suffix}"] for suffix in ("test_mean", "test_std", "train_mean", "train_std")]
        assert found == [values[key] for key in ("mean", "std", "train_mean", "train_std")]
    assert run["metrics"]["evaluate.roc_auc"] == evaluation["roc_auc"]
    assert run["metrics"]["evaluate.interval.roc_auc.low"] == evaluation["interval"]["roc_auc"]["low"]
    assert run["params"]["evaluate.cost_bad_approved"] == "5.0"
    assert len(run["tags"]["dvc_lock_sha256"]) == 64
    plots = project.ask(f"sorted(file.path for file in client.list_artifacts({runs[0]!r}, 'plots'))")
    assert plots == sorted(f"plots/{path.name}" for path in (project.path / "metrics/plots").iterdir())


def test_the_champion_predicts_as_the_model_of_the_repository(project):
    raw = project.path / "data/raw/german_credit_modified.csv"
    # By alias, with text, dirt and the outcome in the rows; and with numbers where they are some.
    expression = (
        "(lambda model, pandas: [list(map(repr, map(float, model.predict(pandas.read_csv({raw!r}, **kind)))))"
        " for kind in ({{'dtype': str}}, {{}})] + [model.metadata.signature.inputs.input_names(),"
        " model.input_example.shape[0], len(model.predict(model.input_example))])"
        f"(mlflow.pyfunc.load_model('models:/{MODEL}@champion'), __import__('pandas'))"
    )
    text, numbers, names, rows, predicted = project.ask(expression.format(raw=str(raw)))
    model = load_model(project.path / "models/best_model.joblib")
    for found, kind in ((text, {"dtype": str}), (numbers, {})):
        assert [float(value) for value in found] == model.predict_proba(pd.read_csv(raw, **kind))[:, 1].tolist()
    assert names == model.feature_names_in_
    assert rows == predicted == 5


def test_a_second_push_adds_nothing(project):
    before = project.state()
    assert "is there already" in project.sync("--champion")
    assert project.state() == before


def test_the_alias_moves_to_a_chosen_revision_and_back(project):
    project.commit("another state")
    project.sync("--champion")
    [first, second] = sorted(project.ask("[one.version for one in client.search_model_versions()]"))
    assert str(project.ask(f"client.get_model_version_by_alias({MODEL!r}, 'champion').version")) == str(second)
    project.sync("--revision", "HEAD~1", "--champion")
    assert str(project.ask(f"client.get_model_version_by_alias({MODEL!r}, 'champion').version")) == str(first)
    assert len(project.ask("[one.version for one in client.search_model_versions()]")) == 2


def test_experiments_are_pushed_under_their_names(project):
    project.run(
        "python", "-m", "dvc", "exp", "run", "-q", "--name", "dusty-mole", "--set-param", "train.model=logistic_regression"
    )
    project.run("git", "checkout", "-q", "--", ".")
    assert project.sync("--experiments").startswith("dusty-mole (")
    runs = project.runs("tags.dvc_experiment = 'dusty-mole' and params.`train.model` = 'logistic_regression'")
    assert len(runs) == 1
    assert project.sync("--revision", "dusty-mole").endswith(f"run {runs[0]} is there already\n")


def test_a_run_that_was_interrupted_is_completed(project):
    [run] = project.runs("tags.dvc_experiment = 'dusty-mole'")
    before = project.state()
    project.ask(f"client.set_terminated({run!r}, 'FAILED')")
    assert project.sync("--experiments").endswith(f"run {run} written\n")
    after = project.state()
    for state in (before, after):
        for one in state[0]:
            one[2] = None  # when it ended
    assert after == before


def test_a_push_that_was_killed_is_completed_to_what_an_undisturbed_one_writes(project):
    project.sync()
    [whole] = project.runs(f"tags.git_commit = '{project.run('git', 'rev-parse', 'HEAD').strip()}'")
    project.commit("same outputs")
    environment = project.environment | {"TMPDIR": str(project.folder)}  # a killed process leaves its files
    with closing(sqlite3.connect(project.folder / "runs.db", timeout=30)) as database:
        push = subprocess.Popen(["mlops-mlflow-sync"], cwd=project.path, env=environment, stdout=subprocess.DEVNULL)
        while not database.execute("SELECT 1 FROM logged_models WHERE status = 1").fetchall():  # the model is being sent
            assert push.poll() is None, "it ended before the moment came"
            time.sleep(0.005)
        push.kill()
        push.wait()
    [half] = project.runs("attributes.status = 'RUNNING'")
    assert project.sync().endswith(f"run {half} written\n")

    def written(run: str) -> list:
        return project.ask(
            f"(lambda run: [run.info.status, run.data.params, run.data.metrics, run.data.tags['dvc_lock_sha256'],"
            " sorted(file.path for file in client.list_artifacts(run.info.run_id, 'plots')),"
            " [[model.name, model.status.value] for model in client.search_logged_models([run.info.experiment_id],"
            f" f'source_run_id = {{run.info.run_id!r}}')]])(client.get_run({run!r}))"
        )

    assert written(half) == written(whole)
    assert written(half)[-1] == [["model", "READY"]]


def test_a_revision_that_the_server_refuses_does_not_stop_the_others(project):
    project.commit("refused")
    project.commit("taken")
    commit = project.run("git", "rev-parse", "HEAD~1").strip()
    experiment = "client.get_experiment_by_name('credit_classification').experiment_id"
    # Someone else's half-written run with another value: MLflow changes no param.
    run = project.ask(f"client.create_run({experiment}, tags={{'git_commit': {commit!r}}}).info.run_id")
    project.ask(f"client.log_param({run!r}, 'train.model', 'other')")
    message = project.sync("--revision", "HEAD~1", "HEAD", code=1)
    assert message.startswith("error: HEAD~1 (")
    assert "the MLflow server refuses" in message
    assert "train.model" in message
    head = project.run("git", "rev-parse", "HEAD").strip()
    assert len(project.runs(f"tags.git_commit = '{head}' and attributes.status = 'FINISHED'")) == 1
    project.ask(f"client.delete_run({run!r})")
    assert "written" in project.sync("--revision", "HEAD~1")


def test_another_server_at_the_address_is_told_of(down):
    class Another(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        def log_message(self, *arguments):
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Another) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        message = down.sync("--tracking-uri", uri, code=1)
        server.shutdown()
    assert uri in message
    assert "the MLflow server refuses" in message
    assert "403" in message
    assert message.count("\n") == 1


def test_the_workspace_and_an_unknown_revision_are_refused_before_anything_is_sent(project):
    before = project.state()
    assert "workspace: found the workspace, expected a commit" in project.sync("--revision", "HEAD", "workspace", code=1)
    assert "nowhere: found neither a Git revision nor a DVC experiment" in project.sync("--revision", "nowhere", code=1)
    assert project.state() == before


def test_a_revision_without_outputs_does_not_stop_the_others(project):
    project.run("git", "rm", "-q", "dvc.lock")
    project.commit("no receipt")
    project.run("git", "revert", "--no-edit", "HEAD")
    message = project.sync("--revision", "HEAD~1", "HEAD", code=1)
    assert message.startswith("error: HEAD~1 (")
    assert "dvc.lock: not found" in message
    commit = project.run("git", "rev-parse", "HEAD").strip()
    assert len(project.runs(f"tags.git_commit = '{commit}'")) == 1


def test_a_model_is_pushed_by_the_manifest_of_its_commit_or_if_it_is_trusted(project):
    manifest = "models/best_model.joblib.manifest.json"
    project.run("git", "rm", "-q", manifest)
    project.commit("no manifest")
    none = project.run("git", "rev-parse", "HEAD").strip()
    project.run("git", "revert", "--no-edit", "HEAD")
    text = (project.path / manifest).read_text(encoding="utf-8")
    (project.path / manifest).write_text(re.sub(r'"sha256": "\w+"', f'"sha256": "{"0" * 64}"', text), encoding="utf-8")
    project.commit("another model's")
    other = project.run("git", "rev-parse", "HEAD").strip()
    project.run("git", "revert", "--no-edit", "HEAD")
    assert f"{manifest}: not found in {none}; if you know who made its model, pass --trust-file" in project.sync(
        "--revision", none, code=1
    )
    for option in ((), ("--trust-file",)):
        assert "not loaded: found SHA-256" in project.sync("--revision", other, *option, code=1), (
            "trust is for what has no manifest"
        )
    project.sync("--revision", none, "--trust-file")
    (run,) = project.runs(f"tags.git_commit = '{none}'")
    rows = f"__import__('pandas').read_csv({str(project.path / 'data/processed/Xtest.csv')!r}, nrows=3)"
    assert len(project.ask(f"list(mlflow.pyfunc.load_model('runs:/{run}/model').predict({rows}))")) == 3


SCRIPT = ("python", "scripts/mlflow_experiments.py")


def test_the_script_trains_nothing_if_the_server_is_away(down):
    before = (down.path / "models/best_model.joblib").read_bytes()
    message = down.run(*SCRIPT, "--tracking-uri", f"http://127.0.0.1:{free_port()}", code=1)
    assert "the MLflow server does not answer" in message
    assert (down.path / "models/best_model.joblib").read_bytes() == before


def test_six_experiments_are_children_of_one_run(project):
    params = project.path / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("n_repeats: 3", "n_repeats: 1"), encoding="utf-8")
    printed = project.run(*SCRIPT)
    children = [line.removeprefix("Run ID: ") for line in printed.splitlines() if line.startswith("Run ID: ")]
    assert len(children) == 6
    runs = project.ask(f"[client.get_run(run).to_dictionary() for run in {children}]")
    names = [f"{model}_smote-{smote}" for model in ("logistic_regression", "random_forest", "xgboost") for smote in (False, True)]
    assert [run["info"]["run_name"] for run in runs] == names
    (parent,) = {run["data"]["tags"]["mlflow.parentRunId"] for run in runs}
    assert project.ask(f"client.get_run({parent!r}).info.status") == "FINISHED"
    experiment = project.ask("client.get_experiment_by_name('credit_classification').experiment_id")
    assert {run["info"]["experiment_id"] for run in runs} == {experiment}
    own = {"logistic_regression": "max_iter", "random_forest": "max_features", "xgboost": "learning_rate"}
    for run in runs:
        found = run["data"]["params"]
        assert run["info"]["run_name"] == f"{found['model_name']}_smote-{found['use_smote']}"
        assert found["random_seed"] == "42"
        assert own[found["model_name"]] in found

    # The last one: its results as an artifact, its model as the one that training wrote.
    written = json.loads((project.path / "models/model_results.json").read_text(encoding="utf-8"))
    last = runs[-1]["data"]["metrics"]
    for metric, entry in written["results"].items():
        assert {key: round(last[f"{metric}_{key}"], 6) for key in entry} == entry
    logged = project.ask(f"mlflow.artifacts.load_dict('runs:/{children[-1]}/model_results.json')")
    assert logged == written
    signature = f"mlflow.models.get_model_info('runs:/{children[-1]}/model')"
    assert project.ask(f"[len({signature}.signature.inputs.inputs), {signature}.saved_input_example_info is not None]") == [
        len(load_model(project.path / "models/best_model.joblib").feature_names_in_),
        True,
    ]
    raw = project.path / "data/raw/german_credit_modified.csv"
    expression = f"list(map(float, mlflow.pyfunc.load_model('runs:/{children[-1]}/model').predict(rows(dtype=str))))"
    rows = f"__import__('functools').partial(__import__('pandas').read_csv, {str(raw)!r})"
    predicted = project.ask(f"(lambda rows: {expression})({rows})")
    model = load_model(project.path / "models/best_model.joblib")
    assert model.name == "xgboost"
    assert predicted == model.predict_proba(pd.read_csv(raw, dtype=str))[:, 1].tolist()
    project.run("git", "checkout", "-q", "--", "params.yaml")
