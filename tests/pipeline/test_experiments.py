"""`dvc exp run` in the workspace, in a temporary copy and from the queue; each runs the experiment's own code."""

import json

import pytest


@pytest.fixture
def quick(clone):
    """The clone with fewer folds, committed and reproduced, and no experiments."""
    clone.git("reset", "-q", "--hard")
    text = (clone.path / "params.yaml").read_text(encoding="utf-8")
    if "n_repeats: 3" in text:
        clone.edit("params.yaml", "n_repeats: 3", "n_repeats: 1")
        clone.edit("params.yaml", "n_splits: 5", "n_splits: 2")
        clone.repro()
        clone.commit("fewer folds")
    return clone


def experiments(clone) -> dict[str, dict]:
    """Name → params and metrics of every finished experiment."""
    revisions = json.loads(clone.dvc("exp", "show", "--json").stdout)
    found = {}
    for revision in revisions:
        for experiment in revision.get("experiments") or []:
            data = experiment["revs"][0]["data"]
            found[experiment["name"]] = {
                "params": data["params"]["params.yaml"]["data"],
                "metrics": {path: content["data"] for path, content in data["metrics"].items()},
            }
    return found


def test_in_the_workspace(quick):
    quick.dvc("exp", "run", "--name", "boosted", "--set-param", "train.model=xgboost")
    params = quick.dvc("params", "diff").stdout
    assert "train.model" in params
    assert "xgboost" in params
    assert "roc_auc.mean" in quick.dvc("metrics", "diff").stdout
    assert experiments(quick)["boosted"]["params"]["train"]["model"] == "xgboost"
    quick.git("checkout", "-q", "--", ".")
    quick.dvc("checkout", "--quiet")


@pytest.mark.parametrize("mode", ["--temp", pytest.param("--queue", marks=pytest.mark.integration)])
def test_elsewhere_with_changed_code(quick, mode):
    # The change stands in the workspace only while the experiment starts: what counts is the experiment's own copy.
    code = "src/mlops_project/modeling/evaluation.py"
    quick.edit(code, '"rows": len(sample.y)', '"marker": 1, "rows": len(sample.y)')
    name = f"marked{mode}"
    quick.dvc(
        "exp",
        "run",
        mode,
        "--name",
        name,
        "--set-param",
        "train.model=decision_tree",
        "--set-param",
        "models.decision_tree.max_depth=2",
    )
    quick.git("checkout", "-q", "--", code)
    if mode == "--queue":
        quick.dvc("queue", "start")
        # Waits for the queued experiment to end; no worker is left behind.
        quick.dvc("queue", "logs", name, "--follow")
    found = experiments(quick)[name]
    assert found["metrics"]["metrics/evaluate.json"]["marker"] == 1, "the experiment ran the code of the main workspace"
    assert found["params"]["train"]["model"] == "decision_tree"
    assert quick.git("status", "--porcelain") == ""
