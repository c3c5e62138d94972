"""A drift report as one HTML page, which needs no network, no script and no drawing library."""

from __future__ import annotations

from html import escape
from typing import Any

from mlops_project.monitoring.drift import CLASSIFIER, SCORE_PSI
from mlops_project.monitoring.render import by_feature, found, overall, verdict

STYLE = """
:root { color-scheme: light dark; --ink: #1c1d1f; --muted: #6d7075; --grid: #dcdde0; --accent: #14558f; --paper: #fefefe;
  --old: #a9adb5; --alarm: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --muted: #a2a6ad; --grid: #3a3d42; --accent: #7db8ea;
  --paper: #17181a; --old: #6a6f78; --alarm: #ff8a80; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 1rem;
  max-width: 70rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .alarm { color: var(--alarm); font-weight: 600; }
.muted { color: var(--muted); } .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figcaption { font-size: 13px; margin-bottom: .3rem; } svg { width: 100%; height: auto; }
svg text { font: 10px system-ui, sans-serif; fill: var(--muted); } .old { fill: var(--old); } .new { fill: var(--accent); }
.line { stroke: var(--grid); }
.key span { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .9em; }
.then { background: var(--old); } .now { background: var(--accent); }
"""
BAR, GAP, LABEL, WIDTH = 8, 6, 124, 336


def as_html(report: dict[str, Any]) -> str:
    """Write the page: verdict, a table of all tests per feature, and the shares per bin of both sides."""
    window, reference = report["window"], report["reference"]
    span = f", {window['from'][:16]} to {window['to'][:16]}" if window.get("from") else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.get("notes", []))
    moved = "".join(f"<li>{escape(line)}</li>" for line in found(report))
    told, test = report["classifier"], overall(report)[CLASSIFIER]
    limit = "" if test["threshold"] is None else f"; it alarms from {test['threshold']:.3f} on"
    kind = "alarm" if report["drift"] else ""
    drawn: list[str] = []
    if report["score"] is not None:
        drawn.append(_figure("Score: P(good)", report["score"]["bins"], overall(report)[SCORE_PSI], str(len(drawn))))
    drawn += [
        _figure(feature["english"] or feature["name"], feature["bins"], tests["psi"], str(number), feature["name"])
        for number, (feature, tests) in enumerate(by_feature(report), len(drawn))
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>Drift report</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Drift report</h1>
<p class="{kind}">{escape(verdict(report).capitalize())}.</p>
<p>Window: {escape(str(window["source"]))}, {window["rows"]:,} rows{escape(span)}. Reference:
{escape(str(reference["source"]))}, {reference["rows"]:,} rows.</p>
{notes}<ul>{moved}</ul>
<h2>Classifier</h2>
<p>A classifier tells window from reference with a ROC-AUC of <b{_alarm(test)}>{told["roc_auc"]:.3f}</b>
({told["low"]:.3f} to {told["high"]:.3f}, {told["confidence"]:.0%} interval) on rows that it has not seen{limit}.
0.5 is guessing. {told["rows"]["reference"]:,} and {told["rows"]["window"]:,} rows were used.</p>
<h2>Features</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Tests per feature">{_table(report)}</div>
<p class="muted">What alarms is red; thresholds hold for this window's size and all tests together. Missing: for whatever reason;
out of contract: cells that the data contract does not allow.</p>
<h2>Distributions</h2>
<p class="key"><span class="then"></span>reference<span class="now"></span>window; share of the rows per bin</p>
<div class="plots">{"".join(drawn)}</div>
</body>
</html>
"""


def _table(report: dict[str, Any]) -> str:
    rows = []
    for feature, tests in by_feature(report):
        other = tests.get("ks") or tests["chi_square"]
        cells = [
            _cell(tests["psi"]), _cell(other), _cell(tests["code"]) if "code" in tests else "<td></td>",
            _change(feature["missing"], tests["missing"]), _change(feature["out_of_contract"], tests["out_of_contract"]),
        ]  # fmt: skip
        named = f' <span class="muted">{escape(feature["english"])}</span>' if feature["english"] else ""
        first = f'<th scope="row">{escape(feature["name"])}{named}</th><td>{"KS" if "ks" in tests else "χ²"}</td>'
        rows.append(f"<tr>{first}{''.join(cells)}</tr>")
    head = ("Feature", "Test", "PSI (threshold)", "Test (threshold)", "One code (threshold)", "Missing", "Out of contract")
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(test: dict[str, Any]) -> str:
    limit = "" if test["threshold"] is None else f" ({test['threshold']:.3g})"
    return f"<td{_alarm(test)}>{test['value']:.3g}{limit}</td>"


def _change(pair: dict[str, float], test: dict[str, Any]) -> str:
    return f"<td{_alarm(test)}>{pair['reference']:.1%} → {pair['window']:.1%}</td>"


def _alarm(test: dict[str, Any]) -> str:
    return ' class="alarm"' if test["drift"] else ""


def _figure(title: str, bins: list[dict[str, Any]], psi: dict[str, Any], key: str, name: str = "") -> str:
    """Two bars per bin, the reference's above the window's."""
    longest = max(max(row["reference"], row["window"]) for row in bins)
    scale = (WIDTH - LABEL - 40) / longest
    height = len(bins) * (2 * BAR + GAP) + GAP
    parts = []
    for i, row in enumerate(bins):
        y = GAP + i * (2 * BAR + GAP)
        label = row["label"] if len(row["label"]) <= 21 else row["label"][:20] + "…"
        parts.append(f'<text x="{LABEL - 5}" y="{y + BAR + 3}" text-anchor="end">{escape(label)}</text>')
        for side, top, style in (("reference", y, "old"), ("window", y + BAR, "new")):
            width = row[side] * scale
            parts.append(f'<rect class="{style}" x="{LABEL}" y="{top}" width="{width:.1f}" height="{BAR - 1}"/>')
        end = LABEL + max(row["reference"], row["window"]) * scale + 4
        parts.append(f'<text x="{end:.1f}" y="{y + BAR + 3}">{row["window"]:.1%}</text>')
    words = "; ".join(f"{row['label']}: {row['reference']:.1%} before, {row['window']:.1%} now" for row in bins)
    shown = f" ({escape(name)})" if name and name != title else ""
    return (
        f"<figure><figcaption><b{_alarm(psi)}>{escape(title)}</b>{shown}, PSI {psi['value']:.3g}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="d{key}"><desc id="d{key}">{escape(words)}</desc>'
        f'<line class="line" x1="{LABEL}" x2="{LABEL}" y1="0" y2="{height}"/>{"".join(parts)}</svg></figure>'
    )
