"""A real Dask scheduler and two worker processes: the same numbers as one process, whoever is killed, and plain errors."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_project import parallel
from mlops_project.modeling import distributed

ROOT = Path(__file__).resolve().parents[2]
# Made by `make test-integration`: core, search, Dask and this package.
BIN = ROOT / ".venv/dask/bin"

pytestmark = pytest.mark.integration

PREAMBLE = """
import hashlib, json, logging, os, pickle, signal, sys, threading, time
from pathlib import Path
import numpy as np
import pandas as pd
from msgspec.structs import replace
from mlops_project import parallel
from mlops_project.config import PROCESSED, load_params, with_training
from mlops_project.files import read_table
from mlops_project.modeling import distributed
from mlops_project.modeling.train import train
from mlops_project.preprocessing import load_preprocessor
from mlops_project.runtime import guarded
from mlops_project.schema import load_contract

logging.basicConfig(level=logging.WARNING)
params = load_params()
contract = load_contract(params.data.contract)
X = read_table(PROCESSED / "Xtraintest.csv", contract.text_columns)
y = read_table(PROCESSED / "ytraintest.csv").loc[X.index, contract.target.name]
preprocessor = load_preprocessor("models/preprocessor.joblib")

def told(**found):
    print(json.dumps(found))

def digest(*parts):
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()

def when_at_work(act):
    def wait():
        client = parallel.connect(parallel.asked())
        workers, nannies = client.run(os.getpid), client.run(os.getppid)
        while not all(client.processing().values()):
            time.sleep(0.02)
        act(list(workers.values()), list(nannies.values()))
    threading.Thread(target=wait, daemon=True).start()
"""

SCORES = """
def main():
    settings = replace(with_training(params, "best").train, n_repeats=int(sys.argv[1]))
    found = train(X, y, preprocessor, contract, settings, params.models)
    values = found.cross_validation
    told(scores=digest(values.test, values.train, values.out_of_fold.tobytes(), json.dumps(found.leaderboard)),
         dask="dask" in sys.modules)
"""

SEARCH = """
from mlops_project.tuning import tune

def main():
    few = replace(params, train=replace(params.train, n_splits=3, n_repeats=1))
    found = tune(X, y, preprocessor, contract, few, Path(sys.argv[1]), name="logistic_regression", n_trials=4)
    report = {key: value for key, value in found.report.items() if key != "seconds"}
    told(report=report, trials=[{k: v for k, v in trial.items() if k != "seconds"} for trial in found.trials])
"""

# Rows as a bank has them: drawn from the applicants, with amounts and ages that vary.
XGBOOST = """
from sklearn.metrics import log_loss, roc_auc_score
from mlops_project.modeling.distributed import Tables

distributed.MIN_ROWS, distributed.JOIN_SECONDS = 1_000, 10
NAME, IMBALANCE = sys.argv[1].split(",")

def rows(n, seed):
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(X), n)
    table = X.iloc[chosen].copy()
    table["hoehe"] = (table["hoehe"] * rng.uniform(0.9, 1.1, n)).round().clip(250, 18000)
    table["alter"] = (table["alter"] + rng.integers(-2, 3, n)).clip(19, 75)
    table.index = pd.Index([f"a{i}" for i in range(n)], name="applicant_id")
    good = y.iloc[chosen].where(rng.uniform(size=n) < 0.8, rng.integers(0, 2, n))
    return table, pd.Series(good.to_numpy(dtype=int), index=table.index, name=y.name)

