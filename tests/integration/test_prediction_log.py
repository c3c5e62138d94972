"""The prediction log in a real PostgreSQL server, started here on a port of 127.0.0.1; stopped and killed on the way."""

import asyncio
import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("psycopg")
import psycopg

from mlops_project.serving.log import PredictionLog
from mlops_project.serving.predictions import main
from mlops_project.serving.records import Record, new_request_id, results
from mlops_project.serving.stores import LogError, open_store

pytestmark = pytest.mark.integration

PASSWORD = "a-secret-of-this-test"


def unavailable(reason: str) -> None:
    """Skip on a person's machine, fail in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class Server:
    """PostgreSQL refuses to run as root: then it runs as nobody, in a folder that is nobody's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        places = os.pathsep.join([os.environ["PATH"], *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)])
        self.initdb, self.postgres = (shutil.which(name, path=places) for name in ("initdb", "postgres"))
        if not self.initdb or not self.postgres:
            unavailable("no PostgreSQL on this machine (Debian: apt install postgresql)")
        self.user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        if self.user:
            shutil.chown(folder, "nobody", "nogroup")
        password = folder / "password"
        password.write_text(PASSWORD, encoding="utf-8")
        command = [self.initdb, "-D", "data", "-U", "team", "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, **self.user)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql://team:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        command = [self.postgres, "-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self.user)
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url()):
                return
            assert self.process.poll() is None, (self.folder / "log").read_text(encoding="utf-8")[-2000:]
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)

    def stop(self, how: int = signal.SIGINT) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        started = Server(folder)
        started.start()
        yield started
        started.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(server, request) -> str:
    if server.process is None:
        server.start()
    name = f"test_{time.time_ns()}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url(name)


def record(rows: int = 1, applicants=(), when: float | None = None) -> Record:
    inputs = msgspec.json.encode([{"age": 30 + i, "purpose": "car\0"} for i in range(rows)])
    answers = results([0.25] * rows, [0.75] * rows, [480.0] * rows, ["refuse"] * rows)
    return Record(new_request_id(), time.time() if when is None else when, "f" * 64, inputs, answers, rows, applicants)


def read(url: str) -> dict:
    with contextlib.closing(open_store(url, create=False)) as store:
        return {logged.record.request_id: logged for logged in store.read()}


def run(url: str, work):
    async def run_():
        log = PredictionLog.open(url)
        try:
            return await work(log)
        finally:
            await log.close()

    return asyncio.run(run_())


def test_records_outcomes_deletion_retention_and_export(url, workdir):
    several, one, old = (
        record(1200, ("anna", "bert", *[None] * 1198)),
        record(1, ("bert",)),
        record(when=time.time() - 100 * 86400),
    )

    async def work(log):
        await asyncio.gather(*(log.append([each]) for each in (several, one, old)))
        return await log.outcomes([(several.request_id, 0, "good"), (several.request_id, 1200, "bad"), ("0" * 32, 0, "bad")])

    assert run(url, work) == [(several.request_id, 1200), ("0" * 32, 0)]
    assert {each.request_id: each for each in (several, one, old)} == {key: logged.record for key, logged in read(url).items()}
    log = ["--log", url]
    assert main(["prune", "--older-than", "90d", *log]) == 0
    assert main(["delete", "--applicant", "bert", *log]) == 0
    assert main(["delete", "--applicant", "bert", *log]) == 1
    (left,) = read(url).values()
    assert left.record.applicants[:2] == ("anna", None)
    assert {position: outcome for position, (outcome, _) in left.outcomes.items()} == {0: "good"}
    assert main(["export", "--output", "out.csv", *log]) == 0
    assert len(Path("out.csv").read_text(encoding="utf-8").splitlines()) == 1200
    assert main(["delete", "--request-id", several.request_id, *log]) == 0
    assert read(url) == {}


def test_the_newest_records_of_a_span_of_time_come_first(url):
    records = [record() for _ in range(45)]
    with contextlib.closing(open_store(url)) as store:
        store.append(records)
        newest_first = sorted(records, key=lambda one: one.time, reverse=True)
        assert [one.time for one in store.recent()] == [one.time for one in newest_first]
        assert {one.request_id for one in store.recent()} == {one.request_id for one in records}
        middle = newest_first[20].time
        assert [one.time for one in store.recent(since=middle)] == [one.time for one in newest_first if one.time >= middle]
        assert [one.time for one in store.recent(until=middle)] == [one.time for one in newest_first if one.time < middle]


