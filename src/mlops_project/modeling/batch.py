"""Predicting a file of any length: batch by batch, and a run that was killed goes on where it stopped.

What is written grows in ``<output>.partial``. Every second a line of JSON in ``<output>.progress`` says how far the input was
read and the output is safe; what stands behind that when a run is killed is written anew. The output itself appears when all
rows are in it.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import logging
import os
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from mlops_project.csv_files import readable, sniff
from mlops_project.errors import DataError, PipelineError
from mlops_project.files import APPLICANT_ID, NEEDS_PYARROW, atomic_path
from mlops_project.modeling.compiling import NotCompilable, compile_model, parity, reference_rows, tolerance
from mlops_project.modeling.predict import prediction_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from mlops_project.modeling.compiled import CompiledScorer
    from mlops_project.modeling.model import RiskModel
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

# Few enough that their cells stay in the processor's cache: 20,000 rows take twice as long each.
BATCH_ROWS = 1_000
CHECKPOINT_SECONDS = 1.0
BLOCK = 1 << 18


class Place(msgspec.Struct, frozen=True):
    """How far a run is: rows done, the next byte and line of a CSV input, bytes of the output that are good."""

    rows: int = 0
    offset: int = 0
    line: int = 0
    written: int = 0


class Progress(msgspec.Struct, frozen=True):
    """What is kept between runs: which job, and how far."""

    job: dict[str, Any]
    place: Place


class Batch(NamedTuple):
    """Some rows: column → cells, the ids of the rows, and where the next batch begins (``written`` is not known here)."""

    cells: dict[str, Sequence[Any]]
    ids: Sequence[Any]
    place: Place


class Input(NamedTuple):
    """An opened table: what its ids are called, how much there is to read, the batches from a place on, what one adds to it."""

    id_name: str
    total: int
    unit: str
    batches: Callable[[Place], Iterator[Batch]]


def predict_file(
    model: RiskModel,
    model_file: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    batch_rows: int = BATCH_ROWS,
    details: bool = False,
    reasons: int = 0,
) -> int:
    """Predict the rows of a CSV or Parquet file in bounded memory.

    The plan of the model answers, if it has one that agrees with it on `reference_rows`. Called again after it was killed,
    with the same input, model and options, it goes on where it stopped, to the same bytes; otherwise it begins anew.

    Parameters
    ----------
    model : RiskModel
    model_file : str or Path
        Where it was read from: its hash is part of the job.
    source : str or Path
        ``.csv`` as `DataLoader` takes it, or ``.parquet``. Rows are named by the column ``applicant_id``, else by the
        contract's ``applicant_id``, else by their number from 1 on in a column ``row``.
    output : str or Path
        ``.csv``, or ``.parquet``; the columns of `prediction_table`.
    batch_rows : int
        Rows in memory at a time.
    details, reasons
        As in `prediction_table`.

    Returns
    -------
    int
        Rows in the output.

    Raises
    ------
    DataError
        If the input is absent, no table, lacks a column, or changes while it is read.
    PipelineError
        If the output cannot be written, or another run is writing it.
    """
    source, output = Path(source), Path(output)
    if not source.is_file():
        found = "is a folder" if source.is_dir() else "no such file"
        raise DataError(f"{source}: {found}; expected one CSV or Parquet file")
    if output.is_dir():
        raise PipelineError(f"{output}: is a folder; expected the name of a CSV or Parquet file")
    if output.suffix == ".parquet" or source.suffix == ".parquet":
        _need_pyarrow(output if output.suffix == ".parquet" else source)
    if output.exists() and output.samefile(source):
        raise PipelineError(f"{output}: is the input, too; choose another output")
    before = source.stat()
    open_input = _open_parquet if source.suffix == ".parquet" else _open_csv
    table = open_input(source, model.contract, model.feature_names_in_, batch_rows)
    job = {
        "input": _sha256(source),
        "model": _sha256(Path(model_file)),
        "details": details,
        "reasons": reasons,
        "id": table.id_name,
    }
    grown = output.with_name(f"{output.name}.partial")
    progress_file = output.with_name(f"{output.name}.progress")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(grown, "ab") as stream:
            _lock(stream, output)
            place = _resume(progress_file, job, grown)
            stream.truncate(place.written)
            place = _write(stream, table, place, progress_file, job, _predictor(model, details=details, reasons=reasons))
            _check_unchanged(source, before)
            if output.suffix == ".parquet":
                _to_parquet(grown, output)
                grown.unlink()
            else:
                os.replace(grown, output)
        progress_file.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PipelineError(f"{output}: cannot be written ({reason}); what is done is kept, run again to go on") from error
    except DataError:  # no run with this input can end
        grown.unlink(missing_ok=True)
        progress_file.unlink(missing_ok=True)
        raise
    return place.rows


def _write(
    stream: IO[bytes],
    table: Input,
    place: Place,
    progress_file: Path,
    job: dict[str, Any],
    predict: Callable[[dict[str, Sequence[Any]]], dict[str, Any]],
) -> Place:
    from tqdm import tqdm

    begun = place.offset if table.unit == "B" else place.rows
    saved = time.monotonic()
    # Without a terminal there is no bar.
    with tqdm(total=table.total, initial=begun, unit=table.unit, unit_scale=True, disable=None) as bar:
        for batch in table.batches(place):
            columns = predict(batch.cells)
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if not place.written:
                writer.writerow([table.id_name, *columns])
            cells = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values()]
            writer.writerows(zip(batch.ids, *cells, strict=True))
            data = text.getvalue().encode()
            stream.write(data)
            done = batch.place
            bar.update(done.offset - place.offset if table.unit == "B" else done.rows - place.rows)
            place = msgspec.structs.replace(done, written=place.written + len(data))
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                _sync(stream)
                with atomic_path(progress_file) as temporary:
                    temporary.write_bytes(msgspec.json.encode(Progress(job, place)))
                saved = time.monotonic()
    _sync(stream)
    return place


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _predictor(model: RiskModel, *, details: bool, reasons: int) -> Callable[[dict[str, Sequence[Any]]], dict[str, Any]]:
    """Return what makes predictions of cells: the plan where there is one, the model itself where not."""
    scorer, scale = _plan(model), model.scale if details else None

    def by_model(cells: dict[str, Sequence[Any]]) -> dict[str, Any]:
        table = _frame(cells)
        why = model.reasons(table, reasons) if reasons else None
        return prediction_columns(model.predict_proba(table)[:, 1], scale, why, reasons)

    def by_plan(scorer: CompiledScorer, cells: dict[str, Sequence[Any]]) -> dict[str, Any]:
        values = scorer.parse_columns(cells).values
        if reasons and scorer.can_explain:
            p_good, found = scorer.explain(values, reasons)
            return prediction_columns(p_good, scale, found, reasons)
        why = model.reasons(_frame(cells), reasons) if reasons else None
        return prediction_columns(scorer.p_good(values), scale, why, reasons)

    return by_model if scorer is None else partial(by_plan, scorer)


def _frame(cells: dict[str, Sequence[Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({name: list(column) for name, column in cells.items()}, dtype=object)


def _plan(model: RiskModel) -> CompiledScorer | None:
    try:
        scorer = compile_model(model)
    except NotCompilable as reason:
        logger.info("%s; this is slower", reason)
        return None
    found = parity(model, scorer, reference_rows(model.contract))
    if found > tolerance(scorer):
        logger.warning(
            "the compiled %s differs from the model by %.2g: the model itself is asked, which is slower", model.name, found
        )
        return None
    return scorer


def _resume(progress_file: Path, job: dict[str, Any], grown: Path) -> Place:
    """Return where to go on: at the beginning, unless the files there belong to the same job."""
    try:
        progress = msgspec.json.decode(progress_file.read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return Place()
    if progress.job != job:
        logger.info("%s: belongs to another input, model or options; beginning anew", grown)
        return Place()
    if grown.stat().st_size < progress.place.written:
        return Place()
    logger.info("%s: %d rows are done; going on", grown, progress.place.rows)
    return progress.place


def _check_unchanged(source: Path, before: os.stat_result) -> None:
    now = source.stat()
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise DataError(f"{source}: changed while it was read; run again when it is complete")


def _lock(stream: IO[bytes], output: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PipelineError(f"{output}: another run is writing it; wait for it, or choose another output") from None


# --- input


def _open_csv(path: Path, contract: Contract, columns: list[str], batch_rows: int) -> Input:
    source = str(path)
    header, delimiter = sniff(path, source, {*contract.columns, APPLICANT_ID})
    contract.require(header, columns, source)
    if doubled := sorted({name for name in columns if header.count(name) > 1}):
        raise DataError(f"{source}: column(s) {', '.join(doubled)} stand more than once in the header; keep one of each")
    id_name, id_column = _id(header, contract)
    wanted = [header.index(name) for name in columns]

    def batches(place: Place) -> Iterator[Batch]:
        with readable(source), open(path, "rb") as stream:
            lines = _Lines(stream, place)
            reader = csv.reader(lines, delimiter=delimiter)
            if not place.offset:
                next(reader)
            rows = _checked(reader, lines, len(header), source)
            done = place.rows
            while found := list(islice(rows, batch_rows)):
                cells = list(zip(*found, strict=True))
                ids: Sequence[Any] = (
                    range(done + 1, done + 1 + len(found)) if id_column is None else cells[header.index(id_column)]
                )
                done += len(found)
                yield Batch(
                    dict(zip(columns, (cells[i] for i in wanted), strict=True)), ids, Place(done, lines.offset, lines.number)
                )
            if not done:
                raise DataError(f"{source}: holds a header and no rows; expected at least one applicant")

    return Input(id_name, path.stat().st_size, "B", batches)


class _Lines:
    """Lines of a UTF-8 file from a place on, whatever their ends, with the byte and the line that come next."""

    def __init__(self, stream: IO[bytes], place: Place) -> None:
        self.stream = stream
        self.offset, self.number = place.offset, place.line
        stream.seek(place.offset)

    def __iter__(self) -> Iterator[str]:
        rest = b""
        while block := self.stream.read(BLOCK):
            lines = (rest + block).splitlines(keepends=True)
            # Behind the last line more of it may come, be it the second half of its end.
            rest = lines.pop()
            yield from map(self._taken, lines)
        if rest:
            yield self._taken(rest)

    def _taken(self, line: bytes) -> str:
        start = self.offset
        self.offset += len(line)
        self.number += 1
        return line.decode("utf-8-sig" if start == 0 else "utf-8")


def _checked(reader: Any, lines: _Lines, width: int, source: str) -> Iterator[list[str]]:
    start = lines.number + 1
    for row in reader:
        if len(row) == width:
            yield row
        elif row:
            end = "" if lines.number == start else f" (to {lines.number})"
            raise DataError(
                f"{source}: line {start}{end} has {len(row)} cells, expected {width} as in the header;"
                " look for a stray delimiter or quote there"
            )
        start = lines.number + 1


def _open_parquet(path: Path, contract: Contract, columns: list[str], batch_rows: int) -> Input:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    source = str(path)
    try:
        table = ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{source}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
    header = table.schema_arrow.names
    contract.require(header, columns, source)
    id_name, id_column = _id(header, contract)
    if not table.metadata.num_rows:
        raise DataError(f"{source}: holds no rows; expected at least one applicant")

    def cells(column: Any) -> Sequence[Any]:
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return column.to_numpy(zero_copy_only=False)
        return column.to_pylist()

    def batches(place: Place) -> Iterator[Batch]:
        done, skip, groups = place.rows, place.rows, list(range(table.num_row_groups))
        while groups and table.metadata.row_group(groups[0]).num_rows <= skip:
            skip -= table.metadata.row_group(groups.pop(0)).num_rows
        for found in table.iter_batches(batch_rows, groups, [*columns, *([id_column] if id_column else [])]):
            batch = found.slice(min(skip, len(found)))
            skip -= len(found) - len(batch)
            if len(batch):
                ids: Sequence[Any] = range(done + 1, done + 1 + len(batch)) if id_column is None else batch[id_column].to_pylist()
                done += len(batch)
                yield Batch({name: cells(batch[name]) for name in columns}, ids, Place(done))

    return Input(id_name, table.metadata.num_rows, "row", batches)


def _id(header: list[str], contract: Contract) -> tuple[str, str | None]:
    """Return what the rows' names are called in the output, and the column that holds them, None where they are numbered."""
    for column in (APPLICANT_ID, contract.applicant_id):
        if column in header:
            return APPLICANT_ID, column
    return "row", None


def _to_parquet(grown: Path, output: Path) -> None:
    """Write the rows anew as Parquet, block by block; text stays text where it looks like numbers."""
    import pyarrow as pa
    from pyarrow.csv import ConvertOptions, ReadOptions, open_csv
    from pyarrow.parquet import ParquetWriter

    with open(grown, encoding="utf-8", newline="") as stream:
        header = next(csv.reader(stream))
    kinds = {"row": pa.int64(), "y_pred": pa.int64(), "y_proba": pa.float64(), "probability_of_default": pa.float64()}
    kinds |= {"score": pa.float64()}
    types = {name: kinds.get(name, pa.string()) for name in header}
    options = ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
    with (
        atomic_path(output) as temporary,
        open_csv(grown, ReadOptions(use_threads=False), convert_options=options) as rows,
        ParquetWriter(temporary, rows.schema) as writer,
    ):
        for batch in rows:
            writer.write_batch(batch)


def _need_pyarrow(path: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise DataError(f"{path}: {NEEDS_PYARROW}") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
