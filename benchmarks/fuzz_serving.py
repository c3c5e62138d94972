"""Can a body make the service fail? Hypothesis makes bodies, each is broken in many ways, and the application is asked with all.

Each input passes what a request passes: limits, reading of JSON, CSV or Arrow, scoring, prediction log, answer. Nothing may be
answered with 5xx, what is answered with 200 must be sound and stand readable in the log, and memory must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import math
import string
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

# Hypothesis remembers what it made for as long as one run of it lasts; between these memory can be compared.
ROUND = 5_000
# Of each body that Hypothesis makes, which costs more than to break it and to ask.
BROKEN = 9
# What caches and the allocator may take once they have been warmed up.
MOST_GROWTH = 8e6
WARM_UP = 3
JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"


class Fuzzed:
    """A service in this process.

    Parameters
    ----------
    folder : Path
        Holds a model (`running.train`); plans and logs go there.
    """

    def __init__(self, folder: Path) -> None:
        from mlops_project.serving.app import make_app
        from mlops_project.serving.loading import load
        from mlops_project.serving.service import Service
        from mlops_project.serving.settings import Settings
        from mlops_project.serving.state import Files

        files = Files(str(folder / "model.joblib"), str(folder / "policy.json"), str(folder / "state"), uncommitted=True)
        outcome = load(files)
        if outcome.outcome == "refused":
            raise SystemExit(outcome.detail)
        self._folder = folder
        settings = Settings(files=files, keys=None, rate_limit=None, log=f"sqlite:///{folder}/log.db", durable=False)
        service = Service(settings)
        self.app = make_app(settings, service)
        self.statuses: Counter[int] = Counter()
        self.loop = asyncio.new_event_loop()
        self._running = service.running()
        self.loop.run_until_complete(self._running.__aenter__())
        assert service.models.current is not None
        self.names = service.models.current.names.features

    def ask(self, body: bytes, kind: str, reasons: int = 0) -> tuple[int, bytes]:
        """Return status and body of the answer."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/predict",
            "raw_path": b"/v1/predict", "query_string": b"reasons=%d" % reasons if reasons else b"", "root_path": "",
            "scheme": "http", "state": {}, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            "headers": [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))],
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self.loop.run_until_complete(self.app(scope, receive, send))
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    def check(self, body: bytes, kind: str, reasons: int = 0) -> None:
        """Ask, and fail unless the answer is sound."""
        status, answer = self.ask(body, kind, reasons)
        self.statuses[status] += 1
        if status == 200:
            for p_good in _probabilities(answer, kind):
                assert 0 <= p_good <= 1, answer
        else:
            assert 400 <= status < 500, (status, answer)
            assert json.loads(answer)["status"] == status

    def check_log(self) -> int:
        """Read the log back, fail unless each record is whole, and return the number of applicants."""
        from mlops_project.serving.predictions import export
        from mlops_project.serving.stores import open_store

        store = open_store(f"sqlite:///{self._folder}/log.db", create=False)
        try:
            (expected,) = store.execute("SELECT coalesce(sum(row_count), 0) FROM requests").fetchone()
            found = export(store, self._folder / "log.csv")
        finally:
            store.close()
        assert found == expected, f"{found} of {expected} applicants can be read from the log"
        return found

    def close(self) -> None:
        self.loop.run_until_complete(self._running.__aexit__(None, None, None))


def _probabilities(answer: bytes, kind: str) -> list[float]:
    if kind == JSON:
        return [row["p_good"] for row in json.loads(answer, parse_constant=_none)["predictions"]]
    if kind == CSV:
        header, *rows = answer.decode().splitlines()
        position = header.split(",").index("p_good")
        return [float(row.split(",")[position]) for row in rows]
    import pyarrow as pa

    return pa.ipc.open_stream(answer).read_all()["p_good"].to_pylist()


def _none(text: str) -> Any:
    raise AssertionError(f"{text} in an answer")


# --- Inputs


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.integers(0, 100),
    st.integers().map(str),
    st.sampled_from(["", " ", "1e400", "-0", "NaN", "٣", "1_0", "0x1", "1,5", "\x00", 10**400, -(10**20), 5e-324, 1e308]),
)
# Parts that mean something to a parser, to break good bodies with.
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b"\\",
    b"\\u",
    b"\\ud800",
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"1e400",
    b"-",
    b"+",
    b".",
    b"e",
    b"9" * 400,
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b";",
    b"\t",
    b"|",
    b"'",
    b"=1+1",
    b" " * 50,
    b"[" * 500,
    b"/*",
    b"#",
]


