"""The report of a retraining in words: message of its commit, and what the terminal shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlops_project.monitoring.judging import SHOWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

POPULATIONS = {
    "old": "old: held out since before the new rows came",
    "old_approved": "old_approved: those of them whom the champion approves, the reference for figures among approved",
    "new": "new: the held-out share of the new rows",
    "new_approved": "new_approved: those of them whom the champion approves",
}


def message(run: str, facts: Mapping[str, Any]) -> str:
    """Return the message of a challenger's commit: what it is, the report, and trailers for programs."""
    data, challenger, champion = facts["data"], facts["challenger"], facts["champion"]
    trailers = {
        "Retraining": run,
        "Decision": facts["decision"],
        "Champion": champion["commit"],
        "Data": f"md5 {data['md5']}",
        "Model": f"sha256 {challenger['model']}",
    }
    lines = [f"Retrain on {data['appended']} new applicants", "", *text(facts)]
    return "\n".join(lines) + "\n\n" + "\n".join(f"{key}: {value}" for key, value in trailers.items()) + "\n"


def text(facts: Mapping[str, Any]) -> list[str]:
    """Return the report as lines."""
    return list(_lines(facts))


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    data, report = facts["data"], facts["report"]
    yield f"Decision: {facts['decision']}" if "decision" in facts else "Decision"
    yield from (f"  {reason}" for reason in facts.get("reasons", []))
    yield f"Decided on {report['deciding']}: {report['rows']} applicants."
    yield from _population(report)
    yield ""
    yield (
        f"New rows: {data['rows']} read, {data['without_outcome']} without an outcome, {data['good']} good and {data['bad']} bad,"
        f" {data['bad_cells']} cells out of contract; {data['appended']} applicants are new."
    )
    yield ""
    header = ["population", "applicants", "bad", "metric", "champion", "challenger"]
    rows = [
        [name, str(found["rows"]), _number(found["bad_share"]), metric, _number(found["champion"][metric]),
         _number(found["challenger"][metric])]
        for name, found in report["populations"].items() if found["rows"] for metric in SHOWN
    ]  # fmt: skip
    yield from _table([header, *rows])
    yield from (f"  {sentence}" for name, sentence in POPULATIONS.items() if report["populations"][name]["rows"])
    guarded = {f"evaluate.{name}": entry for name in SHOWN if (entry := report["metrics"].get(f"evaluate.{name}"))}
    if guarded:
        yield ""
        yield "Differences on the applicants that decide, paired:"
        rows = [
            [name, _number(entry["base"]), _number(entry["head"]), f"{entry['difference']:+.4f}",
             f"{entry['low']:+.4f} to {entry['high']:+.4f}"]
            for name, entry in guarded.items()
        ]  # fmt: skip
        yield from _table([["metric", "champion", "challenger", "difference", "interval"], *rows])
    for name, moved in report.get("limits_moved", {}).items():
        yield f"The limit of {name} is moved by {moved:+.4f}, what the champion differs between approved and all old applicants."
    if (found := report.get("reject_inference")) is not None:
        yield ""
        yield from _rejects(found)
    if (found := report.get("shadow")) is not None:
        yield ""
        yield from _shadow(found)


def _shadow(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"In shadow: {found['scored']} predictions of the log scored by both, answered by the champion."
    if found["scored"]:
        yield (
            f"  {found['decisions_changed']} decisions differ; approval rate {found['approval_rate']['champion']:.4f} ->"
            f" {found['approval_rate']['challenger']:.4f}; P(good) differs by {found['mean_absolute_difference']:.4f} on average."
        )


def _population(report: Mapping[str, Any]) -> Iterator[str]:
    if report["source"] == "log":
        yield "Population of the new rows: applicants whom the service approved; how the refused would have paid nobody knows."
    elif report["new_rows_selected"]:
        yield "Population of the new rows: nearly all are approved by the champion, and taken for what its decisions left."
    else:
        yield "Population of the new rows: as in the file; some are among those whom the champion would refuse."
    if report["concept_drift"]:
        yield "Concept drift is confirmed: old applicants are reported and decide nothing."


def _rejects(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["refused"]:
        yield "Reject inference: there are no refused applicants to augment with."
        return
    yield f"Reject inference (fuzzy augmentation with {found['refused']} refused applicants; not what is promoted):"
    rows = [[metric, _number(found["without"][metric]), _number(found["with"][metric])] for metric in found["without"]]
    yield from _table([["metric", "without", "with"], *rows])


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
