"""Raw file → applicants: read as text, clean by the contract, merge duplicates, split for good."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mlops_project import csv_files
from mlops_project.cells import INVALID, MISSING, TOKEN, VALID, identifier_status
from mlops_project.config import METRICS, PROCESSED, load_params
from mlops_project.errors import DataError
from mlops_project.files import APPLICANT_ID, NEEDS_PYARROW, TableWriter, require_form, write_json
from mlops_project.identity import Ids, first_occurrences, hash_rows, row_hashes
from mlops_project.schema import load_contract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlops_project.config import PrepareParams
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

MAX_COLUMNS = 10_000
# Rows that are text at a time, and bytes up to which a CSV file is read at once: of few rows categories only cost.
BATCH_ROWS = 100_000
SMALL_FILE = 4 << 20
# Rows whose hashes are made at a time.
HASHED_ROWS = 10_000
TABLES = (".csv", ".parquet")


class DataLoader:
    """Reads a credit table as text, cell by cell as it stands in the file.

    CSV in UTF-8 with or without a byte order mark, any line ending, quoted cells, and comma, semicolon, tab or bar as
    delimiter (found from the header); or Parquet; or a folder of such files, all of one kind, which are one table in the order
    of their paths. Columns may come in any order, further columns are ignored.

    Parameters
    ----------
    contract : Contract, optional
        Which columns to read; without it all are read, as the contract is still to be drafted.
    """

    def __init__(self, contract: Contract | None = None) -> None:
        self.contract = contract

    def load(self, path: str | Path, *, target: bool = True) -> pd.DataFrame:
        """Read the contract's columns of a table, or all of them where there is no contract.

        Parameters
        ----------
        path : str or Path
            A ``.csv`` or ``.parquet`` file, a folder of them, or ``-`` for CSV on standard input.
        target : bool
            Whether the target column must be there.

        Returns
        -------
        DataFrame of shape (n rows, n contract columns)
            Text cells (Parquet: as typed there), contract columns first and the target last.

        Raises
        ------
        DataError
            If the file is absent, empty, not a table, or lacks or doubles a column of the contract.
        """
        names = self._names(target=target)
        if str(path) == "-":
            with tempfile.NamedTemporaryFile(suffix=".csv") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
                copy.flush()
                return self._load_csv(Path(copy.name), names, "standard input")
        files = table_files(Path(path))
        tables = [self._load_parquet(f, names) if is_parquet(f) else self._load_csv(f, names, str(f)) for f in files]
        return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)

    def batches(self, path: str | Path) -> Iterator[pd.DataFrame]:
        """Read as `load`, some rows at a time; text columns are categories, so that each distinct text stands there once.

        A small file, and standard input, is one batch of plain text.
        """
        if str(path) == "-":
            yield self.load(path)
            return
        names = self._names(target=True)
        for file in table_files(Path(path)):
            if is_parquet(file):
                yield from self._parquet_batches(file, names)
            elif file.stat().st_size < SMALL_FILE:
                yield self._load_csv(file, names, str(file))
            else:
                header, delimiter, wanted = self._look(file, names, str(file))
                yield from csv_files.read_batches(file, str(file), header, delimiter, wanted, BATCH_ROWS)

    def _names(self, *, target: bool) -> list[str] | None:
        if self.contract is None:
            return None
        return [*self.contract.columns, *([self.contract.target.name] if target else [])]

    def _load_parquet(self, path: Path, names: list[str] | None) -> pd.DataFrame:
        with _parquet(path):
            table = pd.read_parquet(path)
        if self.contract is None or names is None:
            return table
        self.contract.require(table.columns, names, str(path))
        return table[names]

    def _parquet_batches(self, path: Path, names: list[str] | None) -> Iterator[pd.DataFrame]:
        with _parquet(path):
            from pyarrow import int32, int64, types
            from pyarrow.parquet import ParquetFile

            # Else integers would be floats in batches that lack some, and the id 7 another one: 7.0.
            integers = {int32(): pd.Int32Dtype(), int64(): pd.Int64Dtype()}

            schema = ParquetFile(path).schema_arrow
            text = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
        if self.contract is not None and names is not None:
            self.contract.require(schema.names, names, str(path))
        with _parquet(path), ParquetFile(path, read_dictionary=text) as file:
            if not file.metadata.num_rows:
                raise DataError(f"{path}: holds no rows; expected at least one applicant")
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                table = batch.to_pandas(types_mapper=integers.get)
                yield table if names is None else table[names]

    def _load_csv(self, path: Path, names: list[str] | None, source: str) -> pd.DataFrame:
        header, delimiter, wanted = self._look(path, names, source)
        table = csv_files.read_columns(path, source, header, delimiter, wanted)
        logger.info("%s: read %d rows, %d of %d columns", source, len(table), len(wanted), len(header))
        return table

    def _look(self, path: Path, names: list[str] | None, source: str) -> tuple[list[str], str, list[int]]:
        """Return the header of a CSV file, its delimiter, and the positions of the columns to read."""
        known = {*self.contract.columns, self.contract.target.name} if self.contract else None
        header, delimiter = csv_files.sniff(path, source, known)
        self._check_header(header, names, source)
        return header, delimiter, list(range(len(header))) if names is None else [header.index(name) for name in names]

    def _check_header(self, header: list[str], names: list[str] | None, source: str) -> None:
        if len(header) > MAX_COLUMNS:
            raise DataError(f"{source}: found {len(header)} columns, expected at most {MAX_COLUMNS}; is it transposed?")
        if len(header) == 1 and (names is None or len(names) > 1):
            raise DataError(
                f"{source}: found a single column {header[0][:80]!r}; expected columns separated by comma, semicolon, tab or |"
            )
        if self.contract is None or names is None:
            if not header:
                raise DataError(f"{source}: the first line is blank; expected the header there")
            return
        self.contract.require(header, names, source)
        if doubled := sorted({name for name in names if header.count(name) > 1}):
            raise DataError(f"{source}: column(s) {', '.join(doubled)} stand more than once in the header; keep one of each")
        others = [name for name in header if name not in names and name not in self.contract.drop]
        if others:
            logger.info(
                "%s: ignored %d column(s) that the contract does not name: %s", source, len(others), ", ".join(others[:10])
            )


def table_files(path: Path) -> list[Path]:
    """Return the files of a table: the file itself, or all CSV or all Parquet files below a folder, in the order of their paths.

    Files and folders whose names begin with a dot or "_" are left out, as Spark does: copies of editors, unfinished writes.

    Raises
    ------
    DataError
        If there is nothing, or a folder holds no table, or tables of both kinds.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; put the raw table there, `dvc pull` it, or change data.raw in params.yaml")
    if path.is_file():
        return [path]
    shown = sorted(file for file in path.rglob("*") if _shown(file.relative_to(path)) and file.is_file())
    files = [file for file in shown if file.suffix.lower() in TABLES]
    if len(kinds := {is_parquet(file) for file in files}) != 1:
        found = "both CSV and Parquet files" if kinds else "neither CSV nor Parquet files"
        raise DataError(f"{path}: is a folder that holds {found}; expected one table in files of one kind")
    if others := [file.relative_to(path).as_posix() for file in shown if file.suffix.lower() not in TABLES]:
        logger.warning("%s: left out %d file(s) that are no table: %s", path, len(others), ", ".join(others[:10]))
    return files


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _shown(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise DataError(f"{path}: {NEEDS_PYARROW}") from None
    except DataError:
        raise
    except Exception as error:  # pyarrow has its own zoo of exceptions
        raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error


class Applicants(NamedTuple):
    """Cleaned applicants, one row each, in the order of the raw file.

    ``table`` holds the features, then identifier, date and weight columns; its index is the applicant id. ``target`` is 1 for
    good and 0 for bad. ``split_key`` is what the hash split hashes. ``report`` counts what cleaning did.
    """

    table: pd.DataFrame
    target: pd.Series
    split_key: list[str]
    report: dict[str, Any]


class Cleaned(NamedTuple):
    """The same in little memory: what `Applicants` are made of when they are asked for, some rows at a time.

    Attributes
    ----------
    contract : Contract
    features : list of ndarray of shape (n applicants,)
        Parsed values, NaN where missing, each column in the smallest float type that holds all its values exactly.
    passengers : DataFrame of shape (n applicants, n passengers)
    target : ndarray of uint8, shape (n applicants,)
    ids : Ids
    report : dict
    """

    contract: Contract
    features: list[np.ndarray]
    passengers: pd.DataFrame
    target: np.ndarray
    ids: Ids
    report: dict[str, Any]

    def rows(self, start: int = 0, stop: int | None = None, *, single: bool = False) -> tuple[pd.DataFrame, pd.Series]:
        """Return table and target of some applicants; ``single``: numbers in single precision where that is exact."""
        contract, columns = self.contract, {}
        for name, values in zip(contract.features, self.features, strict=True):
            kind = np.float32 if single and values.dtype != np.float64 else np.float64
            columns[name] = contract.labels(name, values[start:stop].astype(kind))
        index = pd.Index(self.ids.texts(start, stop), name=APPLICANT_ID)
        table = pd.DataFrame(columns, index=index)
        for passenger in self.passengers:
            table[passenger] = self.passengers[passenger].iloc[start:stop].array
        return table, pd.Series(self.target[start:stop].astype(int), index=index, name=contract.target.name)

    def applicants(self) -> Applicants:
        return Applicants(*self.rows(), self.ids.keys(), self.report)


class DataCleaner:
    """Turns raw text into applicants: invalid cells become missing, rows without outcome go, duplicates are merged.

    Parameters
    ----------
    contract : Contract
    duplicate_min_cells : int
        Rows in which all cells valid in both agree, at least this many, are one applicant. 0: no merging by agreement.
    duplicate_strict_after : int, optional
        Rows after so many also need all highly distinct columns to agree, as `first_occurrences` says.
    """

    def __init__(self, contract: Contract, duplicate_min_cells: int = 12, duplicate_strict_after: int | None = None) -> None:
        self.contract = contract
        self.duplicate_min_cells = duplicate_min_cells
        self.duplicate_strict_after = duplicate_strict_after

    def clean(self, raw: pd.DataFrame, source: str = "table") -> Applicants:
        """Clean a raw table that holds all columns of the contract and the target.

        Raises
        ------
        DataError
            If no row, or only one class, has a valid target.
        """
        return self.clean_batches([raw], source).applicants()

    def clean_batches(self, batches: Iterable[pd.DataFrame], source: str = "table") -> Cleaned:
        """Clean a raw table that comes some rows at a time. Raises as `clean`."""
        contract = self.contract
        found = _Parsed(contract)
        for raw in batches:
            found.add(raw, source)
        features, y = found.features(), found.target(source)
        merged, first, keys = self._merge(features, y, found.given_ids())
        report = found.report(len(first))
        for line in _summary(report):
            logger.info("%s: %s", source, line)
        return Cleaned(contract, merged, found.passengers(first, source), y[first].astype(np.uint8), Ids(keys), report)

    def _merge(
        self, features: list[np.ndarray], y: np.ndarray, given: np.ndarray | None
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Return the features, positions of the first occurrences, and keys of those who are left when duplicates are merged.

        ``features`` are given up column by column: twice they would be most of the memory.
        """
        if given is None:
            # Nothing here may hold on to the list: the columns are given up below.
            leaders = first_occurrences([*features, y], self.duplicate_min_cells, strict_after=self.duplicate_strict_after)
        else:
            nameless = np.flatnonzero(given == "")
            given[nameless] = hash_rows(np.column_stack([values[nameless] for values in features]), self.contract)
            groups, _ = pd.factorize(given)
            leaders = np.unique(groups, return_index=True)[1][groups]
        copies = np.flatnonzero(leaders != np.arange(len(leaders), dtype=np.int32 if len(leaders) < 2**31 else np.int64))
        leads = np.ones(len(leaders), dtype=bool)
        leads[copies] = False
        first = np.flatnonzero(leads)
        places = np.searchsorted(first, leaders[copies])
        del leaders, leads
        keys = np.empty(len(first), dtype=np.uint64) if given is None else given[first]
        for start in range(0, len(first) if given is None else 0, HASHED_ROWS):
            rows = first[start : start + HASHED_ROWS]
            keys[start : start + HASHED_ROWS] = row_hashes(np.column_stack([values[rows] for values in features]), self.contract)
        for i, values in enumerate(features):
            # A merged applicant keeps the first occurrence's cells; what is missing there comes from the copies.
            own = values[first]
            filling = ~np.isnan(values[copies]) & np.isnan(own[places])
            # Of several copies the last that is written stays.
            own[places[filling][::-1]] = values[copies[filling][::-1]]
            features[i] = own
        return features, first, keys


def _texts(cells: pd.Series, contract: Contract) -> list[str]:
    """Cells of an identifier as text, "" where missing: all rows with the id "N/A" are not one applicant."""
    valid = identifier_status(cells, contract.missing_tokens) == VALID
    return [str(cell).strip() if ok else "" for cell, ok in zip(cells, valid, strict=True)]


class _Parsed:
    """Rows with a valid outcome, parsed batch by batch, and what was met in all rows."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._parsers = {name: contract.parser(name) for name in (*contract.features, *contract.passengers, contract.target.name)}
        self._read = 0
        self._status = {name: np.zeros(4, dtype=int) for name in (*contract.features, contract.target.name)}
        self._outcomes: Counter[Any] = Counter()
        self._features = [_Growing() for _ in contract.features]
        self._target = _Growing()
        # Column → one part per batch.
        self._passengers: dict[str, list[np.ndarray]] = {name: [] for name in contract.passengers}
        self._ids: list[np.ndarray] = []

    def add(self, raw: pd.DataFrame, source: str) -> None:
        contract, name = self.contract, self.contract.target.name
        contract.require(raw.columns, contract.features, source)
        target = self._parsers[name].parse(raw[name])
        keep = target.status == VALID
        self._read += len(raw)
        self._status[name] += np.bincount(target.status, minlength=4)
        self._outcomes.update(raw[name].value_counts().to_dict())
        self._target.extend(target.values[keep])
        for name, column in zip(contract.features, self._features, strict=True):
            cells = self._parsers[name].parse(raw[name])
            self._status[name] += np.bincount(cells.status, minlength=4)
            column.extend(cells.values[keep])
        for name in contract.passengers:
            texts = contract.columns[name].kind == "identifier"
            cells = raw.loc[keep, name]
            self._passengers[name].append(np.array(_texts(cells, contract)) if texts else self._parsers[name].parse(cells).values)
        if contract.applicant_id is not None:
            self._ids.append(np.array(_texts(raw.loc[keep, contract.applicant_id], contract), dtype=object))

    def features(self) -> list[np.ndarray]:
        """Values per column, each in the smallest float type that holds all of them; they are given away."""
        columns, self._features = self._features, []
        return [column.values() for column in columns]

    def target(self, source: str) -> np.ndarray:
        """Outcomes, 1 or 0. Raises DataError unless there are both."""
        y, target = self._target.values(), self.contract.target
        for value, label in ((1, target.good), (0, target.bad)):
            if not (y == value).any():
                raise DataError(
                    f"{source}: no row has {target.name} = {label!r}, so there is nothing to tell apart;"
                    f" found {dict(self._outcomes.most_common(3))}; check target in the contract"
                )
        return y

    def given_ids(self) -> np.ndarray | None:
        return np.concatenate(self._ids) if self._ids else None

    def passengers(self, first: np.ndarray, source: str) -> pd.DataFrame:
        """Identifier, date and weight columns of some rows."""
        table = pd.DataFrame(index=pd.RangeIndex(len(first)))
        for name in self.contract.passengers:
            kind, cells = self.contract.columns[name].kind, np.concatenate(self._passengers[name])[first]
            if kind == "identifier":
                table[name] = [text or None for text in cells.tolist()]
            elif kind == "date":
                table[name] = pd.to_datetime(pd.Series(cells), unit="D").dt.strftime("%Y-%m-%d").to_numpy()
            elif absent := int(np.isnan(cells).sum()):
                raise DataError(
                    f"{source}: the weight column {name!r} holds no number above 0 in {absent} row(s); fill it or drop the rows"
                )
            else:
                table[name] = cells
        return table

    def report(self, applicants: int) -> dict[str, Any]:
        dropped = self._status.pop(self.contract.target.name)
        invalid = int(dropped[TOKEN] + dropped[INVALID])
        return {
            "rows": {
                "read": self._read,
                "dropped_target_missing": int(dropped[MISSING]),
                "dropped_target_invalid": invalid,
                "duplicates_merged": int(dropped[VALID]) - applicants,
                "applicants": applicants,
            },
            "columns": {
                name: {"missing": int(n[MISSING]), "tokens": int(n[TOKEN]), "out_of_contract": int(n[INVALID])}
                for name, n in self._status.items()
            },
        }


class _Growing:
    """A column of unknown length, in the smallest float type that holds all its values exactly.

    Room that is not used yet takes no memory; parts to be joined at the end would take it twice.
    """

    def __init__(self) -> None:
        self._room = np.empty(0, dtype=np.float16)
        self._length = 0

    def extend(self, values: np.ndarray) -> None:
        part, end = _smallest(values), self._length + len(values)
        kind = np.promote_types(self._room.dtype, part.dtype)
        if end > len(self._room) or kind != self._room.dtype:
            room = np.empty(max(2 * end, len(self._room)), dtype=kind)
            room[: self._length] = self._room[: self._length]
            self._room = room
        self._room[self._length : end] = part
        self._length = end

    def values(self) -> np.ndarray:
        return self._room[: self._length]


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return values in the smallest float type that holds them exactly."""
    for kind in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            small = values.astype(kind)
        if ((small == values) | np.isnan(values)).all():
            return small
    return values


def _summary(report: dict[str, Any]) -> Iterator[str]:
    rows, columns = report["rows"], report["columns"].values()
    yield "cells set to missing: " + ", ".join(
        f"{sum(column[kind] for column in columns)} {kind.replace('_', ' ')}" for kind in ("missing", "tokens", "out_of_contract")
    )
    yield (
        f"rows: {rows['read']} read, {rows['dropped_target_missing'] + rows['dropped_target_invalid']} dropped without a valid"
        f" target, {rows['duplicates_merged']} duplicates merged, {rows['applicants']} applicants"
    )
    for name, column in report["columns"].items():
        if sum(column.values()) == rows["read"]:
            yield f"column {name} holds no valid value; the model learns nothing from it"


class DataSplitter:
    """Decides who is held out.

    Parameters
    ----------
    params : PrepareParams
        ``hash``: by a seeded hash of the applicant id, so that appended rows never move old ones; ``stratified``: the
        same share of each class, lowest hashes first; ``by_group``: by the hash of ``group_column``; ``by_time``: the
        newest rows by ``date_column``.
    """

    def __init__(self, params: PrepareParams) -> None:
        self.params = params

    def held_out(self, applicants: Applicants | Cleaned) -> np.ndarray:
        """Return a boolean array of shape (n applicants,), True where held out.

        Raises
        ------
        DataError
            If a column that the split needs is absent or holds missing values, or a side lacks a class.
        """
        params, y = self.params, np.asarray(applicants.target)
        table = applicants.passengers if isinstance(applicants, Cleaned) else applicants.table
        if params.split == "by_group":
            keys: Iterable[str] = self._column(table, params.group_column).astype(str)
        elif isinstance(applicants, Cleaned):
            ids = applicants.ids
            keys = chain.from_iterable(ids.keys(at, at + BATCH_ROWS) for at in range(0, len(ids), BATCH_ROWS))
        else:
            keys = applicants.split_key
        hashes = _uniform(keys, params.split_seed, len(y))
        if params.split == "by_time":
            dates = self._column(table, params.date_column)
            newest = dates.sort_values(kind="stable").iloc[-max(1, round(len(dates) * params.test_size)) :]
            held_out = (dates >= newest.iloc[0]).to_numpy()
        elif params.split == "stratified":
            held_out = np.zeros(len(y), dtype=bool)
            for label in (0, 1):
                rows = np.flatnonzero(y == label)
                held_out[rows[np.argsort(hashes[rows], kind="stable")[: round(len(rows) * params.test_size)]]] = True
        else:
            held_out = hashes < params.test_size
        for side, name in ((held_out, "held-out"), (~held_out, "development")):
            counts = np.bincount(y[side], minlength=2)
            if counts.min() == 0:
                raise DataError(
                    f"split: the {name} rows hold {counts[1]} good and {counts[0]} bad applicants, expected some of each;"
                    " use more rows, another prepare.test_size, or prepare.split=stratified"
                )
        return held_out

    def _column(self, table: pd.DataFrame, name: str | None) -> pd.Series:
        if name not in table:
            raise DataError(
                f"split {self.params.split}: column {name!r} is not an identifier or date column of the contract beside its"
                f" applicant_id (whose hash already keeps an applicant on one side); found {list(table.columns)}"
            )
        if absent := int(table[name].isna().sum()):
            raise DataError(
                f"split {self.params.split}: column {name!r} has no valid value in {absent} row(s); fill or drop them"
            )
        return table[name]


def _uniform(keys: Iterable[str], seed: int, n: int) -> np.ndarray:
    """Hash ``n`` keys to numbers from 0 to 1."""
    seeded = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    digests = bytearray()
    for key in keys:
        digest = seeded.copy()
        digest.update(key.encode())
        digests += digest.digest()
    return np.frombuffer(digests, dtype=">u8", count=n).astype(float) / 2**64


def split_report(y: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Row counts and class shares of both sides; ``class_share_z`` is their difference in standard errors."""
    n_dev, n_held = int((~held_out).sum()), int(held_out.sum())
    bad_dev, bad_held = float((y[~held_out] == 0).mean()), float((y[held_out] == 0).mean())
    share = float((y == 0).mean())
    z = (bad_held - bad_dev) / math.sqrt(share * (1 - share) * (1 / n_dev + 1 / n_held))
    if abs(z) > 3:
        logger.warning("split: %.1f%% bad held out against %.1f%% in development (z = %.1f)", 100 * bad_held, 100 * bad_dev, z)
    return {
        "development": n_dev,
        "held_out": n_held,
        "bad_share_development": bad_dev,
        "bad_share_held_out": bad_held,
        "class_share_z": z,
    }


class Prepared(NamedTuple):
    """Cleaned applicants, who of them is held out (boolean, shape (n applicants,)), and the counts of both steps."""

    cleaned: Cleaned
    held_out: np.ndarray
    report: dict[str, Any]


def prepare(path: str | Path, contract: Contract, params: PrepareParams) -> Prepared:
    """Load, clean and split a raw table; ``-`` is CSV on standard input. Raises as all three do."""
    source = "standard input" if str(path) == "-" else str(path)
    cleaned = DataCleaner(contract, params.duplicate_min_cells, params.duplicate_strict_after).clean_batches(
        DataLoader(contract).batches(path), source
    )
    held_out = DataSplitter(params).held_out(cleaned)
    return Prepared(cleaned, held_out, cleaned.report | {"split": split_report(cleaned.target, held_out)})


def save_prepared(prepared: Prepared, folder: str | Path = PROCESSED, tables: str = "csv") -> None:
    """Write the outputs of the prepare stage: both sides of the split, and, in the stage's own folder, its metrics.

    ``tables`` is the form of the tables, csv or parquet (numbers in single precision where that is exact).
    """
    folder, cleaned = Path(folder), prepared.cleaned
    with ExitStack() as stack:
        X_train, y_train, X_test, y_test = (
            stack.enter_context(TableWriter(folder / f"{name}.{tables}"))
            for name in ("Xtraintest", "ytraintest", "Xtest", "ytest")
        )
        for start in range(0, len(cleaned.ids), BATCH_ROWS):
            X, y = cleaned.rows(start, start + BATCH_ROWS, single=tables == "parquet")
            held_out = prepared.held_out[start : start + BATCH_ROWS]
            X_train.write(X[~held_out])
            y_train.write(y[~held_out])
            X_test.write(X[held_out])
            y_test.write(y[held_out])
    if folder.resolve() == PROCESSED.resolve():
        write_json(prepared.report, METRICS / "prepare.json")


def load_and_prepare_data(filepath: str | Path, save_processed: bool = True, return_combined: bool = False) -> tuple[Any, ...]:
    """Prepare a raw file as the prepare stage does, by the contract and the params of the working directory.

    Parameters
    ----------
    filepath : str or Path
        CSV or Parquet.
    save_processed : bool
        Write what the prepare stage writes.
    return_combined : bool
        All applicants together, not split.

    Returns
    -------
    X_train, X_test, y_train, y_test
        DataFrames and Series of int (1 good, 0 bad), the index is the applicant id; the test side is held out. With
        ``return_combined`` X, y.
    """
    params = load_params()
    if save_processed:
        require_form(params.data.tables)
    prepared = prepare(filepath, load_contract(params.data.contract), params.prepare)
    if save_processed:
        save_prepared(prepared, tables=params.data.tables)
    (X, y), held_out = prepared.cleaned.rows(), prepared.held_out
    return (X, y) if return_combined else (X[~held_out], X[held_out], y[~held_out], y[held_out])
