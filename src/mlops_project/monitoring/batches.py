"""New labelled rows: read, checked by the contract, and appended to the raw table as applicants that it does not have yet."""

from __future__ import annotations

import csv
import io
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from mlops_project import csv_files
from mlops_project.cells import VALID, identifier_status
from mlops_project.dataset import Applicants, DataCleaner, DataLoader, is_parquet, table_files
from mlops_project.errors import DataError
from mlops_project.files import atomic_path
from mlops_project.identity import hash_rows
from mlops_project.validation import validate_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlops_project.config import PrepareParams
    from mlops_project.schema import Contract
    from mlops_project.serving.stores import Store

SECONDS_PER_DAY = 86400
MISSING_KINDS = ("tokens", "out_of_contract")


class Batch(NamedTuple):
    """New rows as text, contract columns and the target; ``report`` counts what is in them."""

    rows: pd.DataFrame
    report: dict[str, Any]


def read_batch(paths: Sequence[str | Path], contract: Contract, max_bad_cells: float) -> Batch:
    """Read files of new labelled rows and hold them to the contract.

    Parameters
    ----------
    paths : list of paths
        CSV or Parquet, ``-`` for CSV on standard input.
    contract : Contract
    max_bad_cells : float
        Share of the cells that may be missing-value tokens or out of contract.

    Raises
    ------
    DataError
        If a file cannot be read, lacks a column, holds no row, or breaks the contract in more cells.
    """
    tables = []
    for path in paths:
        table = DataLoader(contract).load(path)
        if table.empty:
            raise DataError(f"{path}: holds a header and no rows; expected labelled applicants")
        tables.append(table)
    return check_batch(pd.concat(tables, ignore_index=True), contract, max_bad_cells, ", ".join(map(str, paths)))


def check_batch(rows: pd.DataFrame, contract: Contract, max_bad_cells: float, source: str) -> Batch:
    """Count what the contract does not allow; parameters and errors as `read_batch`."""
    found = validate_table(rows, contract)
    bad = {name: sum(counts[kind] for kind in MISSING_KINDS) for name, counts in found.columns.items()}
    share = sum(bad.values()) / max(1, rows.size)
    if share > max_bad_cells:
        worst = ", ".join(f"{name} {bad[name]}" for name in sorted(bad, key=bad.__getitem__, reverse=True)[:5])
        raise DataError(
            f"{source}: {sum(bad.values())} of {rows.size} cells break the contract ({share:.1%}; most in {worst}), at most"
            f" {max_bad_cells:.1%} may; `mlops-validate` lists them, retraining.max_bad_cells is the limit"
        )
    outcome = contract.parse(contract.target.name, rows[contract.target.name])
    labelled = outcome.status == VALID
    counts = {
        "rows": len(rows),
        "without_outcome": int((~labelled).sum()),
        "good": int((outcome.values[labelled] == 1).sum()),
        "bad": int((outcome.values[labelled] == 0).sum()),
        "bad_cells": sum(bad.values()),
    }
    if not labelled.any():
        raise DataError(
            f"{source}: none of {len(rows)} rows has an outcome in {contract.target.name}; expected"
            f" {contract.target.good} (good) or {contract.target.bad} (bad)"
        )
    if not counts["good"] or not counts["bad"]:
        one = "good" if counts["good"] else "bad"
        raise DataError(
            f"{source}: all {int(labelled.sum())} outcomes are {one}, expected some of each; nothing can be learnt or compared"
        )
    return Batch(rows.loc[labelled].reset_index(drop=True), {"source": source} | counts)


def append(raw: Path, batch: Batch, contract: Contract, prepare: PrepareParams) -> tuple[int, list[str]]:
    """Append to the raw table the rows of applicants whom it does not have; what was there stays as it is, byte by byte.

    Who is new is decided as `prepare` decides it: with the rule that merges duplicates. Of a folder no file is touched: the rows
    become a new one, behind all others.

    Parameters
    ----------
    raw : Path
        ``data.raw``: a CSV file, or a folder of them.
    batch : Batch
    contract : Contract
    prepare : PrepareParams

    Returns
    -------
    int
        Number of rows appended.
    list of str
        Ids of the new applicants, as `prepare` will give them.

    Raises
    ------
    DataError
        If nobody is new, or the raw table is not CSV.
    """
    last = table_files(raw)[-1]
    if is_parquet(last):
        raise DataError(f"{raw}: rows are appended to CSV only; make data.raw a CSV table, or append by hand and `dvc repro`")
    old = DataLoader(contract).load(raw)
    cleaner = DataCleaner(contract, prepare.duplicate_min_cells, prepare.duplicate_strict_after)
    before = len(cleaner.clean(old, str(raw)).table)
    after = cleaner.clean(pd.concat([old, batch.rows], ignore_index=True), f"{raw} and the new rows")
    kept = _first_rows(batch.rows, after, before, contract)
    if kept.empty:
        raise DataError(f"{batch.report['source']}: all {len(batch.rows)} applicants with an outcome are in {raw.name} already")
    header, delimiter = csv_files.sniff(last, str(last), {*contract.columns, contract.target.name})
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    # Columns that the contract drops stay empty.
    cells = kept.reindex(columns=header).astype(object).where(lambda table: table.notna(), "")
    rows = cells.itertuples(index=False, name=None)
    if raw.is_dir():
        writer.writerows([header, *rows])
        with atomic_path(_file_behind(last)) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    else:
        writer.writerows(rows)
        content = raw.read_bytes()
        # A new file: the old one may be a link into the cache.
        with atomic_path(raw) as temporary:
            temporary.write_bytes(content + (b"" if content.endswith(b"\n") else b"\n") + text.getvalue().encode())
    return len(kept), list(after.table.index[before:])


