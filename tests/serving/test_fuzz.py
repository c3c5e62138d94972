"""Bodies that were bent by chance, by the hundred thousand: an answer or a refusal, never a fault, and no growing memory."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops_project.serving.applicants import ARROW, CSV, JSON, PARQUET
from mlops_project.serving.loading import load
from mlops_project.serving.models import load_served
from mlops_project.serving.predict import predict
from mlops_project.serving.problems import Refusal

PIECES = (
    b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\", b"NaN", b"1e999", b"-", b"9" * 5000, b"\x00", b"\xff", b"\\ud800", b"true",
    b"null",
    b"\n", b";", b"\t", b'""', b"[[[[[[", b'{"a":', b"\xef\xbb\xbf", b"\r", b"[" * 5000, b"1" * 20_000 + b"x",
)  # fmt: skip
N = 100_000
N_TABLES = 10_000
SLOWEST = 1.0


def bent(body: bytes, chance: random.Random) -> bytes:
    """Insert pieces, repeat and remove parts, change bytes."""
    out = bytearray(body)
    for _ in range(chance.choice([0, 1, 1, 2, 3, 8])):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0:
                out[at:at] = chance.choice(PIECES)
            case 1:
                del out[at : at + chance.randrange(1, 9)]
            case 2 if at < len(out):
                out[at] = chance.randrange(256)
            case 3:
                start = chance.randrange(len(out) + 1)
                out[at:at] = out[start : start + chance.randrange(40)]
            case _:
                del out[at:]
    return bytes(out)


def tables(names: list[str]) -> dict[str, list[bytes]]:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({name: ["1", "2", "?"] for name in names})
    file, stream = pa.BufferOutputStream(), pa.BufferOutputStream()
    parquet.write_table(table, file)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return {PARQUET: [file.getvalue().to_pybytes()], ARROW: [stream.getvalue().to_pybytes()]}


def texts(good: dict[str, Any]) -> dict[str, list[bytes]]:
    one, row = json.dumps(good).encode(), ",".join(map(str, good.values()))
    csv = f"{','.join(good)}\n{row}\n{row}".encode()
    strange = [b'{"alter":1e400,"laufkont":"\\u0041"}', b'{"alter":null,"laufzeit":"24,5"}']
    return {JSON: [one, b"[" + one + b"," + one + b"]", *strange], CSV: [csv, csv.replace(b",", b";")]}


@pytest.mark.integration
@pytest.mark.parametrize(("what", "n"), [("texts", N), ("tables", N_TABLES)])
def test_no_bent_body_is_a_fault(trained, good, what, n):
    files = trained().files
    load(files)
    served = load_served(Path(files.state))
    bodies = texts(good) if what == "texts" else tables(list(good))
    kinds, chance = list(bodies), random.Random(1)
    found: Counter[int] = Counter()
    sizes = []
    for i in range(n):
        kind = chance.choice(kinds)
        body = bent(chance.choice(bodies[kind]), chance)
        begun = time.process_time()
        try:
            predict(served, body, kind, kind, chance.choice([0, 0, 0, 3]), 1000)
            found[200] += 1
        except Refusal as refusal:
            found[refusal.status] += 1
        assert time.process_time() - begun < SLOWEST, (kind, body[:1000])
        if i in (n // 5, n - 1):
            sizes.append(psutil.Process().memory_info().rss)
    assert set(found) == {200, 400, 422} | ({413} if what == "tables" else set())
    assert min(found.values()) > n / 10_000
    assert sizes[1] - sizes[0] < 20e6
