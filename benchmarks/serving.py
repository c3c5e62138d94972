"""How fast does the service answer, beside the usual ways to serve the same model? Requests per second over interleaved rounds.

The service runs as in production: keys, rate limit, metrics, validation and the synchronous prediction log are on. Beside it, on
the same model with the same number of processes: an empty FastAPI endpoint, a plain FastAPI endpoint with pandas, and, where they
are installed, `mlflow models serve` (``--mlflow PYTHON``) and BentoML (``--bentoml PYTHON``). The client is this process, on the
same machine. Read the ratios: machines differ, and a busy one differs from itself. A missed bar is no failure by itself, so the
exit code is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from common import ROOT, THREADS, print_table

HEADER = ("what", "load", "requests/s", "p50 ms", "service/it", "bar", "verdict")
SECONDS, WARM_UP = 2.0, 0.5
START_SECONDS = 180
PLAIN = """
import joblib, pandas as pd
from fastapi import FastAPI, Request
app = FastAPI()
model = joblib.load({model!r})
@app.post("/predict")
def predict(applicants: list[dict]):
    return {{"p_good": model.predict_proba(pd.DataFrame(applicants))[:, 1].tolist()}}
@app.get("/empty")
async def empty():
    return {{}}
"""
BENTO = """
import bentoml, joblib, pandas as pd
@bentoml.service(workers={workers})
class Credit:
    def __init__(self):
        self.model = joblib.load({model!r})
    @bentoml.api
    def predict(self, applicants: list[dict]) -> list[float]:
        return self.model.predict_proba(pd.DataFrame(applicants))[:, 1].tolist()
"""
MLFLOW = """
import sys, mlflow, pandas as pd
sys.path.insert(0, {source!r})
import joblib
class Served(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.model = joblib.load(context.artifacts["model"])
    def predict(self, context, model_input, params=None):
        return self.model.predict_proba(model_input)[:, 1]
mlflow.pyfunc.save_model({folder!r}, python_model=Served(), artifacts={{"model": {model!r}}})
"""


class Target(NamedTuple):
    """Something that answers."""

    port: int
    path: str
    one: bytes
    thousand: bytes | None
    headers: dict[str, str]


class Load(NamedTuple):
    """What a round found."""

    per_second: float
    p50: float


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it has an answer."""

    def __init__(self, request: bytes, until: float, found: list[float]) -> None:
        self.request, self.until, self.found = request, until, found
        self.closed = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            if not body.endswith(b"0\r\n\r\n"):
                return
        elif len(body) < int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"found {self.buffer[:500]!r}, expected 200")
        now = time.perf_counter()
        self.found.append(now - self.begun)
        self.buffer = b""
        if now < self.until:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


