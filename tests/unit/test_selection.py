"""Model selection: a paired test that knows that folds share rows, and the simplest model that is as good as the best."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlops_project.modeling.cross_validation import CrossValidation
from mlops_project.modeling.selection import corrected_t_test, leaderboard


def found(**scores: list[float]) -> dict[str, CrossValidation]:
    return {name: CrossValidation({"roc_auc": v, "brier": v}, {}, np.empty((1, 1))) for name, v in scores.items()}


def test_the_test_is_a_paired_t_test_with_a_larger_variance() -> None:
    differences = np.random.default_rng(0).normal(0.01, 0.02, 15)
    plain = stats.ttest_1samp(differences, 0)
    uncorrected = corrected_t_test(differences, 0.0)
    assert uncorrected.p_value == pytest.approx(plain.pvalue)
    assert uncorrected.standard_error == pytest.approx(stats.sem(differences))
    corrected = corrected_t_test(differences, 1 / 4)
    assert corrected.mean == pytest.approx(differences.mean())
    assert corrected.standard_error == pytest.approx(np.std(differences, ddof=1) * math.sqrt(1 / 15 + 1 / 4))
    assert corrected.p_value > plain.pvalue


def test_equal_scores_are_no_difference_and_a_constant_one_is_certain() -> None:
    assert corrected_t_test([0.0] * 5, 0.25) == (0.0, 0.0, 1.0)
    assert corrected_t_test([0.125] * 5, 0.25) == (0.125, 0.0, 0.0)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(0, 2))
def test_the_sign_does_not_matter_to_the_p_value(differences: list[float], share: float) -> None:
    one, other = corrected_t_test(differences, share), corrected_t_test([-d for d in differences], share)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.mean == pytest.approx(-other.mean)
    assert 0 <= one.p_value <= 1


def test_the_simplest_model_within_one_standard_error_is_picked() -> None:
    rng = np.random.default_rng(1)
    best = 0.8 + rng.normal(0, 0.03, 15)
    near, far = best - 0.001 + rng.normal(0, 0.01, 15), best - 0.05 + rng.normal(0, 0.01, 15)
    board = leaderboard(found(far=far, near=near, best=best), "roc_auc", 0.25)
    assert board["picked"] == "near"
    assert "near is the simplest model within one standard error of the best by roc_auc" in board["why"]
    assert [entry["rank"] for entry in board["models"].values()] == [1, 2, 3]
    expected = corrected_t_test(near - best, 0.25)
    entry = board["models"]["near"]
    assert (entry["difference"], entry["standard_error"], entry["p_value"]) == expected
    assert (entry["mean"], entry["std"]) == (pytest.approx(near.mean()), pytest.approx(near.std()))
    assert board["models"]["far"]["p_value"] < 0.01
    alone = leaderboard(found(far=far, best=best), "roc_auc", 0.25)
    assert alone["picked"] == "best"
    assert alone["why"].startswith("best has the best roc_auc, and no simpler model")
    assert leaderboard(found(best=best), "roc_auc", 0.25)["why"] == "best is the only model that train.model names"


def test_a_lower_loss_is_better() -> None:
    rng = np.random.default_rng(2)
    low = 0.16 + rng.normal(0, 0.01, 15)
    board = leaderboard(found(high=low + 0.05 + rng.normal(0, 0.001, 15), low=low), "brier", 0.25)
    assert board["picked"] == "low"
    assert board["models"]["low"]["mean"] == pytest.approx(low.mean())
    assert board["models"]["high"]["difference"] == pytest.approx(-0.05, abs=0.002), "below 0 is worse, whatever the metric"
