"""The statistics of drift against their definitions, and the thresholds against what chance does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mlops_project.monitoring.classifier import encode, fold_of, mid_ranks, out_of_fold, tell_apart
from mlops_project.monitoring.statistics import (
    Bins,
    Simulated,
    calibrate,
    chi_square,
    kolmogorov_smirnov,
    largest_move,
    population_stability_index,
    share_moved,
    share_rose,
    simulate,
)

COUNTS = arrays(np.int64, 6, elements=st.integers(0, 50))


@given(COUNTS, COUNTS)
def test_counts_in_any_bins_give_finite_statistics(reference, window):
    for statistic in (population_stability_index, kolmogorov_smirnov, chi_square, largest_move):
        value = statistic(reference, window)
        assert np.isfinite(value)
        assert value >= 0
        assert statistic(reference, reference) == pytest.approx(0, abs=1e-12)


def test_chi_square_is_that_of_scipy():
    reference, window = np.array([30, 12, 8]), np.array([11, 25, 14])
    assert chi_square(reference, window) == pytest.approx(stats.chi2_contingency([reference, window], correction=False)[0])


def test_largest_move_is_the_root_of_chi_square_for_two_bins():
    reference, window = np.array([30, 12]), np.array([11, 25])
    assert largest_move(reference, window) == pytest.approx(chi_square(reference, window) ** 0.5)


def test_kolmogorov_smirnov_is_that_of_scipy_up_to_its_steps():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=700), rng.normal(0.3, 1, 400)
    bins = Bins.of_numbers(old, 10)
    found = kolmogorov_smirnov(bins.rows_per_bin(old)[:-1], bins.rows_per_bin(new)[:-1])
    assert found == pytest.approx(stats.ks_2samp(old, new).statistic, abs=0.011)


def test_psi_is_its_definition_where_rows_are_many():
    old, new = np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.3, 0.4])
    expected = ((new - old) * np.log(new / old)).sum()
    assert population_stability_index(old * 1e7, new * 1e7) == pytest.approx(expected, rel=1e-5)


def test_a_shift_of_three_tenths_of_a_deviation_has_a_psi_below_the_usual_tenth():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=200_000), rng.normal(0.3, 1, 200_000)
    bins = Bins.of_numbers(old, 10)
    psi = population_stability_index(*(bins.merge(bins.rows_per_bin(side)) for side in (old, new)))
    assert psi == pytest.approx(0.085, abs=0.005)


def test_shares_move_both_ways_and_rise_one_way():
    some, more = np.array([90, 10]), np.array([60, 40])
    assert share_moved(some, more) == share_moved(more, some) == share_rose(some, more) == pytest.approx(0.3)
    assert share_rose(more, some) == 0


@given(arrays(float, st.integers(1, 60), elements=st.sampled_from([np.nan, -3.0, 0.0, 1.0, 1.5, 1e9])), st.integers(2, 12))
def test_every_row_is_in_one_bin_and_coarse_bins_are_joined_fine_ones(values, bins):
    found = Bins.of_numbers(values, bins)
    fine = found.rows_per_bin(values)
    coarse = found.merge(fine)
    assert fine.sum() == coarse.sum() == len(values)
    assert fine[-1] == coarse[-1] == np.isnan(values).sum()
    there = values[~np.isnan(values)]
    expected = np.bincount(np.searchsorted(found.coarse_edges, there), minlength=len(found.coarse_edges) + 1)
    np.testing.assert_array_equal(coarse[:-1], expected)


def test_values_beyond_the_reference_are_counted():
    bins = Bins.of_numbers(np.arange(100.0), 4)
    assert bins.merge(bins.rows_per_bin(np.array([-1e9, 1e9]))).tolist() == [1, 0, 0, 1, 0]


def test_dealt_rows_keep_the_sizes_of_both_sides():
    seen = []

    def keep(reference, window):
        seen.extend([reference, window])
        return reference[:, 0]

    simulate(np.array([5, 3, 2]), np.array([10, 0, 7]), {"first": keep}, 50, np.random.default_rng(0))
    assert (seen[0].sum(axis=1) == 10).all()
    assert (seen[1].sum(axis=1) == 17).all()
    assert ((seen[0] + seen[1]) == [15, 3, 9]).all()


def test_all_tests_together_keep_the_rate_of_false_alarms():
    """200 rounds of 15 tests of another kind each; 10 % nominal, so that few rounds tell."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        tests = []
        for bins in (2, 5, 12):
            sides = [rng.multinomial(n, np.ones(bins) / bins) for n in (200, 90)]
            of_all = {"psi": population_stability_index, "chi": chi_square, "ks": kolmogorov_smirnov, "move": largest_move}
            tests += simulate(*sides, of_all | {"rare": share_moved}, 300, rng).values()
        alarms += calibrate(tests, 0.1).drift.any()
    low, high = stats.binomtest(alarms, 200).proportion_ci(0.999)
    assert low <= 0.1
    assert high >= 0.05


