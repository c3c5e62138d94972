"""Statistics of two samples of one column, and thresholds for all of them together.

If nothing moved, which of the pooled rows are the reference and which the window is chance. So each column's pooled counts are
dealt anew many times, to as many rows as both have: what the statistics are then holds the sampling error of the reference,
too. One threshold for the smallest p-value of all columns (Westfall & Young 1993) keeps the rate of false alarms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import gammaincc, gammainccinv

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Steps of the Kolmogorov-Smirnov statistic: as many bins cost a tenth of sorting the values, and lose no power.
STEPS = 100
# What is as frequent as that is no test's smallest p-value, so nobody asks how frequent exactly.
COMMON = 0.2
# Less variance is rounding.
TINY = 1e-18


class Bins(NamedTuple):
    """Bins that the reference fixes: fine ones, each with its upper edge, and to which of the coarse ones each belongs.

    A value belongs to the first edge that is not below it; above the last there is one more bin. Missing values are no part.
    """

    edges: np.ndarray
    coarse: np.ndarray
    """Number of the coarse bin of each fine one, shape (n edges + 1,)."""
    coarse_edges: np.ndarray

    @classmethod
    def of_numbers(cls, reference: np.ndarray, bins: int) -> Bins:
        """Quantiles of the reference, shape (n,): ``bins`` coarse bins, `STEPS` or more fine ones."""
        there = np.sort(reference[~np.isnan(reference)])
        coarse = _quantiles(there, bins)
        edges = np.union1d(coarse, _quantiles(there, STEPS))
        return cls(edges, np.append(np.searchsorted(coarse, edges), len(coarse)), coarse)

    @classmethod
    def of_codes(cls, codes: Sequence[float]) -> Bins:
        """One bin per code; nothing lies above the last."""
        edges = np.unique(np.asarray(codes, dtype=float))
        return cls(edges, np.arange(len(edges) + 1), edges)

    def rows_per_bin(self, values: np.ndarray) -> np.ndarray:
        """Rows per fine bin, missing values (NaN) last; shape (n edges + 2,)."""
        last = len(self.edges) + 1
        return np.bincount(np.where(np.isnan(values), last, np.searchsorted(self.edges, values)), minlength=last + 1)

    def merge(self, counts: np.ndarray) -> np.ndarray:
        """Fine counts, shape (…, n edges + 2), as coarse ones, missing values last."""
        starts = np.flatnonzero(np.diff(self.coarse, prepend=-1))
        return np.add.reduceat(counts, np.append(starts, len(self.coarse)), axis=-1)


def _quantiles(ordered: np.ndarray, parts: int) -> np.ndarray:
    """Distinct values that part rising ones into equal parts; each is one of them."""
    places = np.ceil(np.arange(1, parts) / parts * len(ordered)).astype(int) - 1
    return np.unique(ordered[places]) if len(ordered) else ordered


def population_stability_index(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Σ (w − r) · ln(w / r) over the bins' shares (Siddiqi 2006).

    Half a row is added to each bin: an empty one has no logarithm, and a fixed smallest share would make it count for more
    the more rows there are.

    Parameters
    ----------
    reference, window : ndarray of shape (…, n bins)
        Rows per bin.
    """
    r, w = ((counts + 0.5) / (counts.sum(axis=-1, keepdims=True) + 0.5 * counts.shape[-1]) for counts in (reference, window))
    return ((w - r) * np.log(w / r)).sum(axis=-1)


