"""Evaluation on held-out rows: metrics with intervals, and the tables behind the plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_project.modeling.bootstrap import intervals
from mlops_project.modeling.calibration import Calibrated, Sigmoid
from mlops_project.modeling.metrics import RANKING_METRICS, decision_metrics, expected_cost, rank, ranking_metrics
from mlops_project.modeling.reliability import calibration_table, equal_mass_bins, expected_calibration_error
from mlops_project.modeling.scorecard import Scorecard, attributes_table, points_table
from mlops_project.modeling.strategy import CURVE, cost_curve, strategy_table

if TYPE_CHECKING:
    from mlops_project.config import EvaluateParams
    from mlops_project.modeling.model import RiskModel
    from mlops_project.modeling.policy import Policy, Scored

# Those that depend on the share of bad and say what a policy would do.
AT_PRIOR = ("brier", "ece", "expected_cost", "approval_rate", "bad_rate_approved")
WITH_INTERVAL = (
    *RANKING_METRICS,
    "ece",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "recall",
    "recall_bad",
    "expected_cost",
    "approval_rate",
    "bad_rate_approved",
)
COUNTS = ("good_approved", "good_refused", "bad_approved", "bad_refused")
MAX_CURVE_POINTS = 500


def average_repeats(out_of_fold: pd.DataFrame) -> pd.DataFrame:
    """``y_true`` and ``y_proba`` per applicant: the mean over repeats; without those whom no fold predicted."""
    return out_of_fold.groupby(level=0, sort=False)[["y_true", "y_proba"]].mean().dropna()


def evaluate(sample: Scored, params: EvaluateParams, population: Scored | None = None) -> dict[str, Any]:
    """Score held-out rows.

    Parameters
    ----------
    sample : Scored
        The rows as they are: without a prior.
    params : EvaluateParams
    population : Scored, optional
        The same rows at the prior.

    Returns
    -------
    dict
        Metrics by name, ``threshold``, ``rows``, counts of decisions (weighted), and ``interval``: metric → ``low`` and
        ``high`` of the percentile bootstrap over applicants, for ``ece`` of the basic one. With a population also
        ``at_prior``: what depends on the share of bad, there.
    """
    found = _point(sample)
    counts = {name: int(value) if value.is_integer() else value for name in COUNTS for value in [found.pop(name)]}
    found |= {"threshold": sample.policy.threshold, "rows": len(sample.y), **counts}
    found["interval"] = _intervals(sample, WITH_INTERVAL, params)
    if population is not None:
        at_prior = {name: value for name, value in _point(population).items() if name in AT_PRIOR}
        prior = {"default_rate": population.policy.prior_default_rate, "threshold": population.policy.threshold}
        found["at_prior"] = prior | at_prior | {"interval": _intervals(population, AT_PRIOR, params)}
    return found


def _point(rows: Scored) -> dict[str, Any]:
    return {name: float(value[0]) for name, value in _metrics(rows).items()}


def _intervals(rows: Scored, names: tuple[str, ...], params: EvaluateParams) -> dict[str, dict[str, float]]:
    def statistic(draws: np.ndarray) -> dict[str, np.ndarray]:
        found = _metrics(rows, draws)
        return {name: found[name] for name in names}

    found = intervals(statistic, len(rows.y), params)
    # Noise only ever adds to this figure, and a resample adds its own once more: percentiles of resamples would lie too
    # high. Reflected about the figure (the basic bootstrap) they hold the truth far more often.
    point, resampled = _point(rows)["ece"], found["ece"]
    found["ece"] = {"low": max(0.0, 2 * point - resampled["high"]), "high": max(point, 2 * point - resampled["low"])}
    return found


def _metrics(rows: Scored, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
    y, p_good, policy, weights = rows.y, rows.p_good, rows.policy, rows.weightings(draws)
    decisions = decision_metrics(y, p_good, policy.threshold, weights)
    ece = expected_calibration_error(y, p_good, equal_mass_bins(p_good, rows.weightings()[0]), weights)
    cost = expected_cost(decisions, policy.cost_bad_approved, policy.cost_good_refused)
    return ranking_metrics(y, p_good, weights) | {"ece": ece, "expected_cost": cost} | decisions


def conformal_metrics(y: np.ndarray, p_good: np.ndarray, weights: np.ndarray, policy: Policy) -> dict[str, Any]:
    """Measured coverage of the conformal sets per class, and the shares approved, rejected and referred.

    ``p_good`` is the model's own, uncorrected, of shape (n rows,) as ``y`` and ``weights``.
    """
    good, bad = policy.conformal_sets(p_good)
    sets = policy.conformal_set(p_good)
    return {
        "level": policy.conformal_level,
        "coverage_good": float(np.average(good[y == 1], weights=weights[y == 1])),
        "coverage_bad": float(np.average(bad[y == 0], weights=weights[y == 0])),
        **{
            name: float(np.average(sets == decision, weights=weights))
            for name, decision in (("approved", "approve"), ("rejected", "reject"), ("referred", "refer"))
        },
    }


def prediction_table(ids: pd.Index, y: np.ndarray, p_good: np.ndarray, policy: Policy) -> pd.DataFrame:
    """One row per applicant: what the model says and what the policy does.

    ``y_true``, ``y_proba`` = P(good), ``probability_of_default``, with a prior ``probability_of_default_at_prior``,
    ``approved`` (1 or 0) and ``conformal`` (approve, reject or refer).
    """
    # Ten digits: what differs beyond them differs by processor.
    table = pd.DataFrame({"y_true": y, "y_proba": p_good.round(10), "probability_of_default": (1 - p_good).round(10)}, index=ids)
    if policy.prior_default_rate is not None:
        table["probability_of_default_at_prior"] = (1 - policy.correct(p_good)).round(10)
    return table.assign(approved=policy.approved(p_good).astype(int), conformal=policy.conformal_set(p_good))


def plot_tables(sample: Scored, params: EvaluateParams, population: Scored | None = None) -> dict[str, pd.DataFrame]:
    """Tables for ``dvc plots``: roc, precision_recall, calibration, scores, confusion, cost_curve and strategy.

    With a population, calibration, cost_curve and strategy also have its columns, which end in ``_at_prior``. The
    confusion table has one line per row, whatever the row weighs.
    """
    ranking = rank(sample.y, sample.p_good, sample.weightings())
    good, bad = ranking.good[0], ranking.bad[0]
    kept = np.unique(np.linspace(0, len(good) - 1, min(len(good), MAX_CURVE_POINTS)).round().astype(int))
    tables = {
        "roc": pd.DataFrame({"fpr": np.r_[0, bad[kept] / bad[-1]], "tpr": np.r_[0, good[kept] / good[-1]]}),
        "precision_recall": pd.DataFrame({"recall": good[kept] / good[-1], "precision": (good / (good + bad))[kept]}),
        "scores": _score_distribution(sample),
        "confusion": pd.DataFrame(
            {
                "actual": np.where(sample.y == 1, "good", "bad"),
                "decision": np.where(sample.approved, "approved", "refused"),
            }
        ),
    }
    views = {"": sample} if population is None else {"": sample, "_at_prior": population}
    own = [rows.policy.threshold for rows in views.values()]
    tables["calibration"] = pd.concat([calibration_table(rows).add_suffix(end) for end, rows in views.items()], axis=1)
    for name, build, thresholds in (
        ("cost_curve", cost_curve, [*CURVE, *own]),
        ("strategy", strategy_table, [*params.strategy_thresholds, *own]),
    ):
        parts = [build(rows, thresholds).set_index("threshold").add_suffix(end) for end, rows in views.items()]
        tables[name] = pd.concat(parts, axis=1).reset_index()
    return tables


def _score_distribution(rows: Scored, bins: int = 20) -> pd.DataFrame:
    edges = np.linspace(0, 1, bins + 1)
    table = {"probability_of_default": (edges[:-1] + edges[1:]) / 2}
    for label, name in ((1, "good"), (0, "bad")):
        of_class = rows.y == label
        counts, _ = np.histogram(1 - rows.p_good[of_class], bins=edges, weights=rows.weights[of_class])
        table[name] = counts / counts.sum()
    return pd.DataFrame(table)


def permutation_importance(
    model: RiskModel, X: pd.DataFrame, y: np.ndarray, params: EvaluateParams, weights: np.ndarray | None = None
) -> pd.DataFrame:
    """How much ROC-AUC falls when one column of the held-out rows is shuffled (Breiman 2001).

    Works for every model and speaks of the raw columns. All shuffled copies of a repeat are scored in one call.

    Returns
    -------
    DataFrame
        ``feature``, ``importance`` (mean fall) and ``std`` over the repeats, most important first.
    """
    names = model.feature_names_in_
    weightings = None if weights is None else weights[None]
    base = ranking_metrics(y, model.predict_proba(X)[:, 1], weightings)["roc_auc"][0]
    rng = np.random.default_rng(params.seed)
    falls = np.empty((params.importance_repeats, len(names)))
    for repeat in range(params.importance_repeats):
        copies = pd.concat([X[names]] * len(names), ignore_index=True)
        for i, name in enumerate(names):
            rows = slice(i * len(X), (i + 1) * len(X) - 1)
            copies.loc[rows, name] = rng.permutation(X[name].to_numpy())
        scores = model.predict_proba(copies)[:, 1].reshape(len(names), len(X))
        falls[repeat] = [base - ranking_metrics(y, p_good, weightings)["roc_auc"][0] for p_good in scores]
    table = pd.DataFrame({"feature": names, "importance": falls.mean(axis=0), "std": falls.std(axis=0)})
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def scorecard_tables(model: RiskModel) -> dict[str, pd.DataFrame]:
    """Tables for people: ``scorecard``, points per bin, and ``information_value`` per attribute; none for other models.

    With sigmoid calibration the points are those of the calibrated score. Isotonic calibration has no points: it comes on
    top of them.
    """
    classifier = model.pipeline[-1]
    slope, intercept = 1.0, 0.0
    if isinstance(classifier, Calibrated):
        if isinstance(classifier.calibrator, Sigmoid):
            slope, intercept = classifier.calibrator.slope_, classifier.calibrator.intercept_
        classifier = classifier.classifier
    if not isinstance(classifier, Scorecard):
        return {}
    points = points_table(
        classifier,
        model.scale,
        model.contract.code_labels,
        slope=slope,
        intercept=intercept,
    )
    return {"scorecard": points, "information_value": attributes_table(classifier.encoder_)}
