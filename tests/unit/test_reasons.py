"""Reasons: contributions that add up to the score, in every model, and words that anybody understands."""

from itertools import permutations

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlops_project.config import Params, Ratio
from mlops_project.dataset import Applicants
from mlops_project.features import FeaturePreprocessor
from mlops_project.modeling import reasons
from mlops_project.modeling.evaluation import scorecard_tables
from mlops_project.modeling.model import RiskModel
from mlops_project.modeling.reasons import Reason, map_sums, reason_table, shapley_values
from mlops_project.modeling.scale import log_odds
from mlops_project.modeling.train import train
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Column, Contract, Target

POINTS = 20 / np.log(2)
RATIO = Ratio("rate_per_month", "hoehe", "laufzeit")
TREES = ("xgboost_monotone", "random_forest", "xgboost")


def fit(
    model: str, applicants: Applicants, contract: Contract, params: Params, view: dict | None = None, **settings
) -> RiskModel:
    """Fit on 250 rows with few trees, a ratio and a logarithm."""
    few = {
        name: replace(getattr(params.models, name), n_estimators=8) for name in ("xgboost_monotone", "random_forest", "xgboost")
    }
    blend = replace(params.models.blend, xgboost_monotone=few["xgboost_monotone"], random_forest=few["random_forest"])
    featurize = replace(params.featurize, **{"ratios": [RATIO], "log": ["laufzeit"], **(view or {})})
    chosen = replace(params.train, model=model, n_splits=2, n_repeats=1, **settings)
    seen = contract.without(contract.protected) if featurize.without_protected else contract
    preprocessor = build_preprocessor(seen, featurize)
    models = replace(params.models, **few, blend=blend)
    return train(applicants.table[:250], applicants.target[:250], preprocessor, contract, chosen, models).model


@pytest.fixture(scope="module")
def card(_applicants: Applicants, contract: Contract, params: Params) -> RiskModel:
    return fit("scorecard", _applicants, contract, params)


@pytest.fixture
def dirty(raw_table: pd.DataFrame) -> pd.DataFrame:
    """Rows that the fit has not seen, two of them nothing but dirt."""
    table = raw_table.iloc[300:340].copy()
    table.iloc[0] = "?"
    table.iloc[1] = None
    return table


MODELS = ["scorecard", "logistic_regression", "decision_tree", "xgboost_monotone", "svm", "random_forest", "xgboost", "blend"]


@pytest.mark.parametrize("calibration", ["none", "sigmoid", "isotonic"])
@pytest.mark.parametrize("model", MODELS)
def test_base_and_contributions_are_the_log_odds(
    model: str, calibration: str, applicants: Applicants, contract: Contract, params: Params, dirty: pd.DataFrame
) -> None:
    fitted = fit(model, applicants, contract, params, calibration=calibration)
    base, parts = fitted.contributions(dirty)
    assert list(parts) == [*contract.features, "rate_per_month"]
    assert parts.index.equals(dirty.index)
    np.testing.assert_allclose(base + parts.sum(axis=1), log_odds(fitted.predict_proba(dirty)[:, 1]), atol=1e-10)
    # Points add up to the score as well.
    scale = params.train
    average = scale.base_score + POINTS * (base - np.log(scale.base_odds))
    np.testing.assert_allclose(average + POINTS * parts.sum(axis=1), fitted.score(dirty), atol=1e-8)
    again, alone = fitted.contributions(dirty)[1], fitted.contributions(dirty.iloc[[5]])[1]
    pd.testing.assert_frame_equal(again, parts, check_exact=True)
    np.testing.assert_allclose(alone, parts.iloc[[5]], atol=1e-6)


