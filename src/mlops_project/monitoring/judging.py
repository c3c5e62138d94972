"""Challenger against champion, paired, on rows that neither was trained on, by the rules of review.yaml.

Two populations: the applicants whom the champion's pipeline had held out (``old``), and the share of the new rows that the split
holds out and that no model is ever trained on (``new``). Both models score the same rows, so that differences are paired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd

from mlops_project.errors import DataError
from mlops_project.modeling.bootstrap import intervals
from mlops_project.modeling.fairness import fairness
from mlops_project.modeling.metrics import RANKING_METRICS, ranking_metrics
from mlops_project.modeling.policy import Scored
from mlops_project.review.comparison import metrics_of
from mlops_project.review.gate import FAIRNESS, RATIO, broken_rules
from mlops_project.review.verdict import Predictions, judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlops_project.config import EvaluateParams
    from mlops_project.modeling.policy import Policy
    from mlops_project.review.settings import GateSettings, ReviewSettings, Rule
    from mlops_project.schema import Contract

HELD_OUT, FOLDS = "evaluate.", ("train.", ".mean")
# New rows of whom the champion approves this share are taken for what is left of a population after its decisions.
SELECTED = 0.9
SHOWN = ("roc_auc", "brier", "log_loss", "expected_cost", "approval_rate", "bad_rate_approved")


class Side(NamedTuple):
    """A model as it is judged: P(good) of the rows, out-of-fold predictions as `Predictions` has them, policy, metrics."""

    p_good: np.ndarray
    out_of_fold: pd.DataFrame
    policy: Policy
    metrics: Mapping[str, Any]


class Rows(NamedTuple):
    """Rows that neither was trained on.

    ``X`` has the contract's columns, index applicant id; ``y`` is 1 for good, 0 for bad; ``new`` says who is of the new rows.
    """

    X: pd.DataFrame
    y: np.ndarray
    new: np.ndarray


class Decision(NamedTuple):
    """Whether the challenger is to be promoted, why, and the figures that say so."""

    promote: bool
    reasons: list[str]
    report: dict[str, Any]


def decide(
    rows: Rows,
    champion: Side,
    challenger: Side,
    contract: Contract,
    settings: ReviewSettings,
    params: EvaluateParams,
    *,
    concept_drift: bool,
    min_outcomes: int,
    approved_only: bool,
) -> Decision:
    """Compare, and apply the rules.

    Without concept drift all rows decide; with it the new ones, since a model that learnt new behaviour must lose on the old.

    Parameters
    ----------
    rows : Rows
    champion, challenger : Side
    contract : Contract
    settings : ReviewSettings
        Of the champion: a challenger cannot soften them.
    params : EvaluateParams
    concept_drift : bool
    min_outcomes : int
        Good and bad rows that must be among those that decide.
    approved_only : bool
        The new rows are known to be of approved applicants only.

    Returns
    -------
    Decision
    """
    sides = champion, challenger
    n_new, approved_before = int(rows.new.sum()), champion.policy.approved(champion.p_good)
    selected = approved_only or (n_new > 0 and float(approved_before[rows.new].mean()) >= SELECTED)
    populations = {
        name: _figures(rows, where, sides, params)
        for name, where in (
            ("old", ~rows.new),
            ("old_approved", ~rows.new & approved_before),
            ("new", rows.new),
            ("new_approved", rows.new & approved_before),
        )
    }
    report: dict[str, Any] = {"concept_drift": concept_drift, "new_rows_selected": selected, "populations": populations}
    where = rows.new if concept_drift else np.ones(len(rows.y), dtype=bool)
    deciding = "the held-out share of the new rows" if concept_drift else "all held-out applicants, old and new"
    report |= {"deciding": deciding, "rows": int(where.sum())}
    counts = np.bincount(rows.y[where], minlength=2)
    if counts.min() < min_outcomes:
        reason = (
            f"{deciding}: {counts[1]} good and {counts[0]} bad, expected {min_outcomes} or more of each to decide"
            " (retraining.min_outcomes); wait for more outcomes"
        )
        return Decision(False, [reason], report | {"metrics": {}, "verdict": None})

    metrics = _paired(rows, where, sides, params, settings)
    # Of those whom the champion approved, it approves all groups alike: approval rates are compared where nobody was chosen.
    for name, (base, head) in _disparities(rows, ~rows.new if selected else where, sides, contract, params).items():
        metrics[f"{FAIRNESS}{name}{RATIO}"] = {"base": base, "head": head}
    metrics |= _cross_validated(sides, settings.gate, own=concept_drift)
    verdict = _verdict(rows, where, sides, settings, metrics, concept_drift=concept_drift)
    gate = settings.gate
    shifts: dict[str, float] = {}
    if concept_drift:
        # Folds hold old rows: what they say of the challenger decides nothing, unless it is too good to be true.
        gate = msgspec.structs.replace(gate, rules=[rule for rule in gate.rules if rule.metric.startswith(HELD_OUT)])
        if selected:
            gate, shifts = _among_approved(gate, populations)
    report |= {"metrics": metrics, "verdict": verdict, "limits_moved": shifts}
    failed = {rule.metric: told for rule in gate.rules if (told := _below_floor(rule, metrics.get(rule.metric, {})))}
    better = _better(gate, metrics, settings)
    # A limit that the champion misses by more than noise more keeps nobody: what it would keep is worse.
    both = [msgspec.structs.replace(rule, limit=None) if rule.metric in failed.keys() & better else rule for rule in gate.rules]
    against = [*broken_rules(report, msgspec.structs.replace(gate, rules=both)), *_worse(gate, metrics, settings)]
    if against:
        return Decision(False, list(dict.fromkeys(against)), report)
    if better or failed:
        return Decision(True, [*better.values(), *failed.values()], report)
    return Decision(False, ["not worse in any guarded metric, and better in none by more than noise"], report)


def _figures(rows: Rows, where: np.ndarray, sides: tuple[Side, Side], params: EvaluateParams) -> dict[str, Any]:
    """Rows, share of bad and metrics of both, for a population; None where one class is absent."""
    y = rows.y[where]
    found: dict[str, Any] = {"rows": len(y), "bad_share": float((y == 0).mean()) if len(y) else None}
    for name, side in zip(("champion", "challenger"), sides, strict=True):
        values = _statistic(y, side.p_good[where], side.policy, params)(np.ones((1, len(y)))) if len(set(y)) == 2 else {}
        found[name] = {key: float(values[key][0]) if key in values else None for key in SHOWN}
    return found


def _statistic(y: np.ndarray, p_good: np.ndarray, policy: Policy, params: EvaluateParams) -> Any:
    table = pd.DataFrame({"y_true": y, "y_proba": p_good})
    return metrics_of(table, _sample_threshold(policy), msgspec.to_builtins(params))


def _sample_threshold(policy: Policy) -> float:
    """The policy's threshold for probabilities as the model gives them, before the prior moves them."""
    if policy.prior_default_rate is None:
        return policy.threshold
    bad = policy.threshold * policy.sample_default_rate / policy.prior_default_rate
    return bad / (bad + (1 - policy.threshold) * (1 - policy.sample_default_rate) / (1 - policy.prior_default_rate))


