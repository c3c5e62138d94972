"""What `mlops-validate` counts in an incoming file, beside the same of the raw table that the model was made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from scipy.stats import hypergeom

from mlops_project.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from mlops_project.config import QualityParams
    from mlops_project.validation import Report

# Kind → the counts that make it.
KINDS = {"missing": ("missing", "tokens"), "out_of_contract": ("out_of_contract",)}


def incoming(found: Report, cleaning: Path, params: QualityParams) -> dict[str, Any]:
    """Compare the counts of a file with those of the prepare stage.

    Parameters
    ----------
    found : Report
        Of the file, as `validate_table` makes it.
    cleaning : Path
        ``metrics/prepare.json``.
    params : QualityParams

    Returns
    -------
    dict
        ``jump``: whether any share rose by more than ``data_tolerance`` and beyond chance; ``rows``; ``bad_cells``; ``columns``:
        by column and kind ``share``, ``reference``, ``p_value`` and ``jump``.

    Raises
    ------
    DataError
        If the file has no rows, or the counts of the prepare stage are absent.
    """
    if not found.rows:
        raise DataError("the file holds no rows; expected at least one applicant")
    try:
        before = json.loads(cleaning.read_bytes())
        rows, columns = int(before["rows"]["read"]), before["columns"]
        names = [name for name in found.columns if name in columns]
        counts = {name: {kind: sum(columns[name][key] for key in keys) for kind, keys in KINDS.items()} for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{cleaning}: holds no counts ({type(error).__name__}); `dvc repro prepare` writes it") from None
    limit = params.false_alarm_rate / max(1, len(names) * len(KINDS))
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        out[name] = {}
        for kind, keys in KINDS.items():
            old, new = counts[name][kind], sum(found.columns[name][key] for key in keys)
            # Fisher's exact test, one-sided.
            p_value = float(hypergeom.sf(new - 1, rows + found.rows, old + new, found.rows))
            share, reference = new / found.rows, old / rows
            jump = share > reference + params.data_tolerance and p_value < limit
            out[name][kind] = {"share": share, "reference": reference, "p_value": p_value, "jump": jump}
    return {
        "jump": any(part["jump"] for kinds in out.values() for part in kinds.values()),
        "rows": found.rows,
        "bad_cells": len(found.bad_cells),
        "columns": out,
    }