def main():
    table, good = rows(20_000, 1)
    tables = Tables(Path("rows/X.parquet"), Path("rows/y.parquet"))
    tables.X.parent.mkdir(exist_ok=True)
    table.to_parquet(tables.X, row_group_size=3_000)
    order = slice(None, None, -1) if sys.argv[2:] == ["other order"] else slice(None)
    good[order].to_frame().to_parquet(tables.y, row_group_size=3_000)
    if sys.argv[2:3] == ["kill"]:
        when_training(lambda pids, nannies: [os.kill(pid, signal.SIGKILL) for pid in (nannies[0], pids[0])])
    settings = replace(with_training(params, NAME, IMBALANCE).train, n_splits=2, n_repeats=1)
    model = train(table, good, preprocessor, contract, settings, params.models, tables=tables).model
    new, outcome = rows(5_000, 2)
    p = model.predict_proba(new)[:, 1]
    told(model=hashlib.sha256(model.pipeline[-1].get_booster().save_raw()).hexdigest(), p=digest(p.tobytes()),
         fitted_by=model.params.get("fitted_by"), auc=roc_auc_score(outcome, p), log_loss=log_loss(outcome, p))

def when_training(act):
    def wait():
        client = parallel.connect(parallel.asked())
        pids, nannies = (list(client.run(one).values()) for one in (os.getpid, os.getppid))
        while not any("fn" in key for keys in client.processing().values() for key in map(str, keys)):
            time.sleep(0.02)
        # Where logs are given, not before XGBoost's workers have joined.
        while sys.argv[3:] and sum(log.read_text().count("got rank") for log in Path(sys.argv[3]).glob("*.log")) < 2:
            time.sleep(0.02)
        act(pids, nannies)
    threading.Thread(target=wait, daemon=True).start()
