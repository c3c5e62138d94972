"""The four views as one HTML page: what Prometheus knows, drawn without a script, to be looked at without a network."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from html import escape
from typing import Any, NamedTuple

from mlops_project.errors import PipelineError
from mlops_project.monitoring.page import STYLE
from mlops_project.monitoring.views import VIEWS, Panel

# Points of a curve, curves with a colour and a line in the key (the others are grey), and bars, at most.
POINTS, COLOURED, BARS = 120, 5, 24
WIDTH, HEIGHT, LEFT, BOTTOM = 360, 150, 46, 18
PATIENCE = 30
MORE_STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.6rem 1.2rem; }
.panels h3 { font-size: 14px; margin: 0 0 .3rem; } .panels p { margin: .2rem 0; font-size: 13px; }
.figures { font-size: 1.3rem; margin: .2rem 0; } .figures small { font-size: 13px; color: var(--muted); overflow-wrap: anywhere; }
polyline { fill: none; stroke: var(--old); stroke-width: 1; }
.key { list-style: none; padding: 0; margin: .2rem 0; font-size: 12px; }
.key span { margin-left: 0; } .key li { overflow-wrap: anywhere; }
.c0 { stroke: #2f7ed8; background: #2f7ed8; } .c1 { stroke: #d9822b; background: #d9822b; }
.c2 { stroke: #2e9d5b; background: #2e9d5b; } .c3 { stroke: #b04fbf; background: #b04fbf; }
.c4 { stroke: #c23b3b; background: #c23b3b; } polyline[class] { stroke-width: 1.8; }
nav a { margin-right: 1rem; color: var(--accent); }
"""


class Curve(NamedTuple):
    """A series: its name in the key, and (seconds since 1970, value) pairs, at least one."""

    name: str
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


class Prometheus:
    """A server's answers to queries.

    Parameters
    ----------
    url : str
        Such as ``http://localhost:9090``.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise PipelineError(f"--prometheus: found {url!r}, expected http://host:port")
        self._url = url.rstrip("/")

    def curves(self, panel: Panel, end: float, hours: float) -> list[Curve]:
        """Return the series of a panel: over the time before ``end``, or only then if it shows one value.

        Raises
        ------
        PipelineError
            If the server cannot be reached or does not understand.
        """
        out = []
        step = max(1.0, hours * 3600 / POINTS)
        for query, legend in panel.queries:
            if panel.kind == "timeseries":
                given = {"query": query, "start": end - hours * 3600, "end": end, "step": step}
                found = self._ask("query_range", given)
            else:
                found = self._ask("query", {"query": query, "time": end})
            for series in found:
                name = legend
                for label in re.findall(r"{{(\w+)}}", legend):
                    name = name.replace(f"{{{{{label}}}}}", series["metric"].get(label, ""))
                pairs = [(when, float(value)) for when, value in series.get("values") or [series["value"]]]
                points = [(when, value) for when, value in pairs if math.isfinite(value)]
                if points:
                    out.append(Curve(name.strip() or "(all)", points))
        return out

    def _ask(self, kind: str, given: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            with urllib.request.urlopen(  # noqa: S310 - http, as was checked
                f"{self._url}/api/v1/{kind}?{urllib.parse.urlencode(given)}", timeout=PATIENCE
            ) as answer:
                return json.load(answer)["data"]["result"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PipelineError(f"{self._url}: Prometheus does not answer ({error})") from None


def as_html(source: Prometheus, end: float, hours: float) -> str:
    """Write the page of the time before ``end`` (seconds since 1970). Raises PipelineError, see `Prometheus.curves`."""
    views = []
    for view, panels in VIEWS.items():
        drawn = "".join(_panel(panel, source.curves(panel, end, hours), end, hours) for panel in panels)
        views.append(f'<section id="{view.lower()}"><h2>{view}</h2><div class="panels">{drawn}</div></section>')
    links = "".join(f'<a href="#{view.lower()}">{view}</a>' for view in VIEWS)
    now = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>Credit risk: service, predictions, drift, quality</title>
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
<h1>Credit risk</h1>
<p>{now}, and {hours:g} hours before. The same views as the dashboard's.</p>
<nav>{links}</nav>
{"".join(views)}
</body>
</html>
"""


