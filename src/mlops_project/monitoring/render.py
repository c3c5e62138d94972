"""A drift report as text and as metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlops_project.monitoring.drift import CLASSIFIER, SCORE_KS, SCORE_PSI

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WORDS = {
    "psi": "PSI", "ks": "Kolmogorov-Smirnov", "chi_square": "chi-square", "code": "one code's share, in standard errors",
    "missing": "share missing, difference", "out_of_contract": "share out of contract, rise",
    SCORE_PSI: "PSI of the score", SCORE_KS: "Kolmogorov-Smirnov of the score", CLASSIFIER: "ROC-AUC of the classifier",
}  # fmt: skip


def by_feature(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Each feature with its tests by name."""
    for feature in report["features"]:
        yield feature, {test["check"]: test for test in report["tests"] if test["feature"] == feature["name"]}


def overall(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tests that are of no single feature, by name."""
    return {test["check"]: test for test in report["tests"] if test["feature"] is None}


def found(report: dict[str, Any]) -> list[str]:
    """What moved, the surest first, one line each."""
    moved = sorted((test for test in report["tests"] if test["drift"]), key=lambda test: test["p_value"])
    return [
        f"{'' if test['feature'] is None else test['feature'] + ': '}{WORDS[test['check']]} {test['value']:.3g},"
        f" threshold {test['threshold']:.3g} (p {test['p_value']:.2g})"
        for test in moved
    ]


def verdict(report: dict[str, Any]) -> str:
    """Say in one sentence what was found."""
    moved = sum(test["drift"] for test in report["tests"])
    rate = f"so do {100 * report['false_alarm_rate']:g} % of windows without drift"
    return f"drift: {moved} of {len(report['tests'])} tests alarm ({rate})" if moved else "no drift"


def as_text(report: dict[str, Any]) -> str:
    """Write the report as a table; an asterisk marks what is beyond its threshold."""
    lines = [f"{report['window']['source']}: {report['window']['rows']} rows, reference {report['reference']['rows']} rows"]
    lines += [f"note: {note}" for note in report.get("notes", [])]
    lines.append(f"{'feature':<24}{'PSI':>9}{'limit':>8}{'KS or χ²':>11}{'limit':>8}{'missing':>17}{'out of contract':>19}")
    for feature, tests in by_feature(report):
        other = tests.get("ks") or tests["chi_square"]
        # The mark of a nominal feature stands for both tests of its codes.
        marked = other | {"drift": other["drift"] or tests.get("code", other)["drift"]}
        missing, outside = (_shares(feature[kind], tests[kind]) for kind in ("missing", "out_of_contract"))
        lines.append(
            f"{feature['name'][:23]:<24}{_value(tests['psi']):>9}{_limit(tests['psi']):>8}{_value(marked):>11}{_limit(other):>8}"
            f"{missing:>17}{outside:>19}"
        )
    rest = overall(report)
    if SCORE_PSI in rest:
        psi, ks = rest[SCORE_PSI], rest[SCORE_KS]
        lines.append(f"{'(score)':<24}{_value(psi):>9}{_limit(psi):>8}{_value(ks):>11}{_limit(ks):>8}")
    told, test = report["classifier"], rest[CLASSIFIER]
    lines.append(
        f"classifier: ROC-AUC {told['roc_auc']:.3f}{'*' * test['drift']} ({told['low']:.3f} to {told['high']:.3f}),"
        f" limit {_limit(test) or 'none'}, {told['rows']['reference']} + {told['rows']['window']} rows"
    )
    return "\n".join([*lines, *found(report), verdict(report)]) + "\n"


def _value(test: dict[str, Any]) -> str:
    return f"{test['value']:.3g}{'*' if test['drift'] else ' '}"


def _limit(test: dict[str, Any]) -> str:
    return "" if test["threshold"] is None else f"{test['threshold']:.3g}"


def _shares(pair: dict[str, float], test: dict[str, Any]) -> str:
    return f"{pair['reference']:.1%} → {pair['window']:.1%}{'*' if test['drift'] else ' '}"


def as_prometheus(report: dict[str, Any], now: float | None = None) -> str:
    """Write the report in Prometheus's text format, for node_exporter's textfile collector or a Pushgateway.

    A statistic of no single feature has the label ``feature=""``.
    """
    tests = [({"feature": test["feature"] or "", "check": test["check"]}, test) for test in report["tests"]]
    shares = [
        ({"feature": feature["name"], "kind": kind, "side": side}, feature[kind][side])
        for feature in report["features"]
        for kind in ("missing", "out_of_contract")
        for side in ("reference", "window")
    ]
    told = report["classifier"]
    families: list[tuple[str, str, Iterable[tuple[dict[str, str], float | None]]]] = [
        ("detected", "1 if any test of the last run alarmed.", [({}, float(report["drift"]))]),
        ("statistic", "Value of a test.", [(labels, test["value"]) for labels, test in tests]),
        ("threshold", "Value from which on a test alarms.", [(labels, test["threshold"]) for labels, test in tests]),
        (
            "p_value",
            "p-value of a test, adjusted for the number of tests.",
            [(labels, test["p_value"]) for labels, test in tests],
        ),
        ("alarm", "1 if a test alarmed.", [(labels, float(test["drift"])) for labels, test in tests]),
        ("cell_share", "Share of the cells that are missing or out of contract.", shares),
        ("classifier_roc_auc_low", "Lower end of the interval of the classifier's ROC-AUC.", [({}, told["low"])]),
        ("classifier_roc_auc_high", "Upper end of the interval of the classifier's ROC-AUC.", [({}, told["high"])]),
        ("rows", "Rows compared.", [({"side": side}, report[side]["rows"]) for side in ("reference", "window")]),
        ("last_run_timestamp_seconds", "When the last run ended.", [({}, time.time() if now is None else now)]),
    ]
    lines = []
    for name, help_text, samples in families:
        lines += [f"# HELP mlops_drift_{name} {help_text}", f"# TYPE mlops_drift_{name} gauge"]
        lines += [f"mlops_drift_{name}{_labels(labels)} {value!r}" for labels, value in samples if value is not None]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""
