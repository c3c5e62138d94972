"""Reading what is compared: reference rows, and a window of what came in, from the prediction log, an export of it or a table.

An export (`mlops-predictions export`) has one row per prediction: what was sent in ``input_<column>``, what was answered in
``p_good``, when in ``time``, by which model in ``model_version``.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pandas as pd

from mlops_project import csv_files
from mlops_project.cells import INVALID, Cells
from mlops_project.dataset import DataLoader
from mlops_project.errors import DataError
from mlops_project.files import NEEDS_PYARROW, read_table

if TYPE_CHECKING:
    from mlops_project.schema import Contract
    from mlops_project.serving.records import Record

PREFIX = "input_"
LOGGED = ("request_id", "time", "model_version", "p_good")
SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Rows(NamedTuple):
    """Rows of one side."""

    values: np.ndarray
    """Numbers and codes, NaN where missing for whatever reason; shape (n rows, n features)."""
    out_of_contract: np.ndarray
    """Cells of each feature that the contract does not allow, shape (n features,)."""
    seen: int
    """Rows in which these were counted."""
    p_good: np.ndarray | None
    """Scores, shape (n rows,), if there are any."""
    facts: dict[str, Any]
    """Where the rows come from, for the report."""
    table: pd.DataFrame | None = None
    """The rows as a model takes them, where the scores are still to be made."""


def rows_of(table: pd.DataFrame, contract: Contract, p_good: np.ndarray | None = None, source: str = "table") -> Rows:
    """Take a table that holds the contract's features.

    Raises
    ------
    DataError
        If it lacks one, or holds no row.
    """
    if table.empty:
        raise DataError(f"{source}: holds no rows; expected at least one applicant")
    cells = contract.parse_features(table, source)
    return _rows(cells, p_good, {"source": source}, table)


def _rows(cells: Cells, p_good: np.ndarray | None, facts: dict[str, Any], table: pd.DataFrame | None) -> Rows:
    invalid = (cells.status == INVALID).sum(axis=0)
    return Rows(cells.values, invalid, len(cells.values), p_good, facts, table)


def read_reference(rows: str | Path, contract: Contract, scores: str | Path | None, cleaning: str | Path | None) -> Rows:
    """Read the reference.

    Parameters
    ----------
    rows : path
        A table that the prepare stage wrote.
    contract : Contract
    scores : path, optional
        Out-of-fold predictions of these rows, as the train stage writes them: a model knows the rows that it was fitted on, so
        its scores of them are not those of new ones. Those of the first repeat are taken: a mean of repeats varies less.
    cleaning : path, optional
        Counts of the prepare stage. Its rows hold no cell that the contract does not allow; here it says how many there were.

    Raises
    ------
    DataError
        If a file is absent or does not belong to the others.
    """
    table, p_good = read_table(rows, contract.text_columns), None
    if scores is not None:
        predictions = read_table(scores)
        if "repeat" in predictions:
            predictions = predictions[predictions["repeat"] == 0]
        # Of very many rows only some are in a fold.
        known = table.index.isin(predictions.index)
        if "y_proba" not in predictions or known.sum() < len(predictions):
            raise DataError(f"{scores}: lacks predictions of rows in {rows}; `dvc repro` writes both")
        table = table[known]
        p_good = predictions["y_proba"].loc[table.index].to_numpy(dtype=float)
    found = rows_of(table, contract, source=str(rows))._replace(table=None, p_good=p_good)
    if cleaning is not None:
        invalid, seen = _cleaned(Path(cleaning), contract)
        found = found._replace(out_of_contract=invalid, seen=seen)
    return found


def _cleaned(path: Path, contract: Contract) -> tuple[np.ndarray, int]:
    try:
        report = json.loads(path.read_bytes())
        counts = np.array([report["columns"][name]["out_of_contract"] for name in contract.features])
        return counts, int(report["rows"]["read"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: holds no counts of each feature ({type(error).__name__}); `dvc repro prepare` writes it"
        ) from None


def moment(text: str, now: datetime | None = None) -> datetime:
    """Read a time: ISO 8601 (UTC if it names no zone), or a span before now such as 12h, 7d or 4w.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if span := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return (now or datetime.now(UTC)) - timedelta(**{SPANS[span[2]]: int(span[1])})
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def read_window(
    path: str | Path,
    contract: Contract,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    model_version: str | None = None,
    last: int | None = None,
) -> Rows:
    """Read a window: an export of the prediction log, or a table as `mlops-validate` takes it.

    Parameters
    ----------
    path : path
        ``.csv`` or ``.parquet``.
    contract : Contract
    since, until : datetime, optional
        Only predictions from the first up to but without the second; only for an export.
    model_version : str, optional
        Only predictions of the model whose version begins so; only for an export.
    last : int, optional
        At most so many predictions, the newest; only for an export.

    Raises
    ------
    DataError
        If the file is absent, no table, lacks the contract's columns, or nothing is left of it.
    """
    path = Path(path)
    header, read = _open(path)
    logged = [name for name in header if name.startswith(PREFIX) and name[len(PREFIX) :] in contract.features]
    if "request_id" not in header or not logged:
        if since or until or model_version or last:
            raise DataError(f"{path}: is no export of the prediction log, so it cannot be cut by time, number or model")
        table = DataLoader(contract).load(path, target=False)
        return rows_of(table, contract, source=str(path))
    if absent := [name for name in LOGGED if name not in header]:
        raise DataError(f"{path}: lacks column(s) {', '.join(absent)}; expected what `mlops-predictions export` writes")
    table = read([*LOGGED, *logged])
    times = pd.to_datetime(table["time"], utc=True, format="ISO8601", errors="coerce")
    versions = table["model_version"].astype(str)
    keep = np.ones(len(table), dtype=bool)
    if since:
        keep &= (times >= since).to_numpy()
    if until:
        keep &= (times < until).to_numpy()
    if model_version:
        keep &= versions.str.startswith(model_version).to_numpy()
    if not keep.any():
        raise DataError(f"{path}: none of {len(table)} predictions is of this time and model; expected some")
    by_time = times[keep].sort_values(kind="stable", na_position="first").index
    newest = by_time[-last:] if last else by_time
    table, times, versions = table.loc[newest], times[newest], versions[newest]
    # What no caller ever sent has no column: it was missing, as the model saw it.
    table = table.rename(columns=lambda name: name.removeprefix(PREFIX))
    inputs = table.reindex(columns=contract.features, fill_value=None)
    p_good = pd.to_numeric(table["p_good"], errors="coerce").to_numpy(dtype=float)
    return _predictions(inputs, contract, p_good, str(path), times, versions)


