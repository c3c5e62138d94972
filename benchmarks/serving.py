"""How fast is the service beside others? The same model, applicants and client, one worker each, side by side in one run.

ours          `mlops-serve`: keys, rate limit (too high to limit), metrics, validation, and the prediction log, on disk (FULL)
mlflow        ``mlflow models serve`` with the model as `mlops-mlflow-sync` logs it
BentoML       ``bentoml serve`` around the pipeline
plain         FastAPI, pydantic and pandas around the pipeline
empty         a FastAPI endpoint that does nothing

Applicants are dirty as in raw files, numbers as JSON numbers, and a request is another one than that before it. Many go in the
form of JSON that a server reads fastest: by columns to ours and BentoML, split to MLflow, as objects to the plain one. Before
anything is measured all servers must give the same probabilities. The client is wrk, on the same machine; every answer must be
a success.

Within a round one server after the other is measured, so a ratio compares neighbours; the medians of these ratios are held
against the bars. CPU is that of a server's processes per applicant: other work on the machine disturbs it least. Machines differ,
and a busy one differs from itself: do not compare requests per second between runs. Exit code 1 if a bar is missed.

    make benchmark-serving                  about 8 minutes
    make benchmark-serving ARGS=--quick     about 2 minutes, to see that it works
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common import CLEAN_FILE, ROOT, dirty_applicants, environment, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVERS = ROOT / "benchmarks/servers"
VENV = Path(sys.prefix)
TOKEN_NAME = "benchmark"  # noqa: S105 - whose key it is
ONE, MANY, BODIES = 1, 1000, 500
LEAST_SECONDS, MOST_SECONDS, REQUESTS = 1.0, 10.0, 40
PATIENCE = 120.0
# A worker that dies sooner is replaced after a pause (serving/server.py).
SHORT_LIFE = 2.2
RESTARTS = 5
SAME = {"default": 1e-9, "xgboost": 1e-6}
READY, RESIDENT = 2.0, 120.0
HEADER = ("model", "what", "ours", "beside", "its", "ratio", "from", "to", "bar", "verdict", "CPU µs", "its")
STARTS = ("model", "server", "start to first answer, s", "worker, s", "bar", "verdict", "resident MB", "bar", "verdict")


@dataclass
class Server:
    """One server: how it is started, asked and understood."""

    name: str
    command: list[str]
    path: str
    write: Callable[[list[dict[str, Any]]], Any]
    read: Callable[[Any], list[float]] | None
    variables: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    ready: str = ""
    port: int = 0
    seconds: float = 0.0
    process: Any = None

    def body(self, applicants: list[dict[str, Any]]) -> str:
        return json.dumps(self.write(applicants))

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **self.headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@dataclass(frozen=True)
class Case:
    """What is measured: requests of ``rows`` applicants over so many connections, and the bars, by server."""

    what: str
    rows: int
    connections: int
    bars: dict[str, float | None]
    figure: str = "rate"


class Load(NamedTuple):
    """What was measured: applicants per second, p50 in ms, and CPU µs of the server's processes per applicant."""

    rate: float
    p50: float
    cpu: float


