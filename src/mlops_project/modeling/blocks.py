"""Fitting to more rows than one matrix of them should take: the rows come block by block, as often as they are asked for.

What is found is what the classifiers' own ``fit`` finds, to rounding; a test compares them.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_project.files import scratch_folder, spread
from mlops_project.preprocessing import BLOCK_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sklearn.base import ClassifierMixin

    from mlops_project.modeling.scorecard import Scorecard

    # Rows, outcomes, weights.
    Block = tuple[np.ndarray, np.ndarray, np.ndarray]

# Rows from which iterations start that then go over all of them.
STARTING_ROWS = 100_000
# Newton's decrement per row at which the optimum is reached: half of it is what is left to gain of the mean log loss.
CONVERGED = 1e-14
MAX_PASSES = 50
# Share of the machine's memory up to which XGBoost holds the binned rows in it.
IN_MEMORY = 0.5


@dataclass(frozen=True)
class Blocks:
    """Training rows of one view, made anew in every pass.

    Parameters
    ----------
    view : callable
        Positions of rows, int of shape (n,), to the rows, float of shape (n, n columns).
    rows : ndarray of int, shape (n rows,)
        Their positions.
    y : ndarray of int, shape (n rows,)
        1 good, 0 bad.
    weight : ndarray of shape (n rows,)
    """

    view: Callable[[np.ndarray], np.ndarray]
    rows: np.ndarray
    y: np.ndarray
    weight: np.ndarray

    def __iter__(self) -> Iterator[Block]:
        """Yield rows, outcomes and weights, `BLOCK_ROWS` at a time."""
        for start in range(0, len(self.rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            yield self.view(self.rows[part]), self.y[part], self.weight[part]

    def together(self, n_rows: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all rows, outcomes and weights, or ``n_rows`` of them, evenly spread, in single precision."""
        chosen = spread(len(self.rows), n_rows or len(self.rows))
        parts = Blocks(self.view, self.rows[chosen], self.y[chosen], self.weight[chosen])
        found: np.ndarray | None = None
        for number, (block, _, _) in enumerate(parts):
            found = np.empty((len(chosen), block.shape[1]), dtype=np.float32) if found is None else found
            found[number * BLOCK_ROWS :][: len(block)] = block
        assert found is not None
        return found, parts.y, parts.weight


def fit_in_blocks(classifier: ClassifierMixin, blocks: Blocks) -> ClassifierMixin:
    """Fit a classifier to rows that come in blocks.

    Scorecard, logistic regression and XGBoost never hold more of them than a block, and a byte or two per cell; all others get
    them together, in single precision.
    """
    fit = {"Scorecard": _fit_scorecard, "LogisticRegression": _fit_logistic_regression, "XGBClassifier": _fit_xgboost}
    if (known := fit.get(type(classifier).__name__)) is not None:
        return known(classifier, blocks)
    X, y, weight = blocks.together()
    return classifier.fit(X, y, sample_weight=weight)


def _fit_logistic_regression(classifier: Any, blocks: Blocks) -> Any:
    from sklearn.base import clone

    start = clone(classifier).fit(*blocks.together(STARTING_ROWS))
    beta = np.append(start.coef_[0], start.intercept_[0])
    # The class minimises C times the log loss and half the squared coefficients, the intercept's not.
    beta, iterations = _newton(blocks, beta, 1 / classifier.C, 0.0, -np.inf)
    classifier.classes_, classifier.n_features_in_ = start.classes_, start.n_features_in_
    classifier.coef_, classifier.intercept_ = beta[np.newaxis, :-1].copy(), beta[-1:].copy()
    classifier.n_iter_ = np.array([iterations], dtype=np.int32)
    return classifier


