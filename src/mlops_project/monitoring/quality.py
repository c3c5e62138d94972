"""How good the predictions were, once it is known what became of the applicants.

Outcomes exist only of applicants who were approved, and late: a bad one may be known after a month, a good one only at the end.
So all figures speak of approved applicants whose prediction is older than the outcome window, and stand beside those of
out-of-fold predictions *among the applicants who would have been approved*: a model that ranks all applicants with a ROC-AUC of
0.79 ranks those whom it approved with far less.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlops_project.modeling.bootstrap import intervals
from mlops_project.modeling.metrics import ranking_metrics
from mlops_project.modeling.policy import Scored

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from mlops_project.config import EvaluateParams, QualityParams
    from mlops_project.modeling.policy import Policy
    from mlops_project.serving.records import Judged

DAY = 86_400.0
# Figure → sign of what is worse.
FIGURES = {"roc_auc": -1.0, "brier": 1.0, "default_rate": 1.0}
# Permutations × rows held in memory at once.
MAX_CELLS = 4_000_000


class Decided(NamedTuple):
    """Approved applicants; arrays of shape (n rows,)."""

    y: np.ndarray
    """1 good, 0 bad."""
    p_good: np.ndarray
    """At the policy's prior."""
    weights: np.ndarray


class Window(NamedTuple):
    """What the log holds of mature predictions."""

    rows: Decided
    """Approved, with an outcome."""
    predictions: int
    approved: int
    model_versions: dict[str, int]
    """Approved applicants by the model that decided."""


def read_window(judged: Iterable[Judged]) -> Window:
    """Collect the approved applicants and their outcomes."""
    from mlops_project.serving.records import read_results

    y: list[int] = []
    p_good: list[float] = []
    predictions, versions = 0, Counter[str]()
    for part in judged:
        answers = read_results(part.results)
        for i, (decision, p) in enumerate(zip(answers.decision, answers.probability_of_default, strict=True)):
            predictions += decision is not None  # deleted since
            if decision != "approve" or p is None:
                continue
            versions[part.model_version] += 1
            if i in part.outcomes:
                y.append(int(part.outcomes[i] == "good"))
                p_good.append(1 - p)
    rows = Decided(np.array(y, dtype=int), np.array(p_good, dtype=float), np.ones(len(y)))
    return Window(rows, predictions, versions.total(), dict(versions))


def reference_of(out_of_fold: pd.DataFrame, policy: Policy) -> Decided:
    """Return the applicants of the first repeat who would have been approved, at the policy's prior.

    Parameters
    ----------
    out_of_fold : DataFrame
        ``repeat``, ``y_true`` and ``y_proba`` per applicant, as the train stage writes it. A mean of repeats is better than any
        model that answers, so it is not taken.
    policy : Policy
    """
    once = out_of_fold[out_of_fold["repeat"] == 0]
    y, p_good = once["y_true"].to_numpy(dtype=int), once["y_proba"].to_numpy(dtype=float)
    scored = Scored(y, policy.correct(p_good), np.ones(len(y)), policy)
    return Decided(*(part[scored.approved] for part in (y, scored.p_good, scored.weightings()[0])))