@pytest.mark.parametrize(
    "view",
    [
        {"ratios": [], "log": []},
        {"missing_indicators": True, "ordinals": "one_hot", "outliers": "iqr"},
        {"numeric_imputation": "mean", "scale": "robust"},
    ],
)
@pytest.mark.parametrize("model", ["logistic_regression", "xgboost"])
def test_encoded_columns_belong_to_the_column_they_come_from(
    model: str, view: dict, applicants: Applicants, contract: Contract, params: Params, dirty: pd.DataFrame
) -> None:
    fitted = fit(model, applicants, contract, params, view=view)
    base, parts = fitted.contributions(dirty)
    np.testing.assert_allclose(base + parts.sum(axis=1), log_odds(fitted.predict_proba(dirty)[:, 1]), atol=1e-10)
    if model == "logistic_regression":
        # In a sum, what one cell changes is what its column's contribution changes, and no other column's.
        other = fitted.contributions(dirty.assign(moral="4"))[1] - parts
        assert other["moral"].abs().max() > 0.01
        np.testing.assert_allclose(other.drop(columns="moral"), 0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"missing_indicators": True}, {"ordinals": "one_hot", "missing_indicators": True}])
def test_source_columns_agree_with_the_names_of_the_encoded_columns(settings: dict, contract: Contract, applicants) -> None:
    values = contract.parse_features(applicants.table).values
    features = FeaturePreprocessor(contract, **settings).fit(np.column_stack([values, values[:, 1]]))
    names = [*contract.features, "x20"]
    encoded = features.get_feature_names_out()
    assert len(features.source_columns()) == len(encoded)
    for source, name in zip(features.source_columns(), encoded, strict=True):
        assert name == names[source] or name.startswith(f"{names[source]}_")


@pytest.mark.parametrize("model", ["scorecard", "logistic_regression", "xgboost_monotone"])
def test_contributions_are_measured_from_the_average_applicant(
    model: str, applicants: Applicants, contract: Contract, params: Params
) -> None:
    fitted = fit(model, applicants, contract, params)
    base, parts = fitted.contributions(applicants.table[:250])
    np.testing.assert_allclose(parts.mean(), 0, atol=1e-6)
    assert base == pytest.approx(log_odds(fitted.predict_proba(applicants.table[:250])[:, 1]).mean())


def test_weights_count_in_the_average(applicants: Applicants, contract: Contract, params: Params) -> None:
    weighted = replace(contract, columns=contract.columns | {"w": Column(kind="weight")})
    weight = np.where(applicants.table["laufkont"].isna() | (np.arange(len(applicants.table)) % 2 == 0), 3.0, 1.0)
    model = fit("logistic_regression", applicants._replace(table=applicants.table.assign(w=weight)), weighted, params)
    parts = model.contributions(applicants.table[:250])[1]
    np.testing.assert_allclose(np.average(parts, axis=0, weights=weight[:250]), 0, atol=1e-12)


@pytest.mark.parametrize("calibration", ["none", "sigmoid"])
def test_points_lost_are_those_of_the_points_table(
    calibration: str, applicants: Applicants, contract: Contract, params: Params
) -> None:
    model = fit("scorecard", applicants, contract, params, {"log": [], "ratios": []}, calibration=calibration)
    points = scorecard_tables(model)["scorecard"]
    average = (points["share"] * points["points"]).groupby(points["attribute"]).sum()
    card = model.pipeline[-1].classifier if calibration == "sigmoid" else model.pipeline[-1]
    table = applicants.table[250:350]
    values = contract.parse_features(table).values
    against_average = pd.DataFrame(index=table.index)
    for i, (name, bins) in enumerate(zip(card.encoder_.names_, card.encoder_.bins_, strict=True)):
        of_bin = points.loc[points["attribute"] == name, "points"].to_numpy()
        against_average[name] = of_bin[bins.assign(values[:, i])] - average[name]
    np.testing.assert_allclose(POINTS * model.contributions(table)[1], against_average, atol=1e-9)
    for row, found in zip(against_average.to_dict("records"), model.reasons(table), strict=True):
        assert [reason.points for reason in found] == pytest.approx([row[reason.column] for reason in found])


# --- the way for all models


