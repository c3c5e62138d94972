"""Percentile bootstrap over applicants: of the rows themselves, or of cells in which rows are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from mlops_project.modeling.metrics import bootstrap_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlops_project.config import EvaluateParams

# Bootstrap samples × rows (or cells) held in memory at once.
MAX_CELLS = 4_000_000
# Variance of the weights in a cell, as a share of their mean's square, that is no more than rounding.
ALIKE = 1e-9


class Cells(NamedTuple):
    """Rows that no figure needs to tell apart, counted together.

    To draw n of n rows with replacement is to draw how many come from each cell, a multinomial; so the bootstrap of any
    number of rows costs as much as that of the cells, and nothing is scaled or left out. All of shape (n cells,).

    ``rows``: how many; ``weights``: what they weigh together; ``spread``: the standard deviation of a row's weight over its
    mean.
    """

    rows: np.ndarray
    weights: np.ndarray
    spread: np.ndarray

    def draws(self, n_samples: int, seed: int) -> np.ndarray:
        """Weight drawn from each cell, as a multiple of the cell's own: float of shape (n_samples, n cells).

        If the rows of a cell weigh the same, this is exact. If not, the sum of those drawn is taken for normal, with the mean
        and variance that it has.
        """
        rng, n_rows = np.random.default_rng(seed), self.rows.sum()
        drawn = rng.multinomial(n_rows, self.rows / n_rows, size=n_samples).astype(float)
        if self.spread.any():
            drawn += np.sqrt(drawn) * self.spread * rng.standard_normal(drawn.shape)
            np.maximum(drawn, 0, out=drawn)
        return drawn / self.rows


def count_cells(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, Cells]:
    """Count rows by label, small whole numbers of shape (n rows,); return the labels that occur, rising, and their cells."""
    rows = np.bincount(labels)
    found = np.flatnonzero(rows)
    rows, total, squares = (
        np.bincount(labels, values)[found] if values is not None else rows[found] for values in (None, weights, weights**2)
    )
    mean = total / rows
    variance = squares / rows / mean**2 - 1
    return found, Cells(rows, total, np.sqrt(np.where(variance > ALIKE, variance, 0)))


def bin_means(bins: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean per bin, shape (largest bin + 1,); not outside its values, as rounding might have it."""
    n_bins = bins.max() + 1
    low, high = np.full(n_bins, np.inf), np.full(n_bins, -np.inf)
    np.minimum.at(low, bins, values)
    np.maximum.at(high, bins, values)
    mass = np.bincount(bins, weights)
    mean = np.divide(np.bincount(bins, weights * values), mass, out=np.zeros(n_bins), where=mass > 0)
    return np.minimum(np.maximum(mean, low), high)


def intervals(
    statistic: Callable[[np.ndarray], dict[str, np.ndarray]], population: int | Cells, params: EvaluateParams
) -> dict[str, dict[str, float]]:
    """Intervals of several figures on the same resamples.

    Parameters
    ----------
    statistic : callable
        From counts of shape (n samples, n rows), or what `Cells.draws` gives, to figures by name, each of shape
        (n samples,); NaN where a resample tells nothing, such as the ROC-AUC of one class.
    population : int or Cells
        Number of rows, or the cells that stand for them.
    params : EvaluateParams

    Returns
    -------
    dict
        Name → ``low`` and ``high``, the percentiles that hold ``params.confidence`` between them.
    """
    chunk = max(1, MAX_CELLS // (population if isinstance(population, int) else len(population.rows)))

    def draws(start: int) -> np.ndarray:
        n_samples, seed = min(chunk, params.bootstrap_samples - start), params.seed + start
        if isinstance(population, int):
            return bootstrap_weights(population, n_samples, seed)
        return population.draws(n_samples, seed)

    # One thread: more cost at these sizes, and the order of summation would depend on their number.
    with threadpool_limits(limits=1):
        parts = [statistic(draws(start)) for start in range(0, params.bootstrap_samples, chunk)]
    tail = 100 * (1 - params.confidence) / 2
    found = {}
    for name in parts[0]:
        low, high = np.nanpercentile(np.concatenate([part[name] for part in parts]), [tail, 100 - tail])
        found[name] = {"low": float(low), "high": float(high)}
    return found
