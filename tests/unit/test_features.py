"""The transformers: scikit-learn's own checks first, then what the contract asks of them."""

import math

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from mlops_project.config import Ratio
from mlops_project.errors import DataError
from mlops_project.features import FeaturePreprocessor, InvalidDataHandler, OutlierHandler, RowFeatures
from mlops_project.schema import Column, Contract, Target

SMALL = Contract(
    target=Target(name="y", good=1, bad=0),
    missing_tokens=["?"],
    applicant_id="id",
    columns={
        "id": Column(kind="identifier"),
        "home": Column(kind="nominal", codes=["own", "rent", "free"]),
        "debt": Column(kind="numeric", range=[0.0, 1e6]),
        "grade": Column(kind="ordinal", codes=["low", "mid", "high"]),
        "income": Column(kind="numeric"),
        "purpose": Column(kind="nominal", codes={9: "car", 0: "other", 10: "trip"}),
    },
)


@parametrize_with_checks(
    [InvalidDataHandler(), OutlierHandler(), OutlierHandler(method="percentiles"), RowFeatures(), FeaturePreprocessor()]
)
def test_scikit_learns_own_checks(estimator, check) -> None:
    """None is expected to fail."""
    check(estimator)


# --- InvalidDataHandler


def rows(**columns: list) -> pd.DataFrame:
    """Four raw rows; columns that are not given hold valid cells."""
    cells = {
        "home": ["own", "rent", "free", "rent"],
        "debt": ["10", "20", "30", "40"],
        "grade": ["low", "mid", "high", "mid"],
        "income": ["1", "2", "3", "4"],
        "purpose": ["9", "0", "10", "0"],
    }
    return pd.DataFrame(cells | columns)


def test_what_the_contract_does_not_allow_becomes_missing() -> None:
    table = rows(home=["OWN ", "x", "", "?"], debt=["-1", "1e6", "inf", "7"], purpose=["9.0", "8", " 10", "0"])
    found = InvalidDataHandler(SMALL).fit_transform(table)
    nan = math.nan
    expected = [[0, nan, 0, 1, 9], [nan, 1e6, 1, 2, nan], [nan, nan, 2, 3, 10], [nan, 7, 1, 4, 0]]
    np.testing.assert_array_equal(found, expected)


def test_columns_are_found_by_name_and_arrays_by_position() -> None:
    handler = InvalidDataHandler(SMALL).fit(rows())
    expected = handler.transform(rows())
    np.testing.assert_array_equal(handler.transform(rows(extra=["x"] * 4).iloc[:, ::-1]), expected)
    np.testing.assert_array_equal(handler.transform(rows().to_numpy()), expected)
    assert list(handler.get_feature_names_out()) == list(handler.feature_names_in_) == SMALL.features
    with pytest.raises(
        ValueError, match=r"found an array of shape \(4, 4\), expected a table or an array with the columns \['home'"
    ):
        handler.transform(rows().to_numpy()[:, 1:])


def test_an_absent_column_is_refused_in_fit_and_in_transform() -> None:
    with pytest.raises(DataError, match=r"column\(s\) debt of the contract missing"):
        InvalidDataHandler(SMALL).fit(rows().drop(columns="debt"))
    with pytest.raises(DataError, match=r"column\(s\) home, debt of the contract missing"):
        InvalidDataHandler(SMALL).fit(rows()).transform(rows().drop(columns=["debt", "home"]))


def test_nothing_is_learned_from_the_rows() -> None:
    other = rows(home=["?"] * 4, debt=["9"] * 4)
    one, two = InvalidDataHandler(SMALL).fit(rows()), InvalidDataHandler(SMALL).fit(other)
    assert joblib.hash(one) == joblib.hash(two)


# --- OutlierHandler


def test_interquartile_fences() -> None:
    column = np.array([1.0, 2, 3, 4, 5, 6, 7, 100, math.nan])[:, None]
    first, third = np.nanpercentile(column, [25, 75])
    handler = OutlierHandler(factor=1.5).fit(column)
    assert handler.upper_[0] == third + 1.5 * (third - first)
    assert handler.lower_[0] == first - 1.5 * (third - first)
    capped = handler.transform(np.array([[1000.0], [-1000], [4], [math.nan]]))
    np.testing.assert_array_equal(capped[:, 0], [handler.upper_[0], handler.lower_[0], 4, math.nan])


def test_percentiles() -> None:
    X = np.random.default_rng(0).normal(size=(500, 2))
    capped = OutlierHandler(method="percentiles", lower=5, upper=90).fit_transform(X)
    np.testing.assert_allclose([capped.min(axis=0), capped.max(axis=0)], np.percentile(X, [5, 90], axis=0))
    whole = OutlierHandler(method="percentiles", lower=0, upper=100).fit_transform(X)
    np.testing.assert_array_equal(whole, X)


