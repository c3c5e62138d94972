"""What does it cost to have a prediction safe before its answer is sent? Rows per second and waits of the prediction log.

As many appends as given wait at the same time, in one or several processes that write one log. A wait is from the append to
the commit. CPU is that of the process per record, thread and commit included. The disk decides about FULL, so its own figure
stands above the table.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from common import print_table

HEADER = ("log", "sync", "processes", "appends", "applicants", "records/s", "CPU µs/record", "p50 ms", "p99 ms", "max ms")
CASES = ((1, 1, 1), (1, 16, 1), (1, 64, 1), (2, 16, 1), (4, 16, 1), (1, 8, 1000))
STARTING = 2.0
COLUMNS = [f"column_{i:02}" for i in range(20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per line (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is printed (default: %(default)s)")
    parser.add_argument("--url", help="a PostgreSQL database to measure (its tables are made and filled) in place of SQLite")
    parser.add_argument("--folder", help="on the disk to measure (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(f"fsync of one page: {fsync(Path(folder)) * 1e6:.0f} µs (median of 300)")
        cases = [(durable, *case) for case in CASES for durable in (True, False)]
        found: dict[tuple, list] = {case: [] for case in cases}
        for number in range(args.rounds):
            for case in cases:
                url = args.url or f"sqlite:///{folder}/{number}-{'-'.join(map(str, case))}.db"
                found[case].append(measure(url, *case, args.seconds))
    rows = []
    for (durable, processes, appends, applicants), measured in found.items():
        per_second, cpu, p50, p99, longest = (sorted(column)[len(column) // 2] for column in zip(*measured, strict=True))
        log, sync = ("PostgreSQL", "on" if durable else "off") if args.url else ("SQLite", "FULL" if durable else "NORMAL")
        figures = (f"{per_second:.0f}", f"{cpu:.1f}", f"{p50:.2f}", f"{p99:.2f}", f"{longest:.1f}")
        rows.append((log, sync, str(processes), str(appends), str(applicants), *figures))
    print_table(HEADER, rows)


def fsync(folder: Path) -> float:
    times = []
    with (folder / "page").open("wb", buffering=0) as file:
        for _ in range(300):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return sorted(times)[150]


def measure(url: str, durable: bool, processes: int, appends: int, applicants: int, seconds: float) -> tuple[float, ...]:
    """Return records per second of all processes, CPU µs per record, and p50, p99 and the longest wait in ms."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        done = pool.starmap(worker, [(url, durable, appends, applicants, time.time() + STARTING, seconds)] * processes)
    waits = sorted(wait for found, _ in done for wait in found)
    cpu = sum(used for _, used in done)
    places = (len(waits) // 2, len(waits) * 99 // 100, -1)
    return (len(waits) / seconds, cpu / len(waits) * 1e6, *(waits[place] * 1e3 for place in places))


def worker(url: str, durable: bool, appends: int, applicants: int, start: float, seconds: float) -> tuple[list[float], float]:
    import uvloop

    return uvloop.run(_appending(url, durable, appends, applicants, start, seconds))


async def _appending(
    url: str, durable: bool, appends: int, applicants: int, start: float, seconds: float
) -> tuple[list[float], float]:
    import msgspec
    import numpy as np

    from mlops_project.serving.log import PredictionLog
    from mlops_project.serving.records import Record, new_request_id, results

    random = np.random.default_rng(7)
    table = [dict(zip(COLUMNS, row, strict=True)) for row in random.integers(0, 100, (applicants, 20)).tolist()]
    inputs = msgspec.json.encode(table if applicants > 1 else table[0])
    p_good = random.random(applicants).tolist()
    answers = results(p_good, p_good, p_good, ["refuse"] * applicants)
    waits: list[float] = []
    log = PredictionLog.open(url, durable=durable)
    await asyncio.sleep(start - time.time())  # all processes at the same time
    end = time.perf_counter() + seconds

    async def one() -> None:
        while (started := time.perf_counter()) < end:
            await log.append([Record(new_request_id(), time.time(), "f" * 64, inputs, answers, applicants)])
            waits.append(time.perf_counter() - started)

    used = time.process_time()
    await asyncio.gather(*(one() for _ in range(appends)))
    used = time.process_time() - used
    await log.close()
    return waits, used


if __name__ == "__main__":
    main()
