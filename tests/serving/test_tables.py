"""Arrow and Parquet bodies that would be far larger in memory than they are, or lead out of it."""

import datetime as dt
import decimal
import struct
from random import Random

import psutil
import pytest

from mlops_project.serving.applicants import ARROW, PARQUET

pa = pytest.importorskip("pyarrow")
LONG = "x" * 1_000_000
ROWS = 1000


def table(first, good, n=ROWS):
    """Return n applicants in whose first column something else stands."""
    return pa.table({name: pa.array([str(cell)] * n) if i else first for i, (name, cell) in enumerate(good.items())})


def stream(content, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content)
    return sink.getvalue().to_pybytes()


def file(content, **options):
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(content, sink, **options)
    return sink.getvalue().to_pybytes()


def cells_of(cell, kind):
    if not pa.types.is_dictionary(kind):
        return pa.array([cell, None], kind)
    return pa.DictionaryArray.from_arrays(pa.array([0, None], kind.index_type), pa.array([cell], kind.value_type))


@pytest.fixture(scope="module")
def small(clients):
    return clients(max_rows=ROWS)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_compressed_buffers_are_not_unpacked(small, good, codec, dictionary):
    first = pa.array([LONG] * ROWS, pa.large_string())
    body = stream(table(first.dictionary_encode() if dictionary else first, good), compression=codec)
    answer = small.predict(body, kind=ARROW)
    assert (answer.status, answer.json["detail"]) == (415, "found compressed buffers, expected none")


def test_a_compressed_dictionary_is_seen_before_the_plain_batch_behind_it(small, good):
    first = pa.array([LONG] * ROWS).dictionary_encode()
    packed, plain = stream(table(first, good), compression="zstd"), stream(table(first, good))
    kinds = [message.type for message in pa.ipc.MessageReader.open_stream(packed)]
    assert kinds == ["schema", "dictionary", "record batch"]
    reader = pa.ipc.MessageReader.open_stream(packed)
    sink = pa.BufferOutputStream()
    for _ in range(2):
        reader.read_next_message().serialize_to(sink)
    *_, batch = pa.ipc.MessageReader.open_stream(plain)
    batch.serialize_to(sink)
    assert small.predict(sink.getvalue().to_pybytes(), kind=ARROW).status == 415


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
def test_parquet_may_be_compressed(small, good, codec):
    assert small.predict(file(table(pa.array(["1"] * ROWS), good), compression=codec), kind=PARQUET).status == 200


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "none", "use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
    ],
)
def test_parquet_that_unpacks_to_gigabytes_is_refused_and_takes_no_worker_along(small, good, options):
    """Two gigabytes of text in less than two megabytes, by a codec and by an encoding."""
    names = list(good)
    if "column_encoding" in options:
        options = options | {"column_encoding": dict.fromkeys(names, "DELTA_BYTE_ARRAY")}
    body = file(table(pa.array([f"{LONG}{i}" for i in range(300)], pa.large_string()), good, 300), **options)
    assert len(body) < 5_000_000
    before = psutil.Process().memory_info().rss
    answer = small.predict(body, kind=PARQUET)
    assert answer.status in (400, 413)
    assert psutil.Process().memory_info().rss - before < 100e6


def test_parquet_over_which_pyarrow_ends_the_process_is_refused(small, good):
    """Bytes are overwritten at the end, where the file describes itself."""
    whole, chance = file(table(pa.array(["1"] * 3), good, 3)), Random(0)
    for _ in range(40):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body) - 4000, len(body) - 8)] = chance.randrange(256)
        assert small.predict(bytes(body), kind=PARQUET).status in (200, 400, 413, 422)


@pytest.mark.parametrize("kind", [ARROW, PARQUET])
def test_a_long_text_in_all_rows_is_refused_before_it_is_repeated(small, good, kind):
    first = pa.array([LONG] * ROWS).dictionary_encode()
    body = stream(table(first, good)) if kind == ARROW else file(table(first, good), dictionary_pagesize_limit=1 << 24)
    assert len(body) < 2_000_000
    answer = small.predict(body, kind=kind)
    assert (answer.status, "much larger" in answer.json["detail"]) == (413, True)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string_view(),
        pa.binary(),
        pa.list_(pa.string()),
        pa.struct([("a", pa.string())]),
        pa.dictionary(pa.int8(), pa.binary()),
        pa.duration("s"),
        pa.month_day_nano_interval(),
    ],
)
def test_types_whose_size_says_nothing_or_that_are_no_cells_are_refused(small, good, kind):
    answer = small.predict(stream(table(pa.nulls(ROWS, kind), good)), kind=ARROW)
    assert (answer.status, "found the type" in answer.json["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        (pa.int8(), 1),
        (pa.uint64(), 2**64 - 1),
        (pa.float16(), 1.5),
        (pa.float64(), float("nan")),
        (pa.bool_(), True),
        (pa.null(), None),
        (pa.decimal128(38, 2), decimal.Decimal("1.25")),
        (pa.large_string(), "1"),
        (pa.dictionary(pa.int8(), pa.string()), "1"),
        (pa.dictionary(pa.int32(), pa.int64()), 1),
        (pa.date32(), dt.date(2000, 1, 1)),
        (pa.timestamp("ns", "UTC"), 1),
        (pa.time64("us"), dt.time(1)),
        (pa.date32(), 2**31 - 1),
        (pa.timestamp("s"), -(2**60)),
        (pa.dictionary(pa.int8(), pa.timestamp("ns")), 1),
        (pa.time64("ns"), 1),
    ],
)
def test_plain_types_are_cells_whatever_they_mean(small, good, kind, cell):
    answer = small.predict(stream(table(cells_of(cell, kind), good, 2)), kind=ARROW, headers={"accept": "application/json"})
    assert answer.status == 200, answer
    assert len(answer.json["predictions"]) == 2


def test_numbers_in_a_stream_that_lead_out_of_the_memory_are_noticed(small, good):
    """Lengths and offsets are overwritten: a process that believes them ends."""
    first = pa.array(["a", None, "bcd"])
    bodies = [stream(table(one, good, 3)) for one in (first, first.dictionary_encode())]
    chance, statuses = Random(0), set()
    for _ in range(3000):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.randint(1, 3)):
            place, number = chance.randrange(len(body) - 8), chance.choice([-1, 1, 7, 1 << 31, 1 << 40])
            body[place : place + 8] = struct.pack("<q", number)
        statuses.add(small.predict(bytes(body), kind=ARROW).status)
    assert statuses <= {200, 400, 413, 415, 422}


def test_a_time_zone_that_nobody_knows_is_refused(small, good):
    body = stream(table(pa.array([1, None], pa.timestamp("s", "Nowhere/Land")), good, 2))
    assert small.predict(body, kind=ARROW).status == 400
