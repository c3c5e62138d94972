"""Where the prediction log lies: tables in SQLite or PostgreSQL, their schema, and what is asked of them.

Deleting one applicant rewrites the records that hold him.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import sqlite3
import time
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec

from mlops_project.errors import PipelineError
from mlops_project.serving.records import Judged, Logged, Record, Report, decoded, is_msgpack, pack, read_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

DEFAULT_URL = "sqlite:///var/predictions.db"
SCHEMA = 3
# How long a write waits for other processes, and for a server that does not answer.
PATIENCE = 5.0
# A request can hold megabytes, so few are read at once.
READ_AT_ONCE = 20
# Inputs from so many bytes on are compressed: JSON of many applicants shrinks to a seventh. Not so MessagePack of up to so many
# bytes per applicant: twenty numbers take 23, of which half would be saved for ten times what writing them costs.
COMPRESS_BYTES, DENSE_BYTES = 4096, 64

# macOS has no fdatasync.
_sync = getattr(os, "fdatasync", os.fsync)

logger = logging.getLogger(__name__)


class LogError(PipelineError):
    """The log cannot be read or written; what was to be appended is not in it."""


class Store:
    """What SQLite and PostgreSQL share; both speak DB-API 2. Used by one thread at a time."""

    mark = "?"
    kinds = {"ID": "INTEGER PRIMARY KEY", "REAL": "REAL", "BYTES": "BLOB"}
    # What a record itself can be the reason of.
    data_errors: tuple[type[Exception], ...] = (ValueError, TypeError, OverflowError)
    connection: Any
    doubtful = False
    """Whether a sync failed, so that the next one has more to do, and may have to wait."""

    tables: tuple[str, ...] = (
        (
            "CREATE TABLE requests (id {ID}, request_id TEXT NOT NULL UNIQUE, time {REAL} NOT NULL, model_version TEXT NOT NULL,"
            " row_count INTEGER NOT NULL, deleted INTEGER NOT NULL, inputs {BYTES} NOT NULL, results {BYTES} NOT NULL)"
        ),
        "CREATE INDEX requests_time ON requests (time)",
        (
            "CREATE TABLE applicants (applicant TEXT NOT NULL, request_id TEXT NOT NULL, position INTEGER NOT NULL,"
            " PRIMARY KEY (applicant, request_id, position))"
        ),
        "CREATE INDEX applicants_request ON applicants (request_id)",
        (
            "CREATE TABLE outcomes (request_id TEXT NOT NULL, position INTEGER NOT NULL, outcome TEXT NOT NULL,"
            " time {REAL} NOT NULL, PRIMARY KEY (request_id, position))"
        ),
    )
    # What each schema added to the one before it; a new log gets all of it.
    additions: dict[int, tuple[str, ...]] = {
        2: (
            "CREATE TABLE reports (name TEXT PRIMARY KEY, time {REAL} NOT NULL, content {BYTES} NOT NULL)",
            "CREATE TABLE models (model_version TEXT PRIMARY KEY, first_served {REAL} NOT NULL)",
            "INSERT INTO models SELECT model_version, MIN(time) FROM requests GROUP BY model_version",
        ),
        3: (),  # no more than MessagePack in the columns, which older versions cannot read
    }

    def transaction(self) -> contextlib.AbstractContextManager[Any]:
        """Commit what the block did, or nothing of it."""
        raise NotImplementedError

    def problems(self) -> contextlib.AbstractContextManager[None]:
        """Raise the driver's errors as `LogError`, but those that a record is the reason of."""
        raise NotImplementedError

    def attempt(self, work: Callable[[bool], Any]) -> Any:
        """Run ``work`` in a transaction; its argument says whether it may have been committed before."""
        with self.transaction():
            return work(False)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement; ``?`` marks a value."""
        return self.connection.execute(sql.replace("?", self.mark), values)

    def executemany(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run one statement for many values."""
        self.connection.cursor().executemany(sql.replace("?", self.mark), values)

    def prepare(self) -> None:
        """Make the tables, or raise if a newer version made them."""
        raise NotImplementedError

    def bring_up(self, found: int) -> None:
        """Make the tables, or add what schema ``found`` (0: none) lacks. Raises LogError if a newer version made them."""
        missing = [self.tables] if found == 0 else []
        missing += [statements for schema, statements in self.additions.items() if schema > found]
        for statements in missing:
            for statement in statements:
                self.execute(statement.format(**self.kinds))
        if found > SCHEMA:
            raise LogError(
                f"the prediction log has schema {found}, expected up to {SCHEMA}: a newer version made it; upgrade this package"
            )

    def append(self, records: Sequence[Record]) -> None:
        """Insert records in one transaction."""
        rows = [(r.request_id, r.time, r.model_version, r.rows, _compressed(r.inputs, r.rows), r.results) for r in records]
        named = [(name, r.request_id, i) for r in records for i, name in enumerate(r.applicants) if name is not None]

        def insert(again: bool) -> None:
            # The first try may have been committed although its answer got lost.
            end = " ON CONFLICT DO NOTHING" if again else ""
            self.executemany(
                "INSERT INTO requests (request_id, time, model_version, row_count, deleted, inputs, results)"
                f" VALUES (?, ?, ?, ?, 0, ?, ?){end}",
                rows,
            )
            if named:
                self.executemany(f"INSERT INTO applicants (applicant, request_id, position) VALUES (?, ?, ?){end}", named)

        self.attempt(insert)

    def outcomes(self, outcomes: Sequence[tuple[str, int, str]]) -> list[tuple[str, int]]:
        """Set outcomes; return those of unknown predictions."""
        now = time.time()

        def update(_: bool) -> list[tuple[str, int]]:
            known: dict[str, Callable[[int], bool]] = {}
            for request_id in dict.fromkeys(outcome[0] for outcome in outcomes):
                found = self.execute(
                    "SELECT row_count, deleted, results FROM requests WHERE request_id = ?", (request_id,)
                ).fetchone()
                known[request_id] = _positions(*found) if found else lambda _: False
            good = [(request_id, i, outcome, now) for request_id, i, outcome in outcomes if known[request_id](i)]
            self.executemany(
                "INSERT INTO outcomes (request_id, position, outcome, time) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (request_id, position) DO UPDATE SET outcome = excluded.outcome, time = excluded.time",
                good,
            )
            return [(request_id, i) for request_id, i, _ in outcomes if not known[request_id](i)]

        return self.attempt(update)

    def read(self) -> Iterator[Logged]:
        """Yield all records in the order in which they came, a few at a time: writers go on meanwhile."""
        last = 0
        while found := self._fetch(
            "SELECT id, request_id, time, model_version, inputs, results, row_count"
            " FROM requests WHERE id > ? ORDER BY id LIMIT ?",
            (last, READ_AT_ONCE),
        ):
            these = "WHERE request_id IN (SELECT request_id FROM requests WHERE id > ? AND id <= ?)"
            span = (last, last := found[-1][0])
            named = {
                (row[0], row[1]): row[2]
                for row in self._fetch(f"SELECT request_id, position, applicant FROM applicants {these}", span)
            }
            late: dict[str, dict[int, tuple[str, float]]] = {}
            for request_id, position, outcome, posted in self._fetch(
                f"SELECT request_id, position, outcome, time FROM outcomes {these}", span
            ):
                late.setdefault(request_id, {})[position] = (outcome, posted)
            with_names = {request_id for request_id, _ in named}
            for _, request_id, when, version, inputs, answers, rows in found:
                applicants = tuple(named.get((request_id, i)) for i in range(rows)) if request_id in with_names else ()
                record = Record(request_id, when, version, _expanded(inputs), bytes(answers), rows, applicants)
                yield Logged(record, late.get(request_id, {}))

    def judged(self, since: float, until: float) -> Iterator[Judged]:
        """Yield results and outcomes of a span of time (seconds since 1970), the oldest first, a few at a time."""
        last = (since, -1)
        while found := self._fetch(
            "SELECT time, id, request_id, model_version, results FROM requests"
            " WHERE (time, id) > (?, ?) AND time < ? ORDER BY time, id LIMIT ?",
            (*last, until, READ_AT_ONCE * 10),
        ):
            outcomes: dict[str, dict[int, str]] = {}
            for request_id, position, outcome in self._fetch(
                "SELECT request_id, position, outcome FROM outcomes WHERE request_id IN"
                " (SELECT request_id FROM requests WHERE (time, id) > (?, ?) AND (time, id) <= (?, ?))",
                (*last, *found[-1][:2]),
            ):
                outcomes.setdefault(request_id, {})[position] = outcome
            last = found[-1][:2]
            for *_, request_id, version, answers in found:
                yield Judged(version, bytes(answers), outcomes.get(request_id, {}))

    def number_since(self, since: float) -> int:
        """Return the number of predictions from a time on, without deleted ones."""
        ((n,),) = self._fetch("SELECT COALESCE(SUM(row_count - deleted), 0) FROM requests WHERE time >= ?", (since,))
        return int(n)

    def put_report(self, name: str, content: bytes) -> None:
        """Keep a report in the place of the last one of its name."""
        self.attempt(
            lambda _: self.execute(
                "INSERT INTO reports (name, time, content) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET time = excluded.time, content = excluded.content",
                (name, time.time(), content),
            )
        )

    def reports(self) -> dict[str, Report]:
        """Return the latest reports by name. Fails where nothing can be written, so who asks knows that it can."""
        found = self.attempt(lambda _: self.execute("SELECT name, time, content FROM reports").fetchall())
        return {name: Report(when, bytes(content)) for name, when, content in found}

    def first_served(self, model_version: str) -> float:
        """Return when a model was first asked for or logged, seconds since 1970; now, if this is the first time."""

        def note(_: bool) -> Any:
            self.execute("INSERT INTO models VALUES (?, ?) ON CONFLICT DO NOTHING", (model_version, time.time()))
            return self.execute("SELECT first_served FROM models WHERE model_version = ?", (model_version,)).fetchone()

        return float(self.attempt(note)[0])

    def recent(self, since: float = 0.0, until: float = math.inf) -> Iterator[Record]:
        """Yield the records of a span of time (seconds since 1970), the newest first and without references, a few at a time."""
        last, limit = (until, -1), READ_AT_ONCE
        while found := self._fetch(
            "SELECT time, id, request_id, model_version, inputs, results, row_count FROM requests"
            " WHERE (time, id) < (?, ?) AND time >= ? ORDER BY time DESC, id DESC LIMIT ?",
            (*last, since, limit),
        ):
            last = found[-1][:2]
            # Of small ones more at once: a query costs as much as twenty of them.
            limit = READ_AT_ONCE * (50 if max(len(row[4]) for row in found) < COMPRESS_BYTES else 1)
            for when, _, request_id, version, inputs, answers, rows in found:
                yield Record(request_id, when, version, _expanded(inputs), bytes(answers), rows)

    def _fetch(self, sql: str, values: Sequence[Any]) -> list[Any]:
        with self.problems():
            return self.execute(sql, values).fetchall()

    def delete_applicant(self, applicant: str) -> int:
        """Delete what is logged of the applicant whom callers refer to so; return the number of predictions."""

        def delete(_: bool) -> int:
            found = self.execute("SELECT request_id, position FROM applicants WHERE applicant = ?", (applicant,)).fetchall()
            positions: dict[str, set[int]] = {}
            for request_id, position in found:
                positions.setdefault(request_id, set()).add(position)
            return sum(self._delete(request_id, chosen) for request_id, chosen in positions.items())

        return self._delete_for_good(delete)

    def delete_positions(self, positions: dict[str, set[int] | None]) -> int:
        """Delete predictions by request id and position (None: all of the request); return their number."""
        return self._delete_for_good(lambda _: sum(self._delete(request_id, chosen) for request_id, chosen in positions.items()))

    def prune(self, before: float, limit: int) -> int:
        """Delete up to ``limit`` requests that are older than ``before`` (seconds since 1970); return their number."""

        def delete(_: bool) -> int:
            found = self.execute(
                "SELECT request_id FROM requests WHERE time < ? ORDER BY time LIMIT ?", (before, limit)
            ).fetchall()
            for (request_id,) in found:
                self._delete(request_id, None)
            return len(found)

        return self.attempt(delete)

    def _delete_for_good(self, work: Callable[[bool], int]) -> int:
        deleted = self.attempt(work)
        self.clean_up()
        return deleted

    def clean_up(self) -> None:
        """Remove what deleted records left in files."""

    def _delete(self, request_id: str, positions: set[int] | None) -> int:
        found = self.execute(
            "SELECT row_count, deleted, inputs, results FROM requests WHERE request_id = ?", (request_id,)
        ).fetchone()
        if not found:
            return 0
        rows, deleted, inputs, answers = found
        there = _positions(rows, deleted, answers)
        gone = {i for i in range(rows) if there(i) and (positions is None or i in positions)}
        if deleted + len(gone) == rows:
            for table in ("requests", "applicants", "outcomes"):
                self.execute(f"DELETE FROM {table} WHERE request_id = ?", (request_id,))
        elif gone:
            self.execute(
                "UPDATE requests SET deleted = ?, inputs = ?, results = ? WHERE request_id = ?",
                (
                    deleted + len(gone),
                    _compressed(_without(_expanded(inputs), gone), rows),
                    _without(bytes(answers), gone),
                    request_id,
                ),
            )
            for table in ("applicants", "outcomes"):
                pairs = [(request_id, i) for i in gone]
                self.executemany(f"DELETE FROM {table} WHERE request_id = ? AND position = ?", pairs)
        return len(gone)

    def at_once(self) -> SqliteStore | None:
        """Return a second store of this log whose `append` never waits, if there can be one; `sync` then makes safe."""
        return None

    def sync(self) -> None:
        """Make safe what the store that is `at_once` has appended."""

    def checkpoint(self) -> None:
        """Tidy up after `at_once`, now and then."""

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _positions(rows: int, deleted: int, answers: bytes) -> Callable[[int], bool]:
    """Say which positions a request has: a deleted one is null in the results."""
    if not deleted:
        return lambda i: 0 <= i < rows
    decisions = read_results(bytes(answers)).decision
    return lambda i: 0 <= i < rows and decisions[i] is not None


