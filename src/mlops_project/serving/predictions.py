"""`mlops-predictions`: export the prediction log, delete what is logged of an applicant, forget what is old."""

from __future__ import annotations

import argparse
import csv
import json
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from mlops_project.errors import DataError, PipelineError
from mlops_project.files import NEEDS_PYARROW, atomic_path
from mlops_project.runtime import guarded, setup_logging
from mlops_project.serving import environment
from mlops_project.serving.keys import seconds_of
from mlops_project.serving.records import Logged, decoded, read_results
from mlops_project.serving.stores import DEFAULT_URL, Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlops_project.schema import Contract

OWN = (
    "request_id", "position", "time", "model_version", "applicant",
    "p_good", "probability_of_default", "score", "decision", "outcome", "outcome_time",
)  # fmt: skip
NUMBERS = ("p_good", "probability_of_default", "score")
TIMES = ("time", "outcome_time")
# Names of the caller's columns: none can take the place of one of ours.
PREFIX = "input_"
ROWS_AT_ONCE = 5000


def inputs_of(logged: Logged) -> list[dict[str, Any] | None]:
    """Return the raw cells of each applicant of a record; None where they are deleted."""
    content = decoded(logged.record.inputs)
    if isinstance(content, list):
        return content
    columns = list(content.values())
    if not any(isinstance(column, list) for column in columns):
        return [content]
    rows = [dict(zip(content, cells, strict=True)) for cells in zip(*columns, strict=True)]
    decisions = read_results(logged.record.results).decision
    return [row if decision is not None else None for row, decision in zip(rows, decisions, strict=True)]


def rows(log: Iterable[Logged]) -> Iterator[dict[str, Any]]:
    """Yield one row per prediction: the columns `OWN`, and the inputs as text under `PREFIX` and their name."""
    for logged in log:
        record, answers = logged.record, asdict(read_results(logged.record.results))
        for i, cells in enumerate(inputs_of(logged)):
            if cells is None:
                continue
            outcome, posted = logged.outcomes.get(i, (None, None))
            yield {
                "request_id": record.request_id,
                "position": i,
                "time": _when(record.time),
                "model_version": record.model_version,
                "applicant": record.applicants[i] if record.applicants else None,
                "outcome": outcome,
                "outcome_time": _when(posted),
                **{name: answers[name][i] for name in (*NUMBERS, "decision")},
                **{f"{PREFIX}{name}": _text(cell) for name, cell in cells.items()},
            }


