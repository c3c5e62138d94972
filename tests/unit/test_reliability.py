"""Calibration: the error and the table say how far predicted and observed default rates lie apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.modeling.policy import Policy, Scored
from mlops_project.modeling.reliability import calibration_table, equal_mass_bins, expected_calibration_error


def rows(y: np.ndarray, p_good: np.ndarray, weights: np.ndarray | None = None, threshold: float = 1 / 6) -> Scored:
    policy = Policy(
        threshold=threshold,
        threshold_from="params",
        cost_bad_approved=5.0,
        cost_good_refused=1.0,
        sample_default_rate=0.3,
        prior_default_rate=None,
        conformal_level=0.9,
        conformal_cutoff_good=0.5,
        conformal_cutoff_bad=0.5,
    )
    return Scored(y, p_good, np.ones(len(y)) if weights is None else weights, policy)


def scored(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw P(good) and outcomes that come true as often as it says."""
    rng = np.random.default_rng(seed)
    p_good = rng.beta(3, 1, n)
    return (rng.random(n) < p_good).astype(int), p_good


def error(y: np.ndarray, p_good: np.ndarray, weights: np.ndarray | None = None) -> float:
    weights = np.ones(len(y)) if weights is None else weights
    return float(expected_calibration_error(y, p_good, equal_mass_bins(p_good, weights), weights[None])[0])


def test_the_calibration_error_by_hand() -> None:
    """Two bins of ten rows: predicted 0.8 against 0.5 good, predicted 0.2 against 0.3 good."""
    p_good = np.repeat([0.8, 0.2], 10)
    y = np.r_[np.tile([1, 0], 5), [1] * 3, [0] * 7]
    bins = equal_mass_bins(p_good, np.ones(20), bins=2)
    assert bins.tolist() == [0] * 10 + [1] * 10
    weightings = np.array([np.ones(20), np.repeat([3.0, 1.0], 10)])
    found = expected_calibration_error(y, p_good, bins, weightings)
    assert found.tolist() == pytest.approx([(0.3 + 0.1) / 2, (3 * 0.3 + 0.1) / 4])


def test_true_probabilities_have_a_small_error_and_moved_ones_that_of_the_move() -> None:
    y, p_good = scored(100_000, seed=0)
    assert error(y, p_good) < 0.01
    assert error(y, p_good * 0.8) == pytest.approx((p_good * 0.2).mean(), abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), min_size=1, max_size=60))
def test_bins_are_ordered_by_risk_and_hold_equal_weight(drawn: list[tuple[int, int]]) -> None:
    eighths, weights = (np.array(column) for column in zip(*drawn, strict=True))
    bins = equal_mass_bins(eighths / 8, weights.astype(float))
    assert bins.min() >= 0
    assert bins.max() <= 9
    assert (np.diff(bins[np.argsort(-eighths, kind="stable")]) >= 0).all()
    mass = np.bincount(bins, weights, 10)
    assert (np.abs(mass - weights.sum() / 10) <= weights.max()).all()


def test_calibration() -> None:
    y, p_good = scored(1003, seed=5)
    table = calibration_table(rows(y, p_good))
    assert len(table) == 10
    assert table["rows"].sum() == 1003
    assert table["rows"].isin([100, 101]).all()
    assert (np.diff(table["predicted"]) > 0).all()
    assert np.average(table["observed"], weights=table["rows"]) == pytest.approx((y == 0).mean())
    assert np.average(table["predicted"], weights=table["rows"]) == pytest.approx((1 - p_good).mean())
    assert ((table["low"] >= 0) & (table["low"] <= table["observed"]) & (table["observed"] <= table["high"])).all()
    assert (table["high"] <= 1).all()


def test_wilsons_interval() -> None:
    """9 bad of 10: 0.596 to 0.982, as in Brown, Cai and DasGupta (2001)."""
    table = calibration_table(rows(np.array([0] * 9 + [1]), np.full(10, 0.5)), bins=1)
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx([0.596, 0.982], abs=0.001)


def test_few_rows_make_few_bins() -> None:
    table = calibration_table(rows(np.array([0, 1, 1]), np.array([0.1, 0.5, 0.9])))
    assert table["predicted"].tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert table["observed"].tolist() == [0, 0, 1]
