"""Does the service stay right under full load, while models are exchanged and workers killed?

Good and bad requests on several connections; in between models are put in place and workers get SIGKILL. Each answer is compared
with what is due: its status, and for predictions the probabilities by `predict_proba` of the very model that it names. At the end
each prediction that was answered must stand in the log. Only requests that a killed worker had in hand may be lost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from running import VARIANTS, Running, dirty_rows, put, train

# 1e-9 is what the parity gate allows a compiled model.
TOLERANCE = 1e-9
SINGLE, MANY = 300, 20


class Call(NamedTuple):
    """A request and what is due."""

    content: bytes
    status: int
    rows: tuple[int, ...] = ()
    """Rows of `dirty_rows` that it holds, if it is a prediction."""
    csv: bool = False


class Found(NamedTuple):
    """What a soak test found."""

    seconds: float
    answers: Counter[int]
    wrong: list[str]
    """Answers that were not what was due."""
    broken: int
    """Requests whose connection ended without an answer."""
    acknowledged: int
    unlogged: int
    """Acknowledged predictions that the log does not hold, or holds with another model or probability."""
    logged: int
    versions: Counter[str]
    memory: tuple[float, float]
    """Resident bytes of the largest worker at the beginning and at the end."""
    swaps: int
    kills: int


def calls(token: str, names: list[str]) -> list[Call]:
    """Return the requests that are made in turn: two thirds good ones, one third what must be refused."""
    table = dirty_rows()[names]
    records = table.to_dict("records")
    found = [Call(_request(token, _json(records[i]), "?reasons=3" if i % 5 == 0 else ""), 200, (i,)) for i in range(SINGLE)]
    for start in range(0, SINGLE, MANY):
        rows = tuple(range(start, start + MANY))
        found.append(Call(_request(token, _json(records[start : start + MANY])), 200, rows))
        text = table[start : start + MANY].to_csv(index=False).encode()
        found.append(Call(_request(token, text, kind="text/csv"), 200, rows, csv=True))
    good = _json(records[0])
    bad = [
        (good[:-1], 400), (b'{"x": NaN}', 400), (b"[" * 5000, 400), (b"\xff", 400), (good[:-1] + b"," + good[1:], 400),
        (_json({"no_such_column": 1}), 422), (b"[]", 422), (b"1", 422), (_json({names[0]: [1]}), 422), (b" " * 2_000_000, 413),
    ]  # fmt: skip
    refused = [Call(_request(token, body), status) for body, status in bad]
    refused += [
        Call(_request(token[:-1] + ("A" if token[-1] != "A" else "B"), good), 401),
        Call(_request("", good), 401),
        Call(_request(token, good, "?reasons=21"), 422),
        Call(_request(token, good, f"?key={token}"), 400),
        Call(_request(token, good, kind="text/plain"), 415),
        Call(_request(token, b"x" * 5000, kind="text/csv"), 422),
        Call(_request(token, good, path="/nowhere"), 404),
        Call(_request(token, b"", path="/v1/admin/reload"), 403),
    ]
    # Half as many bad ones, spread: each kind often, and what comes next to what differs from round to round.
    mixed = [refused[i % len(refused)] for i in range(len(found) // 2)]
    return [call for group in itertools.zip_longest(found[::2], found[1::2], mixed) for call in group if call is not None]


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _request(token: str, body: bytes, query: str = "", kind: str = "application/json", path: str = "/v1/predict") -> bytes:
    key = f"authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path}{query} HTTP/1.1\r\nhost: soak\r\n{key}content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Soak:
    """Asks, compares and remembers what was acknowledged.

    Parameters
    ----------
    port : int
    every : list of Call
    due : dict of array of shape (n rows,)
        P(good) of each row by model version.
    total : int
        Number of requests at least; more are made while models are still to be exchanged.
    """

    def __init__(self, port: int, every: list[Call], due: dict[str, Any], total: int) -> None:
        self._port, self._every, self._due, self._total = port, every, due, total
        self.begun = self.broken = 0
        self.busy = True
        """Whether something is still to be done under load."""
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.acknowledged: dict[str, tuple[str, tuple[int, ...]]] = {}

    async def connection(self) -> None:
        """Make requests one after the other until all are made, and what is done under load is done."""
        streams = None
        while self.busy or self.begun < self._total:
            call = self._every[self.begun % len(self._every)]
            self.begun += 1
            while True:  # what was lost is asked again
                try:
                    streams = streams or await asyncio.open_connection("127.0.0.1", self._port)
                    status, headers, body = await _exchange(*streams, call.content)
                    break
                except (OSError, asyncio.IncompleteReadError):
                    self.broken += 1
                    if streams:
                        streams[1].close()
                    streams = None
            self._check(call, status, headers, body)
            if b"connection: close" in headers:
                streams[1].close()
                streams = None
        if streams:
            streams[1].close()

    def _check(self, call: Call, status: int, headers: bytes, body: bytes) -> None:
        self.answers[status] += 1
        if status != call.status:
            self.wrong.append(f"found {status}, due {call.status}: {body[:200]!r}")
        elif status != 200:
            if msgspec.json.decode(body)["status"] != status:
                self.wrong.append(f"no problem detail: {body[:200]!r}")
        else:
            request_id, version = (_value(headers, name) for name in (b"x-request-id", b"x-model-version"))
            if call.csv:
                lines = body.decode().splitlines()
                column = lines[0].split(",").index("p_good")
                p_good = [float(line.split(",")[column]) for line in lines[1:]]
            else:
                answer = msgspec.json.decode(body)
                p_good = [row["p_good"] for row in answer["predictions"]]
                if (answer["request_id"], answer["model_version"]) != (request_id, version):
                    self.wrong.append(f"head and body of {request_id} disagree")
            if version not in self._due or not self._fits(p_good, version, call.rows):
                self.wrong.append(f"{version[:12]} does not say {p_good[:3]} of the rows {call.rows[:3]}")
            if request_id in self.acknowledged:
                self.wrong.append(f"{request_id} stands twice")
            self.acknowledged[request_id] = version, call.rows

    def _fits(self, p_good: list[float], version: str, rows: tuple[int, ...]) -> bool:
        due = self._due[version]
        return len(p_good) == len(rows) and all(abs(p - due[row]) <= TOLERANCE for p, row in zip(p_good, rows, strict=True))

    def unlogged(self, database: Path) -> tuple[int, int, Counter[str]]:
        """Return how many acknowledged predictions the log does not hold as they were answered, its size, and its versions."""
        from mlops_project.serving.records import read_results

        connection = sqlite3.connect(database)
        logged, fine, versions = 0, 0, Counter[str]()
        for request_id, version, results in connection.execute("SELECT request_id, model_version, results FROM requests"):
            logged += 1
            versions[version] += 1
            known = self.acknowledged.get(request_id)
            if known and known[0] == version and self._fits(read_results(results).p_good, version, known[1]):
                fine += 1
        connection.close()
        return len(self.acknowledged) - fine, logged, versions


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> tuple[int, bytes, bytes]:
    writer.write(content)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return int(head[9:12]), head, await reader.readexactly(int(_value(head, b"content-length")))


def _value(head: bytes, name: bytes) -> str:
    start = head.index(b"\r\n" + name + b": ") + len(name) + 4
    return head[start : head.index(b"\r\n", start)].decode()


def soak(folder: Path, *, requests: int, swaps: int, kills: int, connections: int = 16, workers: int = 2) -> Found:
    """Run the soak test; parameters as on the command line."""
    from mlops_project.manifest import verify
    from mlops_project.serving import keys

    due, sources = {}, {}
    for name, settings in VARIANTS.items():
        model = train(folder / name, **settings)
        version = verify(folder / name / "model.joblib", allow_uncommitted=True)
        sources[name] = folder / name, version
        due[version] = model.predict_proba(dirty_rows()[:SINGLE])[:, 1]
    spread = [abs(a - b).max() for a, b in itertools.combinations(due.values(), 2)]
    if min(spread) < 0.01:
        raise SystemExit("the models hardly differ: a mixed-up answer would not be noticed")
    names = list(model.contract.features)
    service = folder / "service"
    service.mkdir()
    put(sources["first"][0], service)
    tokens = {scope: keys.create(service / "keys.json", scope, scope)[1] for scope in ("predict", "admin")}
    arguments = ["--keys-file", "keys.json", "--rate-limit", "1000000000/minute", "--max-body", "1000000"]
    with Running(service, *arguments, workers=workers) as running:
        test = Soak(running.port, calls(tokens["predict"], names), due, requests)
        begun = time.perf_counter()
        memory, done = asyncio.run(_run(test, running, tokens["admin"], sources, requests, swaps, kills, connections))
        seconds = time.perf_counter() - begun
        code = running.end()
    if code:
        test.wrong.append(f"mlops-serve ended with exit code {code}")
    if "Traceback" in running.log():
        test.wrong.append("a traceback stands in the service's log")
    unlogged, logged, versions = test.unlogged(service / "var/predictions.db")
    return Found(
        seconds, test.answers, test.wrong, test.broken, len(test.acknowledged), unlogged, logged, versions, memory, *done
    )


async def _run(
    test: Soak, running: Running, token: str, sources: dict[str, Any], requests: int, swaps: int, kills: int, connections: int
) -> tuple[tuple[float, float], tuple[int, int]]:
    """Load, exchange and kill at even distances; return memory of workers, and how often it was done."""
    load = [asyncio.create_task(test.connection()) for _ in range(connections)]
    order = itertools.cycle([*list(sources)[1:], next(iter(sources))])
    events = sorted(
        [((i + 1) / (swaps + 1), "swap") for i in range(swaps)] + [((i + 0.6) / (kills + 0.2), "kill") for i in range(kills)]
    )
    first, done = 0.0, Counter[str]()
    for place, event in events:
        while test.begun < place * requests:
            await asyncio.sleep(0.01)
            for task in load:
                if task.done():
                    task.result()  # raises what ended it
        first = first or _largest(running)
        if event == "kill":
            victims = running.workers()
            victims[min(victims)].kill()
            while min(victims) in running.workers() or len(running.workers()) < len(victims):  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(0.02)
        else:
            folder, version = sources[next(order)]
            await asyncio.to_thread(put, folder, running.folder)
            await _reload(test, running, token, version)
        done[event] += 1
        print(f"  {event} after {test.begun} requests", file=sys.stderr, flush=True)
    # Until a worker has looked for the last model, and the last worker is there.
    await asyncio.sleep(1)
    test.busy = False
    await asyncio.gather(*load)
    return (first, _largest(running)), (done["swap"], done["kill"])


async def _reload(test: Soak, running: Running, token: str, version: str) -> None:
    """Ask until the new model is in: the worker that is asked may be the one that is killed."""
    while True:
        try:
            streams = await asyncio.open_connection("127.0.0.1", running.port)
            status, _, body = await _exchange(*streams, _request(token, b"", path="/v1/admin/reload"))
        except (OSError, asyncio.IncompleteReadError):
            continue
        streams[1].close()
        if status != 200 or msgspec.json.decode(body)["model_version"] != version:
            test.wrong.append(f"reload: {status} {body[:300]!r}")
        return


def _largest(running: Running) -> float:
    return max(worker.memory_info().rss for worker in running.workers().values())


def faults(found: Found, connections: int) -> list[str]:
    """Return what is wrong with what was found."""
    wrong = [f"{len(found.wrong)} wrong answers, such as {found.wrong[:3]}"] if found.wrong else []
    if any(status >= 500 for status in found.answers):
        wrong.append("answers with 5xx")
    if found.broken > found.kills * connections:
        wrong.append(f"{found.broken} requests were lost, a killed worker has at most {connections} in hand")
    if found.unlogged:
        wrong.append(f"{found.unlogged} acknowledged predictions are not in the log as they were answered")
    # A prediction can be logged, and its worker killed before it has answered.
    if found.logged - found.acknowledged > found.broken:
        wrong.append(f"the log holds {found.logged} predictions, acknowledged were {found.acknowledged}")
    if found.swaps >= len(VARIANTS) and len(found.versions) < len(VARIANTS):
        wrong.append(f"only {len(found.versions)} of {len(VARIANTS)} models have answered")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("requests", 200_000), ("swaps", 20), ("kills", 3), ("connections", 16), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), **vars(args))
    total = sum(found.answers.values())
    print(f"{total} answers in {found.seconds:.0f} s ({total / found.seconds:.0f}/s)")
    print(f"{args.connections} connections, {args.workers} workers")
    print(f"{found.swaps} models exchanged, {found.kills} workers killed, {found.broken} requests in hand lost and asked again")
    print("answers by status: " + ", ".join(f"{status}: {number}" for status, number in sorted(found.answers.items())))
    print("logged by model: " + ", ".join(f"{version[:12]}: {number}" for version, number in found.versions.items()))
    print(f"{found.acknowledged} predictions acknowledged, {found.unlogged} of them not in the log, which holds {found.logged}")
    print(f"largest worker: {found.memory[0] / 1e6:.0f} MB at first, {found.memory[1] / 1e6:.0f} MB at the end")
    wrong = faults(found, args.connections)
    print("\n".join(wrong) if wrong else "no wrong answer, no 5xx")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
