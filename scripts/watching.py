"""Prometheus and Alertmanager with the shipped configuration, made short, on a running service: for tests and the drill.

All spans of time are divided (`FASTER`), targets are this machine's, and alerts go to a webhook in this process. Debian's
packages prometheus and prometheus-alertmanager will do.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
BINARIES = ("prometheus", "promtool", "prometheus-alertmanager")
FASTER = 60
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
START_SECONDS = 30


def absent() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in BINARIES if not shutil.which(name)]


def shorter(span: str) -> str:
    """Divide a span such as 5m; never below a second."""
    return f"{max(1, int(span[:-1]) * SECONDS[span[-1]] // FASTER)}s"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def write_configuration(folder: Path, service: int, alertmanager: int, webhook: int) -> None:
    """Write what is shipped with short spans and local addresses."""
    shipped = ROOT / "deploy"
    main = yaml.safe_load((shipped / "prometheus/prometheus.yaml").read_text(encoding="utf-8"))
    main["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
    main["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]
    main["scrape_configs"] = [part for part in main["scrape_configs"] if part["job_name"] == "credit-risk"]
    main["scrape_configs"][0] = {"job_name": "credit-risk", "static_configs": [{"targets": [f"127.0.0.1:{service}"]}]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(main), encoding="utf-8")
    for name in main["rule_files"]:
        rules = yaml.safe_load((shipped / "prometheus" / name).read_text(encoding="utf-8"))
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            rule["expr"] = re.sub(r"\[(\d+[smhd])\]", lambda found: f"[{shorter(found[1])}]", rule["expr"])
            if "for" in rule:
                rule["for"] = shorter(rule["for"])
        (folder / name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    alerts = yaml.safe_load((shipped / "alertmanager/alertmanager.yaml").read_text(encoding="utf-8"))
    for route in (alerts["route"], *alerts["route"]["routes"]):
        route |= {name: shorter(span) for name, span in route.items() if name in ("group_wait", "group_interval")}
    for receiver in alerts["receivers"]:
        for hook in receiver["webhook_configs"]:
            # Debian's Alertmanager is older than addresses in files.
            hook["url"] = f"http://127.0.0.1:{webhook}/{hook.pop('url_file').rpartition('/')[2]}"
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(alerts), encoding="utf-8")


class Watching:
    """Both programs on a service; they end with the block.

    Parameters
    ----------
    folder : Path
        For configuration and data.
    service : int
        Port of the service.
    react : callable, optional
        Called with each alert that the webhook gets; Alertmanager waits for it.
    """

    def __init__(self, folder: Path, service: int, react: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.told: list[dict[str, Any]] = []
        """Alerts as the webhook got them, with ``receiver`` and ``at``, seconds since 1970."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.told, react))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port, alertmanager, cluster = free_port(), free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        write_configuration(folder, service, alertmanager, self._server.server_port)
        self._processes = []
        for name, *arguments in (
            ("prometheus-alertmanager", "--config.file=alertmanager.yaml", "--storage.path=alerts",
             f"--web.listen-address=127.0.0.1:{alertmanager}", f"--cluster.listen-address=127.0.0.1:{cluster}"),
            ("prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
             f"--web.listen-address=127.0.0.1:{self.port}", "--rules.alert.resend-delay=1s"),
        ):  # fmt: skip
            with (folder / f"{name}.log").open("wb") as stream:
                self._processes.append(subprocess.Popen([name, *arguments], cwd=folder, stdout=stream, stderr=stream))
        try:
            urls = [f"http://127.0.0.1:{port}/-/ready" for port in (alertmanager, self.port)]
            self._until(lambda: all(map(_answers, urls)), "not ready")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)
        self._server.shutdown()
        self._server.server_close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is now: ``metric`` (labels) and ``value`` of each series."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?{query}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    def firing(self) -> set[str]:
        """Return the names of alerts that fire in Prometheus."""
        return {series["metric"]["alertname"] for series in self.query('ALERTS{alertstate="firing"}')}

    def wait_told(self, name: str, status: str, seconds: float = 90, since: int = 0) -> dict[str, Any]:
        """Wait until the webhook was told of an alert (``firing`` or ``resolved``), ``since`` so many it had been told of."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.told[since:] if one["labels"]["alertname"] == name and one["status"] == status]

        self._until(lambda: bool(found()), f"{name} {status}", seconds)
        return found()[0]

    def _until(self, holds: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not holds():
            if any(process.poll() is not None for process in self._processes):
                raise RuntimeError(f"waiting for {what}: Prometheus or Alertmanager has ended")
            if time.monotonic() > end:
                raise RuntimeError(f"{what}: not within {seconds:g} s; told: {self.told}")
            time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - of this machine
            return answer.status == 200
    except OSError:
        return False


def _handler(told: list[dict[str, Any]], react: Callable[[dict[str, Any]], None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.extend({**alert, "receiver": content["receiver"], "at": time.time()} for alert in content["alerts"])
            for alert in content["alerts"]:
                react(alert)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
