"""Weight of evidence, the scorecard and its tables: scikit-learn's own checks first, then what a risk officer relies on."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks

from mlops_project.errors import ParamsError
from mlops_project.modeling.binning import LARGEST_WOE, _rounded
from mlops_project.modeling.evidence import WeightOfEvidence
from mlops_project.modeling.scorecard import (
    Scorecard,
    ScoreScale,
    attributes_table,
    bins_by_code,
    bins_table,
    points_table,
)
from mlops_project.schema import Column, Contract, Target

CONTRACT = Contract(
    target=Target(name="y", good=1, bad=0),
    columns={
        "debt": Column(kind="numeric"),
        "grade": Column(kind="ordinal", codes={1: "low", 2: "mid", 4: "high"}),
        "home": Column(kind="nominal", codes=["own", "rent", "free"]),
    },
)


@parametrize_with_checks([WeightOfEvidence(), Scorecard()])
def test_scikit_learns_own_checks(estimator, check) -> None:
    """None is expected to fail."""
    check(estimator)


def applicants(seed: int = 0, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a number, a rank, a code and noise, some missing, and the outcome."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(size=n), rng.integers(1, 6, n), rng.integers(0, 4, n), rng.normal(size=n)])
    log_odds = 1 + X[:, 0] - 0.4 * (X[:, 1] - 3) + np.array([0.0, 1.0, -1.0, 0.3])[X[:, 2].astype(int)]
    y = (rng.random(n) < 1 / (1 + np.exp(-log_odds))).astype(int)
    X[rng.random(X.shape) < 0.03] = np.nan
    return X, y


KINDS = ("numeric", "ordinal", "nominal", "numeric")
NAMES = ("a", "b", "c", "d")

columns = st.lists(st.none() | st.integers(-3, 3) | st.floats(-1e9, 1e9), min_size=2, max_size=60)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """One column with missing values, and outcomes of both classes."""
    values = draw(columns)
    y = np.array(draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))).astype(int)
    assume(0 < y.sum() < len(y))
    return np.array(values, dtype=float)[:, np.newaxis], y


any_kind = st.sampled_from(["numeric", "ordinal", "nominal"])
free = st.fixed_dictionaries({
    "max_bins": st.integers(1, 8), "min_bin_share": st.floats(0, 0.5), "smoothing": st.sampled_from([0.0, 0.5, 30.0])
})  # fmt: skip


@given(tables(), any_kind, free)
@settings(deadline=None, max_examples=60)
def test_each_value_is_in_one_bin_and_the_table_counts_all_rows(table, kind, how) -> None:
    X, y = table
    encoder = WeightOfEvidence(kinds=[kind], **how).fit(X, y)
    bins = encoder.bins_[0]
    found = bins.assign(X[:, 0])
    assert ((found == bins.n) == np.isnan(X[:, 0])).all()
    assert (found <= bins.n).all()  # all codes were seen
    np.testing.assert_array_equal(np.bincount(found, minlength=bins.n + 2), bins.good + bins.bad)
    assert 0 <= bins.n <= how["max_bins"]
    rows = (bins.good + bins.bad)[: bins.n]
    assert bins.n <= 1 or (rows >= how["min_bin_share"] * len(y)).all()
    assert (np.abs(encoder.transform(X)) <= LARGEST_WOE).all()
    table = bins_table(encoder)
    assert table["rows"].sum() == len(y)
    assert table["iv"].min() >= -1e-12


@given(tables(), st.sampled_from(["increasing", "decreasing", None]), free)
@settings(deadline=None, max_examples=60)
def test_evidence_moves_one_way(table, direction, how) -> None:
    X, y = table
    encoder = WeightOfEvidence(directions=[direction], **how).fit(X, y)
    grid = np.sort(np.append(X[~np.isnan(X)], [-1e12, 0.5, 1e12]))[:, np.newaxis]
    steps = np.diff(encoder.transform(grid)[:, 0])
    rises, falls = (steps >= 0).all(), (steps <= 0).all()
    assert {"increasing": rises, "decreasing": falls, None: rises or falls}[direction]


@given(tables(), any_kind, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_the_order_of_rows_does_not_matter(table, kind, random) -> None:
    X, y = table
    order = np.array(random.sample(range(len(y)), len(y)))
    expected = WeightOfEvidence(kinds=[kind]).fit(X, y).transform(X)
    np.testing.assert_allclose(WeightOfEvidence(kinds=[kind]).fit(X[order], y[order]).transform(X), expected, atol=1e-12)


@given(tables(), any_kind)
@settings(deadline=None, max_examples=40)
def test_every_row_twice_changes_only_counts(table, kind) -> None:
    X, y = table
    once = WeightOfEvidence(kinds=[kind], smoothing=0).fit(X, y)
    twice = WeightOfEvidence(kinds=[kind], smoothing=0).fit(np.vstack([X, X]), np.append(y, y))
    np.testing.assert_array_equal(twice.bins_[0].points, once.bins_[0].points)
    np.testing.assert_allclose(twice.bins_[0].woe, once.bins_[0].woe, atol=1e-12)
    np.testing.assert_array_equal(twice.bins_[0].good, 2 * once.bins_[0].good)


@given(tables(), any_kind, st.data())
@settings(deadline=None, max_examples=40)
def test_weights_are_repetitions(table, kind, data) -> None:
    X, y = table
    weight = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y))))
    repeated = np.repeat(np.arange(len(y)), weight)
    assume(0 < y[repeated].sum() < len(repeated))
    weighted = WeightOfEvidence(kinds=[kind]).fit(X, y, weight)
    expected = WeightOfEvidence(kinds=[kind]).fit(X[repeated], y[repeated])
    np.testing.assert_array_equal(weighted.bins_[0].points, expected.bins_[0].points)
    np.testing.assert_allclose(weighted.bins_[0].woe, expected.bins_[0].woe, atol=1e-12)


def test_evidence_is_the_log_of_the_quotient_of_shares() -> None:
    X = np.array([[1.0]] * 10 + [[2.0]] * 10)
    y = np.array([1] * 4 + [0] * 6 + [1] * 8 + [0] * 2)
    encoder = WeightOfEvidence(smoothing=0).fit(X, y)
    expected = [math.log((4 / 12) / (6 / 8)), math.log((8 / 12) / (2 / 8)), 0, 0]
    np.testing.assert_allclose(encoder.bins_[0].woe, expected)
    # Ten more rows per bin at the overall rate of 12 in 20.
    shrunk = WeightOfEvidence(smoothing=10).fit(X, y).bins_[0].woe
    np.testing.assert_allclose(shrunk[:2], [math.log(10 / 10 / 1.5), math.log(14 / 6 / 1.5)])


def test_unseen_codes_and_columns_without_values_are_neutral() -> None:
    X, y = applicants()
    X[:, 3] = np.nan
    encoder = WeightOfEvidence(kinds=("numeric", "ordinal", "nominal", "nominal")).fit(X, y)
    new = np.array([[0.0, 1.0, 99.0, 1.0]])
    assert encoder.transform(new)[0, 2:].tolist() == [0, 0]
    assert WeightOfEvidence().fit(np.ones((6, 1)), [0, 1] * 3).transform([[1.0], [7.0]]).tolist() == [[0], [0]]


def test_bins_by_hand_hold_as_they_are() -> None:
    X, y = applicants()
    overrides = {"a": [-0.5, 0.0, 0.1], "c": [[0, 3], [7]]}
    encoder = WeightOfEvidence(NAMES, KINDS, [None] * 4, overrides=overrides).fit(X, y)
    assert encoder.bins_[0].points.tolist() == [-0.5, 0, 0.1]
    assert encoder.bins_[0].assign(np.array([-0.6, -0.5, 0.05, 0.1])).tolist() == [0, 1, 2, 3]
    # 7 was not seen and has a bin all the same; what no list names is one more bin.
    assert encoder.bins_[2].assign(np.array([0.0, 3, 7, 1, 2, np.nan, 8])).tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert WeightOfEvidence(NAMES, KINDS, overrides={"a": []}).fit(X, y).bins_[0].n == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"x": [1]}, "no column 'x'"),
        ({"a": [2, 1]}, "rising order"),
        ({"a": [1, 1]}, "rising order"),
        ({"a": [[1], [2]]}, "rising order"),
        ({"a": [math.nan]}, "finite"),
        ({"c": [1, 2]}, "lists of codes"),
        ({"c": [[1], []]}, "lists of codes"),
        ({"c": [[1, 2], [2]]}, "one list only"),
    ],
)
def test_bins_by_hand_that_contradict_themselves_are_refused(overrides, words) -> None:
    X, y = applicants()
    with pytest.raises(ValueError, match=words):
        WeightOfEvidence(NAMES, KINDS, overrides=overrides).fit(X, y)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"kinds": ["numeric"]}, "kinds: found 1 entries, expected one for each of 4"),
        ({"kinds": ["text"] * 4}, "kinds: found 'text'"),
        ({"directions": ["up"] * 4}, "directions: found 'up'"),
        ({"kinds": ["nominal"] * 4, "directions": ["increasing"] * 4}, "has no order"),
        ({"max_bins": 0}, "max_bins 0"),
        ({"smoothing": -1}, "smoothing -1"),
    ],
)
def test_settings_that_do_not_fit_the_columns_are_refused(settings_, words) -> None:
    X, y = applicants()
    with pytest.raises(ValueError, match=words):
        WeightOfEvidence(**settings_).fit(X, y)
    with pytest.raises(ValueError, match="C 0 and"):
        Scorecard(C=0).fit(X, y)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_cut_points_are_short_numbers_between_the_values(a, b) -> None:
    assume(a != b)
    below, value = sorted([a, b])
    assert below < _rounded(below, value) <= value


def test_cut_points_are_round() -> None:
    found = [_rounded(*ends) for ends in [(12, 13), (3912.4, 3987), (0.1234, 0.1311), (-2.2, -1.1), (-0.5, 0.2), (7, 1200)]]
    assert found == [13, 3980, 0.13, -2, 0, 1000]


# --- the scorecard


def test_points_add_up_to_the_score() -> None:
    X, y = applicants()
    card = Scorecard(NAMES, KINDS).fit(X, y)
    table = points_table(card, ScoreScale(600, 20, 20))
    X_new = np.vstack([applicants(1)[0], [[9.0, 9, 77, 9]]])
    total = np.zeros(len(X_new))
    for i, (name, bins) in enumerate(zip(NAMES, card.encoder_.bins_, strict=True)):
        total += table.loc[table["attribute"] == name, "points"].to_numpy()[bins.assign(X_new[:, i])]
    expected = 600 + 20 / math.log(2) * (card.decision_function(X_new) - math.log(20))
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert (abs(table["points"] - table["rounded"]) <= 0.5).all()


def test_a_card_without_evidence_is_its_base() -> None:
    X, y = np.ones((10, 1)), np.array([0, 1] * 5)
    card = Scorecard(center=0).fit(X, y)
    table = points_table(card, ScoreScale(600, 1, 20))
    assert table["bin"].tolist() == ["base", "any", "missing"]
    np.testing.assert_allclose(table["points"], [600, 0, 0], atol=1e-6)


def test_coefficients_are_never_negative_and_are_those_of_a_free_fit_where_that_has_none() -> None:
    from sklearn.linear_model import LogisticRegression

    X, y = applicants()
    card = Scorecard(NAMES, KINDS, center=0, C=0.5).fit(X, y)
    free = LogisticRegression(C=0.5, tol=1e-10).fit(card.encoder_.transform(X), y)
    assert (free.coef_ > 0).all()
    np.testing.assert_allclose(card.coef_, free.coef_, atol=1e-4)
    np.testing.assert_allclose(card.intercept_, free.intercept_, atol=1e-4)
    # The second of two columns that say nearly the same, noise on top, wants a negative coefficient.
    rng = np.random.default_rng(0)
    twins = np.column_stack([X[:, 0], X[:, 0] + rng.normal(size=len(X))])
    assert (Scorecard(C=1e6, smoothing=0).fit(twins, y).coef_ >= 0).all()


def test_predictions_are_consistent() -> None:
    X, y = applicants()
    card = Scorecard(NAMES, KINDS).fit(X, np.where(y == 1, "good", "not"))
    assert card.classes_.tolist() == ["good", "not"]
    p = card.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(card.predict(X) == "not", p[:, 1] > 0.5)


# --- tables and words


def test_tables_speak_the_contracts_words() -> None:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.integers(1, 100, 300), rng.choice([1, 2, 4], 300), rng.integers(0, 3, 300)]).astype(float)
    X[:20, 0] = np.nan
    y = (rng.random(300) < 0.3 + 0.15 * X[:, 1]).astype(int)
    overrides = {"debt": [13, 24], "grade": [2], "home": [[0, 2]]}
    kinds = ("numeric", "ordinal", "nominal")
    encoder = WeightOfEvidence(CONTRACT.features, kinds, overrides=overrides).fit(X, y)
    table = bins_table(encoder, CONTRACT.code_labels)
    assert table["bin"].tolist() == [
        "< 13", "13 to < 24", ">= 24", "missing",
        "low", "mid | high", "missing",
        "own | free", "rent", "missing", "other",
    ]  # fmt: skip
    first = X[:, 0] < 13
    row = table.iloc[0]
    assert (row["rows"], row["share"], row["bad_rate"]) == (first.sum(), first.mean(), (y[first] == 0).mean())
    np.testing.assert_allclose(table.groupby("attribute")["share"].sum(), 1)
    summary = attributes_table(encoder)
    assert summary["iv"].is_monotonic_decreasing
    np.testing.assert_allclose(summary.set_index("attribute")["iv"], table.groupby("attribute")["iv"].sum()[summary["attribute"]])
    shapes = summary.set_index("attribute")["bad_rate"]
    assert shapes["grade"] == "falls"
    assert pd.isna(shapes["home"])
    assert summary.set_index("attribute").loc["debt", "missing"] == pytest.approx(20 / 300)


def test_bins_by_hand_are_written_in_the_contracts_codes() -> None:
    bins = {"debt": [10, 20], "grade": [2], "home": [["own", "free"], ["rent"]], "ratio": [1]}
    found = bins_by_code(bins, CONTRACT, [*CONTRACT.features, "ratio"])
    assert found == {"debt": [10, 20], "grade": [2], "home": [[0, 2], [1]], "ratio": [1]}


@pytest.mark.parametrize(
    ("bins", "words"),
    [
        ({"home": [["own"], ["tent"]]}, r"bins.home: found 'tent', expected one of own, rent, free"),
        ({"home": [["own"], ["own"]]}, "twice"),
        ({"home": ["own"]}, "expected lists of codes"),
        ({"debt": [[1]]}, "expected cut points"),
        ({"debt": [2, 1]}, "rising order"),
        ({"grade": [3]}, "found 3, expected one of 1, 2, 4"),
        ({"depth": [3]}, "found 'depth', expected a column that the model sees: debt"),
    ],
)
def test_wrong_bins_by_hand_are_refused_in_words(bins, words) -> None:
    with pytest.raises(ParamsError, match=words):
        bins_by_code(bins, CONTRACT, CONTRACT.features)
