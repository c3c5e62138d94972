"""Bins of one column: cut so that the bad rate moves one way, few, none of them small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNS: dict[str | None, tuple[int, ...]] = {"increasing": (1,), "decreasing": (-1,), None: (1, -1)}
# Numbers are first cut into at most this many quantiles; finer ones changed nothing on 1,000 rows.
PREBINS = 50
# A bin without bad (or good) rows would speak with infinite weight; odds 150 times the average are enough.
LARGEST_WOE = 5.0


class Bins(NamedTuple):
    """The bins of one attribute: ``n`` bins of values, then the missing ones, then codes that training did not see.

    Attributes
    ----------
    kind : {"numeric", "ordinal", "nominal"}
    points : ndarray
        Cut points in rising order, of shape (n − 1,), each the lowest value of its upper bin; nominal: the codes, sorted.
    groups : ndarray of int
        Bin of each code; empty unless nominal.
    good, bad, woe : ndarray of shape (n + 2,)
        Weight of the training rows per class, and the weight of evidence.
    """

    kind: str
    points: np.ndarray
    groups: np.ndarray
    good: np.ndarray
    bad: np.ndarray
    woe: np.ndarray

    @property
    def n(self) -> int:
        return len(self.woe) - 2

    @property
    def rising(self) -> bool:
        """Whether the weight of evidence never falls from bin to bin."""
        return bool((np.diff(self.woe[: self.n]) >= 0).all())

    @property
    def falling(self) -> bool:
        return bool((np.diff(self.woe[: self.n]) <= 0).all())

    def assign(self, values: np.ndarray) -> np.ndarray:
        """Return the bin of each value: 0 to n − 1, n where missing, n + 1 where a code is unknown."""
        return _assign(values, self.points, self.groups, self.n, nominal=self.kind == "nominal")


class Binner(NamedTuple):
    """How to bin one column: shares of bad and good rows, and the limits, the smallest bin as a weight of rows."""

    prior: np.ndarray
    max_bins: int
    smallest: float
    smoothing: float

    def woe(self, counts: np.ndarray) -> np.ndarray:
        """Return the weight of evidence of bins, shape (n bins,), from their bad and good rows, shape (n bins, 2)."""
        # The quotient of smoothed odds and overall odds is that of the shares, drawn to 1.
        with np.errstate(divide="ignore", invalid="ignore"):
            bad, good = np.log((counts + self.smoothing * self.prior) / self.prior).T
            return np.nan_to_num(np.clip(good - bad, -LARGEST_WOE, LARGEST_WOE))

    def weigh(
        self, kind: str, points: np.ndarray, groups: np.ndarray, values: np.ndarray, good: np.ndarray, weight: np.ndarray
    ) -> Bins:
        n = int(groups.max(initial=-1)) + 1 if kind == "nominal" else len(points) + 1
        found = _assign(values, points, groups, n, nominal=kind == "nominal")
        counts = _counts(found, good, weight, n + 2)
        return Bins(kind, points, groups, counts[:, 1], counts[:, 0], self.woe(counts))

    def cut(
        self, kind: str, direction: str | None, values: np.ndarray, good: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cut points, or codes and their groups."""
        present = ~np.isnan(values)
        if not present.all():
            values, good, weight = values[present], good[present], weight[present]
        lowest = np.unique(values)
        if not len(lowest):
            return lowest, np.empty(0, dtype=int)
        if kind == "nominal":
            counts = _counts(np.searchsorted(lowest, values), good, weight, len(lowest))
            order = np.argsort(self.woe(counts), kind="stable")
            starts = self._join(counts[order], np.arange(len(lowest)), 1)
            groups = np.empty(len(lowest), dtype=int)
            groups[order] = np.searchsorted(starts, np.arange(len(lowest)), side="right") - 1
            return lowest, groups
        if len(lowest) > PREBINS:
            lowest = _quantiles(values, weight, PREBINS)
        counts = _counts(np.searchsorted(lowest, values, side="right") - 1, good, weight, len(lowest))
        # Where nothing is asked, the direction that fits better, the rising one where both do alike.
        blocks = [(sign, _isotonic(counts, sign)) for sign in SIGNS[direction]]
        sign, starts = max(blocks, key=lambda block: _likelihood(np.add.reduceat(counts, block[1])).sum())
        starts = self._join(counts, starts, sign)
        cuts = [_rounded(values[values < value].max(), value) for value in lowest[starts[1:]]]
        return np.array(cuts, dtype=float), np.empty(0, dtype=int)

    def _join(self, counts: np.ndarray, starts: np.ndarray, sign: int) -> np.ndarray:
        """Join neighbouring blocks at the least loss of likelihood until none is too small, and few enough are left, in order."""
        bins = np.add.reduceat(counts, starts)
        while len(bins) > 1:
            joined = bins[:-1] + bins[1:]
            loss = _likelihood(bins)
            loss = loss[:-1] + loss[1:] - _likelihood(joined)
            sizes = bins.sum(axis=1)
            # Smoothing draws a small bin further to 0 than its larger neighbour, which can turn their order round.
            turned = sign * np.diff(self.woe(bins)) < 0
            if (smallest := sizes.argmin(), sizes.min() < self.smallest)[1]:
                sides = [side for side in (smallest - 1, smallest) if 0 <= side < len(loss)]
                at = min(sides, key=lambda side: loss[side])
            elif len(bins) > self.max_bins:
                at = loss.argmin()
            elif turned.any():
                at = np.where(turned, loss, np.inf).argmin()
            else:
                break
            bins = np.vstack([bins[:at], joined[at], bins[at + 2 :]])
            starts = np.delete(starts, at + 1)
        return starts


