"""Evaluation on held-out rows: metrics with intervals, and the tables behind the plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_project.errors import DataError
from mlops_project.modeling.bootstrap import Cells, bin_means, count_cells, intervals
from mlops_project.modeling.calibration import Calibrated, Sigmoid
from mlops_project.modeling.metrics import RANKING_METRICS, decision_metrics, expected_cost, rank, ranking_metrics
from mlops_project.modeling.policy import Scored
from mlops_project.modeling.reliability import BINS, calibration_table, equal_mass_bins, expected_calibration_error
from mlops_project.modeling.scorecard import Scorecard, attributes_table, points_table
from mlops_project.modeling.strategy import CURVE, cost_curve, strategy_table

if TYPE_CHECKING:
    from mlops_project.config import EvaluateParams
    from mlops_project.modeling.model import RiskModel
    from mlops_project.modeling.policy import Policy

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
# Bins of equal weight in which scores count as equal; whole ones lie in each bin of the calibration error.
SCORE_BINS = 100 * BINS
# Rows whose copies are scored in one call for the permutation importance.
MAX_COPIED_ROWS = 50_000
# Column of the out-of-fold predictions that says which development row each is of, from 0 on, where not all are there.
ROW = "row"


def average_repeats(out_of_fold: pd.DataFrame, n_rows: int) -> pd.DataFrame:
    """Average the out-of-fold predictions of each development row.

    Parameters
    ----------
    out_of_fold : DataFrame
        Of all ``n_rows`` development rows in their order, repeat by repeat; or of some, named by a column ``row``.
    n_rows : int

    Returns
    -------
    DataFrame
        ``y_true`` and ``y_proba``, the mean over repeats, without rows that no fold predicted; the index is the row's
        position. Positions, not ids: those of millions of applicants take longer to look up than all else.

    Raises
    ------
    DataError
        If the predictions are not of these rows.
    """
    rows = out_of_fold[ROW].to_numpy() if ROW in out_of_fold else np.arange(len(out_of_fold)) % n_rows
    if (ROW not in out_of_fold and len(out_of_fold) % n_rows) or rows.max() >= n_rows:
        raise DataError(
            f"out-of-fold predictions: found {len(out_of_fold)}, expected some for each of {n_rows} development rows;"
            " both are of one `dvc repro`, run it anew"
        )
    return out_of_fold.groupby(rows, sort=False)[["y_true", "y_proba"]].mean().dropna()


def reductions(n_rows: int, params: EvaluateParams) -> dict[str, dict[str, int]]:
    """What is done with less than all rows because of their number, for ``metrics/evaluate.json``; nothing up to exact_rows."""
    if n_rows <= params.exact_rows:
        return {}
    rows = params.exact_rows
    return {"reduced": {"interval_score_bins": SCORE_BINS, "importance_rows": rows, "confusion_rows": rows, "reasons_rows": 0}}


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
        ``high`` of the percentile bootstrap over applicants, for ``ece`` of the basic one; above ``params.exact_rows`` rows
        of their counts per score (`collapse`). With a population also ``at_prior``: what depends on the share of bad, there.
    """
    found = point = _point(sample)
    counts = {name: int(value) if value.is_integer() else value for name in COUNTS for value in [point[name]]}
    found = {name: value for name, value in point.items() if name not in COUNTS}
    found |= {"threshold": sample.policy.threshold, "rows": len(sample.y), **counts}
    found["interval"] = _intervals(sample, point, WITH_INTERVAL, params)
    if population is not None:
        point = _point(population)
        at_prior = {name: value for name, value in point.items() if name in AT_PRIOR}
        prior = {"default_rate": population.policy.prior_default_rate, "threshold": population.policy.threshold}
        found["at_prior"] = prior | at_prior | {"interval": _intervals(population, point, AT_PRIOR, params)}
    return found


def _point(rows: Scored) -> dict[str, Any]:
    return {name: float(value[0]) for name, value in _metrics(rows).items()}


def _intervals(
    rows: Scored, point: dict[str, float], names: tuple[str, ...], params: EvaluateParams
) -> dict[str, dict[str, float]]:
    drawn, found = rows, {}

    def statistic(draws: np.ndarray) -> dict[str, np.ndarray]:
        found = _metrics(drawn, draws)
        return {name: found[name] for name in names}

    if len(rows.y) > params.exact_rows:
        drawn, cells = collapse(rows)
        of_cells = _point(drawn)
        for name, ends in intervals(statistic, cells, params).items():
            # What the figure loses by the steps of the score, the resamples have lost too.
            found[name] = {end: value + point[name] - of_cells[name] for end, value in ends.items()}
    else:
        found = intervals(statistic, len(rows.y), params)
    # Noise only ever adds to this figure, and a resample adds its own once more: percentiles of resamples would lie too
    # high. Reflected about the figure (the basic bootstrap) they hold the truth far more often.
    ece, resampled = point["ece"], found["ece"]
    found["ece"] = {"low": max(0.0, 2 * ece - resampled["high"]), "high": max(ece, 2 * ece - resampled["low"])}
    return found