def shown(value: float, unit: str) -> str:
    """Write a value by Grafana's unit."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "reqps":
        return f"{value:.3g}/s"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.3g}"


def _panel(panel: Panel, curves: list[Curve], end: float, hours: float) -> str:
    text = f'<p class="muted">{escape(panel.text)}</p>' if panel.text else ""
    if not curves:
        body = '<p class="muted">no data</p>'
    elif panel.kind == "stat":
        lines = (f"<p class='figures'>{shown(one.last, panel.unit)} <small>{escape(one.name)}</small></p>" for one in curves)
        body = "".join(lines)
    elif panel.kind == "bargauge":
        body = _bars(panel, curves)
    else:
        body = _lines(panel, curves, end, hours)
    return f"<figure><h3>{escape(panel.title)}</h3>{text}{body}</figure>"


def _bars(panel: Panel, curves: list[Curve]) -> str:
    def place(one: Curve) -> tuple[float, str]:
        try:
            return float(one.name), ""
        except ValueError:
            return 0.0, one.name

    found = sorted(curves, key=place)[:BARS]
    top = max(*(one.last for one in found), 1e-12)
    rows = []
    for i, one in enumerate(found):
        y, length = 14 * i, 150 * max(one.last, 0.0) / top
        rows.append(
            f'<text x="176" y="{y + 10}" text-anchor="end">{escape(one.name[:32])}</text>'
            f'<rect class="new" x="182" y="{y + 2}" width="{length:.1f}" height="9"/>'
            f'<text x="{186 + length:.1f}" y="{y + 10}">{shown(one.last, panel.unit)}</text>'
        )
    return f'<svg viewBox="0 0 400 {14 * len(found) + 2}" role="img" aria-label="{escape(panel.title)}">{"".join(rows)}</svg>'


def _lines(panel: Panel, curves: list[Curve], end: float, hours: float) -> str:
    found = sorted(curves, key=lambda one: -abs(one.last)) if len(curves) > COLOURED else curves
    values = [value for one in found for _, value in one.points]
    low, high = min(0.0, *values), max(0.0, *values)
    high = high if high > low else low + 1.0

    def x(when: float) -> float:
        return LEFT + (WIDTH - LEFT) * (1 - (end - when) / (3600 * hours))

    def y(value: float) -> float:
        return 4 + (HEIGHT - BOTTOM - 4) * (high - value) / (high - low)

    parts = []
    for value in (low, (low + high) / 2, high):
        at = f"{y(value):.1f}"
        parts.append(f'<line class="line" x1="{LEFT}" x2="{WIDTH}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y(value) + 4:.1f}" text-anchor="end">{shown(value, panel.unit)}</text>')
    for when, anchor in ((end - 3600 * hours, "start"), (end, "end")):
        text = datetime.fromtimestamp(when, UTC).strftime("%d %b %H:%M")
        parts.append(f'<text x="{x(when):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{text}</text>')
    for i, one in reversed([*enumerate(found)]):  # the first on top
        # A single point would not be seen.
        line = one.points if len(one.points) > 1 else [(one.points[0][0] - 60, one.last), *one.points]
        points = " ".join(f"{max(x(when), LEFT):.1f},{y(value):.1f}" for when, value in line)
        parts.append(f'<polyline{f" class={chr(34)}c{i}{chr(34)}" if i < COLOURED else ""} points="{points}"/>')
    keys = "".join(
        f'<li><span class="c{i}"></span>{escape(one.name)}: {shown(one.last, panel.unit)}</li>'
        for i, one in enumerate(found[:COLOURED])
    )
    more = f"<li>and {len(found) - COLOURED} more, in grey</li>" if len(found) > COLOURED else ""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)}"'
    return f'<svg {box}>{"".join(parts)}</svg><ul class="key">{keys}{more}</ul>'