def test_thresholds_say_the_same_as_p_values():
    rng = np.random.default_rng(5)
    draws = rng.gamma(3, 1, (8, 1000))
    found = calibrate([Simulated(0.0, draw) for draw in draws], 0.05)
    just = calibrate([Simulated(limit * 1.001, draw) for limit, draw in zip(found.thresholds, draws, strict=True)], 0.05)
    assert just.drift.all()
    assert not calibrate([Simulated(limit * 0.97, d) for limit, d in zip(found.thresholds, draws, strict=True)], 0.05).drift.any()
    assert (just.p_values <= 0.05).all()


def test_what_never_varies_never_alarms():
    found = calibrate([Simulated(0.0, np.zeros(500)), Simulated(9.0, np.random.default_rng(0).gamma(2, 1, 500))], 0.05)
    assert not found.drift[0]
    assert found.thresholds[0] == np.inf


# --- the classifier


@given(arrays(float, st.integers(1, 30), elements=st.integers(0, 5).map(float)))
def test_mid_ranks_are_those_of_scipy(values):
    np.testing.assert_array_equal(mid_ranks(values), stats.rankdata(values))


def test_identical_rows_share_a_fold():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, (400, 3)).astype(float)
    rows[rows == 2] = np.nan
    fold = fold_of(rows, 3, rng)
    folds: dict[str, set] = {}
    for row, number in zip(rows.tolist(), fold.tolist(), strict=True):
        folds.setdefault(str(row), set()).add(number)
    assert len(folds) == 27  # missing cells count as equal
    assert all(len(numbers) == 1 for numbers in folds.values())
    assert set(fold) == {0, 1, 2}


def test_predictions_of_a_row_do_not_depend_on_its_own_label():
    rng = np.random.default_rng(0)
    X, fold = rng.normal(size=(60, 4)), np.arange(60) % 3
    labels = rng.integers(0, 2, (60, 1)).astype(float)
    changed = labels.copy()
    changed[fold == 1] = 1 - changed[fold == 1]
    before, after = (out_of_fold(X, y, fold)[fold == 1] for y in (labels, changed))
    np.testing.assert_array_equal(before, after)


def sides(rho, n=400, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.array([[1, rho], [rho, 1]])
    return rng.multivariate_normal([0, 0], np.eye(2), n), rng.multivariate_normal([0, 0], spread, n)


def told(reference, window, coded=(False, False)):
    options = {"max_rows": 300, "folds": 3, "confidence": 0.95, "rng": np.random.default_rng(1)}
    return tell_apart(reference, window, np.array(coded), **options)


def test_how_columns_go_together_is_seen_where_no_column_moved():
    found = told(*sides(rho=0.8))
    assert found.low > 0.5
    assert found.roc_auc > found.chance_mean + 4 * found.chance_deviation
    assert found.rows == (300, 300)


def test_what_did_not_move_is_not_told_apart():
    found = [told(*sides(rho=0.0, seed=seed)) for seed in range(8)]
    z = [(one.roc_auc - one.chance_mean) / one.chance_deviation for one in found]
    assert np.abs(z).max() < 4
    assert np.abs(np.mean(z)) < 1.5


def test_rows_that_are_repeated_are_not_known_by_heart():
    """A window of retries: each of 40 applicants ten times. Folds that parted them would tell many apart."""
    rng = np.random.default_rng(2)
    reference, applicants = rng.normal(size=(400, 6)), rng.normal(size=(40, 6))
    applicants[:, 5] = np.nan
    reference[:, 5] = np.nan
    found = told(reference, np.repeat(applicants, 10, axis=0), [False] * 6)
    X = np.vstack([reference, np.repeat(applicants, 10, axis=0)])
    y = np.repeat([0.0, 1.0], 400)
    parted = out_of_fold(encode(X, np.zeros(6, bool)), y[:, None], rng.permutation(800) % 3)[:, 0]
    area = (mid_ranks(parted) @ y - 400 * 401 / 2) / 400**2
    assert area > 0.65
    assert found.roc_auc < area - 0.1


def test_columns_without_any_value_or_with_one_only_are_no_obstacle():
    rng = np.random.default_rng(0)
    rows = np.column_stack([np.full(200, np.nan), np.ones(200), rng.normal(size=200), np.full(200, np.nan)])
    found = told(rows[:100], rows[100:], [False, True, False, True])
    assert 0 <= found.low <= found.roc_auc <= found.high <= 1