def test_asking_agrees_with_the_sum_it_asks(applicants: Applicants, contract: Contract, params: Params, dirty) -> None:
    """A logistic regression in a wrapper that shows no coefficients: one order is enough for a sum."""
    model = fit("logistic_regression", applicants, contract, params)
    exact = model.contributions(dirty)[1].to_numpy()
    tail = model.pipeline[-2:]
    values = model.pipeline[:-2].transform(dirty)
    training = model.pipeline[:-2].transform(applicants.table[:250])
    typical = model.reference.typical

    def ask(rows: np.ndarray) -> np.ndarray:
        return log_odds(tail.predict_proba(rows)[:, 1])

    found = shapley_values(ask, values, typical, orders=1)[1] - shapley_values(ask, training, typical, orders=1)[1].mean(axis=0)
    np.testing.assert_allclose(found, exact, atol=1e-9)


def pairs_and_triple(triple: float):
    def f(rows: np.ndarray) -> np.ndarray:
        a, b, c, d = np.nan_to_num(rows, nan=-1.0).T
        return 1 + 2 * a - b + 0.5 * a * b + np.minimum(b, d) + c * d + triple * a * c * d

    return f


def exact_shapley(f, row: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """The mean over all orders."""
    out = np.zeros(len(row))
    orders = list(permutations(range(len(row))))
    for order in orders:
        now = typical.copy()
        for column in order:
            before = f(now[np.newaxis])[0]
            now[column] = row[column]
            out[column] += f(now[np.newaxis])[0] - before
    return out / len(orders)


def test_one_order_and_its_reverse_are_exact_for_pairs() -> None:
    rng = np.random.default_rng(1)
    rows, typical = rng.normal(size=(5, 4)), np.array([0.3, np.nan, -1.0, 0.5])
    rows[0, 0] = rows[1, 1] = np.nan
    rows[2] = typical
    base, found = shapley_values(pairs_and_triple(0.0), rows, typical, orders=1)
    np.testing.assert_allclose(found, [exact_shapley(pairs_and_triple(0.0), row, typical) for row in rows], atol=1e-12)
    assert base == pairs_and_triple(0.0)(typical[np.newaxis])[0]
    assert (found[2] == 0).all()


def test_more_orders_come_closer() -> None:
    rng = np.random.default_rng(2)
    rows, typical = rng.normal(size=(50, 4)), np.array([0.3, 0.1, -1.0, 0.5])
    f = pairs_and_triple(2.0)
    expected = np.array([exact_shapley(f, row, typical) for row in rows])
    errors = [np.abs(shapley_values(f, rows, typical, orders=n)[1] - expected).mean() for n in (1, 20, 500)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows, typical = rng.normal(size=(23, 4)), np.zeros(4)
    whole = shapley_values(pairs_and_triple(2.0), rows, typical), map_sums(np.floor, 0.3, rows)
    monkeypatch.setattr(reasons, "MAX_CELLS", 64)
    for (base, parts), (same, again) in zip(
        whole, (shapley_values(pairs_and_triple(2.0), rows, typical), map_sums(np.floor, 0.3, rows)), strict=True
    ):
        assert base == same
        np.testing.assert_array_equal(parts, again)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(-2, 2))
def test_a_rising_map_of_a_sum_adds_up_and_keeps_signs(parts: list[float], start: float) -> None:
    def g(sums: np.ndarray) -> np.ndarray:
        return np.clip(np.floor(2 * sums), -4, 4)

    row = np.array([parts])
    base, found = map_sums(g, start, row)
    assert base == g(np.array([start]))[0]
    assert base + found.sum() == pytest.approx(g(start + np.cumsum(parts)[-1:])[0], abs=1.0)  # a step may be one rounding away
    assert (found[0][row[0] >= 0] >= 0).all()
    assert (found[0][row[0] <= 0] <= 0).all()


def test_a_straight_map_of_a_sum_changes_nothing() -> None:
    rows = np.random.default_rng(4).normal(size=(30, 7))
    base, found = map_sums(lambda sums: 3 * sums - 1, 0.5, rows)
    assert base == 0.5
    np.testing.assert_allclose(found, 3 * rows, atol=1e-12)


# --- words


def test_reasons_are_the_worst_contributions_in_order(card: RiskModel, dirty: pd.DataFrame) -> None:
    parts = card.contributions(dirty)[1]
    for top in (1, 3, 30):
        for (_, row), found in zip(parts.iterrows(), card.reasons(dirty, top=top), strict=True):
            negative = row[row < -1e-6].sort_values(kind="stable")
            assert [reason.column for reason in found] == list(negative.index[:top])
            assert [reason.contribution for reason in found] == list(negative[:top])
            assert all(type(value) is float for reason in found for value in (reason.contribution, reason.points))
            np.testing.assert_allclose([reason.points for reason in found], POINTS * negative[:top])
    assert card.reasons(dirty, top=0) == [[]] * len(dirty)
    assert [len(row) for row in card.reasons(dirty)] == [min(3, n) for n in (parts < -1e-6).sum(axis=1)]


def test_words_are_those_of_the_contract(card: RiskModel, applicants: Applicants) -> None:
    worst = {"laufkont": "2", "laufzeit": "72", "hoehe": "error", "moral": "0"}
    found = {reason.column: reason for reason in card.reasons(applicants.table[:1].astype(object).assign(**worst), top=30)[0]}
    lost = round(-found["laufkont"].points)
    assert found["laufkont"].text == f"checking account status: < 0 DM ({lost} points below the average applicant)"
    assert found["laufzeit"].text.startswith("duration months: 72 months (")  # the cell, not its logarithm
    assert found["moral"].text.startswith("credit history: delayed (")
    assert found["laufkont"].code == "laufkont"


def test_what_is_missing_or_not_valid_is_called_missing(card: RiskModel, applicants: Applicants) -> None:
    for cell in ("", "?", "999", None):
        table = applicants.table[:30].astype(object).assign(laufkont=cell, laufzeit=cell)
        found = [reason for row in card.reasons(table, top=30) for reason in row]
        of_these = [reason for reason in found if reason.column in ("laufkont", "laufzeit", "rate_per_month")]
        assert of_these
        for reason in of_these:
            assert reason.code == f"{reason.column}_missing"
            assert ": missing (" in reason.text


TOY = Contract(
    target=Target(name="y", good=1, bad=0),
    columns={
        "home": Column(kind="nominal", codes=["own", "rent", "boat"]),
        "size": Column(kind="ordinal", codes={1: "small", 2: "large"}, english="size_of_home"),
        "income": Column(kind="numeric", unit="EUR"),
        "age": Column(kind="numeric", protected=True, bands=[30.0]),
    },
    missing_tokens=["?"],
)


@pytest.fixture(scope="module")
def toy(params: Params) -> RiskModel:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        "home": rng.choice(["own", "rent"], 300),
        "size": rng.choice([1, 2], 300),
        "income": rng.normal(2000, 500, 300).round(2),
        "age": rng.integers(18, 70, 300),
    })  # fmt: skip
    risk = sum(
        sign.astype(int) for sign in (table["home"] == "rent", table["size"] == 1, table["income"] < 2000, table["age"] < 44)
    )
    y = pd.Series((rng.random(300) > 0.04 + 0.23 * risk).astype(int))
    return fit("logistic_regression", Applicants(table, y, [], {}), TOY, params, {"ratios": [], "log": []})


