"""What counting for Prometheus costs the service: the same worker with and without, in turns, by wrk.

    python benchmarks/metrics_cost.py [--rounds 15] [--seconds 2] [--rows 1] [--bare]

The prediction log is on, as it is in service; --bare leaves it out, against which counting looks twice as dear. CPU time per
request is steadier than throughput where a machine is shared; the bar is for both. A worker scraped every second stands beside
them. Needs wrk; uses the model that the pipeline made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import psutil

from common import ROOT, print_table

BAR = 1.05
WITHOUT, WITH, SCRAPED = "without", "with", "scraped every second"


def serve(port: str, state: str, counted: str, bare: str) -> None:
    """Serve in this process as a worker does, without keys and limits."""
    import socket

    os.environ["PROMETHEUS_MULTIPROC_DIR"] = f"{state}/metrics"
    Path(state, "metrics").mkdir(exist_ok=True)
    from prometheus_client import values

    number = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: number)
    from mlops_project.serving import app, metrics, worker
    from mlops_project.serving.service import Service
    from mlops_project.serving.settings import Settings
    from mlops_project.serving.state import Files

    if not int(counted):
        metrics.Metrics.predicted = lambda *_: None  # type: ignore[method-assign]
        app.Counted = lambda inner, *_: inner  # type: ignore[assignment,misc]
    log = None if int(bare) else f"sqlite:///{state}/log.db"
    settings = Settings(files=Files(state=state, uncommitted=True), keys=None, log=log, rate_limit=None)
    listening = socket.create_server(("127.0.0.1", int(port)))
    service = Service(settings)
    read, write = os.pipe()
    worker.Worker(worker.config_of(app.make_app(settings, service), 5), service, write).run(sockets=[listening])
    os.close(read)


def start(folder: Path, name: str, port: int, bare: bool) -> psutil.Process:
    state = folder / name.split(maxsplit=1)[0]
    state.mkdir()
    load = [sys.executable, "-m", "mlops_project.serving.loading", "--model", "models/best_model.joblib", "--policy",
            "models/policy.json", "--state", str(state), "--uncommitted"]  # fmt: skip
    subprocess.run(load, check=True, cwd=ROOT, capture_output=True)
    command = [sys.executable, __file__, "--serve", str(port), str(state), str(int(name != WITHOUT)), str(int(bare))]
    process = psutil.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2)
            return process
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{name}: not ready")


def ask(port: int, bodies: Path, seconds: float, process: psutil.Process) -> tuple[float, float]:
    """Return requests per second and CPU µs per request."""
    command = ["wrk", "-t1", "-c16", f"-d{seconds:g}s", "-H", "Content-Type: application/json", "-s",
               str(ROOT / "benchmarks/servers/post.lua"), f"http://127.0.0.1:{port}/v1/predict", "--", str(bodies)]  # fmt: skip
    before = sum(process.cpu_times()[:2])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = sum(process.cpu_times()[:2]) - before
    result = json.loads(done.stdout.splitlines()[-1])
    assert not result["failed"], done.stdout
    return result["requests"] / result["seconds"], used / result["requests"] * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help="without the prediction log")
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return 0
    import pandas as pd

    rows = pd.read_csv(ROOT / "data/processed/Xtest.csv", index_col=0).to_dict("records")
    cells = [{name: None if cell != cell else cell for name, cell in row.items()} for row in rows]  # noqa: PLR0124 - NaN
    folder = Path(tempfile.mkdtemp(prefix="metrics-"))
    bodies = folder / "bodies.jsonl"
    bodies.write_text("".join(json.dumps(cells[i : i + args.rows] * (1 + args.rows // len(cells))) + "\n" for i in range(100)))
    ports = {WITHOUT: 8471, WITH: 8472, SCRAPED: 8473}
    processes = {name: start(folder, name, port, args.bare) for name, port in ports.items()}
    ending = threading.Event()

    def scrape() -> None:
        while not ending.wait(1):
            urllib.request.urlopen(f"http://127.0.0.1:{ports[SCRAPED]}/metrics", timeout=30).read()

    thread = threading.Thread(target=scrape)
    thread.start()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ports}
    try:
        for turn in range(-1, args.rounds):  # the first is to warm up
            for name in list(ports)[:: 1 if turn % 2 else -1]:
                load = ask(ports[name], bodies, args.seconds, processes[name])
                if turn >= 0:
                    found[name].append(load)
    finally:
        ending.set()
        thread.join()
        for process in processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(folder)
    table: list[list[str]] = []
    passed = True
    for name in ports:
        rate, cpu = (statistics.median(load[i] for load in found[name]) for i in (0, 1))
        slower = statistics.median(base[0] / load[0] for base, load in zip(found[WITHOUT], found[name], strict=True))
        dearer = statistics.median(load[1] / base[1] for base, load in zip(found[WITHOUT], found[name], strict=True))
        passed &= name == WITHOUT or (slower < BAR and dearer < BAR)
        table.append([name, f"{rate:,.0f}", f"{cpu:.1f}", f"{slower:.3f}", f"{dearer:.3f}"])
    print_table(["metrics", "requests/s", "CPU µs/request", "throughput ratio", "CPU ratio"], table)
    print(f"below {BAR}: {'pass' if passed else 'FAIL'} (medians of {args.rounds} interleaved rounds)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