def ask(target: Target, connections: int, body: bytes | None, query: str = "") -> Load:
    """Ask for `SECONDS` over a number of connections."""
    lines = [f"{'GET' if body is None else 'POST'} {target.path}{query} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in target.headers.items()]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    request = "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")

    async def run(seconds: float) -> list[float]:
        found: list[float] = []
        until = time.perf_counter() + seconds
        loop = asyncio.get_running_loop()
        clients = [
            (await loop.create_connection(lambda: Client(request, until, found), "127.0.0.1", target.port))[1]
            for _ in range(connections)
        ]
        await asyncio.wait_for(asyncio.gather(*(client.closed for client in clients)), 120)
        return found

    import uvloop

    uvloop.run(run(WARM_UP))
    begun = time.perf_counter()
    found = uvloop.run(run(SECONDS))
    return Load(len(found) / (time.perf_counter() - begun), 1000 * statistics.median(found))


class Servers:
    """Processes that are ended together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], port: int, path: str, **environment: str) -> None:
        """Start a server and wait until ``path`` answers, whatever it answers."""
        kept = os.environ | THREADS | {"PYTHONPATH": str(ROOT / "src")} | environment
        log = self.folder / f"{port}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, cwd=self.folder, env=kept, stdout=stream, stderr=stream, start_new_session=True)
        self.running.append(process)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1).read()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"{' '.join(command)} does not answer:\n{log.read_text(errors='replace')[-2000:]}")

    def end(self) -> None:
        for process in self.running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Fit a model with its policy, and put them where the service loads them from; return an applicant."""
    import numpy as np
    from msgspec.structs import replace

    from common import dirty_applicants
    from mlops_project.config import load_params
    from mlops_project.files import dump
    from mlops_project.modeling.manifest import write_manifest
    from mlops_project.modeling.policy import make_policy
    from mlops_project.modeling.train import fit
    from mlops_project.preprocessing import build_preprocessor
    from mlops_project.schema import load_contract

    params, contract = load_params(ROOT / "params.yaml"), load_contract(ROOT / "data/schema.yaml")
    applicants = dirty_applicants(0, folder)
    preprocessor = build_preprocessor(contract, params.featurize)
    model = fit(applicants.table, applicants.target, preprocessor, contract, replace(params.train, model=name), params.models)
    dump(model, folder / "model.joblib")
    y, p_good = applicants.target.to_numpy(), model.predict_proba(applicants.table)[:, 1]
    policy = make_policy(y, p_good, np.ones(len(y)), params.evaluate)
    (folder / "policy.json").write_text(policy.to_json(), encoding="utf-8")
    write_manifest(folder / "model.joblib")
    write_manifest(folder / "policy.json", [folder / "model.joblib"])
    columns = contract.columns
    return {key: columns[key].code_list[0] if columns[key].codes else columns[key].range[0] for key in contract.features}


def start_all(servers: Servers, folder: Path, applicant: dict[str, Any], args: argparse.Namespace) -> dict[str, Target]:
    from mlops_project.serving import keys

    one, workers = json.dumps(applicant).encode(), str(args.workers)
    listed, many = json.dumps([applicant]).encode(), json.dumps([applicant] * 1000).encode()
    model = str(folder / "model.joblib")
    _, token = keys.create(folder / "keys.json", "benchmark", "predict")
    targets = {}

    port = free_port()
    servers.start(
        [
            sys.executable, "-m", "mlops_project.serving.server", "--port", str(port), "--workers", workers, "--uncommitted",
            "--model", model, "--policy", str(folder / "policy.json"), "--keys-file", "keys.json",
            "--rate-limit", "100000000/minute",
        ], port, "/readyz",
    )  # fmt: skip
    targets["service"] = Target(port, "/v1/predict", one, many, {"authorization": f"Bearer {token}"})

    port = free_port()
    (folder / "plain.py").write_text(PLAIN.format(model=model))
    command = [sys.executable, "-m", "uvicorn", "plain:app", "--port", str(port), "--workers", workers, "--no-access-log"]
    servers.start(command, port, "/empty")
    targets["empty FastAPI"] = Target(port, "/empty", b"", None, {})
    targets["FastAPI + pandas"] = Target(port, "/predict", listed, many, {})

    if args.mlflow:
        port, saved = free_port(), str(folder / "saved")
        (folder / "save.py").write_text(MLFLOW.format(source=str(ROOT / "src"), folder=saved, model=model))
        subprocess.run(
            [args.mlflow, "save.py"],
            cwd=folder,
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )
        command = [args.mlflow, "-m", "mlflow", "models", "serve", "--model-uri", saved, "--env-manager", "local"]
        servers.start([*command, "--port", str(port), "--workers", workers], port, "/ping")
        split = [json.dumps({"dataframe_records": [applicant] * n}).encode() for n in (1, 1000)]
        targets["mlflow models serve"] = Target(port, "/invocations", *split, {})
    if args.bentoml:
        port = free_port()
        (folder / "bento.py").write_text(textwrap.dedent(BENTO.format(model=model, workers=workers)))
        servers.start([args.bentoml, "-m", "bentoml", "serve", "bento:Credit", "--port", str(port)], port, "/livez")
        split = [json.dumps({"applicants": [applicant] * n}).encode() for n in (1, 1000)]
        targets["BentoML"] = Target(port, "/predict", *split, {})
    return targets


# Service over other: at least so many times as many requests per second (p50: at most that share of it).
BARS = {
    "scorecard": {
        ("mlflow models serve", "one"): 40.0, ("BentoML", "one"): 30.0, ("FastAPI + pandas", "one"): 20.0,
        ("empty FastAPI", "one"): 0.3, ("service", "reasons"): 0.5, ("mlflow models serve", "1,000"): 10.0,
        ("BentoML", "1,000"): 10.0, ("FastAPI + pandas", "1,000"): 10.0,
    },
    "xgboost": {("FastAPI + pandas", "one"): 10.0, ("FastAPI + pandas", "1,000"): 5.0},
}  # fmt: skip


def compare(name: str, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return the table's rows for one model."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-serving-"))
    servers = Servers(folder)
    found: dict[tuple[str, str], list[Load]] = {}
    try:
        targets = start_all(servers, folder, prepare(name, folder), args)
        for _ in range(args.rounds):
            for what, target in targets.items():
                one = None if target.thousand is None else target.one
                found.setdefault((what, "one"), []).append(ask(target, 16, one))
                found.setdefault((what, "1 connection"), []).append(ask(target, 1, one))
                if target.thousand is not None:
                    found.setdefault((what, "1,000"), []).append(ask(target, 16, target.thousand))
                if what == "service":
                    found.setdefault((what, "reasons"), []).append(ask(target, 16, one, "?reasons=3"))
    finally:
        servers.end()
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for (what, load), loads in found.items():
        mine = found["service", "one" if load == "reasons" else load] if ("service", load) in found else None
        ratio, bar, verdict = "", "", ""
        if mine and (what, load) != ("service", "one"):
            times = statistics.median(a.per_second / b.per_second for a, b in zip(mine, loads, strict=True))
            if load == "1 connection":
                times = statistics.median(b.p50 / a.p50 for a, b in zip(mine, loads, strict=True))
            if load == "reasons":
                times = 1 / times
            ratio = f"{times:.2f}"
            least = 10.0 if (what, load) == ("FastAPI + pandas", "1 connection") else BARS[name].get((what, load))
            if least is not None:
                bar, verdict = f">= {least:g}", "pass" if times >= least else "FAIL"
        rate, p50 = (statistics.median(values) for values in zip(*loads, strict=True))
        rows.append((f"{name}: {what}", load, f"{rate:,.0f}", f"{p50:.2f}", ratio, bar, verdict))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", nargs="*", default=["scorecard", "xgboost"])
    parser.add_argument(
        "--mlflow", metavar="PYTHON", help="a Python with MLflow and the core (make mlflow: .venv/mlflow/bin/python)"
    )
    parser.add_argument("--bentoml", metavar="PYTHON", help="a Python with BentoML and the core")
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, {args.workers} workers, {args.rounds} rounds\n")
    rows = [row for name in args.models for row in compare(name, args)]
    print_table(HEADER, rows)


if __name__ == "__main__":
    main()
