"""mlops-compare on real revisions: verdicts, and what the gate refuses."""

import json
import shutil
import sys

import pytest
import yaml

COMMAND = "import sys; from mlops_project.cli import compare; sys.exit(compare(sys.argv[1:]))"


@pytest.fixture(scope="module")
def base(clone):
    """The clone with quick settings, reproduced and committed as tag base; what pushes go to is its embedded remote."""
    clone.edit("params.yaml", "model: scorecard", "model: logistic_regression")
    clone.edit("params.yaml", "n_splits: 5", "n_splits: 3")
    clone.edit("params.yaml", "n_repeats: 3", "n_repeats: 1")
    clone.repro()
    clone.commit("quick")
    clone.git("tag", "base")
    return clone


@pytest.fixture
def at_base(base):
    yield base
    base.git("reset", "-q", "--hard", "base")
    base.git("clean", "-qfd")
    base.dvc("checkout", "--quiet", "--force")


def compare(clone, *arguments: str, code: int = 0) -> str:
    done = clone.run(sys.executable, "-c", COMMAND, *arguments, check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def report(clone, *arguments: str, code: int = 0) -> dict:
    compare(clone, *arguments, "--json", "../report.json", code=code)
    return json.loads((clone.path.parent / "report.json").read_text(encoding="utf-8"))


def test_a_commit_with_itself_is_no_change_and_passes_the_gate(base):
    text = compare(base, "base", "HEAD", "--gate", "--markdown", "../r/a.md", "--images", "../r/images", "--json", "../r/a.json")
    assert "no change" in text
    assert "Gate: passed" in text
    markdown = (base.path.parent / "r/a.md").read_text(encoding="utf-8")
    assert "no change" in markdown
    for name in ("roc", "calibration"):
        assert f"](images/{name}.svg)" in markdown
        assert (base.path.parent / f"r/images/{name}.svg").read_text(encoding="utf-8").startswith("<svg")
    found = json.loads((base.path.parent / "r/a.json").read_text(encoding="utf-8"))
    assert found["gate"]["passed"]
    assert not found["code"]
    assert all(entry["base"] == entry["head"] for entry in found["metrics"].values())
    assert base.git("status", "--porcelain") == "", "the comparison must not touch the workspace"


@pytest.mark.integration
def test_another_seed_is_within_noise(at_base):
    at_base.edit("params.yaml", "model: logistic_regression", "model: xgboost")
    at_base.dvc("repro", "--quiet")
    at_base.commit("trees")
    at_base.git("tag", "-f", "trees")
    at_base.edit("params.yaml", "  seed: 42\n  # The scale", "  seed: 7\n  # The scale")
    at_base.dvc("repro", "--quiet")
    found = report(at_base, "trees")
    assert found["verdict"]["verdict"] == "within noise"
    assert [entry["key"] for entry in found["params"]] == ["train.seed"]
    assert found["stages"] == ["train", "evaluate"]
    assert found["metrics"]["evaluate.roc_auc"]["low"] < found["metrics"]["evaluate.roc_auc"]["high"]


def test_noise_in_the_training_outcomes_is_worse_though_its_own_figures_do_not_know(at_base):
    # Outcomes of three in ten development rows flipped, as the train stage reads them; its own out-of-fold scores are
    # taken against the flipped ones, the verdict's against the base's.
    at_base.edit(
        "src/train.py",
        "    preprocessor = load_pre",
        "    y = y.where(y.index.map(lambda i: int(i[:6], 16) % 10 > 2), 1 - y)\n    preprocessor = load_pre",
    )
    at_base.dvc("repro", "--quiet")
    found = report(at_base, "base")
    assert found["verdict"]["verdict"] == "worse"
    assert found["verdict"]["paired"]
    assert found["code"] == [{"file": "src/train.py", "state": "changed", "stages": ["train"]}]


@pytest.mark.integration
def test_other_held_out_rows_are_compared_unpaired(at_base):
    at_base.edit("params.yaml", "split_seed: 42", "split_seed: 1")
    at_base.dvc("repro", "--quiet")
    at_base.commit("another split")
    text = compare(at_base, "base", "HEAD")
    assert "unpaired" in text
    assert "within noise" in text


@pytest.mark.integration
def test_an_experiment_is_a_revision_and_what_is_nowhere_is_said(at_base):
    at_base.dvc("exp", "run", "--quiet", "--name", "sharp", "--set-param", "models.logistic_regression.C=5.0")
    at_base.git("checkout", "-q", "--", ".")
    assert "models.logistic_regression.C" in compare(at_base, "base", "sharp")
    # Neither the cache nor the embedded remote, to which nobody pushed, has the predictions.
    cache, aside = at_base.path / ".dvc/cache", at_base.path.parent / "aside"
    at_base.dvc("remote", "remove", "--quiet", "--local", "workspace", check=False)
    cache.rename(aside)
    try:
        assert "neither in the DVC cache nor in a remote (embedded: " in compare(at_base, "base", "sharp", code=2)
        assert "no change" in compare(at_base, "base", "base", "--reproduce")
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        aside.rename(cache)


def test_what_is_no_revision_is_said(base):
    assert "neither a Git revision nor a DVC experiment" in compare(base, "nonsense", code=2)


class TestTheGateRefuses:
    def test_metrics_edited_by_hand(self, at_base):
        edit_metric(at_base)
        at_base.commit("a better number")
        assert "metrics/evaluate.json is not what dvc.lock says of evaluate" in refused(at_base)

    @pytest.mark.integration
    def test_metrics_and_lock_edited_alike(self, at_base):
        edit_metric(at_base)
        at_base.dvc("commit", "--force", "--quiet", "evaluate")
        at_base.commit("a better number, and a receipt for it")
        assert at_base.dvc("status").stdout.startswith("Data and pipelines are up to date")
        text = refused(at_base)
        assert "metrics/evaluate.json: roc_auc is 0.81, running the pipeline gives 0." in text

    def test_a_receipt_that_contradicts_itself(self, at_base):
        lock = yaml.safe_load((at_base.path / "dvc.lock").read_text(encoding="utf-8"))
        made = next(out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"].startswith("models/"))
        at_base.edit("dvc.lock", made, "0" * 32)
        at_base.commit("another model")
        assert "dvc.lock was edited" in refused(at_base)

    def test_a_receipt_older_than_code_and_params(self, at_base):
        at_base.edit("src/mlops_project/modeling/metrics.py", "HALF = 0.5", "HALF = 0.50")
        at_base.edit("params.yaml", "cost_bad_approved: 5", "cost_bad_approved: 6")
        at_base.commit("not reproduced")
        text = refused(at_base)
        assert "dvc.lock is out of date: src/mlops_project/modeling/metrics.py has changed since train ran" in text
        assert "params.yaml (evaluate" in text

    def test_raw_data_that_only_its_author_has(self, at_base):
        raw = at_base.path / "data/raw/german_credit_modified.csv"
        lines = raw.read_text(encoding="utf-8").splitlines(keepends=True)
        raw.unlink()  # it may be a link into the cache
        raw.write_text("".join(lines[:-3]), encoding="utf-8")
        at_base.dvc("add", "--quiet", "data/raw/german_credit_modified.csv")
        at_base.dvc("repro", "--quiet")
        at_base.commit("new data, not pushed")
        assert "not in the remote (embedded), so nobody else can run this" in refused(at_base)


def edit_metric(clone) -> None:
    path = clone.path / "metrics/evaluate.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"roc_auc": 0.81}, indent=2) + "\n", encoding="utf-8")


def refused(clone) -> str:
    text = compare(clone, "base", "HEAD", "--gate", code=1)
    assert "Gate: refused" in text
    return text
