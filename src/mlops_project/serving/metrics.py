"""What Prometheus scrapes. Each worker counts in files of its own, whose sums any worker gives.

A request only leaves numbers and names in lists, which the garbage collector does not look into; twice a second all of them are
counted at once. Counting each request by itself costs as much as a tenth of answering it. A worker that is killed takes the
last half second with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from array import array
from collections import Counter as Count
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from mlops_project.serving import reported
from mlops_project.serving.state import read_events
from mlops_project.serving.stores import LogError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlops_project.serving.log import PredictionLog
    from mlops_project.serving.models import Models, Served
    from mlops_project.serving.problems import App, Receive, Scope, Send
    from mlops_project.serving.records import Report

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The library reads it when it is imported.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))
COUNT_EVERY = 0.5
# The log is read at most so often, and not waited for longer.
READ_EVERY, READ_SECONDS = 5.0, 1.0
# Series that alerts ask for are there before the first of their events: from nothing to 1 is no rise to Prometheus.
ROUTE, STATUSES = "/v1/predict", (200, 429, 500, 503)
DECISIONS = ("approve", "refuse")
# Reasons for which cells of applicants are missing to the model.
TREATED, ABSENT = "treated", "absent"

logger = logging.getLogger(__name__)


class Noted:
    """What is still to be counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, array[float]] = defaultdict(lambda: array("d"))
        """Of each answer, by route."""
        self.statuses: Count[tuple[str, int]] = Count()
        self.decisions = dict.fromkeys(DECISIONS, 0)
        self.p_default = array("d")
        self.treated: list[str] = []
        """Columns, once per applicant whose cell was treated as missing."""
        self.absent: list[str] = []
        self.commits = array("d")
        """Seconds that each record waited for its commit."""