def _paired(
    rows: Rows, where: np.ndarray, sides: tuple[Side, Side], params: EvaluateParams, settings: ReviewSettings
) -> dict[str, dict[str, Any]]:
    """Metrics of both, with bootstrap intervals of the difference: the same applicants drawn for both.

    ``low`` and ``high`` are at the confidence of review.yaml; ``sure_low`` and ``sure_high`` allow for the number of guarded
    metrics (Bonferroni), since one of many is always lucky.
    """
    y = rows.y[where]
    before, after = (_statistic(y, side.p_good[where], side.policy, params) for side in sides)
    once = np.ones((1, len(y)))

    def difference(draws: np.ndarray) -> dict[str, np.ndarray]:
        old, new = before(draws), after(draws)
        return {name: new[name] - old[name] for name in new}

    confidence = settings.verdict.confidence
    corrected = 1 - (1 - confidence) / max(1, len(settings.gate.rules))
    plain, sure = (
        intervals(difference, len(y), msgspec.structs.replace(params, confidence=level)) for level in (confidence, corrected)
    )
    old, new = before(once), after(once)
    return {
        f"{HELD_OUT}{name}": {
            "base": float(old[name][0]),
            "head": float(new[name][0]),
            "difference": float(new[name][0] - old[name][0]),
            **plain[name],
            "sure_low": sure[name]["low"],
            "sure_high": sure[name]["high"],
        }
        for name in new
    }


def _disparities(
    rows: Rows, where: np.ndarray, sides: tuple[Side, Side], contract: Contract, params: EvaluateParams
) -> dict[str, tuple[float | None, float | None]]:
    X, y, weights = rows.X[where], rows.y[where], np.ones(int(where.sum()))
    both = [
        fairness(Scored(y, side.policy.correct(side.p_good[where]), weights, side.policy), X, contract, params)[0]
        for side in sides
    ]
    return {name: (both[0][name]["disparity_ratio"], both[1][name]["disparity_ratio"]) for name in both[0]}


def _cross_validated(sides: tuple[Side, Side], gate: GateSettings, *, own: bool) -> dict[str, dict[str, Any]]:
    """Means over the folds that the rules ask for, of applicants that both developed on; with ``own`` the challenger's only."""
    asked = {rule.metric for rule in gate.rules} | ({gate.leak_alarm.metric} if gate.leak_alarm else set())
    both = sides[0].out_of_fold.index.intersection(sides[1].out_of_fold.index.unique())
    found: dict[str, dict[str, Any]] = {}
    for metric in sorted(asked):
        if not (metric.startswith(FOLDS[0]) and metric.endswith(FOLDS[1])):
            continue
        name = metric.removeprefix(FOLDS[0]).removesuffix(FOLDS[1])
        values = [side.metrics.get("train", {}).get(name, {}).get("mean") for side in sides]
        if own:
            values[0] = None
        elif name in RANKING_METRICS:
            values = [_mean_of_folds(side.out_of_fold, both, name) for side in sides]
        found[metric] = {"base": values[0], "head": values[1]}
    return found