def quality(window: Window, reference: Decided, params: QualityParams, evaluate: EvaluateParams, now: float) -> dict[str, Any]:
    """Compare the window with the reference.

    Returns
    -------
    dict
        ``concept_drift``: whether a figure is worse beyond chance, at ``false_alarm_rate`` for all together; ``judged``: whether
        there are outcomes enough; ``figures``: by name value and reference, each with its interval, p-value, and whether it is
        worse; ``rows``; ``notes``.
    """
    rows, notes = window.rows, []
    bad = int((rows.y == 0).sum())
    judged = min(bad, len(rows.y) - bad) > 0 and len(rows.y) >= params.min_outcomes
    if not len(rows.y):
        notes.append(f"no outcome yet of {window.approved} approved applicants; POST /v1/outcomes tells them")
    elif not judged:
        notes.append(
            f"{len(rows.y)} outcomes, {bad} of them bad; nothing is judged before there are {params.min_outcomes} (quality."
            "min_outcomes) of both kinds"
        )
    if len(window.model_versions) > 1:
        notes.append(f"{len(window.model_versions)} models decided; the reference is that of the model in use")
    p_values: dict[str, Any] = dict.fromkeys(FIGURES)
    if judged:
        p_values |= _p_values(rows, reference, params)
    figures: dict[str, dict[str, Any]] = {
        name: {"p_value": p, "worse": p is not None and p < params.false_alarm_rate} for name, p in p_values.items()
    }
    for side, prefix in ((rows, ""), (reference, "reference_")):
        points, ranges = _points(side, evaluate)
        for name, figure in figures.items():
            figure[prefix.rstrip("_") or "value"] = points[name]
            figure |= {f"{prefix}{bound}": ranges[name][bound] for bound in ("low", "high")}
    end = now - params.outcome_days * DAY
    return {
        "concept_drift": any(figure["worse"] for figure in figures.values()),
        "judged": judged,
        "population": "approved applicants whose outcome is known",
        "window": {"from": _day(end - params.window_days * DAY), "to": _day(end)},
        "model_versions": window.model_versions,
        "rows": {
            "predictions": window.predictions, "approved": window.approved, "with_outcome": len(rows.y),
            "without_outcome": window.approved - len(rows.y), "reference": len(reference.y),
        },
        "expected_default_rate": float((1 - rows.p_good).mean()) if len(rows.y) else None,
        "figures": figures,
        "notes": notes,
    }  # fmt: skip


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _figures(rows: Decided, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Figures per weighting, each of shape (n weightings,); ``draws`` has shape (n weightings, n rows)."""
    weights = draws * rows.weights
    with np.errstate(invalid="ignore", divide="ignore"):  # one class only: NaN
        ranking = ranking_metrics(rows.y, rows.p_good, weights)
        return {
            "roc_auc": ranking["roc_auc"],
            "brier": ranking["brier"],
            "default_rate": weights @ (rows.y == 0) / weights.sum(axis=1),
        }


def _points(rows: Decided, params: EvaluateParams) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Figures of the rows and their bootstrap intervals; None where the rows tell nothing."""
    if len(np.unique(rows.y)) < 2:
        nothing: dict[str, float | None] = dict.fromkeys(FIGURES)
        return nothing, {name: {"low": None, "high": None} for name in FIGURES}
    values = _figures(rows, np.ones((1, len(rows.y))))
    ranges = intervals(lambda draws: _figures(rows, draws), len(rows.y), params)
    return {name: float(value[0]) for name, value in values.items()}, {name: {**pair} for name, pair in ranges.items()}


def _p_values(window: Decided, reference: Decided, params: QualityParams) -> dict[str, float]:
    """One-sided p-values of each figure being worse, adjusted for all of them (Westfall & Young 1993, single-step max T).

    If nothing changed, which of the rows are the window's is a matter of chance: so it is dealt anew. That holds whatever the
    number of rows, and knows how figures hang together.
    """
    both = Decided(*(np.concatenate(pair) for pair in zip(window, reference, strict=True)))
    n, m = len(both.y), len(window.y)
    rng = np.random.default_rng(params.seed)
    observed = np.zeros((1, n))
    observed[0, :m] = 1.0
    parts, left = [_worse(both, observed)], params.permutations
    while left:
        dealt = np.zeros((min(left, max(1, MAX_CELLS // n)), n))
        for row in dealt:
            row[rng.permutation(n)[:m]] = 1.0
        parts.append(_worse(both, dealt))
        left -= len(dealt)
    moved = np.concatenate(parts)
    spread = np.nanstd(moved[1:], axis=0)
    moved = moved / np.where(spread > 0, spread, 1.0)  # none where all scores are equal
    largest = np.nanmax(moved[1:], axis=1)
    return {
        name: float((1 + (largest >= moved[0, i]).sum()) / (1 + params.permutations))
        for i, name in enumerate(FIGURES)
    }  # fmt: skip


def _worse(both: Decided, dealt: np.ndarray) -> np.ndarray:
    """By how much each figure is worse in the window than in the rest, shape (n weightings, n figures)."""
    one, other = _figures(both, dealt), _figures(both, 1 - dealt)
    return np.column_stack([sign * (one[name] - other[name]) for name, sign in FIGURES.items()])