def test_columns_without_english_or_unit_are_named_as_they_are(toy: RiskModel) -> None:
    row = pd.DataFrame([{"home": "RENT", "size": 1, "income": "1234.5", "age": 18}])
    found = {reason.column: reason.text.split(" (")[0] for reason in toy.reasons(row, top=4)[0]}
    assert found == {"home": "home: rent", "size": "size of home: small", "income": "income: 1234.5 EUR", "age": "age: 18"}


def test_a_protected_column_is_a_reason_only_where_the_model_reads_it(
    card: RiskModel, applicants: Applicants, contract: Contract, params: Params
) -> None:
    hiding = fit("scorecard", applicants, contract, params, {"without_protected": True})
    for model, expected in ((card, set(contract.protected)), (hiding, set())):
        found = {reason.column for row in model.reasons(applicants.table[:50], top=30) for reason in row}
        assert found & set(contract.protected) == expected


def test_a_code_that_training_did_not_see_has_its_words(toy: RiskModel) -> None:
    row = pd.DataFrame([{"home": "boat", "size": 1, "income": 10, "age": 18}])
    base, parts = toy.contributions(row)
    assert base + parts.to_numpy().sum() == pytest.approx(log_odds(toy.predict_proba(row)[:, 1])[0])
    assert {reason.code for reason in toy.reasons(row, top=4)[0]} <= {"home", "size", "income", "age"}


