"""What experiments.yaml may say, how it reaches DVC, and what the comparison with the baseline says."""

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.errors import ParamsError, PipelineError
from mlops_project.experiments import Comparison, Experiment, compare, fold_scores, load_experiments, select, slug, verdicts
from mlops_project.files import read_yaml
from mlops_project.modeling.metrics import cross_validated_metrics


@pytest.fixture
def load(tmp_path, root):
    def from_text(text):
        (tmp_path / "experiments.yaml").write_text(text, encoding="utf-8")
        return load_experiments(tmp_path / "experiments.yaml", root / "params.yaml")

    return from_text


def test_the_shipped_file_has_the_five_of_the_guide(root):
    found = load_experiments(root / "experiments.yaml", root / "params.yaml")
    assert {one.title: one.name for one in found} == {
        "LogReg + SMOTE": "logreg-smote",
        "LogReg sin SMOTE": "logreg-sin-smote",
        "RandomForest + BorderlineSMOTE": "randomforest-borderlinesmote",
        "XGBoost + SMOTE": "xgboost-smote",
        "SVM + SMOTE": "svm-smote",
    }
    assert found[0].set_params == ["train.model='logistic_regression'", "train.imbalance='BorderlineSMOTE'"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {train.model: svm}\na: {train.model: xgboost}", "the key 'a' stands twice"),
        ("A + b: {train.model: svm}\na b: {train.model: xgboost}", "'a b': found the same DVC name 'a-b' as 'A \\+ b'"),
        ("'+': {train.model: svm}", "'\\+': expected a name with letters or digits"),
        ("a: {train.modell: svm}", "'a': unknown key 'train.modell' of params.yaml; did you mean 'train.model'"),
        ("a: {nothing.like.it: 1}", "'a': unknown key 'nothing.like.it'"),
        ("a: {train.model.x: svm}", "'a': unknown key 'train.model.x'"),
        ("ok: {train.model: svm}\na: {train.model: lightgbm}", "'a': train.model: found 'lightgbm'"),
        ("a: {train.n_splits: '5'}", "'a': train.n_splits: found '5'"),
        ("a: {prepare.split: by_time}", "'a': prepare.split is 'by_time', so prepare.date_column must name"),
        ("a: {train: {model: svm}}", "'a': train: expected a single setting"),
        ("a: {models.scorecard.bins: []}", "'a': models.scorecard.bins: expected a single setting"),
        ("a: {tune.n_trials: 3}", "'a': found tune.n_trials, which no stage"),
        ("a: {}", "'a': found {}, expected keys of"),
        ("a: svm", "'a': found 'svm', expected keys of"),
        ("a:", "'a': found None, expected keys of"),
        ("- a", "found list, expected keys"),
    ],
)
def test_what_params_refuses_is_refused_by_name(load, text, message):
    with pytest.raises(PipelineError, match=message):
        load(text)


def test_only_takes_titles_and_dvc_names_in_the_order_of_the_file(load):
    found = load("B: {train.model: svm}\nA + c: {train.model: xgboost}\nD: {train.seed: 1}")
    assert [one.name for one in select(found, ["a-c", "B"])] == ["b", "a-c"]
    assert select(found, []) == found
    with pytest.raises(ParamsError, match=r"no experiment 'E'; expected some of: B, A \+ c, D"):
        select(found, ["E"])


@given(st.text())
def test_a_dvc_name_is_safe_in_a_git_reference(title):
    assert set(slug(title)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not slug(title).startswith("-")


SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9, allow_subnormal=False)
    # A backslash before ${ is the one text that has no spelling.
    | st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8).filter(lambda text: "\\${" not in text)
)  # fmt: skip


@given(SCALARS | st.lists(SCALARS, max_size=3))
def test_dvc_writes_the_very_value(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(yaml.safe_dump({"a": {"b": 1}}), encoding="utf-8")
    apply_overrides(path, Experiment("t", "t", {"a.b": value}).set_params)
    found = read_yaml(path)["a"]["b"]
    assert found == value
    assert type(found) is type(value)


def predictions(shift: float, seed: int = 0) -> pd.DataFrame:
    """Out-of-fold predictions of 200 applicants in two repeats of five folds; ``shift`` makes the good stand out."""
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(200) % 2, 2)
    fold = np.concatenate([rng.permutation(np.arange(200) % 5), 5 + rng.permutation(np.arange(200) % 5)])
    p = 1 / (1 + np.exp(-(shift * y + np.random.default_rng(99).normal(size=400))))
    ids = [f"a{i % 200}" for i in range(400)]
    return pd.DataFrame({"repeat": np.arange(400) // 200, "fold": fold, "y_true": y, "y_proba": p}, index=ids)


def test_fold_scores_are_those_of_cross_validation():
    table = predictions(1.0)
    fold = table[table["fold"] == 7]
    assert len(fold_scores(table, "ks")) == 10
    assert fold_scores(table, "ks")[7] == cross_validated_metrics(fold["y_true"].to_numpy(), fold["y_proba"].to_numpy())["ks"]
    weight = pd.Series(np.arange(1.0, 201), index=[f"a{i}" for i in range(200)])
    assert not np.allclose(fold_scores(table, "roc_auc", weight), fold_scores(table, "roc_auc"))


def test_better_and_equal_are_told_apart_over_the_same_folds():
    base, better = predictions(1.0), predictions(3.0)
    reference = (fold_scores(base, "roc_auc"), base)
    found = {"better": compare(fold_scores(better, "roc_auc"), better, reference), "same": compare(*reference, reference)}
    judged = verdicts(found, lower_is_better=False)
    assert judged["better"][1] == "better"
    assert judged["same"] == (1.0, "within noise")
    assert verdicts(found, lower_is_better=True)["better"][1] == "worse"
    low, high = found["better"].low, found["better"].high
    assert low < found["better"].difference < high


def test_other_folds_are_not_paired():
    base, other = predictions(1.0), predictions(3.0, seed=1)
    found = compare(fold_scores(other, "roc_auc"), other, (fold_scores(base, "roc_auc"), base))
    assert found.p_value is None
    assert verdicts({"other": found}, lower_is_better=False)["other"] == (None, "unpaired: other folds")
    assert compare(fold_scores(base, "roc_auc"), base, None).difference is None


def test_p_values_are_adjusted_for_their_number():
    found = {name: Comparison(0.8, 0.0, 0.1, 0.0, 0.2, p) for name, p in (("a", 0.02), ("b", 0.01), ("c", 0.5))}
    adjusted = {name: p for name, (p, _) in verdicts(found, lower_is_better=False).items()}
    assert adjusted == pytest.approx({"b": 0.03, "a": 0.04, "c": 0.5})
    assert verdicts({"a": found["a"]}, lower_is_better=False)["a"] == (0.02, "better")
