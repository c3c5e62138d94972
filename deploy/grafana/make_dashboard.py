"""Write dashboard.json out of `mlops_project.monitoring.views`: run it in the activated environment after a change there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlops_project.monitoring.views import VIEWS, Panel

FILE = Path(__file__).with_name("dashboard.json")
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 7
# Grafana moves to its own what older versions wrote.
SCHEMA_VERSION = 39


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it: a row per view, three panels beside each other."""
    panels: list[dict[str, Any]] = []
    y = 0
    for view, members in VIEWS.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": view, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": y, "w": 3 * WIDTH, "h": 1}}
        )  # fmt: skip
        y += 1
        for i, panel in enumerate(members):
            place = {"x": i % 3 * WIDTH, "y": y + i // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(len(panels) + 1, panel, place))
        y += -(-len(members) // 3) * HEIGHT
    return {
        "uid": "credit-risk",
        "title": "Credit risk",
        "tags": ["credit-risk"],
        "timezone": "browser",
        "schemaVersion": SCHEMA_VERSION,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "editable": False,
        "panels": panels,
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query, "legendFormat": legend,
         **({"instant": True, "range": False} if instant else {"range": True})}
        for i, (query, legend) in enumerate(panel.queries)
    ]  # fmt: skip
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}} if instant else {"legend": {"displayMode": "list"}},
        "targets": targets,
    }


def main() -> None:
    """Write the file."""
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
