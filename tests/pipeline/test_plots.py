"""`dvc plots show` and `dvc plots diff` draw what evaluate wrote."""

import json

import pytest


@pytest.mark.integration
def test_plots(clone):
    clone.repro("--pull")
    shown = json.loads(clone.dvc("plots", "show", "--json").stdout)["data"]
    points = {name: content[0]["content"]["data"]["values"] for name, content in shown.items()}
    assert len(points) == 9
    board = points.pop("metrics/leaderboard.csv")
    assert [row["model"] for row in board] == ["scorecard"]
    assert all(len(rows) > 3 for rows in points.values())
    roc = points["ROC curve (class good)"]
    assert float(roc[0]["fpr"]) == float(roc[0]["tpr"]) == 0
    assert float(roc[-1]["fpr"]) == float(roc[-1]["tpr"]) == 1

    clone.edit("params.yaml", "  cost_bad_approved: 5.0", "  cost_bad_approved: 2.0")
    clone.repro()
    shown = json.loads(clone.dvc("plots", "diff", "HEAD", "--json").stdout)["data"]
    for content in shown.values():
        assert set(content[0]["revisions"]) == {"HEAD", "workspace"}
