"""Who is who: hashes of cleaned rows, the agreement rule that finds duplicated applicants, and their ids."""

from __future__ import annotations

import hashlib
import math
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlops_project.schema import Contract


# The strict rule: a column is highly distinct if it shows more than MANY_VALUES values and is valid in most of the rows that
# decide. Chosen by `python benchmarks/duplicates.py`, see docs/decisions.md.
MANY_VALUES, MOSTLY_VALID = 50, 0.9
# Rows that say how distinct a column is, rows that are searched together, pairs that are compared together.
SAMPLE, BLOCK, CHUNK = 100_000, 1 << 17, 1 << 15
# Pairs are compared, no longer divided, as soon as there are only so many per row, or so many at all.
PAIRS_PER_ROW, FEW_PAIRS = 4, 1 << 15


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


def first_occurrences(columns: Sequence[np.ndarray], min_cells: int, *, strict_after: int | None = None) -> np.ndarray:
    """For each row the position of the applicant's first occurrence, by the agreement rule.

    A row joins the applicant of the earliest earlier row with which it agrees in every cell that both have (NaN: has
    not), at least ``min_cells``. From position ``strict_after`` on, where so many rows stand before it that some agree by
    chance, a row also needs all highly distinct columns, valid and equal: those that show more than 50 values in the first
    ``strict_after`` rows and are valid in nine tenths of them; all columns, if there is none. So the answer depends on
    earlier rows only, and appending rows never changes an old one.

    Parameters
    ----------
    columns : sequence of ndarray of shape (n rows,)
        Cells of float16, float32 or float64, one array per column.
    min_cells : int
        0 switches merging off.
    strict_after : int, optional
        Left out: no row is that far.

    Returns
    -------
    ndarray of int, shape (n rows,)

    Notes
    -----
    Time is near-linear in rows as long as cells tell rows apart (`_Search`). Memory: some 26 bytes per row, and 100 and a copy of
    the cells for each row that is searched together: all before ``strict_after``, then those of one block.
    """
    n = len(columns[0]) if len(columns) else 0
    leaders = np.arange(n)
    if not 1 <= min_cells <= len(columns):
        return leaders
    head = n if strict_after is None else min(strict_after, n)
    spreads = [_spread(column[: head : max(1, head // SAMPLE)]) for column in columns]
    order = sorted(range(len(columns)), key=lambda i: spreads[i].undecided)
    leaders[:head] = _Search([_cells(columns[i][:head]) for i in order], min_cells).earliest()
    if head < n:
        required = [i for i in order if spreads[i].distinct > MANY_VALUES and spreads[i].valid >= MOSTLY_VALID] or order
        order = [*required, *(i for i in order if i not in required)]
        for rows in _blocks([columns[i] for i in required]):
            earliest = rows[_Search([_cells(columns[i].take(rows)) for i in order], min_cells, len(required)).earliest()]
            late = rows >= head
            leaders[rows[late]] = earliest[late]
    for start in range(0, n, BLOCK):  # from earliest to leader
        part = leaders[start : start + BLOCK]
        while (leaders[part] != part).any():
            part[:] = leaders[part]
    return leaders


class _Spread(NamedTuple):
    """What a column's cells tell apart: number of values, share of valid cells, share of pairs of rows that it leaves open."""

    distinct: int
    valid: float
    undecided: float


def _spread(column: np.ndarray) -> _Spread:
    counts = np.unique(column[~np.isnan(column)], return_counts=True)[1]
    n = max(len(column), 1)
    return _Spread(len(counts), counts.sum() / n, 1 - (counts.sum() / n) ** 2 + ((counts / n) ** 2).sum())


def _cells(column: np.ndarray) -> np.ndarray:
    """Bits of floats as unsigned integers, equal where the floats are: no negative zero, and all ones (a NaN) for missing."""
    bits = column.view(f"u{column.itemsize}")
    top = bits.dtype.type(1 << (8 * column.itemsize - 1))
    missing = (bits & ~top) > np.array(np.inf, column.dtype).view(bits.dtype)
    return np.where(missing, ~bits.dtype.type(0), np.where(bits == top, bits.dtype.type(0), bits))


def _valid(cells: np.ndarray) -> np.ndarray:
    return cells != ~cells.dtype.type(0)


def _mix(keys: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Hash keys with cells, 64 bits in and out; the upper bits are the better ones (multiplier: Steele and Vigna 2022)."""
    mixed = (keys ^ cells) * np.uint64(0xD1342543DE82EF95)
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _blocks(columns: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Divide the rows that are complete in ``columns`` so that equal ones stand together: ascending positions of each block."""
    n = len(columns[0])
    n_blocks = min(n // BLOCK + 1, np.iinfo(np.uint16).max)
    block = np.empty(n, np.uint16)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        keys, complete = np.zeros(size, np.uint64), np.ones(size, bool)
        for column in columns:
            cells = _cells(column[start : start + BLOCK])
            keys, complete = _mix(keys, cells), complete & _valid(cells)
        block[start : start + BLOCK] = np.where(
            complete, (keys >> np.uint64(32)) * np.uint64(n_blocks) >> np.uint64(32), n_blocks
        )
    order = np.argsort(block, kind="stable")
    sizes = np.bincount(block, minlength=n_blocks + 1)
    yield from np.split(order, np.cumsum(sizes))[:n_blocks]


class _Search:
    """Finds for each row the earliest earlier row with which it agrees, without comparing all pairs.

    A problem is a set of rows that seek, a set of targets, and a key that both carry; its pairs are a seeker and an earlier
    target with the same key. Pairs that agree are equal in a column or lack it on one side, so a problem is divided by the next
    column: pairs that both have it go on with a longer key, the three other combinations with the same key and one column less
    to agree in, until few are left. Seekers whose earliest is found leave. Every pair goes into one part only, and a problem is
    divided only while it holds more pairs than rows, so that the worst table costs what comparing all pairs does. Keys are
    hashes and what is left is compared cell by cell: a collision costs time, not truth.

    A set of rows is one sorted array: the upper bits of the row's key over the row's position.

    Parameters
    ----------
    cells : list of ndarray of shape (n rows,)
        From `_cells`; the columns that leave fewest pairs undecided come first.
    min_cells : int
    n_complete : int
        So many columns, the first, are valid in all rows.
    """

    def __init__(self, cells: list[np.ndarray], min_cells: int, n_complete: int = 0) -> None:
        self.cells, self.min_cells, self.n_complete = cells, min_cells, n_complete
        self.n = len(cells[0])
        self.shift = np.uint64(self.n.bit_length())
        self.low = np.uint64((1 << self.n.bit_length()) - 1)
        # The first 64 columns in one word: few bits of a hash per cell, beside them ones where the cell is valid.
        self.width = max(1, 64 // len(cells))
        self.signature, self.known = np.zeros(self.n, np.uint64), np.zeros(self.n, np.uint64)
        self.found = np.arange(self.n)

    def earliest(self) -> np.ndarray:
        """Return the position of the earliest row that agrees, or of the first equal row if that has none, or its own."""
        n_valid = np.zeros(self.n, np.uint16)
        keys = np.zeros(self.n, np.uint64)
        root = keys
        for i, cells in enumerate(self.cells):
            valid = _valid(cells)
            n_valid += valid
            if i * self.width < 64:
                code = cells * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - self.width)
                ones, place = np.uint64((1 << self.width) - 1), np.uint64(i * self.width)
                self.signature |= code << place
                self.known |= (valid * ones) << place
            keys = _mix(keys, cells)
            if i < self.n_complete:
                root = keys
        able = n_valid >= self.min_cells
        first = self._first_equal(self._set(keys, np.flatnonzero(able)))
        self._search(self._set(root, np.flatnonzero(able & (first == self.found))))
        return self.found[first]

    def _set(self, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        members = keys[rows] & ~self.low | rows.astype(np.uint64)
        members.sort()
        return members

    def _rows(self, members: np.ndarray) -> np.ndarray:
        return (members & self.low).view(np.int64)

    def _first_equal(self, members: np.ndarray) -> np.ndarray:
        """For each row the first that is equal in all cells and gaps; equal rows agree with the same rows."""
        rows, starts = self._rows(members), _group_starts(members >> self.shift)
        later = np.flatnonzero(starts != np.arange(len(rows)))
        row, first = rows[later], rows[starts[later]]
        for cells in self.cells:
            equal = cells[row] == cells[first]
            row, first = row[equal], first[equal]
        result = np.arange(self.n)
        result[row] = first
        return result

    def _search(self, members: np.ndarray) -> None:
        budget = len(self.cells) - self.min_cells
        problems = [(members, members, self.n_complete, 0)]
        while problems:
            seekers, targets, depth, skipped = problems.pop()
            starts = np.searchsorted(targets, seekers & ~self.low)
            counts = np.searchsorted(targets, seekers) - starts
            if depth == len(self.cells) or counts.sum() <= max(FEW_PAIRS, PAIRS_PER_ROW * (len(seekers) + len(targets))):
                self._compare(seekers, targets, starts, counts)
                continue
            # Where many agree, most find their earliest among the first.
            self._compare(seekers, targets, starts, np.minimum(counts, PAIRS_PER_ROW))
            going_on = np.flatnonzero(counts > PAIRS_PER_ROW)
            following = self._rows(targets[starts[going_on] + PAIRS_PER_ROW])
            going_on = going_on[self.found[self._rows(seekers[going_on])] > following]
            seekers, starts, counts = seekers[going_on], starts[going_on], counts[going_on]
            sought = np.zeros(len(targets) + 1, np.intp)
            np.add.at(sought, starts, 1)
            np.add.at(sought, starts + counts, -1)
            targets = targets[np.cumsum(sought[:-1]) > 0]
            seekers_with, seekers_without = self._divide(seekers, depth)
            targets_with, targets_without = self._divide(targets, depth)
            parts = [
                (seekers_without, targets_without, 1),
                (seekers_without, targets_with, 1),
                (seekers_with, targets_without, 1),
                (self._longer(seekers_with, depth), self._longer(targets_with, depth), 0),
            ]
            problems += [
                (one, other, depth + 1, skipped + more)
                for one, other, more in parts
                if skipped + more <= budget and len(one) and len(other)
            ]

    def _divide(self, members: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
        valid = _valid(self.cells[column][self._rows(members)])
        return members[valid], members[~valid]

    def _longer(self, members: np.ndarray, column: int) -> np.ndarray:
        rows = self._rows(members)
        longer = _mix(members & ~self.low, self.cells[column][rows]) & ~self.low | (members & self.low)
        longer.sort()
        return longer

    def _compare(self, seekers: np.ndarray, targets: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
        """Compare each seeker with ``counts`` targets from ``starts`` on, all of them earlier rows, and note the earliest."""
        rows, earlier = self._rows(seekers), self._rows(targets)
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(counts):
            done = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + CHUNK, side="right")))
            part = counts[begin:end]
            x = np.repeat(rows[begin:end], part)
            y = earlier.take(np.arange(done, ends[end - 1]) + np.repeat(starts[begin:end] - (ends[begin:end] - part), part))
            begin = end
            known = self.known.take(x) & self.known.take(y)
            passed = np.flatnonzero((self.signature.take(x) ^ self.signature.take(y)) & known == 0)
            if len(self.cells) <= 64:
                passed = passed[np.bitwise_count(known[passed]) >= self.width * self.min_cells]
            self._note(x[passed], y[passed])

    def _note(self, x: np.ndarray, y: np.ndarray) -> None:
        """Compare rows x with the earlier rows y cell by cell."""
        n_equal = np.zeros(len(x), np.uint16)
        for cells in self.cells:
            of_x, of_y = cells[x], cells[y]
            both = _valid(of_x) & _valid(of_y)
            n_equal += both
            if not (agree := (of_x == of_y) | ~both).all():
                x, y, n_equal = x[agree], y[agree], n_equal[agree]
        enough = n_equal >= self.min_cells
        x, y = x[enough], y[enough]
        np.minimum.at(self.found, x, y)


def _group_starts(keys: np.ndarray) -> np.ndarray:
    """For each element of a sorted array the index of the first that is equal."""
    starts = np.arange(len(keys))
    starts[1:][keys[1:] == keys[:-1]] = 0
    return np.maximum.accumulate(starts)


class Ids:
    """Ids of applicants, written out when they are asked for: ten million of them take a gigabyte as text.

    Parameters
    ----------
    keys : ndarray of shape (n,)
        Hashes (uint64) or texts (object). Equal ones, of rows that were not merged, are numbered: x, x-2, x-3.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys
        ordered = np.sort(keys)
        several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        # In parts, because NumPy sorts all that is looked for, too.
        parts = [start + np.flatnonzero(np.isin(keys[start : start + BLOCK], several)) for start in range(0, len(keys), BLOCK)]
        shared = np.concatenate([np.empty(0, dtype=int), *parts])
        seen: dict[Any, int] = {}
        again, self._numbers = [], []
        for position, key in zip(shared.tolist(), keys[shared].tolist(), strict=True):
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                again.append(position)
                self._numbers.append(seen[key])
        self._again = np.array(again, dtype=int)

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
