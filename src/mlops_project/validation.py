"""`mlops-validate`: every cell of a table that breaks the data contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mlops_project.cells import INVALID, MISSING, TOKEN, VALID, identifier_status

if TYPE_CHECKING:
    from mlops_project.schema import Contract


class Report(NamedTuple):
    """What validation found.

    ``bad_cells`` has one row per bad cell: ``row`` (data rows from 1, header not counted), ``column``, ``value`` as it
    stands in the file and ``rule`` that it breaks. ``columns``: column → counts by kind.
    """

    rows: int
    columns: dict[str, dict[str, int]]
    bad_cells: pd.DataFrame

    @property
    def valid(self) -> bool:
        return self.bad_cells.empty

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain objects, ready for JSON."""
        return {
            "valid": self.valid,
            "rows": self.rows,
            "bad_cells": len(self.bad_cells),
            "columns": self.columns,
            "cells": self.bad_cells.to_dict("records"),
        }


def validate_table(table: pd.DataFrame, contract: Contract) -> Report:
    """Check every cell of a table against the contract.

    Bad is a missing-value token (a clean file leaves the cell empty), a value that the contract does not allow, an
    empty cell where the contract forbids it, and an applicant id that stands twice.

    Parameters
    ----------
    table : DataFrame of shape (n rows, …)
        The contract's columns, as `DataLoader` reads them; the target is checked if it is there.
    contract : Contract
    """
    parts, columns = [], {}
    names = [name for name in [*contract.columns, contract.target.name] if name in table]
    for name in names:
        target = name == contract.target.name
        kind = "nominal" if target else contract.columns[name].kind
        if kind == "identifier":
            status = identifier_status(table[name], contract.missing_tokens)
        else:
            status = contract.parse(name, table[name]).status
        nullable = not target and contract.columns[name].nullable
        domain = f"one of {contract.target.good}, {contract.target.bad}" if target else contract.columns[name].domain
        rules = {TOKEN: "missing-value token, expected an empty cell", INVALID: f"expected {domain}"}
        if not nullable:
            rules[MISSING] = f"missing, expected {domain}"
        columns[name] = dict(
            zip(("valid", "missing", "tokens", "out_of_contract"), np.bincount(status, minlength=4).tolist(), strict=True)
        )
        for code, rule in rules.items():
            parts.append(_bad(table[name], np.flatnonzero(status == code), name, rule))
        if name == contract.applicant_id:
            doubled = table[name].astype(str).str.strip().duplicated().to_numpy() & (status == VALID)
            parts.append(_bad(table[name], np.flatnonzero(doubled), name, "applicant id that stands earlier too"))
    order = {name: i for i, name in enumerate(names)}
    bad = pd.concat(parts, ignore_index=True)
    bad = bad.sort_values(["row", "column"], key=lambda s: s.map(order) if s.name == "column" else s, ignore_index=True)
    return Report(len(table), columns, bad)


def _bad(cells: pd.Series, rows: np.ndarray, name: str, rule: str) -> pd.DataFrame:
    values = cells.iloc[rows].astype(object).where(lambda v: v.notna(), "")
    return pd.DataFrame({"row": rows + 1, "column": name, "value": [str(v) for v in values], "rule": rule})