def test_only_the_columns_that_are_named_are_capped_and_empty_ones_are_left() -> None:
    X = np.array([[0.0, 0, math.nan], [1, 1, math.nan], [2, 2, math.nan], [99, 99, math.nan]])
    found = OutlierHandler(columns=[1, 2]).fit_transform(X)
    np.testing.assert_array_equal(found[:, 0], X[:, 0])
    assert found[3, 1] < 99
    assert np.isnan(found[:, 2]).all()


def test_bounds_come_from_the_fitted_rows() -> None:
    handler = OutlierHandler().fit(np.arange(10.0)[:, None])
    before = handler.upper_.copy()
    handler.transform(np.full((5, 1), 1e9))
    np.testing.assert_array_equal(handler.upper_, before)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (OutlierHandler(method="median"), "method: found 'median', expected 'iqr' or 'percentiles'"),
        (FeaturePreprocessor(scale="minmax"), r"scale: found 'minmax', expected one of \['standard', 'robust', 'none'\]"),
        (FeaturePreprocessor(ordinals="onehot"), "ordinals: found 'onehot', expected 'rank' or 'one_hot'"),
        (FeaturePreprocessor(numeric_imputation="mode"), "numeric_imputation|strategy"),
    ],
)
def test_settings_that_do_not_exist_are_refused_in_fit(estimator, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator.fit(np.ones((3, 2)))


# --- FeaturePreprocessor with a contract


def featurized(table: pd.DataFrame, fit_on: pd.DataFrame | None = None, **settings: object) -> pd.DataFrame:
    rows_settings = {name: settings.pop(name) for name in ("ratios", "log") if name in settings}
    pipeline = make_pipeline(
        InvalidDataHandler(SMALL), RowFeatures(SMALL, **rows_settings), FeaturePreprocessor(SMALL, **settings)
    )
    pipeline.set_output(transform="pandas").fit(table if fit_on is None else fit_on)
    return pipeline.transform(table)


def test_numbers_are_scaled_ranks_are_numbers_and_codes_are_one_hot() -> None:
    found = featurized(rows())
    assert list(found) == [
        *("debt", "grade", "income"),
        *("home_own", "home_rent", "home_free"),
        *("purpose_0", "purpose_9", "purpose_10"),
    ]
    debt = np.array([10.0, 20, 30, 40])
    np.testing.assert_allclose(found["debt"], (debt - 25) / debt.std())
    np.testing.assert_allclose(found["grade"], [-math.sqrt(2), 0, math.sqrt(2), 0])
    assert found.filter(like="home").to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert found.filter(like="purpose").to_numpy().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_missing_numbers_and_codes_are_imputed_from_the_fitted_rows() -> None:
    gaps = pd.DataFrame({"home": ["?"], "debt": [""], "grade": ["x"], "income": [None], "purpose": ["7"]})
    median = featurized(gaps, fit_on=rows(debt=["0", "0", "4", "90"]), scale="none")
    numbers = {"debt": 2.0, "grade": 1.0, "income": 2.5}
    homes = {"home_own": 0.0, "home_rent": 1.0, "home_free": 0.0}
    purposes = {"purpose_0": 1.0, "purpose_9": 0.0, "purpose_10": 0.0}
    assert median.iloc[0].to_dict() == numbers | homes | purposes
    mean = featurized(gaps, fit_on=rows(debt=["0", "0", "4", "90"]), scale="none", numeric_imputation="mean")
    assert mean.loc[0, "debt"] == 23.5


def test_scales() -> None:
    table = rows(income=["1", "2", "3", "1000"])
    income = np.array([1.0, 2, 3, 1000])
    np.testing.assert_allclose(featurized(table, scale="robust")["income"], (income - 2.5) / (252.25 - 1.75))
    np.testing.assert_array_equal(featurized(table, scale="none")["income"], income)


def test_ordinals_one_hot() -> None:
    found = featurized(rows(), ordinals="one_hot")
    assert "grade" not in found
    assert found[["grade_low", "grade_mid", "grade_high"]].to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_ratios_and_logarithms() -> None:
    ratios = [
        Ratio(name="burden", numerator="debt", denominator="income"),
        Ratio(name="back", numerator="income", denominator="debt"),
    ]
    table = rows(debt=["10", "0", "?", "40"], income=["5", "0", "3", "-1"])
    infinite = rows(debt=["10", "20", "40", "7"], income=["5", "5", "5", "0"])
    assert featurized(infinite, ratios=ratios[:1], scale="none")["burden"].tolist() == [2, 4, 8, 4]
    found = featurized(table, ratios=ratios, log=["debt", "income"], scale="none")
    assert list(found)[:5] == ["debt", "grade", "income", "burden", "back"]
    # The median, of 2 and -40, stands in for 0 / 0 and for what lacks a part.
    np.testing.assert_allclose(found["burden"], [2, -19, -19, -40])
    np.testing.assert_allclose(found["back"], [0.5, 0.2375, 0.2375, -0.025])
    np.testing.assert_allclose(found["debt"], [math.log(11), 0, math.log(11), math.log(41)])
    # log(1 - 1) is not finite, so it is missing; quotients are made of the amounts as they were.
    np.testing.assert_allclose(found["income"], [math.log(6), 0, math.log(4), math.log(4)])


def test_missing_indicators() -> None:
    table = rows(debt=["10", "?", "", "-5"], home=["own", "own", "x", "own"])
    found = featurized(table, missing_indicators=True)
    names = ["home_missing", "debt_missing", "grade_missing", "income_missing", "purpose_missing"]
    assert list(found)[-5:] == names
    assert found["debt_missing"].tolist() == [0, 1, 1, 1]
    assert found["home_missing"].tolist() == [0, 0, 1, 0]
    ratio = [Ratio(name="burden", numerator="debt", denominator="income")]
    assert featurized(table, missing_indicators=True, ratios=ratio)["burden_missing"].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("scale", ["standard", "robust", "none"])
@pytest.mark.parametrize("ordinals", ["rank", "one_hot"])
def test_an_empty_column_stays_constant_even_if_values_come_later(scale: str, ordinals: str) -> None:
    for name, later in {"debt": "999999", "home": "rent", "grade": "high", "purpose": "9"}.items():
        fit_on = rows(**{name: ["?"] * 4})
        found = featurized(pd.concat([fit_on, rows(**{name: [later] * 4})]), fit_on=fit_on, scale=scale, ordinals=ordinals)
        own = found[[column for column in found if column.startswith(name)]]
        assert np.isfinite(found.to_numpy()).all()
        assert (own == own.iloc[0]).all(axis=None)
        assert found.shape[1] == featurized(rows(), ordinals=ordinals).shape[1]


def test_a_constant_column_is_zero() -> None:
    found = featurized(rows(debt=["7"] * 4, grade=["low"] * 4))
    assert (found[["debt", "grade"]] == 0).all(axis=None)


def test_a_code_that_the_fitted_rows_lack_has_its_column_all_the_same() -> None:
    few = rows(home=["own"] * 4, purpose=["0"] * 4)
    found = featurized(rows(), fit_on=few)
    assert list(found) == list(featurized(few))
    assert found["home_rent"].tolist() == [0, 1, 0, 1]
    assert featurized(few)["home_rent"].tolist() == [0, 0, 0, 0]


def test_the_columns_of_one_code_are_known_as_a_group() -> None:
    values = InvalidDataHandler(SMALL).fit_transform(rows())
    for settings in ({}, {"ordinals": "one_hot", "missing_indicators": True}):
        preprocessor = FeaturePreprocessor(SMALL, **settings).fit(values)
        names = preprocessor.get_feature_names_out()
        groups = [[names[column].partition("_")[0] for column in group] for group in preprocessor.one_hot_groups_]
        expected = [["home"] * 3, ["purpose"] * 3] if not settings else [["home"] * 3, ["grade"] * 3, ["purpose"] * 3]
        assert groups == expected
        for group in preprocessor.one_hot_groups_:
            assert (preprocessor.transform(values)[:, group].sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    "settings", [{}, {"scale": "robust", "ordinals": "one_hot"}, {"scale": "none", "missing_indicators": True}]
)
def test_encoded_rows_become_numbers_again(settings: dict) -> None:
    values = InvalidDataHandler(SMALL).fit_transform(rows(debt=["10", "?", "30", "40"]))
    preprocessor = FeaturePreprocessor(SMALL, **settings).fit(values)
    encoded = preprocessor.transform(values)
    back = preprocessor.inverse_transform(encoded)
    present = ~np.isnan(values)
    np.testing.assert_allclose(back[present], values[present])
    assert np.isfinite(back).all(), "what was missing is imputed"
    between = preprocessor.inverse_transform(0.7 * encoded[:1] + 0.3 * encoded[1:2])
    home = SMALL.features.index("home")
    assert between[0, home] == values[0, home], "the code with the larger share"


def test_encoded_rows_of_an_empty_column_stay_empty() -> None:
    values = InvalidDataHandler(SMALL).fit_transform(rows(debt=["?"] * 4))
    preprocessor = FeaturePreprocessor(SMALL).fit(values)
    assert np.isnan(preprocessor.inverse_transform(preprocessor.transform(values))[:, SMALL.features.index("debt")]).all()
