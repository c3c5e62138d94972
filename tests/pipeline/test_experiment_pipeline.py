"""`make experiments`: real DVC experiments, run elsewhere and fetched back; killed, they leave no trace."""

import hashlib
import json
import sys
import time

import pytest

EXPERIMENTS = """\
Tree + SMOTE: {train.model: decision_tree, train.imbalance: SMOTE}
Too many folds: {train.n_splits: 1000}
Other seed: {train.model: decision_tree, train.seed: 7}
"""
SCRIPT = (sys.executable, "scripts/experiment_pipeline.py")


@pytest.fixture(scope="module")
def quick(clone, tmp_path_factory):
    """The clone with the quickest params, committed, with experiments of its own."""
    for old, new in (
        ("model: scorecard", "model: decision_tree"),
        ("n_repeats: 3", "n_repeats: 1"),
        ("n_splits: 5", "n_splits: 3"),
        ("bootstrap_samples: 2000", "bootstrap_samples: 100"),
    ):
        clone.edit("params.yaml", old, new)
    (clone.path / "experiments.yaml").write_text(EXPERIMENTS, encoding="utf-8")
    clone.repro()
    clone.commit("quick")
    return clone


def state(clone) -> dict[str, str]:
    """All that a kill must leave as it was; refs of finished experiments aside."""
    files = {name: (clone.path / name).read_bytes() for name in ("params.yaml", "dvc.lock", ".git/HEAD", ".git/index")}
    return {
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "status": clone.run("git", "status", "--porcelain", env={"GIT_OPTIONAL_LOCKS": "0"}).stdout,
        "refs": [line for line in clone.git("for-each-ref").splitlines() if "/exps/" not in line],
        "stash": clone.git("stash", "list"),
    }


@pytest.mark.integration
def test_the_others_go_on_when_one_fails_and_all_is_reported(quick):
    # An uncommitted change goes along.
    quick.edit("params.yaml", "reasons: 3", "reasons: 0")
    before = state(quick)
    done = quick.run(*SCRIPT, "--jobs", "2", check=False)
    assert done.returncode == 1, done.stderr
    assert state(quick) == before
    assert "uncommitted changes of params.yaml" in done.stderr
    assert "error: failed: Too many folds" in done.stderr
    assert "baseline" in done.stdout
    assert "unpaired: other folds" in done.stdout
    assert "±" in done.stdout

    (folder,) = (quick.path / "experiments").glob("run_*")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"Tree + SMOTE", "Too many folds", "Other seed"}
    assert results["Tree + SMOTE"]["config"] == {"train.model": "decision_tree", "train.imbalance": "SMOTE"}
    assert 0.5 < results["Tree + SMOTE"]["metrics"]["evaluate"]["roc_auc"] < 0.85
    assert "expected at least train.n_splits = 1000" in results["Too many folds"]["error"]
    assert "metrics" not in results["Too many folds"]

    shown = quick.dvc("exp", "show", "--json").stdout
    assert "tree-smote" in shown
    assert "other-seed" in shown
    assert "too-many-folds" not in shown

    quick.git("checkout", "-q", "--", "params.yaml")
    quick.dvc("exp", "apply", "tree-smote")
    params = (quick.path / "params.yaml").read_text(encoding="utf-8")
    assert "imbalance: SMOTE" in params
    assert "reasons: 0" in params
    assert json.loads((quick.path / "metrics/evaluate.json").read_text()) == results["Tree + SMOTE"]["metrics"]["evaluate"]
    # Its outputs are in the cache, so that nothing has to run.
    assert (quick.path / "models/best_model.joblib").exists()
    assert set(quick.repro().values()) == {"skipped"}
    quick.git("checkout", "-q", "--", ".")
    quick.dvc("checkout", "--quiet")


@pytest.mark.integration
@pytest.mark.parametrize("seconds", [0.7, 2.5, 5.0])
def test_a_kill_leaves_everything_as_it_was(quick, seconds, tmp_path):
    before = state(quick)
    # A temporary folder of its own, so that what is left behind can be seen.
    temporary = {"TMPDIR": str(tmp_path)}
    with quick.start(*SCRIPT, env=temporary) as process:
        time.sleep(seconds)
        process.kill()
    assert state(quick) == before
    # The next run removes what the killed one left, once DVC has ended there, too.
    next_run = "from experiment_pipeline import temporary_folder\nwith temporary_folder(): pass"
    deadline = time.monotonic() + 60
    while list(tmp_path.glob("mlops-experiments-*")) and time.monotonic() < deadline:
        quick.run(sys.executable, "-c", next_run, env=temporary | {"PYTHONPATH": "scripts"})
        time.sleep(0.2)
    assert not list(tmp_path.glob("mlops-experiments-*"))
    assert state(quick) == before


def test_nothing_runs_when_the_request_is_wrong(quick):
    before = state(quick)
    done = quick.run(*SCRIPT, "--only", "no such", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no experiment 'no such'; expected some of: Tree + SMOTE" in done.stderr
    listed = quick.run(*SCRIPT, "--list").stdout
    assert 'Tree + SMOTE  (tree-smote)\n    train.model: "decision_tree"\n' in listed
    assert state(quick) == before