def documents(names: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    """Return JSON, more or less what is expected."""
    fields = st.one_of(st.sampled_from(names), st.sampled_from(names), st.text(max_size=8))
    values = st.one_of(
        CELLS,
        CELLS,
        st.sampled_from(["\ud800", math.nan, math.inf]),
        st.recursive(CELLS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(fields, inner)),
    )
    known = st.dictionaries(st.sampled_from(names), CELLS, max_size=8)
    strange = st.dictionaries(fields, values, max_size=4)
    return st.one_of(known, known, st.lists(known, max_size=4), strange, st.lists(known | strange, max_size=3), values).map(_json)


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


def tables(names: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    """Return CSV, more or less what is expected."""
    cell = st.one_of(CELLS.map(str), st.text(alphabet='",;\t|\r\n1x', max_size=4))
    header = st.one_of(st.just(names), st.just(names[::-1]), st.lists(st.sampled_from([*names, "x", ""]), max_size=25))
    # Few cells that are anything, the others the same: to make each costs more than all that is tested.
    whole = st.builds(lambda some: (some * len(names))[: len(names)], st.lists(cell, min_size=1, max_size=4))
    rows = st.lists(whole | whole | st.lists(cell, max_size=3), max_size=3)
    return st.builds(_csv, header, rows, st.sampled_from(",,,;\t|"), st.sampled_from(["\n", "\r\n", "\r"]))


def _csv(header: Any, rows: list[list[str]], delimiter: str, end: str) -> bytes:
    return end.join(delimiter.join(cells) for cells in [header, *rows]).encode("utf-8", "surrogatepass")


def broken(body: bytes, random: Random) -> bytes:
    """Cut, double, overwrite or insert parts of a body."""
    for _ in range(random.randint(1, 4)):
        start, length = random.randrange(len(body) + 1), random.choice((0, 0, 1, 2, 8, 40))
        part = random.choice(
            (random.choice(TOKENS), random.randbytes(random.randint(1, 3)), body[start : start + length] * 2, b"")
        )
        body = body[:start] + part + body[start + length :]
    return body


def good_bodies(names: tuple[str, ...]) -> dict[str, list[bytes]]:
    """Return bodies of dirty rows, by media type; Arrow if pyarrow is there."""
    from running import dirty_rows

    rows = dirty_rows()[list(names)][:40]
    records = rows.to_dict("records")
    text = [rows[i : i + n].to_csv(index=False).encode() for i, n in enumerate((1, 2, 5))]
    found = {JSON: [*map(_json, records[:20]), _json(records[:3]), _json([])], CSV: [*text, text[0].replace(b",", b";")]}
    try:
        import pyarrow as pa
    except ImportError:
        return found
    found[ARROW] = []
    for number in (1, 3):
        table = pa.Table.from_pandas(rows[:number], preserve_index=False)
        for form in (table, table.replace_schema_metadata(None)):
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, form.schema) as writer:
                writer.write_table(form)
            found[ARROW].append(sink.getvalue())
    return found


def inputs(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, bytes]]:
    """Return pairs of media type and body."""
    good = good_bodies(names)
    kinds = {JSON: documents(names), CSV: tables(names)}
    made = [st.tuples(st.just(kind), bodies) for kind, bodies in kinds.items()]
    made += [st.tuples(st.just(kind), st.sampled_from(bodies)) for kind, bodies in good.items()] * 2
    # Bytes without sense, and texts of one type that are sent as another.
    mixed = st.one_of(st.binary(max_size=200), st.text(alphabet=string.printable, max_size=200).map(str.encode), *kinds.values())
    return st.one_of(*made, st.tuples(st.sampled_from(sorted(good)), mixed))


def fuzz(folder: Path, count: int, first_seed: int = 0) -> tuple[Counter[int], list[float], int]:
    """Ask with ``count`` inputs; return answers by status, resident bytes after each round, and logged applicants.

    Raises
    ------
    AssertionError
        With the input, made small by Hypothesis, if an answer or the log is not sound.
    """
    import psutil

    fuzzed, process = Fuzzed(folder), psutil.Process()
    strategy = inputs(fuzzed.names)
    memory = []
    for number in range(math.ceil(count / ROUND)):

        @seed(first_seed + number)
        @settings(
            max_examples=math.ceil(min(ROUND, count - number * ROUND) / (1 + BROKEN)), database=None, deadline=None,
            derandomize=False, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy, st.integers(0, 1 << 32))
        def one(sent: tuple[str, bytes], random_seed: int) -> None:
            kind, body = sent
            random = Random(random_seed)
            for sent_body in (body, *(broken(body, random) for _ in range(BROKEN))):
                note(repr(sent_body))
                fuzzed.check(sent_body, kind, random.choice((0, 0, 0, 3, 20)))

        one()
        del one
        gc.collect()
        memory.append(process.memory_info().rss)
    # At the end: to read a log takes memory, too.
    logged = fuzzed.check_log()
    fuzzed.close()
    fuzzed.loop.close()
    return fuzzed.statuses, memory, logged


def growth(memory: list[float]) -> float:
    """Return by how many bytes memory has grown since the first rounds, which warm up."""
    return memory[-1] - memory[min(WARM_UP, len(memory) - 1)]


def main() -> int:
    from running import train

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help=f"of the first {ROUND} inputs, the next ones have the next (default: %(default)s)"
    )
    args = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        statuses, memory, logged = fuzz(Path(folder), args.inputs, args.seed)
    print(f"{sum(statuses.values())} inputs in {time.perf_counter() - begun:.0f} s; answers by status:")
    for status, number in sorted(statuses.items()):
        print(f"  {status}  {number}")
    print(f"{logged} applicants scored, logged and read back")
    marks = " ".join(f"{size / 1e6:.0f}" for size in memory[:: max(1, len(memory) // 10)])
    print(f"resident MB over the run: {marks}; grown by {growth(memory) / 1e6:.1f} after {WARM_UP} rounds of {ROUND}")
    if growth(memory) > MOST_GROWTH:
        print(f"memory grows: expected at most {MOST_GROWTH / 1e6:.0f} MB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
