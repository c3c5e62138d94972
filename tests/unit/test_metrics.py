"""Every metric against scikit-learn's own, on any outcomes, tied scores and weights."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as skm

from mlops_project.errors import DataError
from mlops_project.modeling.metrics import (
    CROSS_VALIDATED,
    RANKING_METRICS,
    bootstrap_weights,
    cross_validated_metrics,
    decision_metrics,
    expected_cost,
    outcomes,
    rank,
    ranking_metrics,
)

# Scores in eighths: many ties, and 1 - p is exact.
row = st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 3))
samples = st.lists(row, min_size=2, max_size=25)


def arrays(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, eighths, weights = (np.array(column) for column in zip(*rows, strict=True))
    return y, eighths / 8, weights


def both_classes(y: np.ndarray, weights: np.ndarray) -> bool:
    return min(weights[y == 1].sum(), weights[y == 0].sum()) > 0


def kolmogorov_smirnov(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> float:
    """Compare the two distribution functions at every score."""
    good, bad = weights * (y == 1), weights * (y == 0)
    return max(abs(good[p <= s].sum() / good.sum() - bad[p <= s].sum() / bad.sum()) for s in p)


@settings(max_examples=50)
@given(samples)
def test_ranking_metrics_are_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    y, p, weights = arrays(rows)
    assume(both_classes(y, weights))
    found = {name: values[0] for name, values in ranking_metrics(y, p, weights[None]).items()}
    assert list(found) == list(RANKING_METRICS)
    clipped = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
    roc_auc = skm.roc_auc_score(y, p, sample_weight=weights)
    assert found == pytest.approx(
        {
            "roc_auc": roc_auc,
            "gini": 2 * roc_auc - 1,
            "ks": kolmogorov_smirnov(y, p, weights),
            "average_precision": skm.average_precision_score(y, p, sample_weight=weights),
            "brier": skm.brier_score_loss(y, p, sample_weight=weights),
            "log_loss": skm.log_loss(y, clipped, sample_weight=weights),
        },
        abs=1e-9,
    )


@settings(max_examples=30)
@given(samples, st.integers(0, 8))
def test_decision_metrics_are_scikit_learns(rows: list[tuple[int, int, int]], eighths: int) -> None:
    y, p, weights = arrays(rows)
    assume(weights.sum() > 0)
    threshold = eighths / 8
    found = {name: values[0] for name, values in decision_metrics(y, p, threshold, weights[None]).items()}
    approved = (1 - p < threshold).astype(int)
    settings = {"sample_weight": weights, "zero_division": 0}
    expected = {
        "accuracy": skm.accuracy_score(y, approved, sample_weight=weights),
        "f1": skm.f1_score(y, approved, **settings),
        "precision": skm.precision_score(y, approved, **settings),
        "recall": skm.recall_score(y, approved, **settings),
        "f1_bad": skm.f1_score(y, approved, pos_label=0, **settings),
        "precision_bad": skm.precision_score(y, approved, pos_label=0, **settings),
        "recall_bad": skm.recall_score(y, approved, pos_label=0, **settings),
        "approval_rate": np.average(approved, weights=weights),
    }
    (bad_refused, bad_approved), (good_refused, good_approved) = skm.confusion_matrix(
        y, approved, labels=[0, 1], sample_weight=weights
    )
    expected |= {"bad_refused": bad_refused, "bad_approved": bad_approved}
    expected |= {"good_refused": good_refused, "good_approved": good_approved}
    expected["bad_rate_approved"] = 1 - expected["precision"] if bad_approved + good_approved > 0 else 0
    expected["geometric_mean"] = np.sqrt(expected["recall"] * expected["recall_bad"])
    expected["balanced_accuracy"] = (expected["recall"] + expected["recall_bad"]) / 2
    if both_classes(y, weights):
        # scikit-learn leaves an absent class out of the mean; here it counts as missed.
        assert expected["balanced_accuracy"] == pytest.approx(skm.balanced_accuracy_score(y, approved, sample_weight=weights))
    assert found == pytest.approx(expected)


@settings(max_examples=30)
@given(samples, st.integers(1, 4))
def test_many_weightings_at_once_are_each_alone(rows: list[tuple[int, int, int]], n: int) -> None:
    y, p, weights = arrays(rows)
    many = np.array([np.roll(weights, shift) for shift in range(n)])
    assume(many.sum(axis=1).min() > 0)
    for function in (ranking_metrics, lambda *given: decision_metrics(given[0], given[1], 0.5, given[2])):
        together = function(y, p, many)
        for i in range(n):
            alone = function(y, p, many[i : i + 1])
            for name, values in together.items():
                assert values.shape == (n,)
                np.testing.assert_allclose(values[i], alone[name][0])


@settings(max_examples=20)
@given(samples)
def test_weights_are_repeated_rows(rows: list[tuple[int, int, int]]) -> None:
    y, p, weights = arrays(rows)
    assume(both_classes(y, weights))
    repeated = ranking_metrics(np.repeat(y, weights), np.repeat(p, weights))
    for name, values in ranking_metrics(y, p, weights[None]).items():
        np.testing.assert_allclose(values, repeated[name], atol=1e-12)


def test_a_weighting_with_one_class_has_no_ranking_and_warns_nobody() -> None:
    y, p = np.array([1, 1, 0]), np.array([0.2, 0.8, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ranking_metrics(y, p, np.array([[1, 1, 0], [0, 0, 2], [1, 0, 1]]))
    for name in ("roc_auc", "gini", "ks"):
        assert np.isnan(found[name]).tolist() == [True, True, False]
    for name in ("brier", "log_loss"):
        assert np.isfinite(found[name]).all()


def test_rank_adds_rows_of_equal_score() -> None:
    y, p = np.array([1, 0, 1, 1, 0]), np.array([0.5, 0.5, 0.9, 0.1, 0.1])
    scores, good, bad = rank(y, p)
    assert scores.tolist() == [0.9, 0.5, 0.1]
    assert good.tolist() == [[1, 2, 3]]
    assert bad.tolist() == [[0, 1, 2]]


def test_certain_and_wrong_costs_a_finite_log_loss() -> None:
    y, p = np.array([1, 0, 1]), np.array([0.0, 1.0, 1.0])
    expected = -2 * np.log(np.finfo(float).eps) / 3
    assert ranking_metrics(y, p)["log_loss"][0] == pytest.approx(expected, rel=1e-3)


def test_refused_from_the_threshold_on() -> None:
    y = np.array([1, 1, 1])
    p_good = 1 - np.array([0.25, 0.25 - 2**-50, 0.25 + 2**-50])
    assert decision_metrics(y, p_good, 0.25)["good_approved"][0] == 1
    assert decision_metrics(y, p_good, 0.0)["good_approved"][0] == 0
    assert decision_metrics(y, np.array([0.0, 0.5, 1.0]), 1.0)["good_approved"][0] == 2
    # At one half the class is that of predict(): P(good) of exactly one half is no approval.
    assert decision_metrics(np.array([1]), np.array([0.5]))["good_refused"][0] == 1


def test_ratios_without_a_denominator_are_zero() -> None:
    nobody = decision_metrics(np.array([1, 1]), np.array([0.1, 0.2]))
    assert (nobody["precision"][0], nobody["f1"][0], nobody["recall_bad"][0], nobody["geometric_mean"][0]) == (0, 0, 0, 0)


@given(samples, st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=50)
def test_expected_cost_is_the_mean_over_applicants(rows: list[tuple[int, int, int]], bad: int, good: int) -> None:
    y, p, weights = arrays(rows)
    assume(weights.sum() > 0)
    approved = 1 - p < 0.25
    each = np.where(approved & (y == 0), bad, 0) + np.where(~approved & (y == 1), good, 0)
    decisions = decision_metrics(y, p, 0.25, np.array([weights, weights * 2]))
    np.testing.assert_allclose(expected_cost(decisions, bad, good), [np.average(each, weights=weights)] * 2)


def test_cross_validated_metrics_are_scikit_learns_scorers() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 300), rng.random(300)
    found = cross_validated_metrics(y, p)
    assert list(found) == list(CROSS_VALIDATED)
    assert all(type(value) is float for value in found.values())
    classes = (p > 0.5).astype(int)
    for name, score in {
        "roc_auc": skm.roc_auc_score(y, p),
        "average_precision": skm.average_precision_score(y, p),
        "brier": skm.brier_score_loss(y, p),
        "log_loss": skm.log_loss(y, p),
        "accuracy": skm.accuracy_score(y, classes),
        "balanced_accuracy": skm.balanced_accuracy_score(y, classes),
        "f1": skm.f1_score(y, classes),
        "precision": skm.precision_score(y, classes),
        "recall": skm.recall_score(y, classes),
    }.items():
        assert found[name] == pytest.approx(score, abs=1e-12)


def test_bootstrap_weights_are_counts_of_draws_with_replacement() -> None:
    weights = bootstrap_weights(60, 400, seed=1)
    assert weights.shape == (400, 60)
    assert (weights.sum(axis=1) == 60).all()
    assert weights.min() == 0
    assert weights.mean(axis=0) == pytest.approx(np.ones(60), abs=0.25)
    # The count of one row is binomial: its variance is 1 - 1/n.
    assert weights.var() == pytest.approx(1 - 1 / 60, abs=0.03)
    np.testing.assert_array_equal(bootstrap_weights(60, 400, seed=1), weights)
    assert (bootstrap_weights(60, 400, seed=2) != weights).any()


@pytest.mark.parametrize(
    ("y", "message"),
    [([1, 0], "outcomes: found 2 for 3 rows"), ([1, 0, np.nan], "found nan, expected 1"), ([1, 0, 2], "found 2, expected 1")],
)
def test_outcomes_that_are_none_are_refused(y: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        outcomes(pd.Series(y), 3)
    assert outcomes(pd.Series([1.0, 0.0, 1.0]), 3).tolist() == [1, 0, 1]
