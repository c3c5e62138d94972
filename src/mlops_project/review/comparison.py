"""The review report as data: what changed in params, data and code, what that did to every metric, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_project.config import load_params
from mlops_project.modeling.bootstrap import Cells, bin_means, count_cells, intervals
from mlops_project.modeling.evaluation import COUNTS, SCORE_BINS
from mlops_project.modeling.metrics import decision_metrics, expected_cost, ranking_metrics
from mlops_project.modeling.reliability import BINS, equal_mass_bins, expected_calibration_error
from mlops_project.review.revisions import changed_files, flat, stages_to_rerun
from mlops_project.review.verdict import in_common, judge, numbered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from mlops_project.review.revisions import Revision
    from mlops_project.review.settings import VerdictSettings
    from mlops_project.review.verdict import Predictions

    Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]

# Bounds of intervals are no metrics of their own.
NO_METRIC = ("interval", "low", "high")
# Pairs of scores are counted in bins of their mean, and in each of these in bins of their difference, which is what varies.
PAIR_BINS, DIFFERENCE_BINS = 500, 16


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
    predictions = numbered(*predictions)
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
    """Bootstrap intervals of differences on held-out rows: the same applicants drawn for both where they are paired.

    Above ``evaluate.exact_rows`` of the workspace's params they are drawn as counts of applicants with like scores.
    """
    import msgspec

    bootstrap = msgspec.structs.replace(load_params().evaluate, confidence=confidence)
    together, tables = in_common(*predictions), [side.held_out for side in predictions]
    if together is not None:
        tables = [table.loc[together].assign(y_true=tables[0]["y_true"]) for table in tables]
    thresholds = [side["evaluate"]["threshold"] for side in metrics]
    costs = [given["evaluate"] for given in params]

    def difference(tables: list[pd.DataFrame], counts: list[np.ndarray | None]) -> Statistic:
        before, after = map(metrics_of, tables, thresholds, costs, counts)
        n_base = len(tables[0])

        def statistic(draws: np.ndarray) -> dict[str, np.ndarray]:
            # Unpaired each side draws from rows of its own.
            old, new = before(draws[:, :n_base]), after(draws if together is not None else draws[:, n_base:])
            return {name: new[name] - old[name] for name in new}

        return statistic

    of_rows = difference(tables, [None, None])
    n_rows = len(tables[0]) + (0 if together is not None else len(tables[1]))
    if n_rows <= bootstrap.exact_rows:
        found = intervals(of_rows, n_rows, bootstrap)
    else:
        tables, cells = _count(tables, thresholds, paired=together is not None)
        of_cells = difference(tables, [cells.rows[: len(tables[0])], cells.rows[-len(tables[1]) :]])
        once, counted = of_rows(np.ones((1, n_rows))), of_cells(cells.rows[np.newaxis].astype(float))
        found = {
            name: {end: value + float(once[name][0] - counted[name][0]) for end, value in ends.items()}
            for name, ends in intervals(lambda draws: of_cells(draws * cells.rows), cells, bootstrap).items()
        }
    return {f"evaluate.{name}": bounds for name, bounds in found.items()}


def _count(tables: list[pd.DataFrame], thresholds: list[float], *, paired: bool) -> tuple[list[pd.DataFrame], Cells]:
    """Count rows with like scores, apart by outcome and decisions: tables of cells, and how many rows are in each.

    Paired, a cell is of a pair of scores and both tables have the same ones; unpaired the head's come after the base's.
    """
    y = [table["y_true"].to_numpy(dtype=int) for table in tables]
    p_good = [table["y_proba"].to_numpy(dtype=float) for table in tables]
    refused = [1 - p >= threshold for p, threshold in zip(p_good, thresholds, strict=True)]
    if paired:
        bins = _pair_bins(*p_good)
        # No cell lies on both sides of a threshold, or in two bins of a calibration error.
        for p, refusal in zip(p_good, refused, strict=True):
            bins = (2 * bins + refusal) * BINS + equal_mass_bins(p, np.ones(len(p)))
        return _cells(bins, y[0], p_good)
    found = [
        _cells(2 * equal_mass_bins(p, np.ones(len(p)), SCORE_BINS) + refusal, outcome, [p])
        for p, refusal, outcome in zip(p_good, refused, y, strict=True)
    ]
    cells = Cells(*(np.concatenate(parts) for parts in zip(*(cells for _, cells in found), strict=True)))
    return [table for (table,), _ in found], cells


def _cells(bins: np.ndarray, y: np.ndarray, scores: list[np.ndarray]) -> tuple[list[pd.DataFrame], Cells]:
    import pandas as pd

    ones = np.ones(len(y))
    labels, cells = count_cells(2 * bins + y, ones)
    means = (bin_means(bins, score, ones)[labels // 2] for score in scores)
    return [pd.DataFrame({"y_true": labels % 2, "y_proba": mean}) for mean in means], cells


def _pair_bins(base: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Bins of equal numbers by the mean of both scores, each cut into such bins by their difference; int of shape (n rows,)."""
    outer = equal_mass_bins((base + head) / 2, np.ones(len(base)), PAIR_BINS)
    order = np.lexsort((head - base, outer))
    sizes = np.bincount(outer, minlength=PAIR_BINS)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    inner = np.empty(len(order), dtype=int)
    inner[order] = DIFFERENCE_BINS * place // np.repeat(sizes, sizes)
    return DIFFERENCE_BINS * outer + inner


def metrics_of(table: pd.DataFrame, threshold: float, settings: dict[str, Any], counts: np.ndarray | None = None) -> Statistic:
    """Metrics of one revision as a function of how often each row is drawn.

    ``counts`` says how many applicants each row of the table is, of shape (n rows,); one by default.
    """
    y, p_good = table["y_true"].to_numpy(dtype=int), table["y_proba"].to_numpy(dtype=float)
    bins = equal_mass_bins(p_good, np.ones(len(y)) if counts is None else counts)

    def statistic(draws: np.ndarray) -> dict[str, np.ndarray]:
        decisions = decision_metrics(y, p_good, threshold, draws)
        costs = settings["cost_bad_approved"], settings["cost_good_refused"]
        return (
            ranking_metrics(y, p_good, draws)
            | {"ece": expected_calibration_error(y, p_good, bins, draws), "expected_cost": expected_cost(decisions, *costs)}
            | {name: value for name, value in decisions.items() if name not in COUNTS}
        )

    return statistic
