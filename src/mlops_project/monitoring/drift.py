"""All tests of a window against the reference."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from mlops_project.errors import DataError
from mlops_project.files import read_yaml
from mlops_project.monitoring.classifier import tell_apart
from mlops_project.monitoring.statistics import (
    Bins,
    Simulated,
    calibrate,
    chi_square,
    kolmogorov_smirnov,
    largest_move,
    population_stability_index,
    share_moved,
    share_rose,
    simulate,
)  # fmt: skip

if TYPE_CHECKING:
    from mlops_project.config import MonitoringParams
    from mlops_project.monitoring.windows import Rows
    from mlops_project.schema import Contract

CONFIDENCE = 0.95
# Names of tests that are of no single feature.
SCORE_PSI, SCORE_KS, CLASSIFIER = "score_psi", "score_ks", "classifier_roc_auc"


def drift(reference: Rows, window: Rows, contract: Contract, params: MonitoringParams) -> dict[str, Any]:
    """Compare a window with the reference.

    Parameters
    ----------
    reference, window : Rows
    contract : Contract
        That of both.
    params : MonitoringParams

    Returns
    -------
    dict
        ``drift``; ``tests``: value, threshold, adjusted p-value and verdict of each; ``features``: shares per bin, missing and
        out of contract, in contract order; ``score``: shares per bin, or None; ``classifier``: its ROC-AUC with interval.

    Raises
    ------
    DataError
        If a side has fewer than ``min_rows`` rows.
    """
    for side, rows in (("reference", reference), ("window", window)):
        if len(rows.values) < params.min_rows:
            raise DataError(
                f"{rows.facts['source']}: the {side} has {len(rows.values)} rows, expected {params.min_rows} or more"
                " (monitoring.min_rows); take a longer window"
            )
    rng = np.random.default_rng(params.seed)
    tests: dict[tuple[str | None, str], Simulated] = {}

    features = []
    for name in contract.features:
        found, described = feature_tests(name, reference, window, contract, params, rng)
        tests |= {(name, check): simulated for check, simulated in found.items()}
        features.append(described)
    score = None
    if reference.p_good is not None and window.p_good is not None:
        bins = Bins.of_numbers(reference.p_good, params.bins)
        counts = bins.rows_per_bin(reference.p_good), bins.rows_per_bin(window.p_good)
        statistics = {SCORE_PSI: _merged(bins), SCORE_KS: _valid(kolmogorov_smirnov)}
        of_score = simulate(*counts, statistics, params.simulations, rng)
        tests |= {(None, check): simulated for check, simulated in of_score.items()}
        score = {"bins": _shares(bins, counts, None)}
    coded = np.array([contract.columns[name].codes is not None for name in contract.features])
    with threadpool_limits(1):  # the order of sums, hence the last digit, does not depend on the machine
        told = tell_apart(
            reference.values, window.values, coded,
            max_rows=params.classifier_rows, folds=params.classifier_folds, confidence=CONFIDENCE, rng=rng,
        )  # fmt: skip
    tests[None, CLASSIFIER] = Simulated(told.roc_auc, rng.normal(told.chance_mean, told.chance_deviation, params.simulations))

    calibrated = calibrate(list(tests.values()), params.false_alarm_rate)
    verdicts = [
        {
            "feature": feature,
            "check": name,
            "value": simulated.value,
            "threshold": float(threshold) if np.isfinite(threshold) else None,
            "p_value": float(p_value),
            "drift": bool(moved),
        }
        for ((feature, name), simulated), threshold, p_value, moved in zip(
            tests.items(), calibrated.thresholds, calibrated.p_values, calibrated.drift, strict=True
        )
    ]
    return {
        "drift": bool(calibrated.drift.any()),
        "reference": {**reference.facts, "rows": len(reference.values)},
        "window": {**window.facts, "rows": len(window.values)},
        "false_alarm_rate": params.false_alarm_rate,
        "simulations": params.simulations,
        "p_threshold": calibrated.p_threshold,
        "tests": verdicts,
        "features": features,
        "score": score,
        "classifier": {
            "roc_auc": told.roc_auc,
            "low": told.low,
            "high": told.high,
            "confidence": CONFIDENCE,
            "by_chance": told.chance_mean,
            "rows": _pair(*told.rows),
        },
    }


def feature_tests(
    name: str, reference: Rows, window: Rows, contract: Contract, params: MonitoringParams, rng: np.random.Generator
) -> tuple[dict[str, Simulated], dict[str, Any]]:
    """Return all tests of one feature, by check, and its entry in the report."""
    i, column = contract.features.index(name), contract.columns[name]
    old, new = reference.values[:, i], window.values[:, i]
    codes = contract.code_labels.get(name)
    bins = Bins.of_codes(list(codes)) if codes else Bins.of_numbers(old, params.bins)
    counts = bins.rows_per_bin(old), bins.rows_per_bin(new)
    left, right = (np.array([rows.seen - rows.out_of_contract[i], rows.out_of_contract[i]]) for rows in (reference, window))
    # The order of nominal codes means nothing. One code that moved to both sides is not seen by Kolmogorov-Smirnov either.
    distribution = {"chi_square": _valid(chi_square)} if column.kind == "nominal" else {"ks": _valid(kolmogorov_smirnov)}
    if codes:
        distribution["code"] = _valid(largest_move)
    statistics = {"psi": _merged(bins), **distribution, "missing": share_moved}
    tests = simulate(*counts, statistics, params.simulations, rng)
    tests |= simulate(left, right, {"out_of_contract": share_rose}, params.simulations, rng)
    return tests, {
        "name": name,
        "english": column.english,
        "kind": column.kind,
        "missing": _pair(*(float(side[-1] / side.sum()) for side in counts)),
        "out_of_contract": _pair(*(float(side[-1] / side.sum()) for side in (left, right))),
        "bins": _shares(bins, counts, codes),
    }


def _pair(reference: float, window: float) -> dict[str, float]:
    return {"reference": reference, "window": window}


def _valid(statistic: Any) -> Any:
    """Leave missing values, the last bin, to their own test."""
    return lambda left, right: statistic(left[..., :-1], right[..., :-1])


def _merged(bins: Bins) -> Any:
    def psi(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = bins.merge(left), bins.merge(right)
        # Bins that nobody is in would only take the share of half a row.
        used = (left + right).reshape(-1, left.shape[-1])[0] > 0
        return population_stability_index(left[..., used], right[..., used])

    return psi


def _shares(bins: Bins, counts: tuple[np.ndarray, np.ndarray], codes: dict[float, str] | None) -> list[dict[str, Any]]:
    """Share of the rows per bin, with its label; without empty ones."""
    edges = bins.coarse_edges
    if codes is not None:
        labels = [*(codes[edge] for edge in edges), "other"]
    elif len(edges):
        between = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
        labels = [f"up to {edges[0]:.4g}", *between, f"above {edges[-1]:.4g}"]
    else:
        labels = ["any"]
    merged = [bins.merge(side) for side in counts]
    shares = [side / side.sum() for side in merged]
    return [
        {"label": label, "reference": float(old), "window": float(new)}
        for label, old, new in zip([*labels, "missing"], *shares, strict=True)
        if old + new > 0
    ]


def provenance(path: str | Path, lock: str | Path = "dvc.lock") -> dict[str, Any]:
    """Hash of a reference file, and whether it is the one that dvc.lock records (None: it records no such file)."""
    md5 = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
    recorded = None
    if Path(lock).is_file():
        outs = [out for stage in read_yaml(lock)["stages"].values() for out in stage.get("outs", [])]
        recorded = next((out["md5"] == md5 for out in outs if Path(out["path"]) == Path(path)), None)
    return {"md5": md5, "recorded": recorded}