def _fit_scorecard(card: Scorecard, blocks: Blocks) -> Scorecard:
    """Bins from the counts of distinct values; coefficients from the bins, which take a byte per cell."""
    from mlops_project.modeling.scorecard import fit_coefficients

    encoder = card.encoder().fit_counts(_counts(blocks))
    places = np.empty((len(encoder.bins_), len(blocks.rows)), dtype=np.min_scalar_type(max(len(b.woe) for b in encoder.bins_)))
    at = 0
    for rows, _, _ in blocks:
        for i, bins in enumerate(encoder.bins_):
            places[i, at : at + len(rows)] = bins.assign(rows[:, i])
        at += len(rows)

    def evidence(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([bins.woe[found[rows]] for bins, found in zip(encoder.bins_, places, strict=True)])

    numbered = Blocks(evidence, np.arange(len(blocks.rows)), blocks.y, blocks.weight)
    woe, y, weight = numbered.together(STARTING_ROWS)
    start = np.concatenate(fit_coefficients(woe.astype(float), np.where(y == 1, 1.0, -1.0), weight, card.C, card.center))
    beta, _ = _newton(numbered, start, 1 / card.C, card.center, 0.0)
    card.set_fitted(encoder, beta[:-1], beta[-1:])
    return card


def _newton(
    blocks: Blocks,
    beta: np.ndarray,
    penalty: float,
    center: float,
    lower: float,
) -> tuple[np.ndarray, int]:
    """Minimise the weighted log loss and half the ``penalty`` on squared distances of coefficients to ``center``.

    Newton's steps, each the best within the bounds by the second-order view of the objective; started near the optimum, a few
    passes over the rows find it to rounding. ``beta`` holds the intercept last, which has neither penalty nor bound.

    Returns
    -------
    beta : ndarray
    passes : int

    References
    ----------
    Lee, J., Sun, Y. and Saunders, M. (2014). Proximal Newton-type methods for minimizing composite functions.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import lsq_linear
    from scipy.special import expit

    drawn = np.append(np.full(len(beta) - 1, penalty), 0.0)
    least = np.append(np.full(len(beta) - 1, lower), -np.inf)
    passes = 0
    while passes < MAX_PASSES:
        passes += 1
        gradient, hessian = drawn * (beta - center), np.diag(drawn)
        for rows, y, weight in blocks:
            X = np.column_stack([rows, np.ones(len(rows))])
            p_good = expit(X @ beta)
            gradient += X.T @ (weight * (p_good - y))
            hessian += X.T @ (X * (weight * p_good * (1 - p_good))[:, np.newaxis])
        # The quadratic as a sum of squares, |root · step − target|².
        root = np.linalg.cholesky(hessian).T
        target = -solve_triangular(root.T, gradient, lower=True)
        step = lsq_linear(root, target, bounds=(least - beta, np.inf), method="bvls").x
        beta = np.maximum(beta + step, least)
        if -(step @ gradient) <= CONVERGED * blocks.weight.sum():
            break
    return beta, passes


def _counts(blocks: Blocks) -> list[np.ndarray]:
    """Per column the distinct values, NaN last, and the weight of bad and good rows with each; shape (n values, 3)."""
    parts: list[list[np.ndarray]] = []
    for rows, y, weight in blocks:
        parts = parts or [[] for _ in range(rows.shape[1])]
        for column, found in zip(rows.T, parts, strict=True):
            found.append(_summed(column, (1 - y) * weight, y * weight))
            if len(found) > 100:  # columns of many distinct values
                found[:] = [_summed(*np.concatenate(found).T)]
    return [_summed(*np.concatenate(found).T) for found in parts]


def _summed(values: np.ndarray, bad: np.ndarray, good: np.ndarray) -> np.ndarray:
    distinct, place = np.unique(values, return_inverse=True)  # NaN once, and last
    return np.column_stack([distinct, np.bincount(place, bad), np.bincount(place, good)])


def _fit_xgboost(classifier: Any, blocks: Blocks) -> Any:
    """Rows become bins of a byte as they come; where even these are too many for the memory, in files."""
    import xgboost

    class Batches(xgboost.DataIter):
        def __init__(self, folder: str | None = None) -> None:
            super().__init__(cache_prefix=None if folder is None else f"{folder}/bins")
            self.blocks = iter(blocks)

        def reset(self) -> None:
            self.blocks = iter(blocks)

        def next(self, input_data: Callable[..., None]) -> bool:
            if (block := next(self.blocks, None)) is None:
                return False
            input_data(data=block[0].astype(np.float32), label=block[1], weight=block[2])
            return True

    params = classifier.get_xgb_params()
    options = {"nthread": classifier.n_jobs, "max_bin": classifier.max_bin or 256}
    n_columns = blocks.view(blocks.rows[:1]).shape[1]
    with contextlib.ExitStack() as stack:
        if len(blocks.rows) * n_columns < IN_MEMORY * _memory():
            matrix = xgboost.QuantileDMatrix(Batches(), **options)
        else:
            folder = stack.enter_context(scratch_folder(".xgboost-"))
            matrix = xgboost.ExtMemQuantileDMatrix(Batches(folder), **options)
        booster = xgboost.train(params, matrix, classifier.get_num_boosting_rounds())
        del matrix
    classifier.load_model(booster.save_raw("ubj"))
    return classifier


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
