"""Raw file → applicants: read as text, clean by the contract, merge duplicates, split for good."""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mlops_project import csv_files
from mlops_project.cells import INVALID, MISSING, TOKEN, VALID, identifier_status
from mlops_project.config import METRICS, PROCESSED, load_params
from mlops_project.errors import DataError
from mlops_project.files import APPLICANT_ID, write_json, write_table
from mlops_project.identity import first_occurrences, hash_rows, unique_ids
from mlops_project.schema import load_contract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlops_project.config import PrepareParams
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

MAX_COLUMNS = 10_000


class DataLoader:
    """Reads a credit table as text, cell by cell as it stands in the file.

    CSV in UTF-8 with or without a byte order mark, any line ending, quoted cells, and comma, semicolon, tab or bar as
    delimiter (found from the header); or Parquet. Columns may come in any order, further columns are ignored.

    Parameters
    ----------
    contract : Contract, optional
        Which columns to read; without it all are read, as the contract is still to be drafted.
    """

    def __init__(self, contract: Contract | None = None) -> None:
        self.contract = contract

    def load(self, path: str | Path, *, target: bool = True) -> pd.DataFrame:
        """Read the contract's columns of a file, or all of them where there is no contract.

        Parameters
        ----------
        path : str or Path
            A ``.csv`` or ``.parquet`` file, or ``-`` for CSV on standard input.
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
        names = None
        if self.contract is not None:
            names = [*self.contract.columns, *([self.contract.target.name] if target else [])]
        if str(path) == "-":
            with tempfile.NamedTemporaryFile(suffix=".csv") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
                copy.flush()
                return self._load_csv(Path(copy.name), names, "standard input")
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path}: no such file; put the raw table there, `dvc pull` it, or change data.raw in params.yaml")
        if not path.is_file():
            raise DataError(f"{path}: is a folder; expected one CSV or Parquet file")
        if path.suffix == ".parquet":
            return self._load_parquet(path, names)
        return self._load_csv(path, names, str(path))

    def _load_parquet(self, path: Path, names: list[str] | None) -> pd.DataFrame:
        try:
            table = pd.read_parquet(path)
        except ImportError:
            raise DataError(f"{path}: reading Parquet needs pyarrow; run `uv pip install -e '.[parquet]'`") from None
        except Exception as error:  # pyarrow has its own zoo of exceptions
            raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
        if self.contract is None or names is None:
            return table
        self.contract.require(table.columns, names, str(path))
        return table[names]

    def _load_csv(self, path: Path, names: list[str] | None, source: str) -> pd.DataFrame:
        known = {*self.contract.columns, self.contract.target.name} if self.contract else None
        header, delimiter = csv_files.sniff(path, source, known)
        self._check_header(header, names, source)
        wanted = list(range(len(header))) if names is None else [header.index(name) for name in names]
        table = csv_files.read_columns(path, source, header, delimiter, wanted)
        logger.info("%s: read %d rows, %d of %d columns", source, len(table), len(wanted), len(header))
        return table

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


class Applicants(NamedTuple):
    """Cleaned applicants, one row each, in the order of the raw file.

    ``table`` holds the features, then identifier, date and weight columns; its index is the applicant id. ``target`` is 1 for
    good and 0 for bad. ``split_key`` is what the hash split hashes. ``report`` counts what cleaning did.
    """

    table: pd.DataFrame
    target: pd.Series
    split_key: list[str]
    report: dict[str, Any]


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
        contract = self.contract
        cells = contract.parse_features(raw, source)
        target = contract.parse(contract.target.name, raw[contract.target.name])
        columns = {name: _cell_counts(cells.status[:, i]) for i, name in enumerate(contract.features)}
        keep = target.status == VALID
        for value, label in ((1.0, contract.target.good), (0.0, contract.target.bad)):
            if not (target.values == value).any():
                raise DataError(
                    f"{source}: no row has {contract.target.name} = {label!r}, so there is nothing to tell apart;"
                    f" found {raw[contract.target.name].value_counts().head(3).to_dict()}; check target in the contract"
                )
        values, y, kept = cells.values[keep], target.values[keep], raw.loc[keep].reset_index(drop=True)

        ids = self._given_ids(kept)
        hashes = hash_rows(values, contract)
        if ids is None:
            leaders = first_occurrences([*values.T, y], self.duplicate_min_cells, strict_after=self.duplicate_strict_after)
            keys = hashes
        else:
            keys = [given or row_hash for given, row_hash in zip(ids, hashes, strict=True)]
            leaders = pd.Series(range(len(keys))).groupby(keys).transform("first").to_numpy()
        first = np.unique(leaders)
        # A merged applicant keeps the first occurrence's cells; what is missing there comes from the copies.
        merged = pd.DataFrame(values).groupby(leaders).first().to_numpy()
        table = pd.DataFrame({name: contract.labels(name, merged[:, i]) for i, name in enumerate(contract.features)})
        for name in contract.passengers:
            if contract.columns[name].kind == "identifier":
                table[name] = [text or None for text in _texts(kept[name].iloc[first], contract)]
                continue
            parsed = contract.parse(name, kept[name]).values[first]
            if contract.columns[name].kind == "date":
                table[name] = pd.to_datetime(pd.Series(parsed), unit="D").dt.strftime("%Y-%m-%d").to_numpy()
                continue
            if absent := int(np.isnan(parsed).sum()):
                raise DataError(
                    f"{source}: the weight column {name!r} holds no number above 0 in {absent} row(s); fill it or drop the rows"
                )
            table[name] = parsed
        split_key = [keys[i] for i in first]
        table.index = pd.Index(unique_ids(split_key), name=APPLICANT_ID)
        report = {
            "rows": {
                "read": len(raw),
                "dropped_target_missing": int((target.status == MISSING).sum()),
                "dropped_target_invalid": int(np.isin(target.status, (TOKEN, INVALID)).sum()),
                "duplicates_merged": len(kept) - len(first),
                "applicants": len(first),
            },
            "columns": columns,
        }
        for line in _summary(report):
            logger.info("%s: %s", source, line)
        outcome = pd.Series(y[first].astype(int), index=table.index, name=contract.target.name)
        return Applicants(table, outcome, split_key, report)

    def _given_ids(self, kept: pd.DataFrame) -> list[str] | None:
        if self.contract.applicant_id is None:
            return None
        return _texts(kept[self.contract.applicant_id], self.contract)


def _texts(cells: pd.Series, contract: Contract) -> list[str]:
    """Cells of an identifier as text, "" where missing: all rows with the id "N/A" are not one applicant."""
    valid = identifier_status(cells, contract.missing_tokens) == VALID
    return [str(cell).strip() if ok else "" for cell, ok in zip(cells, valid, strict=True)]


def _cell_counts(status: np.ndarray) -> dict[str, int]:
    counts = np.bincount(status, minlength=4)
    return {"missing": int(counts[MISSING]), "tokens": int(counts[TOKEN]), "out_of_contract": int(counts[INVALID])}


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

    def held_out(self, applicants: Applicants) -> np.ndarray:
        """Return a boolean array of shape (n applicants,), True where held out.

        Raises
        ------
        DataError
            If a column that the split needs is absent or holds missing values, or a side lacks a class.
        """
        params, table, y = self.params, applicants.table, applicants.target.to_numpy()
        keys = applicants.split_key
        if params.split == "by_group":
            keys = list(self._column(table, params.group_column).astype(str))
        hashes = np.array([_uniform(key, params.split_seed) for key in keys])
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


def _uniform(key: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


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

    applicants: Applicants
    held_out: np.ndarray
    report: dict[str, Any]


def prepare(path: str | Path, contract: Contract, params: PrepareParams) -> Prepared:
    """Load, clean and split a raw file; ``-`` is CSV on standard input. Raises as `DataLoader`, `DataCleaner`, `DataSplitter`."""
    raw = DataLoader(contract).load(path)
    source = "standard input" if str(path) == "-" else str(path)
    applicants = DataCleaner(contract, params.duplicate_min_cells, params.duplicate_strict_after).clean(raw, source)
    held_out = DataSplitter(params).held_out(applicants)
    return Prepared(applicants, held_out, applicants.report | {"split": split_report(applicants.target.to_numpy(), held_out)})


def save_prepared(prepared: Prepared, folder: str | Path = PROCESSED) -> None:
    """Write the outputs of the prepare stage: both sides of the split, and, in the stage's own folder, its metrics."""
    folder = Path(folder)
    applicants = prepared.applicants
    for name, rows in (("traintest", ~prepared.held_out), ("test", prepared.held_out)):
        write_table(applicants.table[rows], folder / f"X{name}.csv")
        write_table(applicants.target[rows], folder / f"y{name}.csv")
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
    prepared = prepare(filepath, load_contract(params.data.contract), params.prepare)
    if save_processed:
        save_prepared(prepared)
    (X, y, *_), held_out = prepared.applicants, prepared.held_out
    return (X, y) if return_combined else (X[~held_out], X[held_out], y[~held_out], y[held_out])
