"""The policy: thresholds, the shift to a prior, conformal sets, and the file that a service reads."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlops_project.config import EvaluateParams, Params
from mlops_project.errors import ParamsError
from mlops_project.modeling.metrics import decision_metrics, expected_cost
from mlops_project.modeling.policy import Policy, Scored, conformal_cutoff, make_policy


@pytest.fixture
def settings(params: Params) -> EvaluateParams:
    return params.evaluate


POLICY = Policy(
    threshold=1 / 6,
    threshold_from="costs",
    cost_bad_approved=5.0,
    cost_good_refused=1.0,
    sample_default_rate=0.3,
    prior_default_rate=None,
    conformal_level=0.9,
    conformal_cutoff_good=0.5,
    conformal_cutoff_bad=0.25,
)


def calibrated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw P(good) and outcomes that come true as often as it says."""
    rng = np.random.default_rng(seed)
    p_good = rng.beta(3, 1, n)
    return (rng.random(n) < p_good).astype(int), p_good


def cost(rows: Scored, threshold: float) -> float:
    decisions = decision_metrics(rows.y, rows.p_good, threshold, rows.weightings())
    return float(expected_cost(decisions, rows.policy.cost_bad_approved, rows.policy.cost_good_refused)[0])


# --- threshold


@pytest.mark.parametrize(("bad", "good"), [(5.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_the_threshold_is_where_both_errors_cost_the_same(bad: float, good: float, settings: EvaluateParams) -> None:
    y, p_good = calibrated(50)
    policy = make_policy(y, p_good, np.ones(50), replace(settings, cost_bad_approved=bad, cost_good_refused=good))
    assert policy.threshold * bad == pytest.approx((1 - policy.threshold) * good)
    assert policy.threshold_from == "costs"
    given = make_policy(y, p_good, np.ones(50), replace(settings, threshold=0.4))
    assert (given.threshold, given.threshold_from) == (0.4, "params")


def test_no_threshold_costs_less_than_that_of_the_costs_if_the_probabilities_are_true() -> None:
    y, p_good = calibrated(20_000)
    rows = Scored(y, p_good, np.ones(20_000), POLICY)
    assert min((0.08, 1 / 6, 0.3, 0.5), key=lambda threshold: cost(rows, threshold)) == 1 / 6


row = st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(1, 5))


@given(st.lists(row, min_size=2, max_size=25), st.sampled_from([None, 0.1, 0.6]))
def test_no_threshold_costs_less_than_the_tuned_one_on_its_own_rows(params: Params, drawn: list, prior: float | None) -> None:
    y, eighths, weights = (np.array(column) for column in zip(*[*drawn, (1, 8, 1), (0, 0, 1)], strict=True))
    policy = make_policy(y, eighths / 8, weights.astype(float), replace(params.evaluate, threshold="tuned"), prior)
    assert policy.threshold_from == "tuned"
    assert 0 <= policy.threshold < 1.001
    rows = Scored(y, policy.correct(eighths / 8), weights.astype(float), policy)
    default = np.unique(1 - rows.p_good)
    # Any cut between two scores, and refusing or approving all.
    others = [default[0] / 2, *((default[1:] + default[:-1]) / 2), (1 + default[-1]) / 2]
    assert cost(rows, policy.threshold) <= min(cost(rows, threshold) for threshold in others) + 1e-12


# --- prior


@pytest.mark.parametrize("prior", [0.01, 0.05, 0.3, 0.7])
def test_corrected_probabilities_average_to_the_prior_where_probabilities_are_true(prior: float) -> None:
    y, p_good = calibrated(50_000)
    policy = replace(POLICY, sample_default_rate=float((y == 0).mean()), prior_default_rate=prior)
    rows = Scored(y, policy.correct(p_good), np.ones(len(y)), policy)
    weights = rows.weightings()[0]
    assert np.average(rows.y == 0, weights=weights) == pytest.approx(prior)
    assert np.average(1 - rows.p_good, weights=weights) == pytest.approx(prior, rel=0.03)


def test_the_correction_shifts_log_odds_by_a_constant() -> None:
    p_good = np.array([0.2, 0.5, 0.9])
    policy = replace(POLICY, sample_default_rate=0.3, prior_default_rate=0.1)
    corrected = policy.correct(p_good)
    shift = np.log(corrected / (1 - corrected)) - np.log(p_good / (1 - p_good))
    assert shift.tolist() == pytest.approx([np.log(9 / (7 / 3))] * 3)
    # An applicant of whom nothing is known but the sample's rate is at the prior's afterwards.
    assert policy.correct(0.7) == pytest.approx(0.9)
    assert replace(policy, prior_default_rate=0.3).correct(p_good).tolist() == pytest.approx(p_good.tolist())
    assert replace(policy, prior_default_rate=None).correct(p_good).tolist() == p_good.tolist()
    assert policy.correct([0.0, 1.0]).tolist() == [0, 1]


def test_decisions_are_made_on_corrected_probabilities() -> None:
    policy = replace(POLICY, prior_default_rate=0.05)
    p_good = np.array([0.2, 0.5, 0.9])
    assert POLICY.approved(p_good).tolist() == [False, False, True]
    assert policy.approved(p_good).tolist() == [False, True, True]
    assert policy.approved(p_good).tolist() == Scored(p_good, policy.correct(p_good), p_good, policy).approved.tolist()
    # Refused from the threshold on.
    assert replace(POLICY, threshold=0.25).approved([0.75, 0.7500001]).tolist() == [False, True]


def test_the_sample_default_rate_is_weighted(settings: EvaluateParams) -> None:
    policy = make_policy(np.array([1, 0, 0]), np.array([0.9, 0.5, 0.4]), np.array([6.0, 1.0, 1.0]), settings, prior=0.02)
    assert policy.sample_default_rate == 0.25
    assert policy.prior_default_rate == 0.02


def test_weightings_have_the_prior_and_leave_one_class_alone() -> None:
    rows = Scored(
        np.array([1, 1, 0, 0]), np.full(4, 0.5), np.array([1.0, 2.0, 1.0, 1.0]), replace(POLICY, prior_default_rate=0.1)
    )
    draws = np.array([[1.0, 1, 1, 1], [2, 0, 0, 2], [4, 0, 0, 0]])
    found = rows.weightings(draws)
    np.testing.assert_allclose(found[:2, 2:].sum(axis=1) / found[:2].sum(axis=1), 0.1)
    np.testing.assert_allclose(found.sum(axis=1), (draws * rows.weights).sum(axis=1))
    assert found[2].tolist() == [4, 0, 0, 0]


# --- conformal sets


def test_the_cutoff_by_hand() -> None:
    """Nine rows at level 0.8: the 8th smallest of the nine distances 1 - p, (9 + 1) · 0.8 = 8."""
    p_class = np.arange(1, 10) / 10
    assert conformal_cutoff(p_class, np.ones(9), 0.8) == pytest.approx(0.2)
    assert conformal_cutoff(p_class, np.ones(9), 0.9) == pytest.approx(0.1)
    assert conformal_cutoff(p_class, np.ones(9), 0.95) == 0, "nine rows can exclude nobody at this level"
    assert conformal_cutoff(p_class, np.full(9, 0.3), 0.8) == pytest.approx(0.2), "only relative weights count"


def test_a_heavy_row_counts_as_often_as_it_weighs() -> None:
    weights = np.r_[np.ones(500), np.full(500, 3.0)]
    p_class = np.random.default_rng(0).random(1000)
    repeated = np.repeat(p_class, weights.astype(int))
    assert conformal_cutoff(p_class, weights, 0.8) == pytest.approx(conformal_cutoff(repeated, np.ones(2000), 0.8), abs=0.01)


def test_each_class_is_covered_at_the_level_on_new_rows(settings: EvaluateParams) -> None:
    coverage = []
    for seed in range(40):
        y, p_good = calibrated(1000, seed)
        known, new = slice(0, 500), slice(500, None)
        policy = make_policy(y[known], p_good[known], np.ones(500), replace(settings, conformal_level=0.8))
        good, bad = policy.conformal_sets(p_good[new])
        coverage.append([good[y[new] == 1].mean(), bad[y[new] == 0].mean()])
    assert np.mean(coverage, axis=0).tolist() == pytest.approx([0.8, 0.8], abs=0.015)


def test_both_or_no_class_in_the_set_is_referred() -> None:
    both = replace(POLICY, conformal_cutoff_good=0.3, conformal_cutoff_bad=0.3)
    none = replace(POLICY, conformal_cutoff_good=0.7, conformal_cutoff_bad=0.7)
    for policy in (both, none):
        assert policy.conformal_set([0.1, 0.5, 0.9]).tolist() == ["reject", "refer", "approve"]
    at_prior = replace(both, prior_default_rate=0.01)
    assert at_prior.conformal_set([0.1, 0.5, 0.9]).tolist() == ["reject", "refer", "approve"]
    assert both.conformal_set(0.9) == "approve"


# --- the file


@given(st.floats(0.001, 0.999), st.one_of(st.none(), st.floats(0.001, 0.999)))
def test_a_policy_comes_back_from_its_file_to_the_last_digit(threshold: float, prior: float | None) -> None:
    policy = replace(POLICY, threshold=threshold, prior_default_rate=prior)
    assert Policy.from_json(policy.to_json()) == policy


def test_what_is_no_policy_is_refused() -> None:
    content = json.loads(POLICY.to_json())
    for text, message in (
        ("{", "p.json: is not JSON"),
        ("[]", "p.json: top level: found"),
        (json.dumps(content | {"treshold": 1}), "unknown key 'treshold'; did you mean 'threshold'?"),
        (json.dumps({**content, "threshold": "high"}), "p.json: threshold: found 'high'; expected float"),
        (json.dumps({**content, "prior_default_rate": 1.5}), "p.json: prior_default_rate: found 1.5; expected float < 1.0"),
        (json.dumps({**content, "threshold_from": "x"}), "allowed: costs, tuned, params"),
    ):
        with pytest.raises(ParamsError) as caught:
            Policy.from_json(text, "p.json")
        assert message in str(caught.value)
