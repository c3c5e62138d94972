"""The rules of review.yaml, applied to a comparison: what is broken, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlops_project.review.settings import FairnessRule, GateSettings, Rule

FAIRNESS = "evaluate.fairness."
RATIO = ".disparity_ratio"


def broken_rules(report: Mapping[str, Any], settings: GateSettings) -> list[str]:
    """Return one sentence per rule that the head of a report (see `comparison.compare`) breaks."""
    metrics, verdict = report["metrics"], report["verdict"]
    broken = []
    if settings.refuse_worse and verdict["verdict"] == "worse":
        broken.append(
            f"{verdict['metric']} is worse than the base: {verdict['difference']:+.4f}, "
            f"{verdict['confidence']:.0%} interval {verdict['low']:+.4f} to {verdict['high']:+.4f}"
        )
    broken += [sentence for rule in settings.rules for sentence in _rule(rule, metrics.get(rule.metric, {}))]
    if alarm := settings.leak_alarm:
        value = metrics.get(alarm.metric, {}).get("head")
        if value is None:
            broken.append(f"leak alarm: {alarm.metric} is not in the metrics of the head; correct review.yaml")
        elif value > alarm.ceiling:
            broken.append(
                f"leak alarm: {alarm.metric} is {value:.4f}, above {alarm.ceiling:g}: too good to be true, look for a leak first"
            )
    for name, entry in metrics.items():
        if name.startswith(FAIRNESS) and name.endswith(RATIO):
            broken += _fairness(name.removeprefix(FAIRNESS).removesuffix(RATIO), entry, settings.fairness)
    return broken


def _rule(rule: Rule, entry: Mapping[str, Any]) -> list[str]:
    value, old = entry.get("head"), entry.get("base")
    if not isinstance(value, (int, float)):
        return [f"{rule.metric} is not in the metrics of the head; correct review.yaml or the code that writes it"]
    sign, broken = (1 if rule.better == "higher" else -1), []
    if rule.tolerance is not None and isinstance(old, (int, float)) and sign * (value - old) < -rule.tolerance:
        way = "fell" if rule.better == "higher" else "rose"
        broken.append(f"{rule.metric} {way} from {old:.4f} to {value:.4f}, by more than the {rule.tolerance:g} that are allowed")
    if rule.limit is not None and sign * (value - rule.limit) < 0:
        side = "below the floor" if rule.better == "higher" else "above the ceiling"
        broken.append(f"{rule.metric} is {value:.4f}, {side} of {rule.limit:g}")
    return broken


def _fairness(column: str, entry: Mapping[str, Any], rule: FairnessRule) -> list[str]:
    value, old = entry["head"], entry["base"]
    if value is None:
        lost = f"fairness: {column} had a disparity ratio of {old:.3f} and has none now" if old is not None else ""
        return [lost] if lost and rule.tolerance is not None else []
    broken = []
    if rule.tolerance is not None and old is not None and value < old - rule.tolerance:
        broken.append(
            f"fairness: the disparity ratio of {column} fell from {old:.3f} to {value:.3f}, by more than the"
            f" {rule.tolerance:g} that are allowed"
        )
    if rule.floor is not None and value < rule.floor:
        broken.append(f"fairness: the disparity ratio of {column} is {value:.3f}, below the floor of {rule.floor:g}")
    return broken
