"""Fitting: what models share is done once, calibration sees no row twice, weights count, and the pipeline is what was fitted."""

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_project.config import Params, TrainParams
from mlops_project.errors import DataError
from mlops_project.modeling.calibration import Calibrated, Sigmoid
from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.folds import calibration_folds
from mlops_project.modeling.models import Member, build_model
from mlops_project.preprocessing import build_preprocessor, value_columns
from mlops_project.schema import Contract

QUICK = ("scorecard", "logistic_regression", "decision_tree", "xgboost_monotone", "blend")


@pytest.fixture
def X(applicants) -> pd.DataFrame:  # noqa: N802 - as scikit-learn calls it
    return applicants.table[:300]


@pytest.fixture
def y(applicants) -> np.ndarray:
    return applicants.target.to_numpy()[:300]


@pytest.fixture
def preprocessor(contract: Contract, params: Params) -> Pipeline:
    return build_preprocessor(contract, params.featurize)


def model(name: str, params: Params, preprocessor: Pipeline, train: TrainParams | None = None):
    return build_model(name, getattr(params.models, name), train or params.train, value_columns(preprocessor))


class Counting(LogisticRegression):
    """Counts its fits."""

    fits = 0

    def fit(self, X, y, sample_weight=None):
        Counting.fits += 1
        return super().fit(X, y, sample_weight)


@pytest.mark.parametrize("calibration", ["none", "sigmoid", "isotonic"])
@pytest.mark.parametrize("name", QUICK)
def test_the_pipeline_scores_raw_rows_as_the_fitter_did(name, calibration, X, y, preprocessor, params: Params) -> None:
    train = replace(params.train, calibration=calibration)
    rows = np.arange(0, 300, 2)
    fitter = Fitter(preprocessor, X, y, rows, train)
    members = model(name, params, preprocessor, train)
    expected = fitter.p_good(members)
    assert expected.shape == (300,)
    np.testing.assert_allclose(fitter.pipeline(members).predict_proba(X)[:, 1].astype(float), expected, atol=1e-9)


def test_a_blend_is_the_mean_of_its_members_and_shares_their_fits(X, y, preprocessor, params: Params) -> None:
    fitter = Fitter(preprocessor, X, y, np.arange(200), params.train)
    parts = params.models.blend.members
    blend = model("blend", params, preprocessor)
    assert [member.key.split()[0] for member in blend] == parts
    np.testing.assert_allclose(fitter.p_good(blend), np.mean([fitter.p_good((member,)) for member in blend], axis=0))
    same = Member("one", "encoded", Counting()), Member("one", "encoded", Counting())
    Counting.fits = 0
    fitter.p_good((same[0],))
    fitter.p_good(same)
    fitter.pipeline(same)
    assert Counting.fits == 1, "members with the same key are one"


def test_equal_settings_are_one_member_and_others_are_not(preprocessor, params: Params) -> None:
    single = {name: model(name, params, preprocessor)[0].key for name in params.models.blend.members}
    assert [member.key for member in model("blend", params, preprocessor)] == list(single.values())
    other = replace(params.models, scorecard=replace(params.models.scorecard, max_bins=3))
    assert model("scorecard", replace(params, models=other), preprocessor)[0].key != single["scorecard"]


def test_calibration_is_fitted_on_margins_of_folds_that_did_not_see_the_row(X, y, preprocessor, params: Params) -> None:
    train = replace(params.train, calibration="sigmoid", imbalance="class_weight")
    rows = np.arange(250)
    fitter = Fitter(preprocessor, X, y, rows, train)
    fitted = fitter.pipeline((Member("m", "encoded", LogisticRegression(C=0.1)),))[-1]
    encoded = clone(preprocessor).fit(X.iloc[rows]).transform(X.iloc[rows])
    margins = np.empty(250)
    for fold in calibration_folds(y[rows], train):
        inner = LogisticRegression(C=0.1, class_weight="balanced").fit(encoded[fold.train], y[fold.train])
        margins[fold.test] = inner.decision_function(encoded[fold.test])
    expected = Sigmoid().fit(margins, y[rows])
    assert isinstance(fitted, Calibrated)
    assert fitted.calibrator.slope_ == pytest.approx(expected.slope_, rel=1e-4)
    assert fitted.calibrator.intercept_ == pytest.approx(expected.intercept_, rel=1e-4)
    # Balanced classes make good applicants look riskier than they are; calibration on rows as they come mends it.
    assert fitter.p_good((Member("m", "encoded", LogisticRegression(C=0.1)),)).mean() == pytest.approx(y.mean(), abs=0.05)