def test_a_record_that_cannot_be_written_fails_alone(url):
    good = [record() for _ in range(3)]
    bad = [
        msgspec.structs.replace(record(), model_version="\ud800"),
        msgspec.structs.replace(record(), model_version="a\0b"),
        good[0],
    ]

    async def work(log):
        return await asyncio.gather(*(log.append([one]) for one in (*good, *bad)), return_exceptions=True)

    answers = run(url, work)
    assert answers[:3] == [None] * 3
    assert all(isinstance(answer, LogError) for answer in answers[3:])
    assert read(url).keys() == {one.request_id for one in good}


def test_a_lost_connection_is_made_anew_without_losing_or_doubling(server, url):
    async def work(log):
        acknowledged = []
        for _ in range(5):
            await log.append([one := record()])
            acknowledged.append(one.request_id)
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mlops-serve'"
                )
        return acknowledged

    assert run(url, work) == list(read(url))


def test_a_commit_whose_answer_got_lost_is_not_written_twice(url):
    one = record(1, ("anna",))
    with contextlib.closing(open_store(url)) as store:
        store.append([one])
        committed = store.connection

        class Lost:
            """The first attempt is known to be committed; its connection broke before it said so."""

            closed = True

            def close(self) -> None: ...

        store.connection = Lost()
        store.append([one])
        committed.close()
    assert list(read(url)) == [one.request_id]


def test_while_the_server_is_down_nothing_is_acknowledged_and_then_it_goes_on(server, url):
    async def work(log):
        before, after = record(), record()
        await log.append([before])
        server.stop(signal.SIGQUIT)  # without ceremony, as in a crash
        started = time.monotonic()
        with pytest.raises(LogError, match=r"at 127.0.0.1 cannot be used") as refused:
            await log.append([record()])
        assert time.monotonic() - started < 6
        assert PASSWORD not in str(refused.value)
        server.start()
        await log.append([after])
        return {before.request_id, after.request_id}

    assert run(url, work) == read(url).keys()


APPENDING = """
import asyncio, os, sys, time
from mlops_project.serving.log import PredictionLog
from mlops_project.serving.records import Record, new_request_id, results

async def main():
    log = PredictionLog.open(sys.argv[1])
    async def one():
        while True:
            record = Record(new_request_id(), time.time(), "v", b'{"age": 30}', results([0.5], [0.5], [500.0], ["refuse"]))
            await log.append([record])
            os.write(1, record.request_id.encode() + b"\\n")
    await asyncio.gather(*(one() for _ in range(16)))

asyncio.run(main())
"""


def test_all_that_was_acknowledged_before_a_kill_is_in_the_log(server, url):
    """Three workers make the tables at once; one is killed, then the server, then the others stop by themselves."""
    started = [
        subprocess.Popen([sys.executable, "-c", APPENDING, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    with started[0] as first, started[1] as second, started[2] as third:
        acknowledged = [process.stdout.readline() for process in started for _ in range(200)]
        first.send_signal(signal.SIGKILL)
        server.stop(signal.SIGQUIT)
        for process in (first, second, third):
            acknowledged += process.stdout.readlines()
    complete = {line.strip().decode() for line in acknowledged if line.endswith(b"\n")}
    assert len(complete) >= 600
    server.start()
    assert complete <= read(url).keys()


def test_a_newer_schema_is_refused(url):
    open_store(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE prediction_log SET schema_version = 9")
    with pytest.raises(LogError, match="schema 9, expected up to 3"):
        open_store(url)


def test_a_wrong_password_is_said_without_showing_it(server):
    with pytest.raises(LogError, match="password authentication failed") as refused:
        open_store(server.url(password="another-secret"))
    assert "another-secret" not in str(refused.value)


def test_a_log_of_schema_1_is_brought_up_with_what_it_holds(url):
    one = record()
    with contextlib.closing(open_store(url)) as store:
        store.append([one])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE reports")
        connection.execute("DROP TABLE models")
        connection.execute("UPDATE prediction_log SET schema_version = 1")
    with contextlib.closing(open_store(url)) as store:
        assert store.first_served(one.model_version) == one.time
        for content in (b"old", b"\x00\xff"):
            store.put_report("drift", content)
        assert store.reports()["drift"].content == b"\x00\xff"
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT schema_version FROM prediction_log").fetchall() == [(3,)]
