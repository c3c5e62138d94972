"""Who is who: hashes of cleaned rows, the agreement rule that finds duplicated applicants, and their ids."""

from __future__ import annotations

import hashlib
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlops_project.schema import Contract


def hash_rows(values: np.ndarray, contract: Contract) -> list[str]:
    """Hash each row of parsed feature values (shape (n, n features)) to 16 hexadecimal digits, stable over machines.

    Text codes enter by their text, not their position, so that adding a code to the contract moves nobody.
    """
    return hex_digits(row_hashes(values, contract))


def row_hashes(values: np.ndarray, contract: Contract) -> np.ndarray:
    """Return the hashes of `hash_rows` as numbers, uint64 of shape (n,): a ninth of the memory."""
    canonical = values.astype(float) + 0.0  # no negative zero
    for i, name in enumerate(contract.features):
        column = contract.columns[name]
        if column.has_text_codes:
            marks = np.array([float(zlib.crc32(str(code).encode())) for code in column.code_list] + [math.nan])
            canonical[:, i] = marks[np.where(np.isnan(values[:, i]), len(marks) - 1, values[:, i]).astype(int)]
    canonical[np.isnan(canonical)] = np.nan  # one bit pattern for missing
    rows = np.ascontiguousarray(canonical, dtype="<f8")
    digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def hex_digits(hashes: np.ndarray) -> list[str]:
    """Write hashes, uint64 of shape (n,), as 16 hexadecimal digits each."""
    digits = hashes.astype(">u8").tobytes().hex()
    return [digits[start : start + 16] for start in range(0, len(digits), 16)]


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


class Ids:
    """Ids of applicants, written out when they are asked for: ten million of them take a gigabyte as text.

    Parameters
    ----------
    keys : ndarray of shape (n,)
        Hashes (uint64) or texts (object). Equal ones, of rows that were not merged, are numbered: x, x-2, x-3.
    """

    def __init__(self, keys: np.ndarray) -> None:
        import pandas as pd

        self._keys = keys
        self._again = np.flatnonzero(pd.Series(keys).duplicated())
        seen: dict[Any, int] = {}
        self._numbers = []
        for key in keys[self._again].tolist():
            seen[key] = seen.get(key, 1) + 1
            self._numbers.append(seen[key])

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Return the keys of some rows as text, which equal rows share."""
        keys = self._keys[start:stop]
        return hex_digits(keys) if keys.dtype == np.uint64 else keys.tolist()

    def texts(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Return the ids of some rows, each of which stands once among all."""
        texts = self.keys(start, stop)
        first, last = np.searchsorted(self._again, [start, start + len(texts)])
        for position, number in zip(self._again[first:last].tolist(), self._numbers[first:last], strict=True):
            texts[position - start] += f"-{number}"
        return texts
