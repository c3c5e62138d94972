"""`mlops-serve` as it is started: processes, sockets and signals."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlops_project.serving import keys
from mlops_project.serving.models import load_served

pytestmark = pytest.mark.integration

START_SECONDS = 60


class Server:
    """A running service with files of its own."""

    def __init__(self, folder: Path, workers: int = 2, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "mlops_project.serving.server", "--port", "0", "--workers", str(workers), "--uncommitted",
                "--model", "model.joblib", "--policy", "policy.json", "--rate-limit", "off", *arguments,
            ],
            cwd=folder, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {}),
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = START_SECONDS, start: int = 0) -> re.Match[str]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.lines[start:]:
                if found := re.search(pattern, line):
                    return found
            if self.process.poll() is not None and not self.reader.is_alive():
                break
            time.sleep(0.02)
        pytest.fail(f"{pattern!r} not in:\n" + "\n".join(self.lines))

    def ready(self) -> "Server":
        self.port = int(self.wait_for(r"ready at http://127\.0\.0\.1:(\d+)")[1])
        return self

    @property
    def workers(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        return [process for process in found if process.is_running() and "mlops_project.serving.worker" in process.cmdline()]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(
        self, method: str, path: str, body: Any = None, connection: http.client.HTTPConnection | None = None, **headers: str
    ) -> Any:
        one = connection or self.connect()
        sent = {"content-type": "application/json"} if body is not None else {}
        one.request(method, path, json.dumps(body) if body is not None else None, sent | headers)
        answer = one.getresponse()
        content = answer.read()
        if connection is None:
            one.close()
        return answer.status, json.loads(content) if "json" in answer.getheader("content-type", "") else content

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.reader.join()
        return code


@pytest.fixture
def put(trained, tmp_path) -> Callable[[str], Path]:
    """Return a function that puts a trained model in place, as one does by hand: one file after the other."""

    def put(name: str) -> Path:
        source = Path(trained(name).files.model).parent
        for path in source.glob("*.j*"):
            shutil.copy(path, tmp_path / f".{path.name}.new")
            os.replace(tmp_path / f".{path.name}.new", tmp_path / path.name)
        return tmp_path

    return put


@pytest.fixture
def serve(put) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a service on the scorecard."""
    started: list[Server] = []

    def start(*arguments: str, workers: int = 2, insecure: bool = True, **settings: Any) -> Server:
        folder = put("scorecard")
        started.append(Server(folder, workers, *(["--insecure"] if insecure else []), *arguments, **settings))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()
        server.reader.join()
        assert server.process.stderr
        server.process.stderr.close()


def test_workers_are_small_and_ready_soon(serve, good):
    server = serve().ready()
    server.ask("POST", "/v1/predict?reasons=3", [good] * 1000)
    for process in server.workers:
        maps = {Path(part.path).name for part in process.memory_maps()}
        assert not any("pandas" in name or "sklearn" in name for name in maps)
        assert process.memory_info().rss < 120e6
    assert len(server.workers) == 2
    assert server.ask("GET", "/readyz")[0] == 200
    # Once the model was compared, a start is the start of the workers. Processor seconds: the machine may be busy.
    assert server.end() == 0
    again = serve().ready()
    for process in again.workers:
        times = process.cpu_times()
        assert times.user + times.system < 2
    assert "verified before" in "\n".join(again.lines)


def test_a_killed_worker_is_replaced_at_once(serve, good):
    server = serve().ready()
    victims = server.workers
    for victim in victims:
        victim.kill()
    begun = time.monotonic()
    status, _ = server.ask("POST", "/v1/predict", good)
    assert status == 200
    assert time.monotonic() - begun < 20
    server.wait_for(rf"worker {victims[0].pid} died \(SIGKILL\)")
    end = time.monotonic() + 20
    while len(server.workers) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert {process.pid for process in server.workers}.isdisjoint({victim.pid for victim in victims})
    assert b"mlops_worker_restarts_total 2.0" in server.ask("GET", "/metrics")[1]


def test_figures_are_of_all_workers_and_those_of_a_killed_one_stay(serve, good):
    def figure(name: str) -> float:
        lines = server.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def settles(name: str, expected: float) -> None:
        end = time.monotonic() + 20
        while (found := figure(name)) != expected and time.monotonic() < end:
            time.sleep(0.05)
        assert found == expected, name

    server = serve().ready()
    answers = 'mlops_http_requests_total{route="/v1/predict",status="200"}'
    # A connection each: whoever accepts it counts it.
    for _ in range(40):
        assert server.ask("POST", "/v1/predict", [good, good])[0] == 200
    settles(answers, 40)
    settles("mlops_predictions_total", 80)
    settles("mlops_workers", 2)
    victim = server.workers[0]
    victim.kill()
    server.wait_for(rf"worker {victim.pid} died")
    settles("mlops_workers", 2)
    for _ in range(10):
        assert server.ask("POST", "/v1/predict", good)[0] == 200
    settles(answers, 50)
    settles("mlops_predictions_total", 90)
    assert figure("mlops_probability_of_default_count") == 90
    assert figure("mlops_log_commit_seconds_count") == 50


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_waits_for_answers(serve, good, number):
    server = serve().ready()
    with socket.create_connection(("127.0.0.1", server.port)) as slow, contextlib.closing(server.connect()) as idle:
        server.ask("GET", "/healthz", connection=idle)
        body = json.dumps(good).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body[:10])
        time.sleep(0.5)
        server.process.send_signal(number)
        server.wait_for("ending")
        time.sleep(0.5)
        slow.sendall(body[10:])
        answer = b""
        while part := slow.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.process.wait(30) == 0
    assert not psutil.pid_exists(server.process.pid)