def test_groups_are_not_split_by_calibration(X, y, preprocessor, params: Params) -> None:
    train = replace(params.train, calibration="sigmoid")
    groups = np.repeat(np.arange(50), 6)
    fitter = Fitter(preprocessor, X, y, np.arange(300), train, groups=groups)
    for fold in fitter._inner:
        assert not set(groups[fold.train]) & set(groups[fold.test])


def test_too_few_rows_to_calibrate_on_are_refused(X, y, preprocessor, params: Params) -> None:
    rows = np.r_[np.flatnonzero(y == 0)[:2], np.flatnonzero(y == 1)[:50]]
    fitter = Fitter(preprocessor, X, y, rows, replace(params.train, calibration="sigmoid"))
    with pytest.raises(DataError, match=r"found 50 good and 2 bad .*train.calibration_folds = 3 of each"):
        fitter.p_good(model("scorecard", params, preprocessor))


@pytest.mark.parametrize("name", ["scorecard", "logistic_regression", "decision_tree"])
def test_weights_are_rows_counted_several_times(name, X, y, preprocessor, contract: Contract, params: Params) -> None:
    """With a preprocessor that learns nothing of the rows; imputation and scales are those of the rows as they are."""
    weight = np.random.default_rng(0).integers(1, 4, 300).astype(float)
    times = np.repeat(np.arange(300), weight.astype(int))
    plain = replace(params.featurize, scale="none", log=["laufzeit", "hoehe", "alter"])
    # No gaps where imputation would learn.
    filled = X.fillna({column: contract.columns[column].code_list[0] for column in contract.of_kind("nominal", "ordinal")})
    filled = filled.fillna({column: contract.columns[column].range[0] for column in contract.of_kind("numeric")})
    recipe = build_preprocessor(contract, plain)
    settings = replace(params.models, decision_tree=replace(params.models.decision_tree, min_samples_leaf=1, max_depth=2))
    members = model(name, replace(params, models=settings), recipe)
    weighted = Fitter(recipe, filled, y, np.arange(300), params.train, weight).p_good(members)
    repeated = Fitter(recipe, filled.iloc[times], y[times], np.arange(len(times)), params.train).p_good(members)
    np.testing.assert_allclose(weighted[times], repeated, atol=2e-3)
    assert np.abs(weighted - Fitter(recipe, filled, y, np.arange(300), params.train).p_good(members)).max() > 0.02


def test_weighted_rows_are_not_resampled(X, y, preprocessor, params: Params) -> None:
    fitter = Fitter(preprocessor, X, y, np.arange(300), replace(params.train, imbalance="SMOTE"), np.ones(300))
    with pytest.raises(DataError, match=r"imbalance=SMOTE: the contract has a weight column.*use none or class_weight"):
        fitter.p_good(model("logistic_regression", params, preprocessor))


def test_class_weights_multiply_those_of_the_rows(X, y, preprocessor, params: Params) -> None:
    weight = np.linspace(0.5, 3, 300)
    fitter = Fitter(preprocessor, X, y, np.arange(300), replace(params.train, imbalance="class_weight"), weight)
    found = fitter._balanced(np.arange(300)).weight
    assert found[y == 0].sum() == pytest.approx(found[y == 1].sum())
    assert found.sum() == pytest.approx(weight.sum())
    np.testing.assert_allclose((found / weight)[y == 1], (found / weight)[y == 1][0])


@pytest.mark.parametrize("method", ["SMOTE", "SMOTENC"])
def test_synthetic_rows_have_values_too(method, X, y, preprocessor, params: Params) -> None:
    fitter = Fitter(preprocessor, X, y, np.arange(300), replace(params.train, imbalance=method))
    views = fitter._balanced(np.arange(300)).views
    assert len(views["values"]) == len(views["encoded"]) > 300
    np.testing.assert_array_equal(views["values"][:300], fitter.values, "own rows keep their gaps")
    np.testing.assert_allclose(fitter.to_encoded.transform(views["values"][300:])[:, :6], views["encoded"][300:, :6], atol=1e-9)
