"""Metrics of a binary risk model, each computed for many weightings of the rows at once.

Class 1 is good. ``p_good`` is P(good); a row is approved if its probability of default, 1 − P(good), is below the
threshold. Plain metric names are scikit-learn's for class 1; what concerns the refused ends in ``_bad``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlops_project.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

# Those that need no threshold come first.
RANKING_METRICS = ("roc_auc", "gini", "ks", "average_precision", "brier", "log_loss")
CROSS_VALIDATED = (
    "roc_auc",
    "average_precision",
    "ks",
    "brier",
    "log_loss",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "geometric_mean",
)
HALF = 0.5


def outcomes(y: pd.Series, n_rows: int) -> np.ndarray:
    """Return 1 (good) or 0 (bad) per row, int of shape (n rows,). Raises DataError unless there is one for each of ``n_rows``."""
    if len(y) != n_rows:
        raise DataError(f"outcomes: found {len(y)} for {n_rows} rows, expected one for each; take rows and outcomes alike")
    if not y.isin([0, 1]).all():
        raise DataError(f"outcomes: found {y[~y.isin([0, 1])].iloc[0]!s}, expected 1 (good) or 0 (bad)")
    return y.to_numpy(dtype=int)


class Ranking(NamedTuple):
    """Weighted counts when rows are approved from the best score down, one column per distinct score.

    ``scores`` has shape (k,), descending; ``good`` and ``bad`` are cumulative, shape (n weightings, k).
    """

    scores: np.ndarray
    good: np.ndarray
    bad: np.ndarray


def rank(y: np.ndarray, p_good: np.ndarray, weights: np.ndarray | None = None) -> Ranking:
    """Cumulate good and bad rows by descending score; rows with equal scores count together."""
    weights = np.ones((1, len(y))) if weights is None else weights
    order = np.argsort(-p_good, kind="stable")
    scores = p_good[order]
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    sums = [np.add.reduceat(weights[:, order] * side, starts, axis=1) for side in (y[order], 1 - y[order])]
    return Ranking(scores[starts], *(np.cumsum(s, axis=1) for s in sums))


def ranking_metrics(y: np.ndarray, p_good: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Metrics that need no threshold.

    Parameters
    ----------
    y : ndarray of int, shape (n rows,)
        1 good, 0 bad.
    p_good : ndarray of float, shape (n rows,)
    weights : ndarray of shape (n weightings, n rows), optional
        Row weights, for instance bootstrap counts; one weighting of ones by default.

    Returns
    -------
    dict of ndarray, each of shape (n weightings,)
        ``roc_auc`` (ties count half), ``gini`` = 2 · ROC-AUC − 1, ``ks`` (largest distance between the score
        distributions of good and bad), ``average_precision``, ``brier`` and ``log_loss``. NaN where a weighting
        holds one class only.
    """
    weights = np.ones((1, len(y))) if weights is None else weights
    _, good, bad = rank(y, p_good, weights)
    all_good, all_bad = good[:, -1:], bad[:, -1:]
    step_good = np.diff(good, axis=1, prepend=0)
    step_bad = np.diff(bad, axis=1, prepend=0)
    clipped = np.clip(p_good, np.finfo(float).eps, 1 - np.finfo(float).eps)
    total = weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        roc_auc = (step_good * (all_bad - bad + step_bad / 2)).sum(axis=1) / (all_good * all_bad)[:, 0]
        precision = np.where(good + bad > 0, good / (good + bad), 0)
        return {
            "roc_auc": roc_auc,
            "gini": 2 * roc_auc - 1,
            "ks": np.abs(good / all_good - bad / all_bad).max(axis=1),
            "average_precision": (step_good * precision).sum(axis=1) / all_good[:, 0],
            "brier": weights @ (p_good - y) ** 2 / total,
            "log_loss": -(weights @ np.where(y == 1, np.log(clipped), np.log(1 - clipped))) / total,
        }


def decision_metrics(
    y: np.ndarray, p_good: np.ndarray, threshold: float = HALF, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metrics of the decision to refuse from a probability of default of ``threshold`` on.

    Parameters and shapes as in `ranking_metrics`. Ratios without a denominator are 0, as in scikit-learn.
    ``geometric_mean`` is the root of recall times ``recall_bad``.
    """
    weights = np.ones((1, len(y))) if weights is None else weights
    approved = 1 - p_good < threshold
    cells = [approved & (y == 1), ~approved & (y == 1), approved & (y == 0), ~approved & (y == 0)]
    good_approved, good_refused, bad_approved, bad_refused = (weights @ np.array(cells, dtype=float).T).T
    recall, recall_bad = _ratio(good_approved, good_refused), _ratio(bad_refused, bad_approved)
    precision, precision_bad = _ratio(good_approved, bad_approved), _ratio(bad_refused, good_refused)
    return {
        "accuracy": (good_approved + bad_refused) / weights.sum(axis=1),
        "balanced_accuracy": (recall + recall_bad) / 2,
        "f1": _ratio(2 * good_approved, good_refused + bad_approved),
        "precision": precision,
        "recall": recall,
        "f1_bad": _ratio(2 * bad_refused, good_refused + bad_approved),
        "precision_bad": precision_bad,
        "recall_bad": recall_bad,
        "geometric_mean": np.sqrt(recall * recall_bad),
        "approval_rate": (good_approved + bad_approved) / weights.sum(axis=1),
        "bad_rate_approved": _ratio(bad_approved, good_approved),
        "good_approved": good_approved,
        "good_refused": good_refused,
        "bad_approved": bad_approved,
        "bad_refused": bad_refused,
    }


def expected_cost(decisions: dict[str, np.ndarray], cost_bad_approved: float, cost_good_refused: float) -> np.ndarray:
    """Mean cost per applicant of the two kinds of error, in the unit of the costs."""
    errors = cost_bad_approved * decisions["bad_approved"] + cost_good_refused * decisions["good_refused"]
    return errors / sum(decisions[name] for name in ("good_approved", "good_refused", "bad_approved", "bad_refused"))


def cross_validated_metrics(y: np.ndarray, p_good: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
    """The metrics of one fold by name, those of decisions at 0.5, as scikit-learn's scorers have it.

    ``weight`` has shape (n rows,).
    """
    weights = None if weight is None else weight[np.newaxis]
    found = ranking_metrics(y, p_good, weights) | decision_metrics(y, p_good, HALF, weights)
    return {name: float(found[name][0]) for name in CROSS_VALIDATED}


def bootstrap_weights(n_rows: int, n_samples: int, seed: int) -> np.ndarray:
    """How often each row is drawn in each bootstrap sample: shape (n_samples, n_rows), each row sums to n_rows.

    The counts are floats, which matrix products need anyway.
    """
    drawn = np.random.default_rng(seed).integers(n_rows, size=(n_samples, n_rows))
    places = (drawn + n_rows * np.arange(n_samples)[:, None]).ravel()
    return np.bincount(places, minlength=n_samples * n_rows).reshape(n_samples, n_rows).astype(float)


def _ratio(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    whole = part + rest
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)
