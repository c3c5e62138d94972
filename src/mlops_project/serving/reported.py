"""The latest reports of the log (`mlops-drift`, `mlops-monitor`) as metrics.

They come from whoever may write to the log, perhaps of another version: one that cannot be read is said to be so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlops_project.serving.records import Report

logger = logging.getLogger(__name__)

Samples = list[tuple[list[str], float]]
Family = tuple[str, str, list[str], Samples]


def families(reports: Mapping[str, Report]) -> Iterator[GaugeMetricFamily]:
    """Yield the figures of each report whose name is known; of any, when it was made and whether it can be read."""
    readable = GaugeMetricFamily("mlops_report_readable", "Whether the latest report could be read", labels=["report"])
    made = GaugeMetricFamily("mlops_report_timestamp_seconds", "When it was made, seconds since 1970", labels=["report"])
    for name, read in KNOWN.items():
        if name not in reports:
            continue
        made.add_metric([name], reports[name].time)
        try:
            found = [_family(*family) for family in read(msgspec.json.decode(reports[name].content))]
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:
            logger.warning("the report %r in the prediction log cannot be read (%s)", name, type(error).__name__)
            readable.add_metric([name], 0)
            continue
        readable.add_metric([name], 1)
        yield from found
    yield from (readable, made)


def _family(name: str, text: str, labels: list[str], samples: Samples) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples:
        if number is not None:
            family.add_metric([str(value) for value in values], float(number))
    return family


def _drift(report: dict[str, Any]) -> Iterator[Family]:
    yield "mlops_drift_detected", "1 if any test of the last window alarmed", [], [([], report["drift"])]
    labels = ["feature", "check"]
    of: list[tuple[list[str], dict[str, Any]]] = [([test["feature"] or "", test["check"]], test) for test in report["tests"]]
    for name, key, text in (
        ("statistic", "value", "Value of a test"),
        ("threshold", "threshold", "Value from which on it alarms"),
        ("p_value", "p_value", "Its p-value, adjusted for the number of tests"),
        ("alarm", "drift", "1 if it alarmed"),
    ):
        yield f"mlops_drift_{name}", text, labels, [(where, test[key]) for where, test in of]
    shares: Samples = [
        ([feature["name"], kind, side], feature[kind][side])
        for feature in report["features"]
        for kind in ("missing", "out_of_contract")
        for side in ("reference", "window")
    ]
    yield "mlops_drift_cell_share", "Share of the cells that are missing or out of contract", ["feature", "kind", "side"], shares
    told: Samples = [([key], report["classifier"][key]) for key in ("roc_auc", "low", "high")]
    yield "mlops_drift_classifier", "How well a classifier tells window from reference, with its interval", ["bound"], told
    rows: Samples = [([side], report[side]["rows"]) for side in ("reference", "window")]
    yield "mlops_drift_rows", "Rows compared", ["side"], rows
    bins: Samples = [
        ([f"{i:02d} {part['label']}", side], part[side])
        for i, part in enumerate((report["score"] or {"bins": []})["bins"])
        for side in ("reference", "window")
    ]
    yield "mlops_drift_score_share", "Share of the applicants per bin of P(good)", ["bin", "side"], bins


def _quality(report: dict[str, Any]) -> Iterator[Family]:
    detected = report["concept_drift"]
    yield "mlops_quality_concept_drift", "1 if a figure is worse than it was for approved applicants", [], [([], detected)]
    figures: dict[str, dict[str, Any]] = report["figures"]
    for key, text in (
        ("value", "Figure among approved applicants whose outcome is known"),
        ("low", "Lower end of its interval"),
        ("high", "Upper end of its interval"),
        ("reference", "Figure of out-of-fold predictions among those who would have been approved"),
        ("worse", "1 if it is worse than the reference beyond chance"),
    ):
        yield f"mlops_quality_{key}", text, ["metric"], [([name], figure[key]) for name, figure in figures.items()]
    rows: Samples = [([name], n) for name, n in report["rows"].items()]
    yield "mlops_quality_rows", "Predictions in the window: approved, mature, with an outcome, waiting", ["which"], rows


def _data(report: dict[str, Any]) -> Iterator[Family]:
    yield "mlops_data_rows", "Rows of the latest incoming file", [], [([], report["rows"])]
    yield "mlops_data_bad_cells", "Its cells that break the contract", [], [([], report["bad_cells"])]
    columns: dict[str, dict[str, Any]] = report["columns"]
    for key, text in (
        ("share", "Share of bad or missing cells of the latest incoming file"),
        ("reference", "The same in the raw table of the model"),
        ("jump", "1 if it is higher beyond chance and tolerance"),
    ):
        samples = [([name, kind], part[key]) for name, kinds in columns.items() for kind, part in kinds.items()]
        yield f"mlops_data_{key}", text, ["feature", "kind"], samples


KNOWN: dict[str, Callable[[dict[str, Any]], Iterator[Family]]] = {"drift": _drift, "quality": _quality, "data": _data}
