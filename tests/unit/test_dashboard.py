"""The dashboard: its JSON is what the script makes, and what Grafana reads."""

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from mlops_project.monitoring.views import VIEWS

FOLDER = Path(__file__).parents[2] / "deploy/grafana"
RULES = FOLDER.parent / "prometheus/rules.yaml"
# https://grafana.com/docs/grafana/latest/panels-visualizations/visualizations/ and its list of units.
KINDS, UNITS = {"timeseries", "stat", "bargauge"}, {"short", "s", "reqps", "percentunit"}


@pytest.fixture(scope="module")
def dashboard() -> dict:
    return json.loads((FOLDER / "dashboard.json").read_bytes())


def test_the_file_is_what_the_script_makes(dashboard):
    made = runpy.run_path(str(FOLDER / "make_dashboard.py"))["dashboard"]()
    assert dashboard == made, "python deploy/grafana/make_dashboard.py writes it anew"


def test_there_are_four_views_of_panels_that_do_not_overlap(dashboard):
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == [*VIEWS] == ["Service", "Predictions", "Drift", "Quality"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len({*ids}) == len(ids)


def test_every_panel_is_complete_and_asks_the_provisioned_source(dashboard):
    sources = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    source = {"type": sources[0]["type"], "uid": sources[0]["uid"]}
    assert {"uid", "title", "schemaVersion", "time", "panels", "refresh"} <= {*dashboard}
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            assert panel["panels"] == []
            assert not panel["collapsed"]
            continue
        assert panel["type"] in KINDS
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"] == source
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + i) for i in range(len(letters))]
        assert all(target["expr"] and target["legendFormat"] and target["datasource"] == source for target in panel["targets"])


def test_recorded_series_that_it_asks_for_are_recorded(dashboard):
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"mlops:[\w:]+", target["expr"])
    }
    assert asked
    assert asked <= recorded


def test_a_provider_reads_the_folder_where_it_is_mounted():
    found = yaml.safe_load((FOLDER / "provisioning/dashboards/files.yaml").read_text(encoding="utf-8"))
    folder = found["providers"][0]["options"]["path"]
    compose = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text(encoding="utf-8"))["services"]["grafana"]
    assert f"./grafana/dashboard.json:{folder}/dashboard.json:ro" in compose["volumes"]
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose["volumes"]
