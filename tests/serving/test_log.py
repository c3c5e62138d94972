"""The prediction log in SQLite: nothing acknowledged is lost, whatever happens to the process."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.serving import log as log_module
from mlops_project.serving import stores as stores_module
from mlops_project.serving.log import PredictionLog
from mlops_project.serving.records import Record, decoded, new_request_id, pack, read_results, results
from mlops_project.serving.stores import LogError, SqliteStore, open_store


def record(rows: int = 1, applicants=(), when: float | None = None, inputs: bytes | None = None) -> Record:
    cells = [{"age": 30 + i, "purpose": "car"} for i in range(rows)]
    return Record(
        new_request_id(),
        time.time() if when is None else when,
        "f" * 64,
        msgspec.json.encode(cells) if inputs is None else inputs,
        results([0.25] * rows, [0.75] * rows, [480.0] * rows, ["refuse"] * rows),
        rows,
        applicants,
    )


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/log/predictions.db"


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
def store(url):
    opened = open_store(url)
    yield opened
    opened.close()


def read(url: str) -> dict:
    with contextlib.closing(open_store(url, create=False)) as opened:
        return {logged.record.request_id: logged for logged in opened.read()}


def run(url: str, work, **options):
    """Run `work(log)` in an event loop and close the log."""

    async def main():
        log = PredictionLog.open(url, **options)
        try:
            return await work(log)
        finally:
            await log.close()

    return asyncio.run(main())


def test_what_is_acknowledged_can_be_read_with_all_its_fields(url):
    one, many = record(applicants=("anna",)), record(3, ("bert", None, "carl"))

    async def work(log):
        await log.append([one])
        assert read(url).keys() == {one.request_id}
        await log.append([many])

    run(url, work)
    assert [logged.record for logged in read(url).values()] == [one, many]


def test_concurrent_appends_share_commits(url, monkeypatch):
    commits = []
    append = SqliteStore.append
    monkeypatch.setattr(SqliteStore, "append", lambda self, records: (commits.append(len(records)), append(self, records))[1])

    async def work(log):
        await asyncio.gather(*(log.append([record()]) for _ in range(200)))

    run(url, work)
    assert sum(commits) == len(read(url)) == 200
    assert len(commits) <= 3


@pytest.fixture
def syncs(monkeypatch):
    """Threads in which the log was synced; ``pause`` is how long the disk takes, ``error`` what it says."""

    class Syncs(list):
        pause, error = 0.0, None

    found, sync = Syncs(), stores_module._sync

    def watched(descriptor):
        time.sleep(found.pause)
        if found.error:
            raise found.error
        sync(descriptor)
        found.append(threading.current_thread())

    monkeypatch.setattr(stores_module, "_sync", watched)
    return found


def test_several_are_appended_in_the_loop_and_synced_before_they_are_acknowledged(url, syncs):
    async def work(log):
        futures = [log.append([record()]) for _ in range(5)]
        for future in futures:
            future.add_done_callback(lambda _: done.append(len(syncs)))
        await asyncio.gather(*futures)

    done = []
    run(url, work)
    assert done == [1] * 5
    assert syncs == [threading.main_thread()]
    assert len(read(url)) == 5


def test_a_slow_disk_is_waited_for_in_the_thread(url, syncs):
    async def work(log):
        for _ in range(12):
            await asyncio.gather(*(log.append([record()]) for _ in range(3)))

    syncs.pause = 0.005
    run(url, work)
    assert syncs.count(threading.main_thread()) == 3  # the 1st, the 4th and the 9th: then 2, 4 and 8 are left to the thread
    assert len(syncs) == 12
    assert len(read(url)) == 36


@pytest.mark.parametrize("left_to_thread", [0, 100])
@pytest.mark.parametrize("n", [1, 3])
def test_what_cannot_be_synced_is_not_acknowledged_and_what_comes_then_is_safe(url, syncs, left_to_thread, n):
    async def work(log):
        log._left_to_thread = left_to_thread
        syncs.error = OSError(5, "Input/output error")
        found = await asyncio.gather(*(log.append([record()]) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in found] == [LogError] * 3
        assert "Input/output" in str(found[0])
        syncs.error = None
        await asyncio.gather(*(log.append([record()]) for _ in range(n)))
        # What was not synced stands in the table itself: no gap in the write-ahead log can take along what stands behind it.
        alone = path_of(url).with_name("alone.db")
        alone.write_bytes(path_of(url).read_bytes())
        assert len(read(f"sqlite:///{alone}")) >= 3
        await asyncio.gather(*(log.append([record()]) for _ in range(3)))

    run(url, work)


def test_the_loop_goes_on_while_another_process_has_the_log(url):
    async def work(log):
        other = SqliteStore(str(path_of(url)), durable=True)
        with contextlib.closing(other), other.transaction():
            futures = [log.append([record()]) for _ in range(5)]
            begun = time.monotonic()
            await asyncio.sleep(0.2)
            assert time.monotonic() - begun < 1
            assert not any(future.done() for future in futures)
        await asyncio.gather(*futures)

    run(url, work)
    assert len(read(url)) == 5


def test_the_write_ahead_log_does_not_grow_for_ever(url, syncs, monkeypatch):
    monkeypatch.setattr(stores_module, "_sync", lambda _: None)
    monkeypatch.setattr(log_module, "CHECKPOINT_BYTES", 400_000)

    async def work(log):
        for _ in range(500):
            await asyncio.gather(*(log.append([record(inputs=b"[" + b"7" * 4000 + b"]")]) for _ in range(10)))
        return path_of(f"{url}-wal").stat().st_size

    assert run(url, work) < 0.6 * path_of(url).stat().st_size  # without checkpoints it is larger than the table


def test_a_second_store_does_not_give_up_the_locks_of_the_first(url, store):
    store.append([record()])
    open_store(url).close()
    look = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(*c.execute('SELECT COUNT(*) FROM requests')); c.close()"
    subprocess.run([sys.executable, "-c", look, str(path_of(url))], check=True)
    assert path_of(f"{url}-wal").stat().st_size > 0  # who takes himself for the last one moves it to the table and deletes it


def test_close_writes_what_waits_and_then_refuses(url):
    async def work(log):
        futures = [log.append([record()]) for _ in range(50)]
        await log.close()
        assert all(future.done() for future in futures)
        with pytest.raises(LogError, match="closed"):
            log.append([record()])

    run(url, work)
    assert len(read(url)) == 50


def test_a_caller_that_gives_up_takes_no_other_with_him(url):
    async def work(log):
        given_up = asyncio.ensure_future(log.append([record()]))
        others = [log.append([record()]) for _ in range(5)]
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(*others)

    run(url, work)
    assert len(read(url)) >= 5


def test_a_record_that_cannot_be_written_fails_alone(url):
    good = [record() for _ in range(3)]
    bad = msgspec.structs.replace(record(), model_version="\ud800")

    async def work(log):
        return await asyncio.gather(*(log.append([one]) for one in (*good, bad, good[0])), return_exceptions=True)

    answers = run(url, work)
    assert answers[:3] == [None] * 3
    assert all(isinstance(answer, LogError) for answer in answers[3:])
    assert read(url).keys() == {one.request_id for one in good}


def test_a_full_disk_is_told_and_the_log_goes_on_afterwards(url):
    async def work(log):
        await log.append([record()])
        connections = log._store.connection, log._at_once.connection
        pages = log._store.connection.execute("PRAGMA page_count").fetchone()[0]
        for connection in connections:
            connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        large = record(inputs=b"[" + os.urandom(60_000).hex().encode() + b"]")
        with pytest.raises(LogError, match="full"):
            await log.append([large])
        for connection in connections:
            connection.execute("PRAGMA max_page_count = 1000000")
        await log.append([record()])

    run(url, work)
    assert len(read(url)) == 2


def test_a_replaced_file_is_noticed_before_anything_is_acknowledged(url):
    async def work(log):
        await log.append([record()])
        path_of(url).rename(path_of(url).with_suffix(".old"))
        path_of(url).write_bytes(b"")
        with pytest.raises(LogError, match="was replaced"):
            await log.append([record()])

    run(url, work)


def test_too_much_waiting_is_refused(url, monkeypatch):
    monkeypatch.setattr("mlops_project.serving.log.MAX_WAITING_BYTES", 1000)

    async def work(log):
        waiting = [log.append([record()]) for _ in range(5)]
        with pytest.raises(LogError, match="too slow"):
            log.append([record(inputs=b"x" * 1000)])
        await asyncio.gather(*waiting)

    run(url, work)


def test_the_file_is_its_owners_alone(url, store):
    store.append([record()])
    for path in path_of(url).parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path_of(url).parent.stat().st_mode) == 0o700


def test_a_newer_schema_is_refused_with_what_to_do(url):
    open_store(url).close()
    with contextlib.closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(LogError, match=r"schema 7, expected up to 3.*upgrade"):
        open_store(url)


@pytest.mark.parametrize("url_", ["", "predictions.db", "mysql://u:secret@h/d", "sqlite:///", "sqlite://x"])
def test_another_url_is_refused_without_being_shown(url_):
    with pytest.raises(LogError, match="expected sqlite:///path or postgresql") as refused:
        open_store(url_)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused(url):
    path_of(url).parent.mkdir()
    path_of(url).write_bytes(b"not a database, but a text that is long enough" * 10)
    with pytest.raises(LogError, match="not a database"):
        open_store(url)


def test_outcomes_join_and_unknown_ones_are_reported(url):
    one = record(2)

    async def work(log):
        await log.append([one])
        unknown = await log.outcomes(
            [(one.request_id, 1, "bad"), (one.request_id, 2, "bad"), ("0" * 32, 0, "good"), (one.request_id, -1, "x")]
        )
        await log.outcomes([(one.request_id, 1, "good")])  # corrected
        return unknown

    assert run(url, work) == [(one.request_id, 2), ("0" * 32, 0), (one.request_id, -1)]
    (logged,) = read(url).values()
    assert {position: outcome for position, (outcome, _) in logged.outcomes.items()} == {1: "good"}


@pytest.mark.parametrize("encode", [msgspec.json.encode, pack])
@pytest.mark.parametrize("columns", [False, True])
def test_one_of_several_applicants_is_deleted_for_good(url, columns, encode):
    marker = "Zzyzx-marker"
    cells = [{"age": 1, "name": "stays"}, {"age": 2, "name": marker}, {"age": 3, "name": "too"}]
    turned = {name: [row[name] for row in cells] for name in cells[0]}
    several = msgspec.structs.replace(record(3, ("anna", "bert", "carl")), inputs=encode(turned if columns else cells))
    single = record(1, ("bert",), inputs=msgspec.json.encode({"age": 2, "name": marker}))
    with contextlib.closing(open_store(url)) as store:
        store.append([several, single, record()])
        store.outcomes([(several.request_id, 1, "bad"), (several.request_id, 2, "good")])
        assert store.delete_applicant("bert") == 2
        assert store.delete_applicant("bert") == 0
        assert store.outcomes([(several.request_id, 1, "bad")]) == [(several.request_id, 1)]
        # While it is open: nothing in the write-ahead log either.
        kept = b"".join(path.read_bytes() for path in path_of(url).parent.iterdir())
        assert marker.encode() not in kept
        assert b"stays" in kept
    logged = read(url)
    assert single.request_id not in logged
    left = logged[several.request_id]
    assert left.record.applicants == ("anna", None, "carl")
    assert read_results(left.record.results).decision == ["refuse", None, "refuse"]
    assert read_results(left.record.results).score == [480.0, None, 480.0]
    assert left.outcomes.keys() == {2}


def test_a_reader_that_keeps_deleted_records_alive_is_told(url, store, caplog, monkeypatch):
    one = record()
    store.append([one])
    with contextlib.closing(sqlite3.connect(path_of(url), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM requests").fetchone()
        store.connection.execute("PRAGMA busy_timeout = 10")
        assert store.delete_positions({one.request_id: None}) == 1
    assert "prune once more" in caplog.text


def test_a_request_goes_when_its_last_applicant_goes(url, store):
    several = record(2)
    store.append([several])
    assert store.delete_positions({several.request_id: {0, 5}}) == 1
    assert store.delete_positions({several.request_id: {0}}) == 0
    assert store.delete_positions({several.request_id: None, "unknown": None}) == 1
    assert list(store.read()) == []


ADDRESSES = {"age": [30] * 1000, "address": ["12 Long Street, Old Town, Province of Somewhere, Country of the Example"] * 1000}


@pytest.mark.parametrize(("inputs", "share"), [(None, 1 / 5), (pack(ADDRESSES), 1 / 5), (pack({"age": [*range(1000)]}), 1)])
def test_large_records_are_kept_small_and_read_as_they_were(url, store, inputs, share):
    large = record(1000, inputs=inputs)
    store.append([large])
    (logged,) = store.read()
    assert logged.record == large
    (size,) = store.connection.execute("SELECT length(inputs) FROM requests").fetchone()
    assert size <= len(large.inputs) * share


@given(st.lists(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False))))
def test_any_json_comes_back_byte_for_byte(tmp_path_factory, cells):
    url = f"sqlite:///{tmp_path_factory.getbasetemp()}/any.db"
    content = msgspec.json.encode(cells)
    with contextlib.closing(open_store(url)) as store:
        one = msgspec.structs.replace(record(), inputs=content, applicants=("'; DROP TABLE requests; --",))
        store.append([one])
        assert any(logged.record == one for logged in store.read())
        store.delete_positions({one.request_id: None})


def test_retention_deletes_what_is_old_and_nothing_else(url):
    old = [record(when=time.time() - 100) for _ in range(450)]
    with contextlib.closing(open_store(url)) as store:
        store.append(old)
    young = record()

    async def work(log):
        await log.append([young])
        for _ in range(200):
            await asyncio.sleep(0.05)
            if len(read(url)) == 1:
                break

    run(url, work, retention=50.0)
    assert read(url).keys() == {young.request_id}


def test_the_newest_records_of_a_span_of_time_come_first(store):
    records = [record(when=float(i // 3)) for i in range(60)]  # some at the same time
    store.append(records)
    order = [one.request_id for one in reversed(records)]
    assert [one.request_id for one in store.recent()] == order
    assert [one.request_id for one in store.recent(5.0, 15.0)] == order[15:45]
    assert next(store.recent()) == records[-1]
    assert list(store.recent(since=99.0)) == []


def test_request_ids_are_ordered_by_time_and_differ():
    ids = []
    for _ in range(3):
        ids += [new_request_id() for _ in range(1000)]
        time.sleep(0.002)
    assert len(set(ids)) == 3000
    assert ids[0] < ids[1500] < ids[2500]
    assert {len(one) for one in ids} == {32}


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


def test_all_that_was_acknowledged_before_a_kill_is_in_the_log(url):
    """Three processes write one file and are killed one after the other while they write."""
    processes = [subprocess.Popen([sys.executable, "-c", APPENDING, url], stdout=subprocess.PIPE) for _ in range(3)]
    acknowledged = []
    for process in processes:
        with process:
            acknowledged += [process.stdout.readline() for _ in range(500)]
            process.send_signal(signal.SIGKILL)
            acknowledged += process.stdout.readlines()
    complete = {line.strip().decode() for line in acknowledged if line.endswith(b"\n")}
    assert len(complete) >= 1500
    assert complete <= read(url).keys()
    with contextlib.closing(sqlite3.connect(path_of(url))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


SCHEMA_1 = """
CREATE TABLE requests (id INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, time REAL NOT NULL, model_version TEXT NOT NULL,
 row_count INTEGER NOT NULL, deleted INTEGER NOT NULL, inputs BLOB NOT NULL, results BLOB NOT NULL);