class Metrics:
    """Counters of one worker.

    Parameters
    ----------
    state : Path
        Folder in which supervisor and `loading` count what they did.
    models : Models
    routes : collection of str
        Paths that get a label of their own; all others share one, so that callers cannot make labels.
    """

    def __init__(self, state: Path, models: Models, routes: frozenset[str]) -> None:
        self._state, self._models, self._routes = state, models, routes
        self.log: PredictionLog | None = None
        self._reports: dict[str, Report] = {}
        self._first_served: dict[str, float] = {}
        self._log_usable, self._read_at = True, -math.inf
        self._noted = Noted()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("mlops_http_requests", "Answered requests", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "mlops_http_request_seconds", "Seconds until a request was answered", ["route"], buckets=SECONDS, registry=registry
        )
        self._predictions = Counter("mlops_predictions", "Scored applicants", ["decision"], registry=registry)
        self._scores = Histogram(
            "mlops_probability_of_default", "P(default) of scored applicants", buckets=SHARES, registry=registry
        )
        self._cells = Counter(
            "mlops_cells_missing",
            "Cells of scored applicants that were missing to the model: absent, or treated as missing",
            ["feature", "reason"],
            registry=registry,
        )
        self._commits = Histogram(
            "mlops_log_commit_seconds", "Seconds that records waited for their commit", buckets=SECONDS, registry=registry
        )
        self._failures = Counter("mlops_log_failures", "Records that could not be written", registry=registry)
        gauges: dict[str, tuple[str, Any]] = {
            "mlops_workers": ("Workers that answer", "livesum"),
            "mlops_log_waiting_records": ("Records that wait for their commit", "livesum"),
            "mlops_log_oldest_waiting_seconds": ("Since when the oldest of them waits", "livemax"),
        }
        self._workers, self._waiting, self._oldest = (
            Gauge(name, text, multiprocess_mode=mode, registry=registry) for name, (text, mode) in gauges.items()
        )
        self._workers.set(1)
        for status in STATUSES:
            self._requests.labels(ROUTE, str(status))
        self._seconds.labels(ROUTE)
        for decision in DECISIONS:
            self._predictions.labels(decision)
        models.on_change = self._changed

    def _changed(self, served: Served) -> None:
        for name in served.scorer.columns:
            for reason in (TREATED, ABSENT):
                self._cells.labels(name, reason)

    def predicted(self, scored: Any) -> None:
        """Note scored applicants: lists ``decision``, ``probability_of_default``, ``treated_as_missing`` and ``missing``."""
        noted = self._noted
        for decision in DECISIONS:
            noted.decisions[decision] += scored.decision.count(decision)
        noted.p_default.fromlist(scored.probability_of_default)
        # Most are empty.
        noted.treated += chain.from_iterable(filter(None, scored.treated_as_missing))
        noted.absent += chain.from_iterable(filter(None, scored.missing))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Note an answered request."""
        route = path if path in self._routes else "other"
        self._noted.statuses[route, status] += 1
        self._noted.seconds[route].append(seconds)

    def committed(self, seconds: list[float], failed: int) -> None:
        """Note records that were written after these seconds, and count those that could not be."""
        self._noted.commits.extend(seconds)
        if failed:
            self._failures.inc(failed)

    def count(self) -> None:
        """Count what was noted."""
        noted, self._noted = self._noted, Noted()
        for (route, status), n in noted.statuses.items():
            self._requests.labels(route, str(status)).inc(n)
        for route, seconds in noted.seconds.items():
            _observe(self._seconds.labels(route), SECONDS, seconds)
        for decision, n in noted.decisions.items():
            self._predictions.labels(decision).inc(n)
        _observe(self._scores, SHARES, noted.p_default)
        for reason, names in ((TREATED, noted.treated), (ABSENT, noted.absent)):
            for name, n in Count(names).items():
                self._cells.labels(name, reason).inc(n)
        _observe(self._commits, SECONDS, noted.commits)
        if self.log is not None:
            waiting, oldest = self.log.waiting()
            self._waiting.set(waiting)
            self._oldest.set(oldest)

    async def keep_counting(self) -> None:
        """Count until cancelled."""
        while True:
            await asyncio.sleep(COUNT_EVERY)
            try:
                self.count()
            except Exception:  # whatever it is, requests are answered
                logger.exception("what was noted could not be counted")

    async def scrape(self) -> bytes:
        """Return all metrics in the text format."""
        await self._read_log()
        self.count()
        return self.text()

    async def _read_log(self) -> None:
        if self.log is None or time.monotonic() - self._read_at < READ_EVERY:
            return
        self._read_at = time.monotonic()
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._reports = await self.log.reports()
                served = self._models.current
                if served and served.pointer.model_version not in self._first_served:
                    version = served.pointer.model_version
                    self._first_served[version] = await self.log.first_served(version)
            self._log_usable = True
        except (LogError, TimeoutError):
            self._log_usable = False

    def text(self) -> bytes:
        """Return what was counted, and what is known, in the text format."""
        registry = CollectorRegistry()
        if FOLDER in os.environ:
            MultiProcessCollector(registry)
        else:
            registry = self._registry
        whole = CollectorRegistry()
        whole.register(self)
        return generate_latest(registry) + generate_latest(whole)

    def collect(self) -> Iterator[Any]:
        """Yield what is not counted by workers; the interface of prometheus-client."""
        served = self._models.current
        info = GaugeMetricFamily("mlops_model_info", "Model that answers", labels=["model_version", "name"])
        loaded = GaugeMetricFamily("mlops_model_loaded_seconds", "When it passed its checks, seconds since 1970")
        first = GaugeMetricFamily("mlops_model_first_served_seconds", "When it first answered anywhere, seconds since 1970")
        if served:
            version = served.pointer.model_version
            info.add_metric([version, served.scorer.header["name"]], 1)
            loaded.add_metric([], served.pointer.loaded)
            first.add_metric([], self._first_served.get(version, served.pointer.loaded))
        yield from (info, loaded, first)
        events = read_events(self._state)
        yield CounterMetricFamily("mlops_worker_restarts", "Workers started anew", value=events.get("restarts", 0))
        loads = CounterMetricFamily("mlops_model_loads", "Models looked at", labels=["outcome"])
        for outcome in ("loaded", "refused"):
            loads.add_metric([outcome], events.get(outcome, 0))
        yield loads
        if self.log is not None:
            yield GaugeMetricFamily("mlops_log_usable", "Whether the prediction log can be written", value=self._log_usable)
            yield from reported.families(self._reports)


def _observe(histogram: Any, bounds: tuple[float, ...], values: array[float]) -> None:
    """Add many values to a histogram at once, which prometheus-client has no public way for."""
    if values:
        for i, n in enumerate(np.bincount(np.searchsorted(bounds, values)).tolist()):
            if n:
                histogram._buckets[i].inc(n)  # noqa: SLF001
        histogram._sum.inc(float(np.sum(values)))  # noqa: SLF001


class Counted:
    """Counts every answer of an application."""

    def __init__(self, app: App, metrics: Metrics, clock: Any) -> None:
        self._app, self._metrics, self._clock = app, metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = self._clock(), 0

        def counting(message: Any) -> Any:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            # 499: the caller went away without an answer.
            self._metrics.answered(scope["path"], status or 499, self._clock() - begun)
