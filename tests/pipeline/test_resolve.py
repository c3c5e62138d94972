"""`make resolve`: two branches that both changed params and ran the pipeline are merged into a right dvc.lock."""

import json
import sys

import pytest

from figures import BLOCK

SCRIPT = (sys.executable, "scripts/resolve.py")


@pytest.fixture(scope="module")
def merging(clone):
    """Two branches with params, lock, metrics and README of their own; ``main`` stands on the first."""
    for old, new in (
        ("model: scorecard", "model: decision_tree"),
        ("n_repeats: 3", "n_repeats: 1"),
        ("n_splits: 5", "n_splits: 2"),
        ("bootstrap_samples: 2000", "bootstrap_samples: 100"),
    ):
        clone.edit("params.yaml", old, new)
    clone.repro()
    clone.commit("quick")
    for branch, old, new in (
        ("deep", "max_depth: 5", "max_depth: 3"),
        ("costly", "cost_bad_approved: 5.0", "cost_bad_approved: 9.0"),
    ):
        clone.git("checkout", "-q", "-b", branch, "main")
        clone.edit("params.yaml", old, new)
        clone.repro()
        clone.run(sys.executable, "scripts/figures.py")
        clone.commit(branch)
    clone.git("checkout", "-q", "deep")
    return clone


@pytest.mark.integration
def test_a_merge_of_two_runs_ends_with_a_lock_that_fits(merging):
    done = merging.run("git", "merge", "costly", check=False)
    assert done.returncode == 1
    conflicts = merging.git("diff", "--name-only", "--diff-filter=U").split()
    assert "dvc.lock" in conflicts
    assert "README.md" in conflicts
    assert "params.yaml" not in conflicts
    # Kept whole: DVC can read it while the conflict lasts.
    assert "<<<<<<<" not in (merging.path / "dvc.lock").read_text(encoding="utf-8")

    merging.run(*SCRIPT)
    assert merging.git("diff", "--name-only", "--diff-filter=U") == ""
    merging.git("commit", "-q", "--no-edit")
    assert merging.git("status", "--porcelain") == ""
    assert json.loads(merging.dvc("status", "--json").stdout) == {}
    params = (merging.path / "params.yaml").read_text(encoding="utf-8")
    assert "max_depth: 3" in params
    assert "cost_bad_approved: 9.0" in params
    threshold = json.loads((merging.path / "metrics/evaluate.json").read_text(encoding="utf-8"))["threshold"]
    assert threshold == pytest.approx(0.1)
    readme = (merging.path / "README.md").read_text(encoding="utf-8")
    assert "P(default) = 0.100" in BLOCK.search(readme)[0]
    assert "<<<<<<<" not in readme


def test_conflicts_of_people_come_first(merging):
    merging.git("checkout", "-q", "-b", "deeper", "main")
    merging.edit("params.yaml", "max_depth: 5", "max_depth: 4")
    merging.commit("deeper")
    assert merging.run("git", "merge", "deep", check=False).returncode == 1
    before = merging.git("ls-files", "--unmerged")
    done = merging.run(*SCRIPT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: params.yaml: in conflict; edit, `git add` them")
    assert merging.git("ls-files", "--unmerged") == before
    merging.git("merge", "--abort")