"""

END = """
if __name__ == "__main__":
    sys.exit(guarded(main))
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Project:
    """A committed copy of the working tree with its outputs."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path = path
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLOPS_", "DASK_", "DVC_", "GIT_"))}
        identity = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.environment = clean | identity | one_thread | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
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

    def run(self, *command: str, cwd: Path | None = None, code: int = 0, dask: str = "") -> str:
        """Return standard output; of a failure, standard error."""
        where = {"MLOPS_DASK": dask} if dask else {}
        done = subprocess.run(
            command, cwd=cwd or self.path, env=self.environment | where, capture_output=True, text=True, check=False, timeout=400
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stderr if code else done.stdout

    def script(self, text: str, *arguments: str, dask: str = "") -> dict:
        return json.loads(self.run(*self.as_file(text), *arguments, dask=dask).splitlines()[-1])

    def as_file(self, text: str) -> tuple[str, str]:
        # A file with a guard: local workers import what started them.
        file = self.path.parent / "script.py"
        file.write_text(PREAMBLE + text + END, encoding="utf-8")
        return "python", str(file)


class Cluster:
    """A scheduler and workers, each a command as somebody types it, in a process group of its own."""

    def __init__(self, project: Project, logs: Path) -> None:
        self.project, self.logs = project, logs
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen] = []
        self.start("scheduler", "--host", "127.0.0.1", "--port", self.address.split(":")[-1])
        self.scheduler = self.processes[-1]

    def start(self, *command: str) -> None:
        with (self.logs / f"{len(self.processes)}.log").open("w") as log:
            # Any free port for what tells its health.
            options = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
            started = subprocess.Popen(
                [str(BIN / "dask"), *command, *options], cwd=self.logs, env=self.project.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(started)

    def workers(self, n: int) -> None:
        for _ in range(n):
            self.start("worker", self.address, "--nthreads", "1", "--local-directory", str(self.logs))
        self.wait(n)

    def wait(self, n: int) -> None:
        ready = "parallel.connect(parallel.asked()).wait_for_workers(int(sys.argv[1]), timeout=60)"
        self.project.run("python", "-c", f"import sys; from mlops_project import parallel; {ready}", str(n), dask=self.address)

    def stop(self) -> None:
        for process in reversed(self.processes):
            with process, contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home"))


@pytest.fixture
def make_cluster(project, tmp_path) -> Iterator[Callable[[int], Cluster]]:
    started: list[Cluster] = []

    def make(n_workers: int) -> Cluster:
        started.append(Cluster(project, tmp_path))
        started[-1].workers(n_workers)
        return started[-1]

    yield make
    for cluster in started:
        cluster.stop()


@pytest.fixture(scope="module")
def serial(project) -> dict:
    found = project.script(SCORES, "3")
    assert not found["dask"], "nobody pays for Dask who did not ask for it"
    return found


def test_cross_validation_leaderboard_and_search_are_those_of_one_process(project, serial, make_cluster, tmp_path):
    cluster = make_cluster(2)
    assert project.script(SCORES, "3", dask=cluster.address)["scores"] == serial["scores"]
    here, there = (
        project.script(SEARCH, str(tmp_path / name), dask=dask) for name, dask in (("here", ""), ("there", cluster.address))
    )
    assert len(here["trials"]) == 4 * 4
    assert there == here
    # What the cluster has found is there for a process that goes on alone.
    assert project.script(SEARCH, str(tmp_path / "there")) == here


def test_processes_of_this_machine(project, serial):
    assert project.script(SCORES, "3", dask="local:2")["scores"] == serial["scores"]


def test_more_workers_than_folds_share_the_models_of_a_fold(project):
    few = SCORES.replace("replace(with", "replace(replace(with").replace(".train, n_", ".train, n_splits=2), n_")
    assert project.script(few, "1", dask="local:3")["scores"] == project.script(few, "1")["scores"]


def test_dvc_finds_the_same_bytes_and_nothing_to_run(project, make_cluster):
    cluster = make_cluster(2)
    project.run("python", "-m", "dvc", "repro", "--force", "--single-item", "train", dask=cluster.address)
    assert project.run("git", "status", "--porcelain") == ""
    printed = project.run("python", "-m", "dvc", "repro")
    assert "Running stage" not in printed


def test_experiments_run_on_one_cluster(project, make_cluster):
    cluster, found = make_cluster(2), []
    for where in ("", cluster.address):
        project.run("python", "scripts/experiment_pipeline.py", "--only", "xgboost-smote,logreg-smote", "--jobs", "2", dask=where)
        newest = max((project.path / "experiments").glob("run_*/results.json"))
        found.append(json.loads(newest.read_text(encoding="utf-8")))
        time.sleep(1)  # folders are named by the second
    assert found[0] == found[1]
    assert all("error" not in one for one in found[0].values())


@pytest.mark.parametrize("killed", ["one worker and its nanny", "all workers"])
def test_killed_workers_are_survived(project, serial, make_cluster, killed):
    cluster = make_cluster(2)
    what = "nannies[:1] + pids[:1]" if killed.startswith("one") else "pids"
    kill = SCORES.replace(
        "def main():\n",
        f"def main():\n    when_at_work(lambda pids, nannies: [os.kill(pid, signal.SIGKILL) for pid in {what}])\n",
    )
    assert project.script(kill, "3", dask=cluster.address)["scores"] == serial["scores"]
    logs = "".join(path.read_text(encoding="utf-8") for path in cluster.logs.glob("*.log"))
    assert "Remove worker" in logs


def test_a_scheduler_that_dies_is_an_error_soon(project, make_cluster):
    cluster = make_cluster(2)
    kill = SCORES.replace(
        "def main():\n",
        f"def main():\n    when_at_work(lambda *_: os.kill({cluster.scheduler.pid}, signal.SIGKILL))\n",
    )
    told = project.run(*project.as_file(kill), "3", dask=cluster.address, code=1).splitlines()[-1]
    assert told.startswith(f"error: MLOPS_DASK={cluster.address}: the cluster went away")
    assert told.endswith("unset MLOPS_DASK to run here")


def test_a_scheduler_that_is_away_or_alone_is_an_error_with_an_offer(project, tmp_path):
    nobody = f"tcp://127.0.0.1:{free_port()}"
    told = project.run("python", "src/train.py", dask=nobody, code=1).splitlines()[-1]
    assert told == (
        f"error: MLOPS_DASK={nobody}: no scheduler answered within 5 seconds; start one (docs/cluster.md), or unset MLOPS_DASK to"
        " run here"
    )
    told = project.run("python", "scripts/experiment_pipeline.py", dask=nobody, code=1).splitlines()[-1]
    assert told.startswith(f"error: MLOPS_DASK={nobody}: no scheduler answered")
    cluster = Cluster(project, tmp_path)
    try:
        told = project.run("python", "src/train.py", dask=cluster.address, code=1).splitlines()[-1]
    finally:
        cluster.stop()
    assert told.startswith(
        f"error: MLOPS_DASK={cluster.address}: the scheduler has no worker after 30 seconds; start one (`dask "
    )
    # A stage removes nothing before it knows; DVC does.
    assert project.run("git", "status", "--porcelain") == ""


def test_a_cluster_with_other_code_is_refused(project, make_cluster):
    cluster = make_cluster(1)
    module = project.path / "src/mlops_project/modeling/metrics.py"
    text = module.read_text(encoding="utf-8")
    try:
        module.write_text(text + "\n# another version\n", encoding="utf-8")
        told = project.run("python", "src/train.py", dask=cluster.address, code=1).splitlines()[-1]
    finally:
        module.write_text(text, encoding="utf-8")
    assert told.startswith(f"error: the scheduler {cluster.address} has code of mlops_project ")
    assert told.endswith("unset MLOPS_DASK to run here")


def test_the_commands_of_the_guide_start_a_cluster(project, serial, tmp_path):
    guide = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    scheduler, worker = (re.search(rf"^dask ({what} .*)$", guide, re.MULTILINE)[1] for what in ("scheduler", "worker"))
    cluster = Cluster(project, tmp_path)
    try:
        assert scheduler == "scheduler --host 10.0.0.5 --no-dashboard"  # as the fixture starts it
        assert "--nthreads 1 --nworkers 8 --no-dashboard" in worker
        there = worker.replace("tcp://10.0.0.5:8786", cluster.address).replace("--nworkers 8", "--nworkers 2")
        cluster.start(*there.split(), "--local-directory", str(tmp_path))
        cluster.wait(2)
        assert project.script(SCORES, "3", dask=cluster.address)["scores"] == serial["scores"]
    finally:
        cluster.stop()
    for said in ("no scheduler answered within 5 seconds", "a million rows", "unset MLOPS_DASK to run here"):
        assert said in guide
    assert (parallel.CONNECT_SECONDS, parallel.ATTEMPTS, distributed.MIN_ROWS) == (5, 4, 1_000_000)


# --- XGBoost on row groups


def test_xgboost_by_one_worker_is_the_serial_model_and_by_two_is_as_good(project, make_cluster):
    cluster = make_cluster(2)
    for which in ("xgboost_monotone,none", "xgboost,class_weight"):
        here, one, two, again = (
            project.script(XGBOOST, which, dask=dask) for dask in ("", "local:1", cluster.address, "local:2")
        )
        assert here["fitted_by"] is None
        assert one["fitted_by"] == {"xgboost.dask": {"workers": 1}}
        assert one["p"] == here["p"], "bins, subsamples, weights: all as in one process"
        assert two["fitted_by"] == {"xgboost.dask": {"workers": 2}}
        assert two["model"] == again["model"] != here["model"], "the number of workers decides, not which they are"
        # Another subsample moves the serial model by as much.
        assert abs(two["auc"] - here["auc"]) < 0.005
        assert abs(two["log_loss"] - here["log_loss"]) < 0.005


@pytest.mark.parametrize("joined", [False, True])
def test_a_worker_killed_in_the_fit_is_survived(project, make_cluster, joined):
    cluster = make_cluster(2)
    logs = [str(cluster.logs)] if joined else []
    found = project.script(XGBOOST, "xgboost_monotone,none", "kill", *logs, dask=cluster.address)
    assert found["fitted_by"] == {"xgboost.dask": {"workers": 1}}
    assert found["p"] == project.script(XGBOOST, "xgboost_monotone,none")["p"]


def test_tables_of_other_rows_are_refused(project):
    told = project.run(*project.as_file(XGBOOST), "xgboost_monotone,none", "other order", dask="local:2", code=1)
    assert re.search(r"^error: .*rows/y\.parquet: row group \d holds other applicants than .*X\.parquet", told, re.MULTILINE)