def collapse(rows: Scored) -> tuple[Scored, Cells]:
    """Count rows in `SCORE_BINS` bins of equal weight, apart by outcome and by what the policy decides.

    Returns
    -------
    Scored of n cells
        Good and bad rows of a bin have its mean score; its ``weights`` are the cells' own, so with `Cells.draws` it is to a
        metric what the rows are with bootstrap counts.
    Cells
    """
    weights = rows.weightings()[0]
    bins = 2 * equal_mass_bins(rows.p_good, weights, SCORE_BINS) + rows.approved
    labels, cells = count_cells(2 * bins + rows.y, rows.weights)
    return Scored(labels % 2, bin_means(bins, rows.p_good, weights)[labels // 2], cells.weights, rows.policy), cells


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
    shares = {"approved": good & ~bad, "rejected": bad & ~good, "referred": good == bad}
    return {
        "level": policy.conformal_level,
        "coverage_good": float(np.average(good[y == 1], weights=weights[y == 1])),
        "coverage_bad": float(np.average(bad[y == 0], weights=weights[y == 0])),
        **{name: float(np.average(share, weights=weights)) for name, share in shares.items()},
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
    confusion table has one line per row, whatever the row weighs; above ``params.exact_rows`` rows so many lines, in
    proportion.
    """
    ranking = rank(sample.y, sample.p_good, sample.weightings())
    good, bad = ranking.good[0], ranking.bad[0]
    kept = np.unique(np.linspace(0, len(good) - 1, min(len(good), MAX_CURVE_POINTS)).round().astype(int))
    tables = {
        "roc": pd.DataFrame({"fpr": np.r_[0, bad[kept] / bad[-1]], "tpr": np.r_[0, good[kept] / good[-1]]}),
        "precision_recall": pd.DataFrame({"recall": good[kept] / good[-1], "precision": (good / (good + bad))[kept]}),
        "scores": _score_distribution(sample),
        "confusion": _confusion(sample, params.exact_rows),
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


def _confusion(rows: Scored, most: int) -> pd.DataFrame:
    kinds = 2 * (rows.y != 1) + ~rows.approved
    if len(kinds) > most:
        shares = np.bincount(kinds, minlength=4) * most / len(kinds)
        lines = shares.astype(int)
        lines[np.argsort(lines - shares, kind="stable")[: most - lines.sum()]] += 1  # largest remainders
        kinds = np.repeat(np.arange(4), lines)
    return pd.DataFrame({"actual": np.where(kinds < 2, "good", "bad"), "decision": np.where(kinds % 2, "refused", "approved")})


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

    Works for every model and speaks of the raw columns. The shuffled copies of several columns are scored in one call.
    Above ``params.exact_rows`` rows each repeat has its own share of so many rows, drawn at random: other rows tell more than
    other shuffles of the same, and ``std`` then holds both.

    Returns
    -------
    DataFrame
        ``feature``, ``importance`` (mean fall) and ``std`` over the repeats, most important first.
    """
    names = model.feature_names_in_
    rng = np.random.default_rng(params.seed)
    parts: list[Any] = [slice(None)]
    if len(X) > params.exact_rows:
        parts = np.array_split(rng.choice(len(X), params.exact_rows, replace=False), params.importance_repeats)
    found = []
    for part in parts:
        rows, own = X[names].iloc[part], None if weights is None else weights[part]
        base = _roc_auc(y[part], model.predict_proba(rows)[:, 1], own)
        found += [base - _shuffled(model, rows, y[part], own, rng) for _ in range(params.importance_repeats // len(parts))]
    falls = np.array(found)
    table = pd.DataFrame({"feature": names, "importance": falls.mean(axis=0), "std": falls.std(axis=0)})
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def _shuffled(
    model: RiskModel, X: pd.DataFrame, y: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """ROC-AUC when each column in turn is shuffled once, shape (n columns,)."""
    found: list[float] = []
    at_once = max(1, MAX_COPIED_ROWS // len(X))
    for first in range(0, X.shape[1], at_once):
        shuffled = X.columns[first : first + at_once]
        copies = pd.concat([X] * len(shuffled), ignore_index=True)
        for i, name in enumerate(shuffled):
            rows = slice(i * len(X), (i + 1) * len(X) - 1)
            copies.loc[rows, name] = rng.permutation(X[name].to_numpy())
        scores = model.predict_proba(copies)[:, 1].reshape(len(shuffled), len(X))
        found += [_roc_auc(y, p_good, weights) for p_good in scores]
    return np.array(found)


def _roc_auc(y: np.ndarray, p_good: np.ndarray, weights: np.ndarray | None) -> float:
    return ranking_metrics(y, p_good, None if weights is None else weights[None])["roc_auc"][0]


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
