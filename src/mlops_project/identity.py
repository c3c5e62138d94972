"""Who is who: hashes of cleaned rows, the agreement rule that finds duplicated applicants, and their ids."""

from __future__ import annotations

import hashlib
import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlops_project.schema import Contract


def hash_rows(values: np.ndarray, contract: Contract) -> list[str]:
    """Hash each row of parsed feature values (shape (n, n features)) to 16 hexadecimal digits, stable over machines.

    Text codes enter by their text, not their position, so that adding a code to the contract moves nobody.
    """
    canonical = values + 0.0  # no negative zero
    for i, name in enumerate(contract.features):
        column = contract.columns[name]
        if column.has_text_codes:
            marks = np.array([float(zlib.crc32(str(code).encode())) for code in column.code_list] + [math.nan])
            canonical[:, i] = marks[np.where(np.isnan(values[:, i]), len(marks) - 1, values[:, i]).astype(int)]
    canonical[np.isnan(canonical)] = np.nan  # one bit pattern for missing
    rows = np.ascontiguousarray(canonical, dtype="<f8")
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]


def first_occurrences(values: np.ndarray, min_cells: int) -> np.ndarray:
    """For each row the position of the applicant's first occurrence, by the agreement rule.

    A row joins the applicant of the earliest earlier row with which it agrees in every cell that both have (NaN: has
    not), at least ``min_cells``. It depends on earlier rows only, so appending rows never changes an old answer.

    Parameters
    ----------
    values : ndarray of shape (n rows, n cells)
    min_cells : int
        0 switches merging off.

    Returns
    -------
    ndarray of shape (n rows,)
    """
    n = len(values)
    leaders = np.arange(n)
    if min_cells == 0 or min_cells > values.shape[1]:
        return leaders
    present = ~np.isnan(values)
    filled = np.where(present, values, np.inf)
    # Rows that agree have the same key or lack it, whichever column is the key; the most distinct leaves fewest to compare.
    key = max(range(values.shape[1]), key=lambda i: len(np.unique(filled[:, i])))
    by_key: dict[float, list[int]] = {}
    keyless: list[int] = []
    for row in range(n):
        if present[row, key]:
            same = by_key.setdefault(filled[row, key], [])
            earlier = np.array(sorted([*same, *keyless]), dtype=int)
            same.append(row)
        else:
            earlier = np.arange(row)
            keyless.append(row)
        both = present[earlier] & present[row]
        agree = ((filled[earlier] == filled[row]) | ~both).all(axis=1) & (both.sum(axis=1) >= min_cells)
        if agree.any():
            leaders[row] = leaders[earlier[np.argmax(agree)]]
    return leaders


def unique_ids(keys: Iterable[str]) -> list[str]:
    """Number ids that stand more than once (equal rows that were not merged), as x, x-2, x-3."""
    seen: dict[str, int] = {}
    ids = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids
