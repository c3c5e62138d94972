"""Cross-validation equals scikit-learn's, and nothing that is fitted sees a validation fold."""

from typing import ClassVar

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn.model_selection
from imblearn.over_sampling import SMOTE
from imblearn.pipeline import Pipeline as SamplingPipeline
from msgspec.structs import replace
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_project.config import ModelParams, Params, TrainParams
from mlops_project.dataset import Applicants
from mlops_project.errors import DataError
from mlops_project.modeling.cross_validation import CrossValidation, cross_validate
from mlops_project.modeling.folds import Fold, make_folds
from mlops_project.modeling.metrics import CROSS_VALIDATED
from mlops_project.modeling.models import BUILDERS, Member, build_model
from mlops_project.modeling.sampling import balance
from mlops_project.preprocessing import build_preprocessor, value_columns
from mlops_project.schema import Contract

METHODS = ["none", "SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN", "class_weight"]
SCORERS = {
    "roc_auc": "roc_auc",
    "average_precision": "average_precision",
    "brier": "neg_brier_score",
    "log_loss": "neg_log_loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
}


@pytest.fixture
def settings(params: Params) -> TrainParams:
    return replace(params.train, n_splits=3, n_repeats=1)


@pytest.fixture
def few_trees(params: Params) -> ModelParams:
    forest = replace(params.models.random_forest, n_estimators=5)
    boosted = replace(params.models.xgboost, n_estimators=5)
    monotone = replace(params.models.xgboost_monotone, n_estimators=5)
    return replace(params.models, random_forest=forest, xgboost=boosted, xgboost_monotone=monotone)


@pytest.fixture
def preprocessor(contract: Contract, params: Params) -> Pipeline:
    return build_preprocessor(contract, params.featurize)


@pytest.fixture
def X(applicants: Applicants) -> pd.DataFrame:  # noqa: N802 - as scikit-learn calls it
    return applicants.table[:300]


@pytest.fixture
def y(applicants: Applicants) -> np.ndarray:
    return applicants.target.to_numpy()[:300]


def run(classifier, preprocessor, X, y, settings: TrainParams, folds: list[Fold] | None = None, **more) -> CrossValidation:
    """Cross-validate a model of ours, or a classifier as one that reads the encoded view."""
    model = classifier if isinstance(classifier, tuple) else (Member("classifier", "encoded", classifier),)
    folds = make_folds(y, settings) if folds is None else folds
    return cross_validate({"model": model}, preprocessor, X, y, folds, settings, **more)["model"]


def built(name: str, params: Params, preprocessor: Pipeline, **settings) -> tuple[Member, ...]:
    return build_model(name, getattr(params.models, name), replace(params.train, **settings), value_columns(preprocessor))


class Recorder(LogisticRegression):
    """A model that writes down what it is fitted on and what it scores."""

    fitted: ClassVar[list[tuple]] = []
    scored: ClassVar[list[np.ndarray]] = []

    def fit(self, X, y, sample_weight=None):
        self.fitted.append((X, y, sample_weight))
        return super().fit(X, y, sample_weight=sample_weight)

    def predict_proba(self, X):
        self.scored.append(X)
        return super().predict_proba(X)


@pytest.fixture
def recorder() -> Recorder:
    Recorder.fitted.clear()
    Recorder.scored.clear()
    return Recorder(C=0.1)


# --- folds


def test_folds_are_stratified_and_each_repeat_tests_each_row_once(settings: TrainParams, y: np.ndarray) -> None:
    folds = make_folds(y, replace(settings, n_splits=5, n_repeats=3))
    assert [fold.repeat for fold in folds] == [0] * 5 + [1] * 5 + [2] * 5
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(len(y)))
        for label in (0, 1):
            assert abs((y[fold.test] == label).sum() - (y == label).sum() / 5) < 1
    for repeat in range(3):
        tested = np.concatenate([fold.test for fold in folds if fold.repeat == repeat])
        assert sorted(tested) == list(range(len(y)))
    assert set(folds[0].test) != set(folds[5].test)


def test_folds_follow_the_seed(settings: TrainParams, y: np.ndarray) -> None:
    def tested(seed: int) -> list[list[int]]:
        return [fold.test.tolist() for fold in make_folds(y, replace(settings, seed=seed))]

    assert tested(1) == tested(1)
    assert tested(1) != tested(2)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_groups_are_never_split(seed: int, settings: TrainParams, y: np.ndarray) -> None:
    groups = np.random.default_rng(3).integers(0, 60, len(y)).astype(str)
    folds = make_folds(y, replace(settings, seed=seed, n_repeats=2), groups)
    assert [fold.repeat for fold in folds] == [0, 0, 0, 1, 1, 1]
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
        assert (y[fold.test] == 0).mean() == pytest.approx((y == 0).mean(), abs=0.05)
    assert sorted(np.concatenate([fold.test for fold in folds[:3]])) == list(range(len(y)))
    assert set(folds[0].test) != set(folds[3].test)


def test_too_few_rows_or_groups_are_refused(settings: TrainParams) -> None:
    with pytest.raises(
        DataError, match=r"found 20 good and 2 bad development rows, expected at least train.n_splits = 3 of each; use more rows"
    ):
        make_folds(np.array([1] * 20 + [0] * 2), settings)
    with pytest.raises(DataError, match="found 0 good and 20 bad"):
        make_folds(np.array([0] * 20), settings)
    y = np.array([0, 1] * 10)
    assert len(make_folds(y[:6], settings)) == 3
    with pytest.raises(DataError, match=r"found 2 groups, expected at least train.n_splits = 3"):
        make_folds(y, settings, np.array(["a", "b"] * 10))


def test_groups_that_leave_a_fold_with_one_class_are_refused(settings: TrainParams) -> None:
    y = np.array([0] * 10 + [1] * 40)
    groups = np.array(["all the bad"] * 10 + ["b", "c", "d", "e"] * 10)
    with pytest.raises(DataError, match=r"with 5 groups of prepare.group_column a fold would hold one class only, expected both"):
        make_folds(y, settings, groups)


# --- scores


def assert_equal_scores(found: CrossValidation, expected: dict[str, np.ndarray]) -> None:
    for name, scorer in SCORERS.items():
        sign = -1 if scorer.startswith("neg_") else 1
        np.testing.assert_allclose(found.test[name], sign * expected[f"test_{scorer}"], atol=1e-9, rtol=0)
        np.testing.assert_allclose(found.train[name], sign * expected[f"train_{scorer}"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["logistic_regression", "decision_tree", "scorecard"])
def test_scores_are_those_of_scikit_learn(name: str, preprocessor, X, y, settings: TrainParams, params: Params) -> None:
    model, folds = built(name, params, preprocessor), make_folds(y, settings)
    steps = preprocessor.steps[: -1 if model[0].view == "values" else None]
    expected = sklearn.model_selection.cross_validate(
        Pipeline([*steps, ("model", model[0].classifier)]),
        X,
        y,
        scoring=list(SCORERS.values()),
        cv=[(fold.train, fold.test) for fold in folds],
        return_train_score=True,
    )
    assert_equal_scores(run(model, preprocessor, X, y, settings, folds), expected)


def test_resampling_and_weights_are_those_of_the_libraries(preprocessor, X, y, settings: TrainParams) -> None:
    folds = make_folds(y, settings)[:2]
    how = {"cv": [(fold.train, fold.test) for fold in folds], "scoring": list(SCORERS.values()), "return_train_score": True}
    smote = SMOTE(random_state=settings.seed, k_neighbors=settings.smote_neighbors)
    pipeline = SamplingPipeline([*preprocessor.steps, ("smote", smote), ("model", LogisticRegression(C=0.1))])
    found = run(LogisticRegression(C=0.1), preprocessor, X, y, replace(settings, imbalance="SMOTE"), folds)
    assert_equal_scores(found, sklearn.model_selection.cross_validate(pipeline, X, y, **how))
    pipeline = Pipeline([*preprocessor.steps, ("model", LogisticRegression(C=0.1, class_weight="balanced"))])
    found = run(LogisticRegression(C=0.1), preprocessor, X, y, replace(settings, imbalance="class_weight"), folds)
    assert_equal_scores(found, sklearn.model_selection.cross_validate(pipeline, X, y, **how))


def test_out_of_fold_predictions_come_from_the_fold_that_tests_the_row(preprocessor, X, y, settings: TrainParams) -> None:
    settings = replace(settings, n_splits=2, n_repeats=2)
    folds = make_folds(y, settings)
    found = run(LogisticRegression(C=0.1), preprocessor, X, y, settings, folds)
    assert found.out_of_fold.shape == (2, len(y))
    pipeline = Pipeline([*preprocessor.steps, ("model", LogisticRegression(C=0.1))])
    for fold in folds:
        p_good = clone(pipeline).fit(X.iloc[fold.train], y[fold.train]).predict_proba(X.iloc[fold.test])[:, 1]
        np.testing.assert_allclose(found.out_of_fold[fold.repeat, fold.test], p_good, atol=1e-12)


def test_several_models_share_the_folds_and_score_as_alone(preprocessor, X, y, settings: TrainParams, params: Params) -> None:
    names = ("logistic_regression", "decision_tree", "scorecard")
    models = {name: built(name, params, preprocessor) for name in names}
    together = cross_validate(models, preprocessor, X, y, make_folds(y, settings), settings)
    assert list(together) == list(models)
    for name, model in models.items():
        assert together[name].test == run(model, preprocessor, X, y, settings).test


def test_the_summary_is_mean_and_standard_deviation_over_folds(preprocessor, X, y, settings: TrainParams) -> None:
    found = run(LogisticRegression(C=0.1), preprocessor, X, y, settings)
    summary = found.summary()
    assert list(summary) == list(CROSS_VALIDATED)
    for name, values in summary.items():
        assert values == pytest.approx(
            {
                "mean": np.mean(found.test[name]),
                "std": np.std(found.test[name]),
                "train_mean": np.mean(found.train[name]),
                "train_std": np.std(found.train[name]),
            }
        )
    assert summary["roc_auc"]["train_mean"] > summary["roc_auc"]["mean"]


# --- no leak


def test_the_preprocessor_is_a_recipe(preprocessor, X, y, settings: TrainParams) -> None:
    expected = run(LogisticRegression(), preprocessor, X, y, settings)
    assert not hasattr(preprocessor.named_steps["features"], "parts_")
    # Fitted on other rows, with other scales: it makes no difference, and it stays as it is.
    fitted = clone(preprocessor).fit(X[:50].assign(hoehe=X["hoehe"][:50] * 2))
    before = joblib.hash(fitted)
    found = run(LogisticRegression(), fitted, X, y, settings)
    assert (found.test, found.train) == (expected.test, expected.train)
    np.testing.assert_array_equal(found.out_of_fold, expected.out_of_fold)
    assert joblib.hash(fitted) == before


def test_every_step_of_the_preprocessor_counts(contract: Contract, params: Params, X, y, settings: TrainParams) -> None:
    capping = replace(params.featurize, outliers="percentiles", lower_percentile=10.0, upper_percentile=90.0)
    whole, folds = build_preprocessor(contract, capping), make_folds(y, settings)[:1]
    scores = {"whole": run(LogisticRegression(), whole, X, y, settings, folds).test["log_loss"]}
    without = Pipeline([step for step in whole.steps if step[0] != "outliers"])
    scores["without capping"] = run(LogisticRegression(), without, X, y, settings, folds).test["log_loss"]
    robust = build_preprocessor(contract, replace(capping, scale="robust"))
    scores["scaled otherwise"] = run(LogisticRegression(), robust, X, y, settings, folds).test["log_loss"]
    ranks = build_preprocessor(contract, replace(capping, ordinals="one_hot"))
    scores["one-hot"] = run(LogisticRegression(), ranks, X, y, settings, folds).test["log_loss"]
    assert len({tuple(values) for values in scores.values()}) == len(scores)


@pytest.mark.parametrize("method", METHODS)
def test_values_of_a_validation_fold_change_nothing_that_is_fitted(
    method: str, recorder: Recorder, preprocessor, X, y, settings: TrainParams
) -> None:
    settings = replace(settings, imbalance=method)
    fold = make_folds(y, settings)[0]
    changed = X.copy()
    # Other values, and other gaps, in every column of the validation rows: those of another row, and one column lost.
    changed.iloc[fold.test] = X.iloc[fold.test[::-1]].to_numpy()
    changed.iloc[fold.test, 4] = np.nan
    first, second = (run(recorder, preprocessor, table, y, settings, [fold]) for table in (X, changed))
    (fit_X, fit_y, weights), other = recorder.fitted
    for one, two in zip((fit_X, fit_y, weights), other, strict=True):
        assert joblib.hash(one) == joblib.hash(two)
    assert first.train == second.train
    assert first.test != second.test
    # And the other way round: what is fitted does depend on the training rows.
    changed = X.copy()
    changed.iloc[fold.train[:20], 4] = np.nan
    run(recorder, preprocessor, changed, y, settings, [fold])
    assert joblib.hash(recorder.fitted[2][0]) != joblib.hash(fit_X)


@pytest.mark.parametrize("method", METHODS)
def test_synthetic_rows_are_fitted_on_and_never_scored(
    method: str, recorder: Recorder, preprocessor, X, y, settings: TrainParams
) -> None:
    settings = replace(settings, imbalance=method)
    fold = make_folds(y, settings)[0]
    found = run(recorder, preprocessor, X, y, settings, [fold])
    fit_X, fit_y, weights = recorder.fitted[0]
    expected = clone(preprocessor).fit(X.iloc[fold.train]).transform(X)
    np.testing.assert_array_equal(recorder.scored[0], expected)
    np.testing.assert_array_equal(fit_X[: len(fold.train)], expected[fold.train])
    np.testing.assert_array_equal(fit_y[: len(fold.train)], y[fold.train])
    bad = (y[fold.train] == 0).sum()
    if method in ("none", "class_weight"):
        assert len(fit_y) == len(fold.train)
    else:
        assert (fit_y[len(fold.train) :] == 0).all()
        assert len(fit_y) - len(fold.train) == pytest.approx(len(fold.train) - 2 * bad, rel=0.2)
    if method == "class_weight":
        assert weights[fit_y == 0].sum() == pytest.approx(weights[fit_y == 1].sum())
        assert weights.sum() == pytest.approx(len(weights))
    else:
        assert weights is None
    untested = np.delete(np.arange(len(y)), fold.test)
    assert np.isnan(found.out_of_fold[0, untested]).all()
    assert np.isfinite(found.out_of_fold[0, fold.test]).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_model_takes_every_answer_to_imbalance(method: str, preprocessor, X, y, settings, few_trees: ModelParams) -> None:
    settings, columns = replace(settings, imbalance=method), value_columns(preprocessor)
    models = {name: build_model(name, getattr(few_trees, name), settings, columns) for name in BUILDERS}
    for found in cross_validate(models, preprocessor, X, y, make_folds(y, settings)[:1], settings).values():
        assert all(np.isfinite(values).all() for values in found.test.values())
        assert found.test["roc_auc"][0] > 0.55


# --- resampling by itself


def balanced(preprocessor: Pipeline, X, y, method: str, neighbors: int = 5, seed: int = 1) -> tuple:
    fitted = clone(preprocessor).fit(X)
    encoded = fitted.transform(X)
    return encoded, *balance(encoded, y, fitted[-1], method=method, neighbors=neighbors, seed=seed)


def test_smotenc_makes_applicants_with_one_code_per_column(contract: Contract, params: Params, X, y) -> None:
    wide = build_preprocessor(contract, replace(params.featurize, ordinals="one_hot", missing_indicators=True))
    encoded, sampled, outcome, _ = balanced(wide, X, y, "SMOTENC")
    groups = clone(wide).fit(X).named_steps["features"].one_hot_groups_
    assert (outcome == 0).sum() == (outcome == 1).sum()
    np.testing.assert_array_equal(sampled[: len(encoded)], encoded)
    synthetic = sampled[len(encoded) :]
    assert len(synthetic) > 100
    for group in groups:
        assert set(np.unique(synthetic[:, group])) <= {0.0, 1.0}
        assert (synthetic[:, group].sum(axis=1) == 1).all()
    # Plain SMOTE mixes codes: the difference is what SMOTENC is for.
    _, mixed, _, _ = balanced(wide, X, y, "SMOTE")
    assert any(len(np.unique(mixed[:, group])) > 2 for group in groups)


@pytest.mark.parametrize("method", ["SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN"])
def test_resampling_follows_its_seed(method: str, preprocessor, X, y) -> None:
    one, again, other = (balanced(preprocessor, X, y, method, seed=seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.shape != other.shape or (one != other).any()


@pytest.mark.parametrize("method", ["SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN"])
def test_too_few_rows_to_resample_are_refused(method: str, preprocessor, X, y) -> None:
    rows = np.r_[np.flatnonzero(y == 0)[:5], np.flatnonzero(y == 1)[:50]]
    with pytest.raises(
        DataError,
        match=rf"train.imbalance={method}: the smaller class has 5 rows in a training fold, expected more .* = 5; lower it",
    ):
        balanced(preprocessor, X.iloc[rows], y[rows], method, neighbors=5)
    assert len(balanced(preprocessor, X.iloc[rows], y[rows], method, neighbors=4)[2]) > 55


def test_what_the_sampler_itself_refuses_is_one_line(preprocessor) -> None:
    """ADASYN has nowhere to put rows if the classes lie far apart."""
    X = np.r_[np.zeros((10, 2)), np.full((30, 2), 1e6)] + np.arange(40)[:, None] / 100
    with pytest.raises(DataError, match=r"^train.imbalance=ADASYN: .*; use another method or none$") as caught:
        balance(X, np.repeat([0, 1], [10, 30]), preprocessor[-1], method="ADASYN", neighbors=5, seed=1)
    assert "\n" not in str(caught.value)


def test_smotenc_needs_a_nominal_column(contract: Contract, params: Params, X, y) -> None:
    numbers = replace(contract, columns={name: contract.columns[name] for name in ("laufzeit", "hoehe", "alter", "rate")})
    with pytest.raises(DataError, match="SMOTENC: the contract has no nominal column; use SMOTE"):
        balanced(build_preprocessor(numbers, params.featurize), X, y, "SMOTENC")