def _without(content: bytes, gone: set[int]) -> bytes:
    """Put null in the place of rows, in a list of them or in each column; the others keep their positions."""
    found = decoded(content)
    for column in [found] if isinstance(found, list) else found.values():
        for i in gone:
            column[i] = None
    return pack(found) if is_msgpack(content) else msgspec.json.encode(found)


def _compressed(content: bytes, rows: int) -> bytes:
    dense = is_msgpack(content) and len(content) <= DENSE_BYTES * rows
    return content if dense or len(content) < COMPRESS_BYTES else zlib.compress(content, 1)


def _expanded(content: bytes | memoryview) -> bytes:
    """Decompress what is compressed: neither JSON nor MessagePack begins with zlib's first byte."""
    content = bytes(content)
    return zlib.decompress(content) if content[:1] == b"\x78" else content


class SqliteStore(Store):
    """A file, written by several processes (WAL).

    Parameters
    ----------
    path : str
    durable : bool
        Whether a commit survives the loss of power.
    waits : bool
        For the disk and for other processes. If not, a commit is safe after `sync`, and what had to wait raises `LogError`.
    """

    data_errors = (*Store.data_errors, sqlite3.IntegrityError, sqlite3.DataError)

    def __init__(self, path: str, *, durable: bool, waits: bool = True) -> None:
        self.path = os.path.abspath(path)
        self._durable, self._waits = durable, waits
        self._wal: int | None = None
        self.doubtful = False
        with self.problems():
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            # Personal data: for the owner only. The files that SQLite puts beside it take its mode. Only if it is new: who closes
            # a file gives up all locks that his process has on it, those of other connections too.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._inode = os.stat(self.path).st_ino
            patience = PATIENCE if waits else 0.0
            self.connection = sqlite3.connect(self.path, timeout=patience, isolation_level=None, check_same_thread=False)
            self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable and waits else 'NORMAL'}")
            self.connection.execute("PRAGMA secure_delete = ON")
            if not waits:
                self.connection.execute("PRAGMA wal_autocheckpoint = 0")

    def prepare(self) -> None:
        """Make the tables, or raise if a newer version made them."""
        with self.problems():
            self.connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._use_wal()
            with self.transaction():
                (found,) = self.execute("PRAGMA user_version").fetchone()
                self.bring_up(found)
                if found < SCHEMA:
                    self.execute(f"PRAGMA user_version = {SCHEMA}")

    def _use_wal(self) -> None:
        """Switch to WAL; SQLite does not wait for another process that does the same."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block did, or nothing of it; waits for other processes."""
        with self._locked():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # SQLite waits by sleeping and trying again, and who sleeps is overtaken; the kernel has a queue.
        fcntl.flock(self._lock, fcntl.LOCK_EX if self._waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def attempt(self, work: Callable[[bool], Any]) -> Any:
        """Run ``work`` in a transaction."""
        with self.problems():
            return self._attempt(work)

    def _attempt(self, work: Callable[[bool], Any]) -> Any:
        # SQLite goes on writing to a file that has no name any more: nobody would find the records.
        if os.stat(self.path).st_ino != self._inode:
            raise LogError(f"{self.path}: was replaced while in use; restart the service")
        self._leave_no_doubt()
        return super().attempt(work)

    @contextlib.contextmanager
    def problems(self) -> Iterator[None]:
        """Raise the driver's errors as `LogError`."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.DataError):
            raise
        except (OSError, sqlite3.Error) as error:
            raise LogError(f"{self.path}: the prediction log cannot be used ({error})") from None

    def at_once(self) -> SqliteStore:
        """Return a second store of this log whose `append` never waits; `sync` then makes safe."""
        with self.problems():
            if self._durable:
                # SQLite keeps this file while a connection is open, and has no locks on it.
                self._wal = os.open(f"{self.path}-wal", os.O_RDWR | os.O_CLOEXEC)
            return SqliteStore(self.path, durable=self._durable, waits=False)

    def sync(self) -> None:
        """Make safe what the store that is `at_once` has appended: what ``synchronous=FULL`` does at the end of a commit."""
        if self._wal is None:
            return
        with self.problems():
            self._leave_no_doubt()
            try:
                _sync(self._wal)
            except OSError:
                self.doubtful = True
                raise

    def _leave_no_doubt(self) -> None:
        """Move all to the table, and sync that, after a sync failed.

        The system tells once that it could not write: the next sync succeeds without what was lost, and whatever stands behind a
        gap in the write-ahead log is lost with it.
        """
        if self.doubtful:
            with self._locked():
                ((busy, _, _),) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if busy:
                raise LogError(f"{self.path}: a sync failed, and somebody reads the log, so that it cannot be written anew yet")
            self.doubtful = False

    def checkpoint(self) -> None:
        """Move what was appended from the write-ahead log to the table, so that the former does not grow."""
        with self.problems(), self._locked():
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Close the files."""
        super().close()
        os.close(self._lock)
        if self._wal is not None:
            os.close(self._wal)

    def clean_up(self) -> None:
        """Give free pages back and empty the write-ahead log, which holds old pages."""
        with self.problems(), self._locked():
            self.connection.execute("PRAGMA incremental_vacuum").fetchall()
            ((busy, _, _),) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if busy:
                logger.warning("%s-wal holds deleted records until who reads the log is done; prune once more then", self.path)


class PostgresStore(Store):
    """A PostgreSQL server. A lost connection is made anew once per transaction."""

    mark = "%s"
    kinds = {"ID": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "REAL": "DOUBLE PRECISION", "BYTES": "BYTEA"}

    def __init__(self, url: str, *, durable: bool) -> None:
        try:
            import psycopg
        except ImportError:
            raise LogError("a prediction log in PostgreSQL needs psycopg; run `uv pip install -e '.[serving]'`") from None
        self._driver = psycopg
        self.data_errors = (*Store.data_errors, psycopg.IntegrityError, psycopg.DataError)
        self._url, self._durable = url, durable
        self._connect()

    def prepare(self) -> None:
        """Make the tables, or raise if a newer version made them."""
        with self.problems(), self.transaction():
            self.execute("SELECT pg_advisory_xact_lock(7236541)")  # one process makes the tables
            self.execute("CREATE TABLE IF NOT EXISTS prediction_log (schema_version INTEGER NOT NULL)")
            found = self.execute("SELECT schema_version FROM prediction_log").fetchone()
            self.bring_up(found[0] if found else 0)
            self.execute(
                "UPDATE prediction_log SET schema_version = ?" if found else "INSERT INTO prediction_log VALUES (?)", (SCHEMA,)
            )

    @contextlib.contextmanager
    def problems(self) -> Iterator[None]:
        """Raise the driver's errors as `LogError`."""
        try:
            yield
        except (self._driver.IntegrityError, self._driver.DataError):
            raise
        except self._driver.Error as error:
            # Never the URL nor what the driver repeats of it: it holds a password.
            where = urlsplit(self._url)
            said = " ".join(str(error).split()).replace(where.password or "\0", "***")
            raise LogError(f"the prediction log at {where.hostname or 'the local socket'} cannot be used ({said})") from None

    def _connect(self) -> None:
        with self.problems():
            self.connection = self._driver.connect(
                self._url,
                autocommit=True,
                connect_timeout=int(PATIENCE),
                tcp_user_timeout=int(PATIENCE * 1000),
                application_name="mlops-serve",
                options=f"-c statement_timeout={int(PATIENCE * 1000)} -c synchronous_commit={'on' if self._durable else 'off'}",
            )

    def transaction(self) -> contextlib.AbstractContextManager[Any]:
        """Commit what the block did, or nothing of it."""
        return self.connection.transaction()

    def attempt(self, work: Callable[[bool], Any]) -> Any:
        """Run ``work`` in a transaction, once more if the connection is lost."""
        with self.problems():
            if not self.connection.closed:
                try:
                    return super().attempt(work)
                except self._driver.OperationalError:
                    if not self.connection.closed:
                        raise
            self._connect()
            with self.transaction():
                return work(True)


def open_store(url: str, *, durable: bool = True, create: bool = True) -> Store:
    """Open the tables behind a log; `PredictionLog.open` says what ``url`` may be. A command does not ``create`` a file.

    Raises
    ------
    LogError
        If they cannot be opened, or were made by a newer version.
    """
    scheme, _, path = url.partition(":///")
    store: Store
    if scheme == "sqlite" and path:
        path = unquote(path)
        if not create and not os.path.exists(path):
            raise LogError(f"{path}: there is no prediction log; give the URL of one, or set MLOPS_LOG_URL")
        store = SqliteStore(path, durable=durable)
    elif url.startswith(("postgresql://", "postgres://")):
        store = PostgresStore(url, durable=durable)
    else:
        # Not shown: it may hold a password.
        raise LogError("the URL of the prediction log: expected sqlite:///path or postgresql://user@host/name")
    try:
        store.prepare()
    except BaseException:
        store.close()
        raise
    return store