# A bar is the least ratio of ours to the other. Of p50 it is the largest, and of ours to ours with reasons, which must keep half
# of the throughput. None: for information.
REASONS, MOST_RATIO = "ours, reasons", 2.0
OBJECTS = "ours, as objects"
CASES = {
    "default": (
        Case(
            "1 applicant, 16 connections: applicants/s",
            ONE,
            16,
            {"mlflow": 40, "BentoML": 30, "plain": 20, "empty": 0.3, REASONS: MOST_RATIO},
        ),
        Case("1 applicant, 1 connection: p50 ms", ONE, 1, {"plain": 0.1, "mlflow": None, "BentoML": None, "empty": None}, "p50"),
        Case(
            "1,000 applicants, 4 connections: applicants/s",
            MANY,
            4,
            {"mlflow": 10, "BentoML": 10, "plain": 10, REASONS: MOST_RATIO, OBJECTS: None},
        ),
    ),
    "xgboost": (
        Case("1 applicant, 16 connections: applicants/s", ONE, 16, {"plain": 10, REASONS: MOST_RATIO}),
        Case("1,000 applicants, 4 connections: applicants/s", MANY, 4, {"plain": 5, REASONS: MOST_RATIO}),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="per server, case and round (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 second")
    parser.add_argument("--only", choices=tuple(CASES), help="one of the models")
    parser.add_argument("--folder", help="where the prediction log is written: the disk counts (default: a temporary folder)")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk, the client, is not there: `apt-get install wrk` (Debian, Ubuntu), `brew install wrk` (macOS)")
    for name in ("mlflow", "bentoml"):
        if not (VENV / name / "bin" / name).exists():
            sys.exit(f"{VENV / name}: not found; `make benchmark-serving` makes it")
    rounds, seconds = (3, 1.0) if args.quick else (args.rounds, args.seconds)
    missed = False
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        applicants = dirty_records()
        for model in [args.only] if args.only else CASES:
            files = fit_model(model, folder)
            with running(servers(model, files, folder), folder) as found:
                check_same(found, applicants, SAME[model])
                lines = [
                    line for case in CASES[model] for line in measure(model, case, found, applicants, folder, rounds, seconds)
                ]
                starts = beginnings(model, found)
            # Each model's tables as soon as they are there.
            print_table(HEADER, lines)
            print()
            print_table(STARTS, starts)
            print()
            missed |= any("FAIL" in line for line in [*lines, *starts])
    return int(missed)


# --- Models and applicants


def dirty_records() -> list[dict[str, Any]]:
    """Return applicants as a client has them: cells are numbers where they look like numbers, else text, or null."""
    import pandas as pd

    from build_raw_data import make_dirty
    from mlops_project.schema import load_contract

    names = list(load_contract(ROOT / "data/schema.yaml").features)
    table = make_dirty(pd.read_csv(CLEAN_FILE), 1)[names]
    return [
        {name: number(cell) if cell else None for name, cell in zip(names, row, strict=True)}
        for row in table.itertuples(index=False)
    ]


def number(cell: str) -> float | str:
    try:
        value = float(cell)
    except ValueError:
        return cell
    if value != value:  # noqa: PLR0124 - NaN is no JSON
        return cell
    return int(value) if value.is_integer() else value


def fit_model(name: str, folder: Path) -> Path:
    """Fit a model on a dirty file and write it and its policy, as the pipeline does; return their folder."""
    import numpy as np
    from msgspec.structs import replace

    from mlops_project.config import load_params
    from mlops_project.manifest import dump, write_manifest
    from mlops_project.modeling.policy import make_policy
    from mlops_project.modeling.train import fit
    from mlops_project.preprocessing import build_preprocessor
    from mlops_project.schema import load_contract

    params, contract = load_params(ROOT / "params.yaml"), load_contract(ROOT / "data/schema.yaml")
    applicants = dirty_applicants(0, folder)
    train = params.train if name == "default" else replace(params.train, model=name)
    preprocessor = build_preprocessor(contract, params.featurize)
    model = fit(applicants.table, applicants.target, preprocessor, contract, train, params.models)
    files = folder / name
    files.mkdir()
    dump(model, files / "model.joblib")
    y = applicants.target.to_numpy()
    # The pipeline takes out-of-fold probabilities; here the decisions do not matter.
    policy = make_policy(y, model.predict_proba(applicants.table)[:, 1], np.ones(len(y)), params.evaluate)
    (files / "policy.json").write_text(policy.to_json(), encoding="utf-8")
    write_manifest(files / "policy.json", [files / "model.joblib"])
    return files


# --- Servers


def servers(model: str, files: Path, folder: Path) -> list[Server]:
    from mlops_project.serving.keys import create

    python, here = sys.executable, files / "model.joblib"
    _, token = create(files / "keys.json", TOKEN_NAME, "predict")
    ours = [python, "-c", "import sys; from mlops_project.serving.server import main; sys.exit(main())"]
    ours += ["--workers", "1", "--uncommitted", "--rate-limit", "1000000000/minute", "--port", "{port}"]
    ours += ["--model", str(here), "--policy", str(files / "policy.json"), "--state", str(files / "state")]
    ours += ["--keys-file", str(files / "keys.json"), "--log-url", f"sqlite:///{files}/predictions.db"]

    def uvicorn(app: str) -> list[str]:
        command = [python, "-m", "uvicorn", f"{app}:app", "--app-dir", str(SERVERS), "--port", "{port}", "--no-access-log"]
        return [*command, "--loop", "uvloop", "--http", "httptools"]

    where = {"MODEL": str(here)}
    found = [
        Server(
            "ours", ours, "/v1/predict", lambda rows: rows[0] if len(rows) == 1 else by_column(rows), p_good,
            headers={"Authorization": f"Bearer {token}"}, ready="/readyz",
        ),
        Server("plain", uvicorn("plain"), "/predict", lambda applicants: applicants, list, where, ready="/openapi.json"),
    ]  # fmt: skip
    if model != "default":
        return found
    saved = files / "mlflow"
    save = [str(VENV / "mlflow/bin/python"), str(SERVERS / "save_mlflow.py"), str(here), str(saved)]
    subprocess.run(save, check=True, cwd=folder, env=environment(ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mlflow = [str(VENV / "mlflow/bin/mlflow"), "models", "serve", "-m", str(saved), "--env-manager", "local"]
    bento = [str(VENV / "bentoml/bin/bentoml"), "serve", "bento:CreditRisk", "--working-dir", str(SERVERS)]
    return [
        *found,
        Server(
            "mlflow", [*mlflow, "--workers", "1", "--port", "{port}"], "/invocations", split, itemgetter("predictions"),
            {"PATH": os.pathsep.join([str(VENV / "mlflow/bin"), os.environ["PATH"]])}, ready="/ping",
        ),
        Server(
            "BentoML", [*bento, "--host", "127.0.0.1", "--port", "{port}"], "/predict",
            lambda rows: {"applicants": by_column(rows)}, list,
            {**where, "BENTOML_HOME": str(files / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}, ready="/readyz",
        ),
        Server("empty", uvicorn("empty"), "/predict", lambda applicants: applicants, None, ready="/openapi.json"),
    ]  # fmt: skip


def by_column(applicants: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in applicants] for name in applicants[0]}


def p_good(answer: dict[str, Any]) -> list[float]:
    found = answer["predictions"]
    return found["p_good"] if isinstance(found, dict) else [row["p_good"] for row in found]


def split(applicants: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the faster of MLflow's formats."""
    return {"dataframe_split": {"columns": list(applicants[0]), "data": [list(row.values()) for row in applicants]}}


@contextlib.contextmanager
def running(found: list[Server], folder: Path) -> Iterator[dict[str, Server]]:
    """Start servers one after the other, and end them."""
    import psutil

    try:
        for server in found:
            server.port = free_port()
            command = [part.format(port=server.port) if part == "{port}" else part for part in server.command]
            log = (folder / f"{server.name}.log").open("wb")
            begun = time.perf_counter()
            server.process = psutil.Popen(
                command, cwd=folder, env=environment(ROOT) | server.variables, stdout=log, stderr=subprocess.STDOUT
            )
            log.close()
            while not answers(server):
                if server.process.poll() is not None or time.perf_counter() - begun > PATIENCE:
                    lines = (folder / f"{server.name}.log").read_text(errors="replace").splitlines()
                    sys.exit(f"{server.name} did not start: {' '.join(command)}\n" + "\n".join(lines[-15:]))
                time.sleep(0.02)
            server.seconds = time.perf_counter() - begun
        yield {server.name: server for server in found}
    finally:
        for server in found:
            if server.process is not None:
                with contextlib.suppress(psutil.NoSuchProcess):  # one that ended by itself
                    family = [server.process, *server.process.children(recursive=True)]
                    server.process.terminate()
                    _, left = psutil.wait_procs(family, timeout=20)
                    for process in left:
                        process.kill()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def answers(server: Server) -> bool:
    try:
        return server.ask("GET", server.ready)[0] == 200
    except OSError:
        return False


def check_same(found: dict[str, Server], applicants: list[dict[str, Any]], tolerance: float) -> None:
    """End unless all servers give the same probabilities, for applicants alone and together."""
    for rows in (applicants[:ONE], applicants[:MANY]):
        seen: dict[str, list[float]] = {}
        for server in found.values():
            status, answer = server.ask("POST", server.path, server.body(rows))
            if status != 200:
                sys.exit(f"{server.name}: found status {status}, expected 200: {answer[-600:].decode(errors='replace')}")
            if server.read is not None:
                seen[server.name] = server.read(json.loads(answer))
        expected = seen["ours"]
        for name, p_good in seen.items():
            off = max(abs(p - q) for p, q in zip(p_good, expected, strict=True))
            if off > tolerance:
                sys.exit(f"{name}: found probabilities that differ from ours by {off:.2g}, expected {tolerance:g} at most")


# --- Measuring


def measure(
    model: str, case: Case, found: dict[str, Server], applicants: list[dict[str, Any]], folder: Path, rounds: int, seconds: float
) -> list[list[str]]:
    """Measure all servers of a case and return lines of the table."""
    bodies = [applicants[i : i + 1] for i in range(BODIES)] if case.rows == ONE else [applicants[i : i + MANY] for i in range(5)]
    asks: dict[str, Callable[[float], Load]] = {}
    for name in ["ours", *case.bars]:
        server = found[name.partition(",")[0]]
        path = server.path + ("?reasons=3" if name == REASONS else "")
        file = folder / f"{model}-{name}-{case.rows}.jsonl"
        body_of = json.dumps if name == OBJECTS else server.body
        file.write_text("".join(f"{body_of(body)}\n" for body in bodies), encoding="utf-8")
        asks[name] = partial(ask_long, server, path, file, case)
    # Warm. Requests that are not done at the end do not count: a slow server gets the time for some tens of them.
    longer = {name: min(MOST_SECONDS, max(seconds, REQUESTS * case.rows / ask(LEAST_SECONDS).rate)) for name, ask in asks.items()}
    found_loads: dict[str, list[Load]] = {name: [] for name in asks}
    for turn in range(rounds):
        for name in list(asks)[:: 1 if turn % 2 else -1]:
            found_loads[name].append(asks[name](longer[name]))
    rows = []
    for name, bar in case.bars.items():
        mine, its = ([getattr(load, case.figure) for load in found_loads[key]] for key in ("ours", name))
        ratios = sorted(one / other for one, other in zip(mine, its, strict=True))
        ratio = statistics.median(ratios)
        highest = name == REASONS or case.figure == "p50"
        passed = bar is None or (ratio <= bar if highest else ratio >= bar)
        digits = 2 if case.figure == "p50" else 0
        row = [model, case.what, f"{statistics.median(mine):,.{digits}f}", name, f"{statistics.median(its):,.{digits}f}"]
        row += [f"{value:.2f}" for value in (ratio, ratios[0], ratios[-1])]
        row += ["", ""] if bar is None else [f"{'<=' if highest else '>='} {bar:g}", "pass" if passed else "FAIL"]
        rows.append([*row, *(f"{statistics.median(load.cpu for load in found_loads[key]):,.0f}" for key in ("ours", name))])
    return rows


def ask_long(server: Server, path: str, bodies: Path, case: Case, seconds: float) -> Load:
    """Measure for so long."""
    command = ["wrk", "-t1", f"-c{case.connections}", f"-d{max(1, round(seconds))}s", "--timeout", f"{PATIENCE:.0f}s"]
    for name, value in ({"Content-Type": "application/json"} | server.headers).items():
        command += ["-H", f"{name}: {value}"]
    command += ["-s", str(SERVERS / "post.lua"), f"http://127.0.0.1:{server.port}{path}", "--", str(bodies)]
    used = cpu_seconds(server)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    used = cpu_seconds(server) - used
    if done.returncode:
        sys.exit(f"wrk, asking {server.name} ({case.what}): exit code {done.returncode}\n{done.stdout}{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    if not result["requests"] and seconds < MOST_SECONDS:
        return ask_long(server, path, bodies, case, MOST_SECONDS)
    if result["failed"] or not result["requests"]:
        sys.exit(f"{server.name}: {result['failed']} of {result['requests']} requests failed\n{done.stdout}")
    return Load(
        result["requests"] / result["seconds"] * case.rows, result["p50"] * 1e3, used / result["requests"] / case.rows * 1e6
    )


def cpu_seconds(server: Server) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in [server.process, *server.process.children(recursive=True)])


def beginnings(model: str, found: dict[str, Server]) -> list[list[str]]:
    """Say how long every server took to start, and what it holds after the load; ours, too, how soon a new worker answers."""
    rows = []
    for server in found.values():
        family = [server.process, *server.process.children(recursive=True)]
        resident = max(process.memory_info().rss for process in family) / 1e6
        row = [model, server.name, f"{server.seconds:.1f}", "", "", "", f"{resident:.0f}", "", ""]
        if server.name == "ours":
            (worker,) = server.process.children()
            resident = worker.memory_info().rss / 1e6
            again = statistics.median(restart(server) for _ in range(RESTARTS))
            row[3:] = [
                f"{again:.2f}",
                *verdict(again, READY),
                f"{resident:.0f}",
                *verdict(resident, RESIDENT, model == "default"),
            ]
        rows.append(row)
    return rows


def verdict(found: float, most: float, counts: bool = True) -> list[str]:
    return [f"< {most:g}", "pass" if found < most else "FAIL"] if counts else ["", ""]


def restart(server: Server) -> float:
    """Kill the worker, and return seconds until the next one answers; the supervisor holds the socket all the while."""
    time.sleep(SHORT_LIFE)
    (worker,) = server.process.children()
    os.kill(worker.pid, signal.SIGKILL)
    begun = time.perf_counter()
    worker.wait()
    if not answers(server):
        sys.exit("ours: no answer after a worker was killed")
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