def kolmogorov_smirnov(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Largest difference of the distribution functions at the bins' edges; 0 where a side has no row."""
    r, w = (np.cumsum(counts, axis=-1) for counts in (reference, window))
    n, m = r[..., -1:], w[..., -1:]
    found = np.abs(r / np.maximum(n, 1) - w / np.maximum(m, 1)).max(axis=-1)
    return np.where((n * m)[..., 0] > 0, found, 0.0)


def chi_square(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Pearson's statistic of homogeneity of two samples; 0 where a side has no row."""
    n, m = (counts.sum(axis=-1, keepdims=True) for counts in (reference, window))
    pooled = np.maximum(reference + window, 1)
    difference = reference / np.maximum(n, 1) - window / np.maximum(m, 1)
    found = (difference**2 / pooled).sum(axis=-1) * (n * m)[..., 0]
    return np.where((n * m)[..., 0] > 0, found, 0.0)


def largest_move(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Largest difference of a bin's share, in standard errors: where one bin of many moved, chi-square sees less."""
    n, m = (np.maximum(counts.sum(axis=-1, keepdims=True), 1) for counts in (reference, window))
    pooled = (reference + window) / (n + m)
    variance = pooled * (1 - pooled) * (1 / n + 1 / m)
    z = np.abs(reference / n - window / m) / np.sqrt(np.where(variance > 0, variance, np.inf))
    return z.max(axis=-1)


def share_moved(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    """By how much the share of the last bin differs."""
    return np.abs(_last_share(window) - _last_share(reference))


def share_rose(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    """By how much the share of the last bin is larger in the window, else 0."""
    return np.maximum(_last_share(window) - _last_share(reference), 0.0)


def _last_share(counts: np.ndarray) -> np.ndarray:
    return counts[..., -1] / counts.sum(axis=-1)


class Simulated(NamedTuple):
    """One statistic: what it is, and what chance makes of it, shape (n simulations,)."""

    value: float
    by_chance: np.ndarray


def simulate(
    reference: np.ndarray,
    window: np.ndarray,
    statistics: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    simulations: int,
    rng: np.random.Generator,
) -> dict[str, Simulated]:
    """Deal the pooled rows of one column anew, and compute its statistics each time.

    Parameters
    ----------
    reference, window : ndarray of shape (n bins,)
        Rows per bin.
    statistics : mapping of str to function
        Functions of rows per bin on both sides, shape (…, n bins), that return shape (…).
    simulations : int
    rng : Generator
    """
    pooled = reference + window
    dealt = rng.multivariate_hypergeometric(pooled, int(reference.sum()), size=simulations)
    left, right = np.vstack([reference, dealt]), np.vstack([window, pooled - dealt])
    found = {name: statistic(left, right) for name, statistic in statistics.items()}
    return {name: Simulated(float(values[0]), values[1:]) for name, values in found.items()}


def p_value(test: Simulated) -> float:
    """How often chance makes the statistic as large, for this test alone."""
    return _Tail(test.by_chance)(test.value)


class Calibrated(NamedTuple):
    """Tests that share one rate of false alarms; arrays of shape (n tests,)."""

    p_values: np.ndarray
    """Adjusted for their number: how often chance makes the smallest p-value of all as small as this one."""
    thresholds: np.ndarray
    """From which value on a statistic alarms."""
    drift: np.ndarray
    p_threshold: float
    """The same for the p-value of a test alone."""


def calibrate(tests: Sequence[Simulated], rate: float) -> Calibrated:
    """Find the thresholds with which all tests together alarm at this rate if nothing moved.

    Columns are dealt independently of each other: for related ones that errs to the safe side, and by little.

    Parameters
    ----------
    tests : sequence of Simulated
        All with the same number of simulations, of which ``rate`` times that are 1 or more.
    rate : float
    """
    tails = [_Tail(test.by_chance) for test in tests]
    smallest = np.min([tail.of_draws for tail in tails], axis=0)
    smallest.sort()
    allowed = int(rate * (len(smallest) + 1))
    p_threshold = float(smallest[allowed - 1])
    p_values = np.array([tail(test.value) for tail, test in zip(tails, tests, strict=True)])
    as_small = np.searchsorted(smallest, p_values, side="right")
    return Calibrated(
        (as_small + 1) / (len(smallest) + 1),
        np.array([tail.inverse(p_threshold) for tail in tails]),
        as_small < allowed,
        p_threshold,
    )


class _Tail:
    """P(statistic ≥ value): the share of the draws, and beyond them the gamma distribution with their mean and variance.

    The larger of both: it is never less than what was seen.
    """

    def __init__(self, draws: np.ndarray) -> None:
        n = len(draws)
        self.sorted = np.sort(draws)
        self.mean, self.variance = float(draws.mean()), float(draws.var())
        # A draw is held against the others, as the value is against all: with itself among them it would look less rare.
        mean = (n * self.mean - draws) / (n - 1)
        variance = (n * (self.variance + self.mean**2) - draws**2) / (n - 1) - mean**2
        self.of_draws = (n * self._share(draws) - 1) / (n - 1)
        rare = self.of_draws < COMMON
        self.of_draws[rare] = np.maximum(self.of_draws[rare], _gamma_tail(draws[rare], mean[rare], variance[rare]))

    def _share(self, values: np.ndarray) -> np.ndarray:
        return 1 - np.searchsorted(self.sorted, values) / len(self.sorted)

    def __call__(self, value: float) -> float:
        one = np.array([value])
        return float(np.maximum(self._share(one), _gamma_tail(one, self.mean, self.variance))[0])

    def inverse(self, p: float) -> float:
        """Return from which value on the tail is below ``p``."""
        if self.variance < TINY:
            return float("inf")
        seen = self.sorted[len(self.sorted) - 1 - int(p * len(self.sorted))]
        return max(float(seen), float(gammainccinv(self.mean**2 / self.variance, p)) * self.variance / self.mean)


def _gamma_tail(values: np.ndarray, mean: np.ndarray | float, variance: np.ndarray | float) -> np.ndarray:
    varies = np.asarray(variance) >= TINY
    mean, variance = np.where(varies, mean, 1.0), np.where(varies, variance, 1.0)
    # Of what never varies nothing can be said.
    return np.where(varies, gammaincc(mean**2 / variance, values * mean / variance), 1.0)