def _mean_of_folds(out_of_fold: pd.DataFrame, ids: pd.Index, name: str) -> float:
    kept = out_of_fold[out_of_fold.index.isin(ids)].dropna(subset="y_proba")
    values = [
        ranking_metrics(fold["y_true"].to_numpy(dtype=int), fold["y_proba"].to_numpy())[name][0]
        for _, fold in kept.groupby(["repeat", "fold"])
        if fold["y_true"].nunique() == 2
    ]
    if not values:
        raise DataError("out-of-fold predictions: champion and challenger have no development applicants in common")
    return float(np.mean(values))


def _verdict(
    rows: Rows,
    where: np.ndarray,
    sides: tuple[Side, Side],
    settings: ReviewSettings,
    metrics: Mapping[str, Any],
    *,
    concept_drift: bool,
) -> dict[str, Any]:
    """The review's verdict; under concept drift that of the paired interval, as folds of old rows must not count."""
    metric, confidence, smallest = settings.verdict.metric, settings.verdict.confidence, settings.verdict.smallest_difference
    if not concept_drift:
        held_out = [
            pd.DataFrame({"y_true": rows.y[where], "y_proba": side.p_good[where]}, index=rows.X.index[where]) for side in sides
        ]
        base, head = (Predictions(table, side.out_of_fold) for table, side in zip(held_out, sides, strict=True))
        found = judge(base, head, metric, confidence=confidence, smallest=smallest)
        return found._asdict() | {
            "confidence": confidence,
            "held_out": found.held_out._asdict(),
            "out_of_fold": found.out_of_fold._asdict(),
        }
    entry = metrics[f"{HELD_OUT}{metric}"]
    gain = entry["difference"] if metric == "roc_auc" else -entry["difference"]
    word = "better" if gain > 0 else "worse"
    if entry["low"] <= 0 <= entry["high"] or abs(gain) < smallest:
        word = "within noise"
    return {
        "metric": metric, "verdict": word, "difference": entry["difference"], "low": entry["low"], "high": entry["high"],
        "confidence": confidence,
    }  # fmt: skip


def _among_approved(gate: GateSettings, populations: Mapping[str, Mapping[str, Any]]) -> tuple[GateSettings, dict[str, float]]:
    """Move limits by what the champion's figure differs between its approved and all of the old applicants.

    Limits are for everybody who applies. Who was approved is more alike, so that the same model ranks them worse: without this
    no model would ever do.
    """
    rules, shifts = [], {}
    for rule in gate.rules:
        name = rule.metric.removeprefix(HELD_OUT)
        among, of_all = (populations[key]["champion"].get(name) for key in ("old_approved", "old"))
        if rule.limit is None or among is None or of_all is None:
            rules.append(rule)
            continue
        shifts[rule.metric] = among - of_all
        rules.append(msgspec.structs.replace(rule, limit=rule.limit + among - of_all))
    return msgspec.structs.replace(gate, rules=rules), shifts


def _worse(gate: GateSettings, metrics: Mapping[str, Any], settings: ReviewSettings) -> list[str]:
    """Guarded metrics whose interval lies on the wrong side of 0."""
    return [
        _told(rule.metric, "worse", entry, "low", settings.verdict.confidence)
        for rule in gate.rules
        if (entry := _interval(metrics, rule)) and _gain(rule, entry["low"], entry["high"])[1] < 0
        and abs(entry["difference"]) >= settings.verdict.smallest_difference
    ]  # fmt: skip


def _better(gate: GateSettings, metrics: Mapping[str, Any], settings: ReviewSettings) -> dict[str, str]:
    """Guarded metrics that are better by more than noise, however many are guarded."""
    corrected = 1 - (1 - settings.verdict.confidence) / max(1, len(settings.gate.rules))
    return {
        rule.metric: _told(rule.metric, "better", entry, "sure_low", corrected)
        for rule in gate.rules
        if (entry := _interval(metrics, rule)) and _gain(rule, entry["sure_low"], entry["sure_high"])[0] > 0
        and abs(entry["difference"]) >= settings.verdict.smallest_difference
    }  # fmt: skip


def _interval(metrics: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    entry = metrics.get(rule.metric, {})
    return entry if "low" in entry else {}


def _gain(rule: Rule, low: float, high: float) -> tuple[float, float]:
    return (low, high) if rule.better == "higher" else (-high, -low)


def _told(metric: str, word: str, entry: Mapping[str, Any], low: str, confidence: float) -> str:
    high = low.replace("low", "high")
    return (
        f"{metric} is {word}: {entry['base']:.4f} -> {entry['head']:.4f}, {confidence:.1%} interval of the difference"
        f" {entry[low]:+.4f} to {entry[high]:+.4f}"
    )


def _below_floor(rule: Rule, entry: Mapping[str, Any]) -> str:
    value = entry.get("base")
    if rule.limit is None or not isinstance(value, (int, float)):
        return ""
    short = value < rule.limit if rule.better == "higher" else value > rule.limit
    return f"the champion fails its floor: {rule.metric} is {value:.4f}, the limit is {rule.limit:.4f}" if short else ""