def _file_behind(last: Path) -> Path:
    """Return the name of a file behind the last of a folder: of `2026-06.csv` it is `2026-06_batch001.csv`.

    `_` sorts behind the dot, so it stands behind its month and before the next, whenever that comes.
    """
    numbered = re.fullmatch(r"(.*_batch)(\d{3})", last.stem)
    if numbered and numbered[2] != "999":
        return last.with_name(f"{numbered[1]}{int(numbered[2]) + 1:03d}{last.suffix}")
    return last.with_name(f"{last.stem}_batch001{last.suffix}")


def _first_rows(rows: pd.DataFrame, after: Applicants, before: int, contract: Contract) -> pd.DataFrame:
    """The first row of each applicant who stands behind position ``before``."""
    y = after.target.to_numpy()
    wanted = Counter(zip(after.split_key[before:], y[before:].tolist(), strict=True))
    keys = hash_rows(contract.parse_features(rows).values, contract)
    if contract.applicant_id is not None:
        given = rows[contract.applicant_id]
        valid = identifier_status(given, contract.missing_tokens) == VALID
        keys = [str(cell).strip() if ok else key for cell, ok, key in zip(given, valid, keys, strict=True)]
    outcomes = contract.parse(contract.target.name, rows[contract.target.name]).values.astype(int)
    first = []
    for key in zip(keys, outcomes.tolist(), strict=True):
        first.append(wanted[key] > 0)
        wanted[key] -= 1
    return rows[first]


def logged_applicants(store: Store, contract: Contract) -> pd.DataFrame:
    """Everybody in a prediction log: cells as they were sent, as text, and what was answered.

    Beside the contract's columns ``request_id``, ``position``, ``p_good``, ``decision``, ``outcome`` (1 good, 0 bad, or missing),
    and ``days`` since the decision.
    """
    from mlops_project.serving.predictions import inputs_of
    from mlops_project.serving.records import read_results

    names = [*contract.columns]
    now = time.time()
    found: list[dict[str, Any]] = []
    for logged in store.read():
        answers = read_results(logged.record.results)
        for i, cells in enumerate(inputs_of(logged)):
            if cells is not None:
                outcome, _ = logged.outcomes.get(i, (None, None))
                row: dict[str, Any] = {name: None if cells.get(name) is None else str(cells[name]) for name in names}
                row |= {"request_id": logged.record.request_id, "position": i}
                row |= {"p_good": answers.p_good[i], "decision": answers.decision[i]}
                row["outcome"] = None if outcome is None else float(outcome == "good")
                row["days"] = (now - logged.record.time) / SECONDS_PER_DAY
                found.append(row)
    return pd.DataFrame(found, columns=[*names, "request_id", "position", "p_good", "decision", "outcome", "days"])


def labelled(log: pd.DataFrame, contract: Contract, outcome_days: float) -> pd.DataFrame:
    """Rows of the log that were approved so long ago that their outcome is settled, with the target as the raw table has it.

    A default shows early, that somebody paid only at the end: of recent approvals the known outcomes are mostly bad.
    """
    mature = log[(log["decision"] == "approve") & (log["days"] >= outcome_days)]
    known = mature[mature["outcome"].notna()]
    if known.empty:
        raise DataError(
            f"prediction log: {len(log)} predictions, {len(mature)} of them approved {outcome_days:g} days ago or earlier"
            " (quality.outcome_days), none of these with an outcome; expected outcomes at POST /v1/outcomes"
        )
    target = contract.target
    labels = known["outcome"].map({1.0: str(target.good), 0.0: str(target.bad)})
    return known[[*contract.columns]].assign(**{target.name: labels}).reset_index(drop=True)


def refused(log: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Feature cells of those in the log who were refused, whose outcome nobody will know."""
    return log.loc[log["decision"] == "refuse", [*contract.columns]].reset_index(drop=True)