def _when(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _text(cell: Any) -> str | None:
    """Return a cell as it was sent: one column can hold numbers and text, a Parquet column cannot."""
    return cell if cell is None or isinstance(cell, str) else json.dumps(cell)


def export(store: Store, path: Path) -> int:
    """Write all predictions with their outcomes to a file (.parquet or .csv); return their number.

    The log is read twice, for the names of the inputs and for the rows, a few at a time.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise PipelineError(f"--output: found {path}, expected a name that ends in .parquet or .csv")
    names = dict.fromkeys(name for logged in store.read() for cells in inputs_of(logged) for name in cells or ())
    columns = [*OWN, *(f"{PREFIX}{name}" for name in names)]
    found = rows(store.read())
    count = 0
    # Personal data, as the log itself.
    with atomic_path(path, mode=0o600) as temporary:
        write = _parquet if path.suffix == ".parquet" else _csv
        for written in write(temporary, columns, found):
            count += written
    return count


def _batches(found: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(found, ROWS_AT_ONCE)):
        yield batch


def _csv(path: Path, columns: list[str], found: Iterator[dict[str, Any]]) -> Iterator[int]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        # Inputs that came after the names were read have no column.
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for batch in _batches(found):
            for row in batch:
                writer.writerow({name: cell.isoformat() if isinstance(cell, datetime) else cell for name, cell in row.items()})
            yield len(batch)


def _parquet(path: Path, columns: list[str], found: Iterator[dict[str, Any]]) -> Iterator[int]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path.name}: {NEEDS_PYARROW}") from None
    kinds = dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(TIMES, pa.timestamp("us", "UTC")) | {"position": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    with parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(found):
            writer.write_table(pa.Table.from_pylist(batch, schema))
            yield len(batch)


def like(store: Store, cells: dict[str, Any], contract: Contract) -> dict[str, set[int] | None]:
    """Find the predictions of whoever has these cells; they are compared as the contract reads them, so 18 is "18.0".

    It reads the whole log: to look for somebody by his cells is rare, and a hash in each record would be one more trace of him.
    """
    import pandas as pd

    from mlops_project.identity import hash_rows

    def hashes(tables: list[dict[str, Any]]) -> list[str]:
        # Whatever was not sent is missing.
        table = pd.DataFrame([{name: row.get(name) for name in contract.features} for row in tables], dtype=object)
        return hash_rows(contract.parse_features(table).values, contract)

    (wanted,) = hashes([cells])
    found: dict[str, set[int] | None] = {}
    places = (
        (logged.record.request_id, i, row)
        for logged in store.read()
        for i, row in enumerate(inputs_of(logged))
        if row is not None
    )
    while batch := list(islice(places, ROWS_AT_ONCE)):
        for (request_id, i, _), row_hash in zip(batch, hashes([row for _, _, row in batch]), strict=True):
            if row_hash == wanted:
                positions = found.setdefault(request_id, set())
                if positions is not None:
                    positions.add(i)
    return found


def prune(store: Store, seconds: float) -> int:
    """Delete requests older than this; return their number."""
    before = time.time() - seconds
    total = 0
    while pruned := store.prune(before, 200):
        total += pruned
    store.clean_up()
    return total


def _read_cells(path: Path) -> dict[str, Any]:
    try:
        cells = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(cells, dict):
        raise DataError(f"{path}: found {type(cells).__name__}, expected one applicant: an object of column and cell")
    return cells


def main(argv: list[str] | None = None) -> int:
    """`mlops-predictions`: export, delete, prune."""
    parser = argparse.ArgumentParser(
        description="The prediction log of the service: export it, delete applicants, forget what is old. The service may run.",
        epilog="examples:\n"
        "  mlops-predictions export --output predictions.parquet\n"
        "  mlops-predictions delete --applicant 4711\n"
        "  mlops-predictions delete --request-id 0192f0c1a2b3… --position 0\n"
        "  mlops-predictions prune --older-than 90d\n\n"
        "exit code of delete: 0 something was deleted, 1 nothing was found",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--log",
        metavar="URL",
        help=f"sqlite:///path or postgresql://… (MLOPS_LOG_URL or MLOPS_LOG_URL_FILE; default: {DEFAULT_URL})",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", parents=[shared], help="write all predictions with their outcomes to a file")
    out.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".parquet or .csv")
    remove = commands.add_parser("delete", parents=[shared], help="delete the predictions of one applicant, for good")
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("--applicant", metavar="REFERENCE", help="the reference that the caller gave")
    which.add_argument("--request-id", metavar="ID", help="all predictions of this request, or the one at --position")
    which.add_argument(
        "--like", type=Path, metavar="FILE", help="JSON object with the applicant's cells; all with equal cells go"
    )
    remove.add_argument("--position", type=int, metavar="N", help="with --request-id: the applicant's place in it, from 0")
    remove.add_argument("--contract", default="data/schema.yaml", help="with --like: data contract (default: %(default)s)")
    old = commands.add_parser("prune", parents=[shared], help="delete what is older than a span")
    old.add_argument("--older-than", type=seconds_of, required=True, metavar="SPAN", help="such as 90d")
    args = parser.parse_args(argv)
    if args.command == "delete" and args.position is not None and args.request_id is None:
        parser.error("--position: goes with --request-id")

    def export_(store: Store) -> int:
        print(f"{args.output}: {export(store, args.output)} predictions")
        return 0

    def delete_(store: Store) -> int:
        if args.applicant is not None:
            deleted = store.delete_applicant(args.applicant)
        elif args.request_id is not None:
            deleted = store.delete_positions({args.request_id: None if args.position is None else {args.position}})
        else:
            from mlops_project.schema import load_contract

            deleted = store.delete_positions(like(store, _read_cells(args.like), load_contract(args.contract)))
        print(f"deleted {deleted} predictions")
        return 0 if deleted else 1

    def prune_(store: Store) -> int:
        print(f"deleted {prune(store, args.older_than)} requests")
        return 0

    work: dict[str, Callable[[Store], int]] = {"export": export_, "delete": delete_, "prune": prune_}

    def run() -> int:
        store = open_store(args.log or environment("MLOPS_LOG_URL") or DEFAULT_URL, create=False)
        try:
            return work[args.command](store)
        finally:
            store.close()

    setup_logging()
    return guarded(run)
