"""The review report as data: what changed in params, data and code, what that did to every metric, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_project.config import load_params
from mlops_project.modeling.bootstrap import intervals
from mlops_project.modeling.evaluation import COUNTS
from mlops_project.modeling.metrics import decision_metrics, expected_cost, ranking_metrics
from mlops_project.modeling.reliability import equal_mass_bins, expected_calibration_error
from mlops_project.review.revisions import changed_files, flat, stages_to_rerun
from mlops_project.review.verdict import in_common, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from mlops_project.review.revisions import Revision
    from mlops_project.review.settings import VerdictSettings
    from mlops_project.review.verdict import Predictions

# Bounds of intervals are no metrics of their own.
NO_METRIC = ("interval", "low", "high")


def compare(
    base: Revision, head: Revision, settings: VerdictSettings, predictions: tuple[Predictions, Predictions]
) -> dict[str, Any]:
    """Compare two revisions.

    Returns
    -------
    dict
        ``verdict`` (see `verdict.Verdict`), ``params`` (``key``, ``base``,
        ``head``, ``stages``), ``data`` (``raw``: path → hash and size of both; ``counts``), ``code`` (``file``, ``state``,
        ``stages``), ``stages`` that have to run again, ``metrics``: name → ``base``, ``head``, ``difference`` and, for metrics
        of the held-out rows, ``low`` and ``high`` of the bootstrap interval (rows only, no training).
    """
    found = judge(*predictions, settings.metric, confidence=settings.confidence, smallest=settings.smallest_difference)
    before, after = base.metrics(), head.metrics()
    counts = [flat(side.pop("prepare", {})) for side in (before, after)]
    for side in (before, after):
        side.pop("leaderboard", None)  # of other models, and text
    params = _params(base, head)
    code = [change._asdict() for change in changed_files(base, head)]
    raw = _raw(base, head)
    first = {stage for entry in (*params, *code, *raw.values()) for stage in entry["stages"]}
    spread = _intervals(predictions, (before, after), (base.params(), head.params()), settings.confidence)
    return {
        "verdict": found._asdict()
        | {"confidence": settings.confidence, "held_out": found.held_out._asdict(), "out_of_fold": found.out_of_fold._asdict()},
        "params": params,
        "data": {"raw": raw, "counts": _pairs(*counts)},
        "code": code,
        "stages": stages_to_rerun(head.lock(), first),
        "metrics": {name: entry | spread.get(name, {}) for name, entry in _pairs(flat(before), flat(after)).items()},
    }


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    pairs: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*after, *before]):
        if set(name.split(".")) & set(NO_METRIC):
            continue
        entry = pairs[name] = {"base": before.get(name), "head": after.get(name)}
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in entry.values()):
            entry["difference"] = round(entry["head"] - entry["base"], 6)
    return pairs


def _params(base: Revision, head: Revision) -> list[dict[str, Any]]:
    """Params that differ, with the stages that read them."""
    before, after = flat(base.params()), flat(head.params())
    read: dict[str, set[str]] = {}
    for revision in (base, head):
        for stage, entry in revision.lock().items():
            for keys in entry.get("params", {}).values():
                read.setdefault(stage, set()).update(keys)
    changed = []
    for key in dict.fromkeys([*after, *before]):
        if before.get(key) != after.get(key) or (key in before) != (key in after):
            users = [stage for stage, keys in read.items() if any(f"{key}.".startswith(f"{section}.") for section in keys)]
            changed.append({"key": key, "base": before.get(key), "head": after.get(key), "stages": users})
    return changed


def _raw(base: Revision, head: Revision) -> dict[str, dict[str, Any]]:
    """The raw table of each revision as its receipt has it, and the stages that read it if it differs."""
    found: dict[str, dict[str, Any]] = {}
    for side, revision in (("base", base), ("head", head)):
        path = revision.params()["data"]["raw"]
        entry = found.setdefault(path, {"base": None, "head": None, "base_size": None, "head_size": None, "stages": []})
        for stage, receipt in revision.lock().items():
            for dep in receipt.get("deps", []):
                if dep["path"] == path:
                    entry |= {side: dep.get("md5"), f"{side}_size": dep.get("size")}
                    entry["stages"] = sorted({*entry["stages"], stage})
    for entry in found.values():
        if entry["base"] == entry["head"]:
            entry["stages"] = []
    return found


def _intervals(
    predictions: tuple[Predictions, Predictions],
    metrics: tuple[dict[str, Any], dict[str, Any]],
    params: tuple[dict[str, Any], dict[str, Any]],
    confidence: float,
) -> dict[str, dict[str, float]]:
    """Bootstrap intervals of differences on held-out rows: the same applicants drawn for both where they are paired."""
    import msgspec

    bootstrap = msgspec.structs.replace(load_params().evaluate, confidence=confidence)
    together, tables = in_common(*predictions), [side.held_out for side in predictions]
    if together is not None:
        tables = [table.loc[together].assign(y_true=tables[0]["y_true"]) for table in tables]
    before, after = (
        metrics_of(table, side["evaluate"]["threshold"], given["evaluate"])
        for table, side, given in zip(tables, metrics, params, strict=True)
    )
    n_base, n_rows = len(tables[0]), len(tables[0]) + (0 if together is not None else len(tables[1]))

    def statistic(draws: np.ndarray) -> dict[str, np.ndarray]:
        # Unpaired each side draws from rows of its own.
        old, new = before(draws[:, :n_base]), after(draws if together is not None else draws[:, n_base:])
        return {name: new[name] - old[name] for name in new}

    return {f"evaluate.{name}": bounds for name, bounds in intervals(statistic, n_rows, bootstrap).items()}


def metrics_of(table: pd.DataFrame, threshold: float, settings: dict[str, Any]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Metrics of one revision as a function of how often each row is drawn."""
    y, p_good = table["y_true"].to_numpy(dtype=int), table["y_proba"].to_numpy(dtype=float)
    bins = equal_mass_bins(p_good, np.ones(len(y)))

    def statistic(draws: np.ndarray) -> dict[str, np.ndarray]:
        decisions = decision_metrics(y, p_good, threshold, draws)
        costs = settings["cost_bad_approved"], settings["cost_good_refused"]
        return (
            ranking_metrics(y, p_good, draws)
            | {"ece": expected_calibration_error(y, p_good, bins, draws), "expected_cost": expected_cost(decisions, *costs)}
            | {name: value for name, value in decisions.items() if name not in COUNTS}
        )

    return statistic
