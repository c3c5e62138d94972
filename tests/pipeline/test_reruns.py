"""Only what changed reruns. One clone; each step starts from the state that the step before left committed."""

import pandas as pd

from build_raw_data import make_dirty, write_csv

ALL_SKIPPED = dict.fromkeys(("prepare", "featurize", "train", "evaluate"), "skipped")


def test_only_what_changed_reruns(clone):
    clone.repro("--pull")
    assert clone.git("status", "--porcelain") == "", "the committed lock and metrics do not match the code"

    assert clone.repro() == ALL_SKIPPED, "nothing changed"

    clone.edit("params.yaml", "    max_depth: 5", "    max_depth: 4")
    assert clone.repro() == ALL_SKIPPED, "a hyper-parameter of a model that is not selected"

    before = clone.git("rev-parse", "HEAD:metrics/evaluate.json")
    clone.edit("params.yaml", "    C: 0.05\n", "    C: 0.02\n")
    assert clone.repro() == {**ALL_SKIPPED, "train": "ran", "evaluate": "ran"}, "a hyper-parameter of the selected model"
    assert clone.git("hash-object", "metrics/evaluate.json") != before

    moved = clone.git("hash-object", "metrics/train.json")

    clone.edit("params.yaml", "    C: 0.02\n", "    C: 0.05\n")
    clone.repro()
    assert clone.git("hash-object", "metrics/evaluate.json") == before
    clone.edit("params.yaml", "    C: 0.05\n", "    C: 0.02\n")
    assert clone.repro() == {**ALL_SKIPPED, "train": "restored", "evaluate": "ran"}, "earlier params come back from the run cache"
    assert clone.git("hash-object", "metrics/train.json") == moved

    clone.edit("params.yaml", "  cost_bad_approved: 5.0", "  cost_bad_approved: 4.0")
    assert clone.repro() == {**ALL_SKIPPED, "evaluate": "ran"}, "evaluate.* concerns evaluate only"

    with (clone.path / "src/mlops_project/modeling/sampling.py").open("a") as module:
        module.write("# a comment\n")
    # train imports the module; its outputs come out the same, so evaluate has nothing to do.
    assert clone.repro() == {**ALL_SKIPPED, "train": "ran"}, "a comment in a module that one stage imports"

    clone.edit("params.yaml", "  model: scorecard", "  model: blend")
    clone.edit("params.yaml", "  n_splits: 5", "  n_splits: 2")
    clone.edit("params.yaml", "  n_repeats: 3", "  n_repeats: 1")
    trained = dict.fromkeys(("prepare", "featurize"), "skipped") | {"train": "ran"}
    assert clone.repro("train") == trained
    text = (clone.path / "params.yaml").read_text(encoding="utf-8")
    ours, members = text.split("\n  blend:\n", 1)
    (clone.path / "params.yaml").write_text(ours.replace("gamma: auto", "gamma: 0.02") + "\n  blend:\n" + members)
    assert clone.repro("train") == trained | {"train": "skipped"}, "a blend does not read models.svm"
    members = members.replace("gamma: auto", "gamma: 0.02", 1)
    (clone.path / "params.yaml").write_text(ours + "\n  blend:\n" + members)
    assert clone.repro("train") == trained, "a setting of a member"
    clone.edit("params.yaml", "  model: blend", "  model: scorecard")

    clone.edit("params.yaml", "  scale: standard", "  scale: robust")
    assert clone.repro() == {"prepare": "skipped", "featurize": "ran", "train": "ran", "evaluate": "ran"}

    clone.dvc("pull", "--quiet", "data/raw/german_credit_original.csv.dvc")
    clean = pd.read_csv(clone.path / "data/raw/german_credit_original.csv")
    write_csv(make_dirty(clean, seed=7), clone.path / "data/raw/german_credit_modified.csv")
    assert clone.repro() == dict.fromkeys(ALL_SKIPPED, "ran"), "a new raw file"