def by_hand(name: str, kind: str, values: np.ndarray, bins: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the cut points, or codes and groups, that somebody wrote down.

    Raises
    ------
    ValueError
        If cut points do not rise, or lists of codes are empty or overlap.
    """
    if kind != "nominal":
        if any(not isinstance(cut, (int, float)) for cut in bins) or not np.isfinite(bins).all() or (np.diff(bins) <= 0).any():
            raise ValueError(f"overrides: {name!r}: found {bins!r}, expected finite cut points in rising order")
        return np.array(bins, dtype=float), np.empty(0, dtype=int)
    if not all(isinstance(group, (list, tuple)) and group for group in bins):
        raise ValueError(f"overrides: {name!r} is nominal: found {bins!r}, expected lists of codes")
    codes = [code for group in bins for code in group]
    if len(set(codes)) < len(codes):
        raise ValueError(f"overrides: {name!r}: found {bins!r}, expected each code in one list only")
    rest = np.setdiff1d(values[~np.isnan(values)], codes)
    points = np.array([*codes, *rest], dtype=float)
    groups = np.repeat(np.arange(len(bins) + 1), [*(len(group) for group in bins), len(rest)])
    order = np.argsort(points)
    return points[order], groups[order]


def _assign(values: np.ndarray, points: np.ndarray, groups: np.ndarray, n: int, *, nominal: bool) -> np.ndarray:
    if nominal:
        # One more entry, so that the place behind the last code is one as well; NaN lands there and equals nothing.
        place = np.searchsorted(points, values)
        found = np.where(np.append(points, np.nan)[place] == values, np.append(groups, 0)[place], n + 1)
    else:
        found = np.searchsorted(points, values, side="right")
    found[np.isnan(values)] = n
    return found


def _counts(bins: np.ndarray, good: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    """Weight of the bad and the good rows per bin, shape (n, 2)."""
    return np.bincount(2 * bins + good, weight, minlength=2 * n).reshape(n, 2)


def _likelihood(counts: np.ndarray) -> np.ndarray:
    """Log-likelihood of each bin at its own rate, from counts of shape (n bins, 2)."""
    return (counts * np.log(np.where(counts > 0, counts, 1) / counts.sum(axis=1, keepdims=True))).sum(axis=1)


def _quantiles(values: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    """Return the lowest value and the quantiles of ``n`` parts of equal weight, without repetition."""
    order = np.argsort(values)
    reached = np.cumsum(weight[order])
    places = np.searchsorted(reached, reached[-1] * np.arange(1, n) / n, side="right")
    return np.unique(values[order][[0, *places]])


def _isotonic(counts: np.ndarray, sign: int) -> np.ndarray:
    """Return the first bin of each block of the isotonic regression of good on bins, by pooling adjacent violators."""
    blocks: list[tuple[int, float, float]] = []
    for start, (bad, good) in enumerate(counts.tolist()):
        block = start, bad, bad + good
        # Blocks of equal rate are one, too. In whole numbers the products are exact.
        while blocks and sign * (blocks[-1][1] * block[2] - block[1] * blocks[-1][2]) <= 0:
            before = blocks.pop()
            block = before[0], before[1] + block[1], before[2] + block[2]
        blocks.append(block)
    return np.array([start for start, _, _ in blocks])


def _rounded(below: float, value: float) -> float:
    """Return a number with the fewest digits above ``below`` and at most ``value``: 13 rather than 12.73."""
    if below < 0 <= value:
        return 0.0
    for digits in range(int(np.floor(np.log10(max(abs(value), abs(below), 1e-300)))), -308, -1):
        found = round(float(np.floor(value / 10.0**digits)) * 10.0**digits, max(0, -digits))
        if below < found <= value:
            return found
    return value