def _predictions(
    inputs: pd.DataFrame, contract: Contract, p_good: np.ndarray, source: str, times: pd.Series, versions: pd.Series
) -> Rows:
    known = times.dropna()
    facts = {
        "source": source,
        "from": None if known.empty else known.min().isoformat(),
        "to": None if known.empty else known.max().isoformat(),
        "model_versions": {str(version): int(count) for version, count in versions.value_counts().items()},
    }
    return _rows(contract.parse_features(inputs), p_good, facts, None)


def read_log(
    url: str,
    contract: Contract,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    model_version: str | None = None,
    last: int | None = None,
) -> Rows:
    """Read a window out of the prediction log; the service may run.

    Parameters
    ----------
    url : str
        ``sqlite:///path`` or ``postgresql://…``.
    contract : Contract
    since, until, model_version, last
        As for an export in `read_window`.

    Raises
    ------
    LogError
        If the log is absent or cannot be read.
    DataError
        If it holds no such prediction, or a record that the service did not write.
    """
    from mlops_project.serving.stores import open_store

    source = _shown(url)
    cells: dict[str, list[Any]] = {name: [] for name in contract.features}
    p_good: list[float | None] = []
    stamps: list[tuple[float, str, int]] = []
    first, end = since.timestamp() if since else 0.0, until.timestamp() if until else math.inf
    with closing(open_store(url, create=False)) as store:
        request_id = ""
        try:
            for record in store.recent(first, end):
                request_id = record.request_id
                if model_version and not record.model_version.startswith(model_version):
                    continue
                found = _take(record, cells, p_good)
                stamps.append((record.time, record.model_version, found))
                if last and len(p_good) >= last:
                    break
        except (msgspec.DecodeError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{source}: a record at or before request {request_id or 'none'} cannot be read ({type(error).__name__});"
                " expected what the service writes"
            ) from error
    if not p_good:
        raise DataError(f"{source}: holds no prediction of this time and model; expected some")
    table = pd.DataFrame({name: pd.Series(column[:last], dtype=object) for name, column in cells.items()})
    counts = [found for *_, found in stamps]
    times = pd.to_datetime(pd.Series(np.repeat([when for when, *_ in stamps], counts)[:last]), unit="s", utc=True)
    versions = pd.Series(np.repeat([version for _, version, _ in stamps], counts)[:last])
    return _predictions(table, contract, np.array(p_good[:last], dtype=float), source, times, versions)


def _take(record: Record, cells: dict[str, list[Any]], p_good: list[float | None]) -> int:
    """Append the applicants of a record, but those that were deleted since; return their number."""
    from mlops_project.serving.records import decoded, read_results

    content, answers = decoded(record.inputs), read_results(record.results)
    there = [i for i, decision in enumerate(answers.decision) if decision is not None]
    if isinstance(content, dict) and not any(isinstance(column, list) for column in content.values()):
        content = [content]
    for name, column in cells.items():
        if isinstance(content, list):
            column.extend(content[i].get(name) for i in there)
        else:
            given = content.get(name, [None] * len(answers.decision))
            column.extend(given[i] for i in there)
    p_good += [answers.p_good[i] for i in there]
    return len(there)


def _shown(url: str) -> str:
    """A log's URL without what may be secret."""
    parts = urlsplit(url)
    return url.partition(":///")[2] if parts.scheme == "sqlite" else f"{parts.hostname or ''}{parts.path}"


def _open(path: Path) -> tuple[list[str], Any]:
    """Return a table's header, and what reads some of its columns."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a table or an export of the prediction log, in CSV or Parquet")
    if path.suffix != ".parquet":
        header, delimiter = csv_files.sniff(path, str(path), None)
        return header, lambda names: csv_files.read_columns(
            path, str(path), header, delimiter, [header.index(name) for name in names]
        )
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: {NEEDS_PYARROW}") from None
    try:
        return parquet.read_schema(path).names, lambda names: pd.read_parquet(path, columns=names)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
