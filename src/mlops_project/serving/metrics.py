"""What Prometheus scrapes. Each worker counts in files of its own, whose sums any worker gives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from mlops_project.serving.state import read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlops_project.serving.models import Models
    from mlops_project.serving.problems import App, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The library reads it when it is imported.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


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
        self._registry = CollectorRegistry()
        self._requests = Counter("mlops_http_requests", "Answered requests", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "mlops_http_request_seconds",
            "Seconds until a request was answered",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._applicants = Counter("mlops_predictions", "Scored applicants", registry=self._registry)
        # Looking up a child by its labels costs more than counting.
        self._children: dict[tuple[str, int], Any] = {}
        self._histograms: dict[str, Any] = {}

    def predicted(self, n: int) -> None:
        """Count scored applicants."""
        self._applicants.inc(n)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        route = path if path in self._routes else "other"
        found = self._children.get((route, status))
        if found is None:
            found = self._children[route, status] = self._requests.labels(route, str(status))
        found.inc()
        histogram = self._histograms.get(route)
        if histogram is None:
            histogram = self._histograms[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format."""
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
        if served:
            info.add_metric([served.pointer.model_version, served.scorer.header["name"]], 1)
            loaded.add_metric([], served.pointer.loaded)
        yield info
        yield loaded
        events = read_events(self._state)
        yield CounterMetricFamily("mlops_worker_restarts", "Workers started anew", value=events.get("restarts", 0))
        loads = CounterMetricFamily("mlops_model_loads", "Models looked at", labels=["outcome"])
        for outcome in ("loaded", "refused"):
            loads.add_metric([outcome], events.get(outcome, 0))
        yield loads


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

        async def counting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            # 499: the caller went away without an answer.
            self._metrics.answered(scope["path"], status or 499, self._clock() - begun)