def test_workers_do_not_outlive_their_supervisor(serve):
    server = serve().ready()
    workers = server.workers
    server.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_the_model_is_exchanged_when_its_files_change(serve, put, good):
    server = serve().ready()
    old = server.ask("POST", "/v1/predict", good)[1]["model_version"]
    put("logistic_regression")
    server.wait_for("new model [0-9a-f]{12}: compared")
    time.sleep(0.6)
    assert {server.ask("POST", "/v1/predict", good)[1]["model_version"] for _ in range(20)}.isdisjoint({old})

    new = server.ask("POST", "/v1/predict", good)[1]["model_version"]
    (server.folder / "model.joblib").write_bytes(b"tampered with")
    server.wait_for("new model refused, the old one goes on: model.joblib: not loaded")
    assert server.ask("POST", "/v1/predict", good)[1]["model_version"] == new
    assert b'mlops_model_loads_total{outcome="refused"} 1.0' in server.ask("GET", "/metrics")[1]


def test_load_with_exchanges_and_kills_loses_and_mixes_nothing(serve, put, good, raw_table):
    """Every answer is one model's, every acknowledged one is in the log, and none is a fault but where a worker was killed."""
    expected: dict[str, float] = {}
    server = serve().ready()
    state = server.folder / "var/serving"
    answers: list[tuple[int, Any]] = []
    broken = [0]
    ending = threading.Event()

    def ask() -> None:
        connection = server.connect()
        while not ending.is_set():
            try:
                answers.append(server.ask("POST", "/v1/predict", good, connection))
            except (OSError, http.client.HTTPException):
                broken[0] += 1
                connection.close()
                connection = server.connect()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(6):
        name = "logistic_regression" if i % 2 == 0 else "scorecard"
        put(name)
        status, outcome = server.ask("POST", "/v1/admin/reload")
        assert status == 200, outcome
        served = load_served(state)
        expected[served.scorer.model_version] = float(served.scorer.p_good(served.scorer.parse([good]).values)[0])
        if i % 2:
            server.workers[0].kill()
        time.sleep(1)
    ending.set()
    for thread in threads:
        thread.join()
    assert server.end() == 0

    assert len(answers) > 500
    assert {status for status, _ in answers} == {200}
    assert broken[0] <= 3 * 4
    found = {(content["model_version"], content["predictions"][0]["p_good"]) for _, content in answers}
    assert {version for version, _ in found} == set(expected)
    for version, p_good in found:
        assert p_good == pytest.approx(expected[version], abs=1e-12)
    with contextlib.closing(sqlite3.connect(server.folder / "var/predictions.db")) as connection:
        logged = {row[0]: row[1] for row in connection.execute("SELECT request_id, model_version FROM requests")}
    assert all(logged.get(content["request_id"]) == content["model_version"] for _, content in answers)
    assert np.isfinite(list(expected.values())).all()


def test_a_bad_model_is_not_served_at_all(serve, put):
    server = serve("--model", "absent.joblib")
    assert server.process.wait(START_SECONDS) == 1
    server.reader.join()
    assert "error: absent.joblib" in server.lines[-1]
    assert "Traceback" not in "\n".join(server.lines)


def test_without_keys_it_does_not_start(serve):
    server = serve(insecure=False)
    assert server.process.wait(START_SECONDS) == 1
    server.reader.join()
    assert "mlops-keys create" in server.lines[-1]


def test_a_taken_port_is_told(serve):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = serve("--port", str(taken.getsockname()[1]))
        assert server.process.wait(START_SECONDS) == 1
        server.reader.join()
    assert "cannot listen there" in server.lines[-1]


def test_secrets_and_what_callers_send_stay_out_of_lines_and_arguments(serve, put, good):
    folder = put("scorecard")
    _, token = keys.create(folder / "keys.json", "caller", "predict")
    server = serve("--keys-file", "keys.json", insecure=False).ready()
    assert server.ask("POST", "/v1/predict", good, authorization=f"Bearer {token}")[0] == 200
    assert server.ask("POST", "/v1/predict", {"alter\nFAKE LINE": 1}, authorization=f"Bearer {token}")[0] == 422
    assert server.ask("GET", f"/v1/model?key={token}")[0] == 400
    shown = " ".join(" ".join(process.cmdline()) for process in server.workers)
    server.end()
    text = "\n".join(server.lines)
    assert token not in text + shown
    assert "FAKE LINE" not in text
