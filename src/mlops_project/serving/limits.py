"""Rate limit per API key, in windows that begin with the clock: ``600/minute`` starts anew with every minute."""

from __future__ import annotations

import logging
import math
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from limits import parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.errors import ConfigurationError

from mlops_project.errors import PipelineError
from mlops_project.serving.problems import Answer, Headers, problem

# Redis answers in under a millisecond; who waits longer than this waits for nothing.
REDIS_SECONDS = 0.25
# How long Redis is left alone after it failed: not every request pays the wait.
REDIS_PAUSE = 2.0

logger = logging.getLogger(__name__)


class LimiterDown(Exception):  # noqa: N818 - an answer, not a fault
    """The shared counters cannot be reached, and the settings say that then nobody is let in."""

    def answer(self) -> Answer:
        """Return the problem that the caller gets."""
        status, headers, body = problem(503, "Service Unavailable", "the rate limit cannot be checked; try again soon")
        return status, [*headers, (b"retry-after", b"%d" % math.ceil(REDIS_PAUSE))], body


class Quota(NamedTuple):
    """What is left to a key in this window."""

    limit: int
    remaining: int
    reset_seconds: int
    """Until the next window."""
    allowed: bool

    def headers(self) -> Headers:
        """Return the headers of every answer, allowed or not."""
        return [
            (b"ratelimit-limit", b"%d" % self.limit),
            (b"ratelimit-remaining", b"%d" % self.remaining),
            (b"ratelimit-reset", b"%d" % self.reset_seconds),
        ]

    def answer(self) -> Answer:
        """Return the problem of a caller who is not allowed."""
        detail = f"the limit of {self.limit} is reached; it starts anew in {self.reset_seconds} s"
        status, headers, body = problem(429, "Too Many Requests", detail)
        return status, [*headers, *self.headers(), (b"retry-after", b"%d" % self.reset_seconds)], body


class RateLimiter:
    """Counts what each key costs; what would go over the limit is refused and not counted.

    With ``memory://`` each worker process counts for itself: n workers let through up to n times the limit. With
    ``redis://`` all workers and machines share one count.

    Parameters
    ----------
    rule : str
        Such as ``600/minute`` or ``10/5 seconds``, in the notation of the library limits.
    storage_url : str
        ``memory://``, or ``redis://``, ``rediss://`` or ``redis+unix://`` with host, and password if needed.
    fail_closed : bool
        What holds while Redis is down: refuse everybody (`LimiterDown`), or, by default, let each worker count in its
        memory by the same rule. Both changes are logged once.

    Raises
    ------
    PipelineError
        If the rule or the URL is none.
    """

    def __init__(self, rule: str, storage_url: str = "memory://", *, fail_closed: bool = False) -> None:
        try:
            item = parse(rule)
        except ValueError:
            raise PipelineError(f"rate limit: found {rule!r}, expected something like 600/minute or 10/5 seconds") from None
        self.limit, self._seconds = item.amount, item.get_expiry()
        self._memory = MemoryStorage()
        self._shared = _redis(storage_url)
        self._errors: tuple[type[Exception], ...] = (OSError,)
        if self._shared is not None:
            from redis.exceptions import RedisError

            self._errors = (OSError, RedisError)
        self._server = urlsplit(storage_url).hostname or "its socket"  # never the URL: it holds a password
        self._fail_closed = fail_closed
        self._down = False
        self._shared_again_at = 0.0

    async def hit(self, key_id: str, cost: int = 1) -> Quota:
        """Count ``cost`` for a key.

        Raises
        ------
        LimiterDown
            If Redis is down and the policy is to fail closed.
        """
        if self._shared is not None and time.monotonic() >= self._shared_again_at:
            try:
                quota = await self._hit(self._shared, key_id, cost)
            except self._errors as error:
                self._failed(error)
            else:
                if self._down:
                    self._down = False
                    logger.warning("rate limit: Redis at %s is back; all workers share one count again", self._server)
                return quota
        if self._shared is not None and self._fail_closed:
            raise LimiterDown
        return await self._hit(self._memory, key_id, cost)

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._shared is not None:
            await self._shared.bridge.storage.aclose()  # type: ignore[attr-defined]

    async def _hit(self, storage: Storage, key_id: str, cost: int) -> Quota:
        now = time.time()
        window = int(now // self._seconds)
        reset = max(1, math.ceil((window + 1) * self._seconds - now))
        name = f"{key_id}/{self._seconds}/{window}"
        # One round trip: the count says all that the headers need.
        count = await storage.incr(name, self._seconds + 1, cost)
        if count <= self.limit:
            return Quota(self.limit, self.limit - count, reset, True)
        await storage.incr(name, self._seconds + 1, -cost)
        return Quota(self.limit, max(0, self.limit - (count - cost)), reset, False)

    def _failed(self, error: Exception) -> None:
        self._shared_again_at = time.monotonic() + REDIS_PAUSE
        if not self._down:
            self._down = True
            policy = "requests are refused" if self._fail_closed else "each worker counts for itself"
            logger.error(
                "rate limit: Redis at %s does not answer (%s); %s until it does", self._server, type(error).__name__, policy
            )


def _redis(url: str) -> RedisStorage | None:
    if url in ("memory", "memory://"):
        return None
    if not url.startswith(("redis://", "rediss://", "redis+unix://")):
        raise PipelineError("the URL of the rate limit: expected memory://, redis://host:port or rediss://host:port")
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    try:
        return RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix="mlops",
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 1),  # type: ignore[arg-type] # a connection that Redis closed is made anew
        )
    except (ConfigurationError, ValueError):  # their message holds the URL
        raise PipelineError(
            "the URL of the rate limit: cannot be read, expected redis://[:password@]host:port[/database]"
        ) from None