CREATE INDEX requests_time ON requests (time);
CREATE TABLE applicants (applicant TEXT NOT NULL, request_id TEXT NOT NULL, position INTEGER NOT NULL,
 PRIMARY KEY (applicant, request_id, position));
CREATE INDEX applicants_request ON applicants (request_id);
CREATE TABLE outcomes (request_id TEXT NOT NULL, position INTEGER NOT NULL, outcome TEXT NOT NULL, time REAL NOT NULL,
 PRIMARY KEY (request_id, position));
PRAGMA user_version = 1;
"""


def test_a_log_of_schema_1_is_brought_up_with_what_it_holds(url):
    path_of(url).parent.mkdir()
    old = record(when=1000.0)
    with contextlib.closing(sqlite3.connect(path_of(url))) as connection:
        connection.executescript(SCHEMA_1)
        for when in (2000.0, 1000.0):
            connection.execute(
                "INSERT INTO requests (request_id, time, model_version, row_count, deleted, inputs, results)"
                " VALUES (?, ?, ?, 1, 0, ?, ?)",
                (new_request_id(), when, old.model_version, old.inputs, old.results),
            )
        connection.commit()
    with contextlib.closing(open_store(url)) as store:
        assert [logged.record.inputs for logged in store.read()] == [old.inputs, old.inputs]
        assert store.first_served(old.model_version) == 1000.0
        store.put_report("drift", b"{}")
    with contextlib.closing(open_store(url)) as store:
        assert store.reports()["drift"].content == b"{}"


def test_results_of_schema_2_are_read_and_deleted_from(store):
    old = {
        "p_good": [0.25, 0.5],
        "probability_of_default": [0.75, 0.5],
        "score": [480.0, 500.0],
        "decision": ["refuse", "approve"],
    }
    two = msgspec.structs.replace(record(2, ("anna", "bert")), results=msgspec.json.encode(old))
    store.append([two])
    (logged,) = store.read()
    assert msgspec.to_builtins(read_results(logged.record.results)) == old
    assert store.delete_applicant("anna") == 1
    assert store.outcomes([(two.request_id, 0, "good"), (two.request_id, 1, "good")]) == [(two.request_id, 0)]
    (judged,) = store.judged(0.0, time.time() + 1)
    assert read_results(judged.results).decision == [None, "approve"]
    assert decoded(next(store.read()).record.inputs) == [None, {"age": 31, "purpose": "car"}]


def test_the_latest_report_of_each_name_is_kept(store):
    assert store.reports() == {}
    before = time.time()
    for name, content in (("drift", b"old"), ("quality", b"\x00\xff"), ("drift", b"new")):
        store.put_report(name, content)
    found = store.reports()
    assert {name: report.content for name, report in found.items()} == {"drift": b"new", "quality": b"\x00\xff"}
    assert all(before <= report.time <= time.time() for report in found.values())


def test_since_when_a_model_answers_is_known_for_good(url, store):
    first = store.first_served("a")
    assert time.time() - first < 60
    assert store.first_served("b") >= first

    async def work(log):
        return await log.first_served("a"), await log.reports()

    assert run(url, work) == (first, {})
