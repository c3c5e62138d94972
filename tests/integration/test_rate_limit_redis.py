"""The rate limit in a real Redis server, started here on a port of 127.0.0.1; stopped, frozen and started again on the way."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("limits")

from mlops_project.serving import limits
from mlops_project.serving.limits import LimiterDown, RateLimiter

pytestmark = pytest.mark.integration

PASSWORD = "a-secret-of-this-test"


def unavailable(reason: str) -> None:
    """Skip on a person's machine, fail in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = shutil.which("redis-server")
        if not self.program:
            unavailable("no Redis on this machine (Debian: apt install redis-server)")
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/1"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(limits, "REDIS_PAUSE", 0.3)
    started = Server(tmp_path)
    started.start()
    yield started
    started.stop()


def run(work, server: Server, rule: str = "10/hour", workers: int = 2, **options):
    """Run `work` with a limiter per worker."""

    async def main():
        limiters = [RateLimiter(rule, server.url, **options) for _ in range(workers)]
        try:
            return await work(*limiters)
        finally:
            for limiter in limiters:
                await limiter.close()

    return asyncio.run(main())


def test_all_workers_share_one_count(server):
    async def work(*workers):
        return await asyncio.gather(*(workers[i % 4].hit("a") for i in range(40)), workers[0].hit("b"))

    quotas = run(work, server, workers=4)
    assert sum(quota.allowed for quota in quotas[:40]) == 10
    assert quotas[40].remaining == 9


def test_a_refused_large_request_takes_nothing_from_small_ones(server):
    async def work(one, other):
        return [await one.hit("a", 8), await other.hit("a", 1000), await one.hit("a", 2), await other.hit("a")]

    assert [(quota.allowed, quota.remaining) for quota in run(work, server)] == [(True, 2), (False, 2), (True, 0), (False, 0)]


def test_counters_are_forgotten_after_their_window(server):
    async def work(one, other):
        assert (await one.hit("a")).allowed
        assert not (await other.hit("a")).allowed
        await asyncio.sleep(1.01)
        assert (await other.hit("a")).allowed
        await asyncio.sleep(3.1)
        return await one._shared.bridge.storage.dbsize()

    assert run(work, server, rule="1/second") == 0


def test_while_redis_is_down_each_worker_counts_for_itself_and_says_so_once(server, caplog):
    async def work(one, other):
        for _ in range(6):
            assert (await one.hit("a")).allowed
        server.stop()
        started = time.monotonic()
        alone = [await one.hit("a") for _ in range(12)]
        assert time.monotonic() - started < 1
        assert [quota.allowed for quota in alone] == [True] * 10 + [False] * 2
        assert (await other.hit("a")).remaining == 9
        await asyncio.sleep(0.35)
        assert not (await one.hit("a")).allowed  # asked again, still down
        server.start()
        await asyncio.sleep(0.35)
        assert (await one.hit("a")).remaining == 9  # a fresh server; from here on shared again
        assert (await other.hit("a")).remaining == 8

    with caplog.at_level(logging.WARNING):
        run(work, server)
    messages = [record.message for record in caplog.records]
    assert sum("each worker counts for itself" in message for message in messages) == 2  # once per worker
    assert sum("is back" in message for message in messages) == 2
    assert PASSWORD not in caplog.text


def test_fail_closed_refuses_everybody_while_redis_is_down(server, caplog):
    async def work(one):
        assert (await one.hit("a")).allowed
        server.stop()
        for _ in range(3):
            with pytest.raises(LimiterDown):
                await one.hit("a")
        server.start()
        await asyncio.sleep(0.35)
        assert (await one.hit("a")).allowed

    with caplog.at_level(logging.WARNING):
        run(work, server, workers=1, fail_closed=True)
    assert sum("requests are refused" in record.message for record in caplog.records) == 1


def test_a_redis_that_hangs_costs_one_short_wait(server):
    async def work(one):
        await one.hit("a")
        server.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        await asyncio.gather(*(one.hit("a") for _ in range(5)))
        waited = time.monotonic() - started
        started = time.monotonic()
        await one.hit("a")
        server.process.send_signal(signal.SIGCONT)
        return waited, time.monotonic() - started

    waited, afterwards = run(work, server, workers=1)
    assert waited < 4 * limits.REDIS_SECONDS
    assert afterwards < 0.05


def test_a_redis_that_is_down_at_the_start_does_not_stop_the_service(server):
    server.stop()

    async def work(one):
        return await one.hit("a")

    assert run(work, server, workers=1).allowed


def test_a_wrong_password_falls_under_the_same_policy(server, caplog):
    server.url = server.url.replace(PASSWORD, "another-secret")

    async def work(one):
        return await one.hit("a")

    with caplog.at_level(logging.WARNING):
        assert run(work, server, workers=1).allowed
    assert "does not answer" in caplog.text
    assert "another-secret" not in caplog.text
