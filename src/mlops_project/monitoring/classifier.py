"""Can a classifier tell the window from the reference? It sees what no single column shows: how columns go together.

Kernel ridge regression on the labels (a least-squares support vector machine, Suykens & Vandewalle 1999) with all products of
two columns. Its predictions are linear in the labels, so that those of many dealt labels cost one factorisation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtri

# Dealt labels tell mean and standard deviation of what chance makes; so few do.
DEALT = 200
# Of the ridge, in units of the kernel's mean diagonal. A tenth sees single columns less well, ten times that pairs of them.
PENALTY = 1.0


class Told(NamedTuple):
    """How well the two are told apart out of fold: ROC-AUC with its interval, mean and standard deviation by chance."""

    roc_auc: float
    low: float
    high: float
    chance_mean: float
    chance_deviation: float
    rows: tuple[int, int]
    """Of the reference and of the window, of which it saw a random part."""


def tell_apart(
    reference: np.ndarray,
    window: np.ndarray,
    coded: np.ndarray,
    *,
    max_rows: int,
    folds: int,
    confidence: float,
    rng: np.random.Generator,
) -> Told:
    """Train the classifier out of fold; identical rows share a fold, else it could know them by heart.

    Parameters
    ----------
    reference, window : ndarray of shape (n, p) and (m, p)
        Numbers and codes, NaN where missing.
    coded : boolean ndarray of shape (p,)
        Which columns hold codes.
    max_rows : int
        Rows of each side at most.
    folds : int
    confidence : float
        Of the interval (DeLong 1988, widened by what the folds have in common).
    rng : Generator
    """
    left, right = (rows[rng.permutation(len(rows))[:max_rows]] for rows in (reference, window))
    rows = np.vstack([left, right])
    y = np.repeat([0.0, 1.0], [len(left), len(right)])
    labels = np.column_stack([y, *(rng.permutation(y) for _ in range(DEALT))])
    predicted = out_of_fold(encode(rows, coded), labels, fold_of(rows, folds, rng))
    n, m = len(left), len(right)
    rank_sums = [mid_ranks(scores) @ label for scores, label in zip(predicted.T, labels.T, strict=True)]
    roc_auc, *dealt = (np.array(rank_sums) - m * (m + 1) / 2) / (n * m)
    chance = np.std(dealt, ddof=1)
    # DeLong takes the scores as given; folds that share rows vary more: by chance by so much.
    widening = max(chance / ((n + m + 1) / (12 * n * m)) ** 0.5, 1.0)
    half = ndtri((1 + confidence) / 2) * widening * _standard_error(predicted[:, 0], y == 1)
    low, high = max(roc_auc - half, 0.0), min(roc_auc + half, 1.0)
    return Told(float(roc_auc), float(low), float(high), float(np.mean(dealt)), float(chance), (n, m))


def encode(rows: np.ndarray, coded: np.ndarray) -> np.ndarray:
    """Ranks of numbers, and one column per code and for what is missing; each column of rows has about the same weight.

    Returns
    -------
    ndarray of shape (n, p')
        Rows of length 1 or so.
    """
    parts = []
    for values, is_coded in zip(rows.T, coded, strict=True):
        missing = np.isnan(values)
        if not is_coded:
            ranks = np.zeros(len(values))
            if not missing.all():
                ranks[~missing] = mid_ranks(values[~missing]) / (~missing).sum() - 0.5
            parts.append(ranks[:, None] * 12**0.5)
        codes = np.unique(values[~missing]) if is_coded else np.array([])
        shown = np.column_stack([*(values == code for code in codes), missing]).astype(float)
        parts.append(shown - shown.mean(axis=0))
    return np.hstack(parts) / len(coded) ** 0.5


def fold_of(rows: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Random folds, shape (n,), that know no labels; identical rows have the same."""
    # Of whole rows NumPy takes NaN for different ones; no cell is infinite.
    _, same = np.unique(np.where(np.isnan(rows), np.inf, rows), axis=0, return_inverse=True)
    return rng.permutation(same.max() + 1)[same.ravel()] % folds


def out_of_fold(X: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Predict each row by the others' labels, for many labels of the same rows at once.

    Parameters
    ----------
    X : ndarray of shape (n, p)
    labels : ndarray of shape (n, k)
    fold : int ndarray of shape (n,)

    Returns
    -------
    ndarray of shape (n, k)
        Larger where a 1 is likelier.
    """
    X = X.astype(np.float32)
    kernel = X @ X.T
    kernel += 1
    kernel *= kernel
    predicted = np.zeros(labels.shape)
    for number in np.unique(fold):
        held = fold == number
        if held.all():  # all rows are identical, so nothing tells them apart
            break
        others = kernel[np.ix_(~held, ~held)]
        others[np.diag_indices_from(others)] += PENALTY * np.trace(others) / len(others)
        known = labels[~held]
        weights = cho_solve(cho_factor(others, overwrite_a=True), (known - known.mean(axis=0)).astype(np.float32))
        predicted[held] = kernel[np.ix_(held, ~held)] @ weights
    return predicted


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, shape (n,); equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _standard_error(scores: np.ndarray, positive: np.ndarray) -> float:
    """Standard error of the ROC-AUC (DeLong 1988), from the share of the other side that each row is above."""
    ranks, variance = mid_ranks(scores), 0.0
    for side in (positive, ~positive):
        above = (ranks[side] - mid_ranks(scores[side])) / (~side).sum()
        variance += above.var(ddof=1) / side.sum()
    return float(variance**0.5)
