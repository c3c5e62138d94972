"""Evaluation on held-out rows: metrics with intervals, and the tables behind the plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_project.modeling.metrics import (
    RANKING_METRICS,
    bootstrap_weights,
    decision_metrics,
    expected_cost,
    rank,
    ranking_metrics,
)

if TYPE_CHECKING:
    from mlops_project.config import EvaluateParams
    from mlops_project.modeling.model import RiskModel

WITH_INTERVAL = (
    *RANKING_METRICS,
    "accuracy",
    "balanced_accuracy",
    "f1",
    "recall",
    "recall_bad",
    "expected_cost",
    "approval_rate",
)
COUNTS = ("good_approved", "good_refused", "bad_approved", "bad_refused")
MAX_CURVE_POINTS = 500
# Bootstrap samples × rows held in memory at once.
MAX_CELLS = 4_000_000


def default_threshold(params: EvaluateParams) -> float:
    """The probability of default from which on an applicant is refused.

    ``evaluate.threshold`` if set, else the one that the costs imply: approving costs p · cost_bad_approved, refusing
    (1 − p) · cost_good_refused; they are equal at cost_good_refused / (cost_good_refused + cost_bad_approved).
    """
    if params.threshold is not None:
        return params.threshold
    return params.cost_good_refused / (params.cost_good_refused + params.cost_bad_approved)


def evaluate(y: np.ndarray, p_good: np.ndarray, params: EvaluateParams) -> dict[str, Any]:
    """Score held-out rows.

    Parameters
    ----------
    y : ndarray of int, shape (n rows,)
        1 good, 0 bad.
    p_good : ndarray of float, shape (n rows,)
    params : EvaluateParams

    Returns
    -------
    dict
        Metrics by name, ``threshold``, ``rows``, and ``interval``: metric → ``low`` and ``high`` of the percentile
        bootstrap over applicants.
    """
    point = {name: value[0] for name, value in _metrics(y, p_good, params, None).items()}
    counts = {name: int(point.pop(name)) for name in COUNTS}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in WITH_INTERVAL}
    chunk = max(1, MAX_CELLS // len(y))
    for start in range(0, params.bootstrap_samples, chunk):
        size = min(chunk, params.bootstrap_samples - start)
        found = _metrics(y, p_good, params, bootstrap_weights(len(y), size, params.seed + start))
        for name in WITH_INTERVAL:
            samples[name].append(found[name])
    tail = 100 * (1 - params.confidence) / 2
    interval = {}
    for name, parts in samples.items():
        # A resample of one class only has no ROC-AUC; it tells nothing and is left out.
        low, high = np.nanpercentile(np.concatenate(parts), [tail, 100 - tail])
        interval[name] = {"low": float(low), "high": float(high)}
    return {**point, "threshold": default_threshold(params), "rows": len(y), **counts, "interval": interval}


def _metrics(y: np.ndarray, p_good: np.ndarray, params: EvaluateParams, weights: np.ndarray | None) -> dict[str, np.ndarray]:
    decisions = decision_metrics(y, p_good, default_threshold(params), weights)
    cost = expected_cost(decisions, params.cost_bad_approved, params.cost_good_refused)
    return ranking_metrics(y, p_good, weights) | {"expected_cost": cost} | decisions


def prediction_table(ids: pd.Index, y: np.ndarray, p_good: np.ndarray, threshold: float) -> pd.DataFrame:
    """One row per applicant: ``y_true``, ``y_proba`` = P(good), ``probability_of_default`` and ``approved`` (1 or 0)."""
    # Ten digits: what differs beyond them differs by processor.
    table = pd.DataFrame({"y_true": y, "y_proba": p_good.round(10), "probability_of_default": (1 - p_good).round(10)}, index=ids)
    return table.assign(approved=(1 - p_good < threshold).astype(int))


def plot_tables(y: np.ndarray, p_good: np.ndarray, params: EvaluateParams) -> dict[str, pd.DataFrame]:
    """Tables for ``dvc plots``: roc, precision_recall, calibration, scores and confusion."""
    ranking = rank(y, p_good)
    good, bad = ranking.good[0], ranking.bad[0]
    kept = np.unique(np.linspace(0, len(good) - 1, min(len(good), MAX_CURVE_POINTS)).round().astype(int))
    approved = np.where(1 - p_good < default_threshold(params), "approved", "refused")
    return {
        "roc": pd.DataFrame({"fpr": np.r_[0, bad[kept] / bad[-1]], "tpr": np.r_[0, good[kept] / good[-1]]}),
        "precision_recall": pd.DataFrame({"recall": good[kept] / good[-1], "precision": (good / (good + bad))[kept]}),
        "calibration": _calibration(y, p_good),
        "scores": _score_distribution(y, p_good),
        "confusion": pd.DataFrame({"actual": np.where(y == 1, "good", "bad"), "decision": approved}),
    }


def _calibration(y: np.ndarray, p_good: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Mean predicted and observed probability of default per tenth of the rows, with Wilson's 95 % interval."""
    rows = []
    for part in np.array_split(np.argsort(1 - p_good, kind="stable"), min(bins, len(y))):
        n, share, z2 = len(part), float((y[part] == 0).mean()), 1.96**2
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        reach = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
        rows.append((float((1 - p_good[part]).mean()), share, centre - reach, centre + reach, n))
    table = pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "rows"])
    return table.assign(perfect=table["predicted"])


def _score_distribution(y: np.ndarray, p_good: np.ndarray, bins: int = 20) -> pd.DataFrame:
    edges = np.linspace(0, 1, bins + 1)
    table = {"probability_of_default": (edges[:-1] + edges[1:]) / 2}
    for label, name in ((1, "good"), (0, "bad")):
        counts, _ = np.histogram(1 - p_good[y == label], bins=edges)
        table[name] = counts / counts.sum()
    return pd.DataFrame(table)


def permutation_importance(model: RiskModel, X: pd.DataFrame, y: np.ndarray, params: EvaluateParams) -> pd.DataFrame:
    """How much ROC-AUC falls when one column of the held-out rows is shuffled (Breiman 2001).

    Works for every model and speaks of the raw columns. All shuffled copies of a repeat are scored in one call.

    Returns
    -------
    DataFrame
        ``feature``, ``importance`` (mean fall) and ``std`` over the repeats, most important first.
    """
    names = model.feature_names_in_
    base = ranking_metrics(y, model.predict_proba(X)[:, 1])["roc_auc"][0]
    rng = np.random.default_rng(params.seed)
    falls = np.empty((params.importance_repeats, len(names)))
    for repeat in range(params.importance_repeats):
        copies = pd.concat([X[names]] * len(names), ignore_index=True)
        for i, name in enumerate(names):
            rows = slice(i * len(X), (i + 1) * len(X) - 1)
            copies.loc[rows, name] = rng.permutation(X[name].to_numpy())
        scores = model.predict_proba(copies)[:, 1].reshape(len(names), len(X))
        falls[repeat] = [base - ranking_metrics(y, p_good)["roc_auc"][0] for p_good in scores]
    table = pd.DataFrame({"feature": names, "importance": falls.mean(axis=0), "std": falls.std(axis=0)})
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)
