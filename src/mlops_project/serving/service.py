"""What the routes share: who is let in, which model answers, and where answers are kept."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_project.serving.keys import KeyStore, presented
from mlops_project.serving.limits import RateLimiter
from mlops_project.serving.log import PredictionLog
from mlops_project.serving.metrics import Metrics
from mlops_project.serving.models import Models

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mlops_project.serving.problems import Answer, Headers
    from mlops_project.serving.records import Record
    from mlops_project.serving.settings import Settings

ROUTES = frozenset(
    [
        "/v1/predict",
        "/v1/model",
        "/v1/outcomes",
        "/v1/admin/reload",
        "/healthz",
        "/readyz",
        "/metrics",
        "/",
        "/docs",
        "/openapi.json",
    ]
)


class Service:
    """What the routes share.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = Models(Path(settings.files.state))
        self.keys = None if settings.keys is None else KeyStore(settings.keys)
        self.limiter = None
        if settings.rate_limit is not None:
            self.limiter = RateLimiter(settings.rate_limit, settings.rate_storage, fail_closed=settings.rate_fail_closed)
        self.log: PredictionLog | None = None
        self.metrics = Metrics(Path(settings.files.state), self.models, ROUTES)

    async def admit(self, headers: Headers, scope: str) -> Headers:
        """Let a request in, or not; return the headers that its answer gets.

        Raises
        ------
        KeyRefused, LimiterDown, Refusal
            Who is not let in.
        """
        caller = "all" if self.keys is None else self.keys.check(presented(headers), scope).id
        if self.limiter is None:
            return []
        quota = await self.limiter.hit(caller)
        if not quota.allowed:
            status, more, body = quota.answer()
            raise Refused((status, more, body))
        return quota.headers()

    async def keep(self, record: Record) -> None:
        """Return when the record is safe. Raises LogError."""
        if self.log is not None:
            await self.log.append([record])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the log, take the model, watch for another; at the end write what waits."""
        settings = self.settings
        if settings.log is not None:
            self.log = PredictionLog.open(settings.log, retention=settings.retention, durable=settings.durable)
            self.log.on_commit, self.metrics.log = self.metrics.committed, self.log
        self.models.look()
        tasks = [asyncio.create_task(self.models.watch()), asyncio.create_task(self.metrics.keep_counting())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            if self.log is not None:
                await self.log.close()
            self.metrics.count()
            if self.limiter is not None:
                await self.limiter.close()


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """Carries an answer that stands already."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def answer(self) -> Answer:
        return self._answer
