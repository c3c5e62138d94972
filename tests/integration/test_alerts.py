"""Alerts for real: Prometheus and Alertmanager watch a running service, faults are made, and a webhook is told."""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from mlops_project.monitoring.drift import drift
from mlops_project.monitoring.incoming import incoming
from mlops_project.monitoring.monitor import main
from mlops_project.monitoring.quality import Decided, Window, quality
from mlops_project.monitoring.views import VIEWS
from mlops_project.monitoring.windows import rows_of
from mlops_project.serving.stores import open_store
from mlops_project.validation import validate_table
from running import Running, train
from watching import Watching, free_port

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prometheus_installed")]


class Watched(NamedTuple):
    running: list[Running]
    """The service, the last of them."""
    watching: Watching
    folder: Path
    port: int
    good: dict[str, Any]

    @property
    def log(self) -> Path:
        return self.folder / "var/predictions.db"

    def report(self, name: str, content: dict[str, Any]) -> None:
        with contextlib.closing(open_store(f"sqlite:///{self.log}")) as store:
            store.put_report(name, json.dumps(content).encode())

    def start(self) -> None:
        self.running.append(Running(self.folder, "--port", str(self.port), "--insecure", "--rate-limit", "6000/minute"))


@pytest.fixture(scope="module")
def reports(contract, params, clean_table, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Reports as the commands write them, of rows that did not move."""
    rng = np.random.default_rng(0)
    table = clean_table.astype(str)
    half = rng.permutation(len(table)) < 500
    sides = [rows_of(table[side], contract, rng.random(side.sum()), name) for side, name in ((half, "a"), (~half, "b"))]
    rows = Decided(np.array([1, 1, 1, 1, 0] * 60), rng.random(300), np.ones(300))
    counts = tmp_path_factory.mktemp("counts") / "prepare.json"
    columns = {name: {"missing": 20, "tokens": 5, "out_of_contract": 10} for name in contract.features}
    counts.write_text(json.dumps({"rows": {"read": 1000}, "columns": columns}))
    judged = quality(Window(rows, 900, 310, {"a" * 64: 310}), rows, params.quality, params.evaluate, time.time())
    judged["rows"]["waiting"] = 17
    return {
        "drift": drift(*sides, contract, params.monitoring),
        "quality": judged,
        "data": incoming(validate_table(table[half], contract), counts, params.quality),
    }


@pytest.fixture(scope="module")
def watched(prometheus_installed, contract, reports, tmp_path_factory) -> Iterator[Watched]:
    """A service under traffic, watched."""
    folder, port = tmp_path_factory.mktemp("service"), free_port()
    train(folder)
    columns = contract.columns
    good = {name: columns[name].code_list[0] if columns[name].codes else columns[name].range[0] for name in contract.features}
    first = contract.features[0]
    bodies = [json.dumps(body).encode() for body in (good, {**good, first: "?"}, [good, {}, good])]
    ending = threading.Event()

    def ask() -> None:
        at = 0
        while not ending.wait(0.05):
            at += 1
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("POST", "/v1/predict", bodies[at % len(bodies)], {"content-type": "application/json"})
                connection.getresponse().read()
                connection.close()

    with Watching(tmp_path_factory.mktemp("watching"), port) as watching:
        found = Watched([], watching, folder, port, good)
        found.start()
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for name, report in reports.items():
                found.report(name, report)
            yield found
        finally:
            ending.set()
            thread.join()
            found.running[-1].kill()


# --- configuration


def test_the_shipped_configuration_is_valid_and_its_alerts_do_what_they_say():
    for command in (["check", "config", "prometheus.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=ROOT / "deploy/prometheus", capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr


def alert_rules() -> list[dict[str, Any]]:
    found = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in found["groups"] for rule in group["rules"]]


def test_every_alert_has_a_section_in_the_runbook_and_a_test():
    book = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    tests = (ROOT / "deploy/prometheus/rules_test.yaml").read_text(encoding="utf-8")
    rules = alert_rules()
    sections = re.findall(r"^## (\w+)$", book, re.MULTILINE)
    assert sections == [rule["alert"] for rule in rules]
    for rule in rules:
        name = rule["alert"]
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert f'alertname="{name}"' in tests or f"alertname: {name}" in tests, name


# --- alerts


def test_a_service_that_is_well_raises_no_alert(watched):
    end = time.monotonic() + 60
    # Prometheus knows no target in its first moment.
    while not watched.watching.query("mlops:predictions:rate5m > 0") or watched.watching.firing():
        assert time.monotonic() < end, watched.watching.firing()
        time.sleep(0.2)
    settled = datetime.now(UTC)
    time.sleep(8)
    assert watched.watching.firing() == set()
    assert all(datetime.fromisoformat(alert["startsAt"]) < settled for alert in watched.watching.told)


def test_a_log_that_cannot_be_written_is_told_and_told_to_be_over(watched):
    before, aside = len(watched.watching.told), watched.log.with_suffix(".aside")
    watched.log.rename(aside)
    fired = watched.watching.wait_told("LogNotWritten", "firing", since=before)
    assert fired["receiver"] == "pager"
    assert fired["annotations"]["runbook"] == "docs/runbook.md#lognotwritten"
    # Callers get 503, which uses up the budget of errors.
    watched.watching.wait_told("ErrorBudgetFast", "firing", since=before)
    aside.rename(watched.log)
    watched.watching.wait_told("LogNotWritten", "resolved", since=before)
    watched.watching.wait_told("ErrorBudgetFast", "resolved", since=before, seconds=120)


def test_drift_is_told_and_told_to_be_over(watched, reports):
    before = len(watched.watching.told)
    watched.report("drift", reports["drift"] | {"drift": True})
    assert watched.watching.wait_told("Drift", "firing", since=before)["receiver"] == "tickets"
    watched.report("drift", reports["drift"])
    watched.watching.wait_told("Drift", "resolved", since=before)


def test_a_service_that_is_stopped_is_told_and_told_to_be_over(watched):
    before = len(watched.watching.told)
    assert watched.running[-1].end() == 0
    fired = watched.watching.wait_told("ServiceDown", "firing", since=before)
    assert fired["annotations"]["summary"] == f"The credit-risk service 127.0.0.1:{watched.port} does not answer"
    watched.start()
    watched.watching.wait_told("ServiceDown", "resolved", since=before)


# --- the dashboard


def queries() -> list[tuple[str, str, str]]:
    found = json.loads((ROOT / "deploy/grafana/dashboard.json").read_bytes())
    view, out = "", []
    for panel in found["panels"]:
        if panel["type"] == "row":
            view = panel["title"]
        out += [(view, panel["title"], target["expr"]) for target in panel.get("targets", ())]
    return out


@pytest.mark.parametrize(("view", "title", "query"), queries())
def test_every_query_of_the_dashboard_returns_data(watched, view, title, query):
    end = time.monotonic() + 60
    while True:
        values = [float(series["value"][1]) for series in watched.watching.query(query)]
        if values and np.isfinite(values).any():
            return
        assert time.monotonic() < end, f"{view}, {title}: {query} returns {values}"
        time.sleep(0.5)


# --- the page

BROWSER, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
STICKS_OUT = """
return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))
"""


def test_the_page_shows_the_four_views_with_data_and_needs_no_network(watched, tmp_path):
    page = tmp_path / "monitor.html"
    command = ["report", "--prometheus", f"http://127.0.0.1:{watched.watching.port}", "--hours", "0.02", "-o", str(page)]
    end = time.monotonic() + 60
    while main(command) == 0 and (without := page.read_text(encoding="utf-8").count("no data")):
        assert time.monotonic() < end, f"{without} panels without data"
        time.sleep(1)
    if not (shutil.which(BROWSER) and shutil.which(DRIVER)):
        reason = f"{BROWSER} or {DRIVER} is absent; Debian: apt install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as browser:
        for width in (390, 1300):
            browser.set_window_size(width, 900)
            browser.get(page.as_uri())
            assert browser.execute_script(STICKS_OUT) == []
        assert [one.text for one in browser.find_elements("css selector", "h2")] == [*VIEWS]
        figures = browser.find_elements("css selector", "figure")
        assert len(figures) == sum(map(len, VIEWS.values()))
        assert all(one.size["height"] > 30 for one in figures)
        assert browser.get_log("browser") == []
        browser.set_window_size(1300, 4200)
        browser.save_screenshot(str(tmp_path / "page.png"))


def test_a_prometheus_that_does_not_answer_is_said(workdir, capsys):
    assert main(["report", "--prometheus", f"http://127.0.0.1:{free_port()}"]) == 1
    assert "Prometheus does not answer" in capsys.readouterr().err
    assert main(["report", "--prometheus", "file:///etc/passwd"]) == 1
    assert "expected http://host:port" in capsys.readouterr().err
    assert not Path("reports/monitor.html").exists()