def test_nobody_better_than_average_everywhere_has_a_reason(toy: RiskModel) -> None:
    row = pd.DataFrame([{"home": "own", "size": 2, "income": 9000, "age": 69}])
    assert toy.reasons(row) == [[]]


def test_little_is_said_to_be_little(toy: RiskModel) -> None:
    mean = toy.contributions(pd.DataFrame([{"home": "own", "size": 2, "income": 2000, "age": 40}]))[1]["income"].iloc[0]
    slope = toy.contributions(pd.DataFrame([{"home": "own", "size": 2, "income": 2001, "age": 40}]))[1]["income"].iloc[0] - mean
    for points, words in ((0.2, "less than a point"), (1.0, "1 point"), (2.0, "2 points")):
        income = 2000 - (mean + points / POINTS) / slope
        row = pd.DataFrame([{"home": "own", "size": 2, "income": income, "age": 40}])
        reason = next(reason for reason in toy.reasons(row, top=4)[0] if reason.column == "income")
        assert reason.points == pytest.approx(-points)
        assert f"({words} below the average applicant)" in reason.text


def test_a_table_of_codes_has_empty_places_where_reasons_are_fewer() -> None:
    rows = [[], [Reason("a", "a", -1.0, -29.0, ""), Reason("b", "b_missing", -0.5, -14.0, "")]]
    table = reason_table(rows, pd.Index(["x", "y"], name="applicant_id"), 3)
    assert list(table) == ["reason_1", "reason_2", "reason_3"]
    assert table.to_csv(lineterminator="\n") == "applicant_id,reason_1,reason_2,reason_3\nx,,,\ny,a,b_missing,\n"


def test_a_column_without_any_value_is_no_reason(applicants: Applicants, contract: Contract, params: Params) -> None:
    empty = applicants._replace(table=applicants.table.astype(object).assign(laufkont=None, hoehe=None))
    for name in ("scorecard", "logistic_regression", "decision_tree", "xgboost_monotone"):
        model = fit(name, empty, contract, params)
        base, parts = model.contributions(empty.table[:40])
        np.testing.assert_allclose(parts[["laufkont", "hoehe"]], 0, atol=1e-6)
        assert np.isfinite(base)
        assert np.isfinite(parts.to_numpy()).all()


def test_explaining_leaves_model_and_table_alone(card: RiskModel, dirty: pd.DataFrame) -> None:
    before, table = joblib.hash(card), dirty.copy()
    card.reasons(dirty)
    assert joblib.hash(card) == before
    pd.testing.assert_frame_equal(dirty, table)


def test_a_model_without_a_reference_says_so(card: RiskModel, dirty: pd.DataFrame) -> None:
    bare = RiskModel(card.name, card.pipeline, card.contract, card.params, "", 0.3, card.scale)
    with pytest.raises(ValueError, match="made without a reference; train it anew"):
        bare.reasons(dirty)
