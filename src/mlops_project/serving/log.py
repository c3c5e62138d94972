"""The prediction log as the service writes it: safe before the answer is sent, several records at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mlops_project.serving.stores import LogError, SqliteStore, Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlops_project.serving.records import Record, Report

# What is appended in the loop goes on to the table when it is so much; a record writes its pages anew, and those of indexes.
CHECKPOINT_BYTES, ROW_BYTES = 4 * 1024 * 1024, 8192
# Requests that are enough for a commit; seconds that a sync may take in the event loop; and the most commits in a row that are
# left to the thread when it took longer.
ENOUGH, FAST_SYNC, MOST_LEFT = 64, 1e-3, 1024
SMALL_BYTES = 4096
# Inputs that may wait for the writer; more are refused, so that a log that hangs does not fill the memory.
MAX_WAITING_BYTES = 256 * 1024 * 1024
PRUNE_EVERY, PRUNE_AT_ONCE = 3600.0, 200

logger = logging.getLogger(__name__)


class PredictionLog:
    """Appends from an event loop; what comes in during a commit goes together into the next one.

    Where the store can be written without waiting (``at_once``) the loop does it, and syncs as long as the disk is fast: two
    threads that take turns with Python's lock cost more. All else is left to a thread, which waits, tries and says what is wrong.

    Each worker process has its own. All methods that return futures are called in the event loop.

    Parameters
    ----------
    store : Store
        For the thread.
    at_once : SqliteStore, optional
        A second one of the same log, which never waits.
    retention : float, optional
    """

    def __init__(self, store: Store, at_once: SqliteStore | None = None, retention: float | None = None) -> None:
        self._store, self._at_once = store, at_once
        self._retention = retention
        self.on_commit: Callable[[list[float], int], None] = lambda *_: None
        """Told in the event loop of each commit: the seconds since its records came, and how many were not written."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[_Job] = []
        self._in_hand: list[_Job] = []
        self._waiting_bytes = 0
        self._to_move = 0
        """Bytes that were appended since the last checkpoint, roughly."""
        self._slow, self._left_to_thread = 1, 0
        self._busy = self._closed = False
        self._queue: SimpleQueue[tuple[asyncio.AbstractEventLoop, list[_Job]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, url: str, *, retention: float | None = None, durable: bool = True) -> PredictionLog:
        """Open the log, or make it.

        Parameters
        ----------
        url : str
            ``sqlite:///relative/path``, ``sqlite:////absolute/path`` or ``postgresql://…``.
        retention : float, optional
            Seconds after which records are deleted, looked at every hour.
        durable : bool
            Whether a commit survives the loss of power; else only that of the process.

        Raises
        ------
        LogError
            If it cannot be opened, or was made by a newer version.
        """
        store = open_store(url, durable=durable)
        return cls(store, store.at_once(), retention)

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        """Return a future that is done when the records are committed; it raises `LogError` if they are not.

        Raises
        ------
        LogError
            If the log is closed, or too much is waiting.
        """
        return self._submit(_Job(self._store.append, records, sum(len(record.inputs) for record in records)))

    def outcomes(self, outcomes: Sequence[tuple[str, int, str]]) -> asyncio.Future[list[tuple[str, int]]]:
        """Set outcomes of predictions; a later one replaces an earlier one.

        Returns
        -------
        future of list of (request id, position)
            Those that the log does not hold (any more).
        """
        return self._submit(_Job(self._store.outcomes, outcomes, 0))

    def reports(self) -> asyncio.Future[dict[str, Report]]:
        """Return the latest reports by name, see `Store.reports`."""
        return self._submit(_Job(lambda _: self._store.reports(), (), 0))

    def first_served(self, model_version: str) -> asyncio.Future[float]:
        """Return since when a model answers, see `Store.first_served`."""
        return self._submit(_Job(lambda _: self._store.first_served(model_version), (), 0))

    def waiting(self) -> tuple[int, float]:
        """Return how many records wait for their commit, and since how many seconds the oldest does."""
        jobs = [job for job in (*self._in_hand, *self._waiting) if job.work == self._store.append]
        return sum(len(job.payload) for job in jobs), time.monotonic() - jobs[0].begun if jobs else 0.0

    async def close(self) -> None:
        """Write what waits, then close."""
        if not self._closed:
            last = self._submit(_Job(lambda _: None, (), 0))
            self._closed = True
            await last
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            if self._at_once is not None:
                self._at_once.close()
            self._store.close()

    def _submit(self, job: _Job) -> asyncio.Future[Any]:
        if self._closed:
            raise LogError("the prediction log is closed")
        if self._waiting_bytes + job.size > MAX_WAITING_BYTES:
            raise LogError("the prediction log is too slow for what comes in")
        loop = self._loop = self._loop or asyncio.get_running_loop()
        job.future = loop.create_future()
        self._waiting.append(job)
        self._waiting_bytes += job.size
        if not self._busy:
            self._busy = True
            loop.call_soon(self._gather, loop, 0)
        return job.future

    def _gather(self, loop: asyncio.AbstractEventLoop, before: int) -> None:
        """Wait for the other requests of this turn of the loop, and of the next one, while they become more: a sync is dear."""
        if before < len(self._waiting) < ENOUGH:
            loop.call_soon(self._gather, loop, len(self._waiting))
        else:
            self._hand_over(loop)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._in_hand = jobs
        # One small request alone: the loop has nothing else to do, and its caller gets the answer sooner from the thread.
        alone = len(jobs) == 1 and jobs[0].size < SMALL_BYTES
        if not alone and self._append_at_once(jobs) and self._sync_at_once(jobs):
            self._settle(loop, jobs)
            if self._to_move > CHECKPOINT_BYTES:
                self._queue.put((loop, []))
        else:
            self._queue.put((loop, jobs))

    def _append_at_once(self, jobs: list[_Job]) -> bool:
        """Append what is to be appended, unless this would take time, and return whether that was all."""
        appends = [job for job in jobs if job.work == self._store.append]
        if self._at_once is not None and appends:
            records = [record for job in appends for record in job.payload]
            written = _run(partial(self._at_once.append, records)) is None
            for job in appends:
                job.written = written
            self._to_move += sum(ROW_BYTES + len(record.inputs) + len(record.results) for record in records) if written else 0
        return all(job.written for job in jobs)

    def _sync_at_once(self, jobs: list[_Job]) -> bool:
        """Sync unless it may take time: the slower the disk stays, the more is left to the thread."""
        if self._left_to_thread or self._store.doubtful:
            self._left_to_thread = max(0, self._left_to_thread - 1)
            return False
        begun = time.perf_counter()
        error = _run(self._store.sync)
        for job in jobs:
            job.error = error
        if time.perf_counter() - begun > FAST_SYNC:
            self._slow = min(2 * self._slow, MOST_LEFT)
            self._left_to_thread = self._slow
        else:
            self._slow = 1
        return True

    def _settle(self, loop: asyncio.AbstractEventLoop, jobs: list[_Job]) -> None:
        for job in jobs:
            if not job.future.done():
                if job.error is None:
                    job.future.set_result(job.result)
                else:
                    what = f"{type(job.error).__name__}: {job.error}"
                    job.future.set_exception(LogError(" ".join(what.split())))  # its own: a traceback grows with each raise
        appends, now = [job for job in jobs if job.work == self._store.append], time.monotonic()
        self.on_commit([now - job.begun for job in appends if job.error is None], sum(job.error is not None for job in appends))
        self._in_hand = []
        if self._waiting:
            self._hand_over(loop)
        else:
            self._busy = False

    def _work(self) -> None:
        """In the thread."""
        prune_at = time.monotonic()
        while True:
            wait = None if self._retention is None else max(0.0, prune_at - time.monotonic())
            try:
                item = self._queue.get(timeout=wait)
            except Empty:
                prune_at = time.monotonic() + self._prune()
                continue
            if item is None:
                return
            loop, jobs = item
            if jobs:
                self._write(jobs)
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(self._settle, loop, jobs)
            if self._to_move > CHECKPOINT_BYTES:
                self._to_move = 0
                if error := _run(self._store.checkpoint):
                    logger.error("the prediction log does not get smaller: %s", error)
            if wait == 0.0:
                prune_at = time.monotonic() + self._prune()

    def _write(self, jobs: list[_Job]) -> None:
        if written := [job for job in jobs if job.written]:
            error = _run(self._store.sync)
            for job in written:
                job.error = error
            jobs = [job for job in jobs if not job.written]
        appends = [job for job in jobs if job.work == self._store.append]
        if len(appends) > 1:
            error = _run(lambda: self._store.append([record for job in appends for record in job.payload]))
            if not isinstance(error, self._store.data_errors):
                for job in appends:
                    job.error = error
                jobs = [job for job in jobs if job.work != self._store.append]
            # Else one at a time: a record that cannot be written does not take others with it.
        for job in jobs:
            job.run()

    def _prune(self) -> float:
        """Delete a few records that are too old; return in how many seconds to look again."""
        job = _Job(lambda _: self._store.prune(time.time() - (self._retention or 0.0), PRUNE_AT_ONCE), (), 0)
        job.run()
        if job.error:
            logger.error("retention of the prediction log failed: %s", job.error)
        return 0.05 if job.result == PRUNE_AT_ONCE else PRUNE_EVERY


class _Job:
    __slots__ = ("begun", "error", "future", "payload", "result", "size", "work", "written")

    def __init__(self, work: Callable[[Any], Any], payload: Sequence[Any], size: int) -> None:
        self.work, self.payload, self.size = work, payload, size
        self.begun = time.monotonic()
        self.future: asyncio.Future[Any]
        self.result: Any = None
        self.error: Exception | None = None
        self.written = False
        """Whether it is in the log, but not yet safe."""

    def run(self) -> None:
        """Do the work; whatever goes wrong, the thread goes on and the caller is told."""
        self.error = _run(lambda: setattr(self, "result", self.work(self.payload)))


def _run(work: Callable[[], Any]) -> Exception | None:
    try:
        work()
    except Exception as error:  # noqa: BLE001
        return error
    return None
