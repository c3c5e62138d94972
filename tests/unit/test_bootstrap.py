"""Intervals from counts of rows with like scores are those of the rows."""

import math

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace

from mlops_project.config import EvaluateParams, Params
from mlops_project.modeling.bootstrap import Cells, count_cells
from mlops_project.modeling.evaluation import SCORE_BINS, collapse, evaluate
from mlops_project.modeling.fairness import fairness
from mlops_project.modeling.policy import Policy, Scored
from mlops_project.review import comparison
from mlops_project.review.verdict import Predictions
from mlops_project.schema import Column, Contract, Target

THRESHOLD = 1 / 6
# The bounds of two bootstraps of 500 samples differ by chance: this share of the interval's width is four standard errors.
MONTE_CARLO = 0.17


@pytest.fixture
def settings(params: Params) -> EvaluateParams:
    return replace(params.evaluate, bootstrap_samples=500)


def policy(prior: float | None = None) -> Policy:
    return Policy(
        threshold=THRESHOLD,
        threshold_from="costs",
        cost_bad_approved=5.0,
        cost_good_refused=1.0,
        sample_default_rate=0.3,
        prior_default_rate=prior,
        conformal_level=0.9,
        conformal_cutoff_good=0.5,
        conformal_cutoff_bad=0.25,
    )


def scored(n: int, *, decimals: int = 12, weights: bool = False, seed: int = 1) -> Scored:
    """Draw rows whose probabilities are a little too high."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(1, 1.2, n)
    y = (rng.random(n) < 1 / (1 + np.exp(0.1 - log_odds))).astype(int)
    weight = rng.lognormal(0, 0.8, n) if weights else np.ones(n)
    return Scored(y, (1 / (1 + np.exp(-log_odds))).round(decimals), weight, policy())


def assert_same_bounds(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, ends in expected.items():
        width = ends["high"] - ends["low"]
        for end, value in ends.items():
            assert abs(found[name][end] - value) <= MONTE_CARLO * width, (name, end)


@pytest.mark.parametrize("given", [{"decimals": 2}, {"weights": True}], ids=["ties", "weights"])
def test_counts_give_the_intervals_of_the_rows(given: dict, settings: EvaluateParams) -> None:
    sample = scored(5000, **given)
    target = policy(prior=0.1)
    population = Scored(sample.y, target.correct(sample.p_good), sample.weights, target)
    rows, counts = (evaluate(sample, replace(settings, exact_rows=most), population) for most in (10_000, 1000))
    assert_same_bounds(counts["interval"], rows["interval"])
    assert_same_bounds(counts["at_prior"]["interval"], rows["at_prior"]["interval"])
    for found in (rows, counts):
        del found["interval"], found["at_prior"]["interval"]
    assert counts == rows  # the figures themselves are those of all rows


def test_intervals_of_counts_hold_the_truth_as_often_as_they_say(settings: EvaluateParams) -> None:
    """Two normal distributions one deviation apart: ROC-AUC = Φ(1/√2)."""
    truth, held = 0.5 * (1 + math.erf(0.5)), []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        y = (rng.random(1500) < 0.7).astype(int)
        rows = Scored(y, 1 / (1 + np.exp(-(rng.normal(size=1500) + y))), np.ones(1500), policy())
        found = evaluate(rows, replace(settings, bootstrap_samples=100, confidence=0.9, exact_rows=1000))["interval"]["roc_auc"]
        held.append(found["low"] <= truth <= found["high"])
    assert 0.8 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("weights", [False, True])
def test_no_cell_straddles_a_decision_or_a_bin_of_the_calibration_error(weights: bool, settings: EvaluateParams) -> None:
    rows = scored(30_000, weights=weights)
    counted, cells = collapse(rows)
    assert len(cells.rows) <= 2 * (SCORE_BINS + 1)
    assert cells.rows.sum() == 30_000
    assert cells.weights.sum() == pytest.approx(rows.weights.sum())
    exact, found = (evaluate(part, replace(settings, exact_rows=10**6, bootstrap_samples=100)) for part in (rows, counted))
    for name in ("ece", "accuracy", "expected_cost", "approval_rate", "bad_rate_approved", "good_approved", "bad_refused"):
        assert found[name] == pytest.approx(exact[name], abs=1e-9), name
    for name in ("roc_auc", "ks", "brier", "log_loss", "average_precision"):
        assert found[name] == pytest.approx(exact[name], abs=1e-3), name


def test_draws_have_the_moments_of_drawing_rows() -> None:
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 5, 2000) * 2, rng.lognormal(0, 1, 2000)
    found, cells = count_cells(labels, weights)
    assert found.tolist() == [0, 2, 4, 6, 8]
    drawn = cells.draws(4000, seed=1) * cells.weights
    np.testing.assert_allclose(drawn.mean(axis=0), cells.weights, rtol=0.01)
    squares = np.array([(weights[labels == label] ** 2).sum() for label in found])
    np.testing.assert_allclose(drawn.var(axis=0), squares - cells.weights**2 / 2000, rtol=0.1)

    alike = Cells(cells.rows, 0.7 * cells.rows, np.zeros(5))
    np.testing.assert_allclose((alike.draws(50, seed=1) * cells.rows).sum(axis=1), 2000)
    assert not count_cells(labels, np.full(2000, 0.7))[1].spread.any()


CONTRACT = Contract(
    target=Target(name="y", good=1, bad=0),
    columns={"home": Column(kind="nominal", codes=["own", "rent", "free"], protected=True), "n": Column(kind="numeric")},
)


@pytest.mark.parametrize("prior", [None, 0.1])
def test_disparity_of_counts_is_that_of_the_rows(prior: float | None, settings: EvaluateParams) -> None:
    sample = scored(5000, weights=True)
    rows = sample._replace(policy=policy(prior))
    homes = np.where(sample.p_good + np.random.default_rng(3).normal(size=5000) / 3 > 0.7, "own", "rent")
    X = pd.DataFrame({"home": np.where(np.arange(5000) % 9, homes, "free"), "n": 1})
    exact, counts = (fairness(rows, X, CONTRACT, replace(settings, exact_rows=most)) for most in (10_000, 1000))
    pd.testing.assert_frame_equal(counts[1], exact[1])
    ends = [{"home": {end: found[0]["home"].pop(end) for end in ("low", "high")}} for found in (counts, exact)]
    assert counts[0] == exact[0]
    assert_same_bounds(*ends)


@pytest.mark.parametrize(("noise", "paired"), [(0.05, True), (0.3, False)])
def test_differences_of_counts_are_those_of_the_rows(
    noise: float, paired: bool, params: Params, settings: EvaluateParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that hardly differ have intervals a tenth as wide as others: the counts must not lose what little there is."""
    base, rng = scored(5000), np.random.default_rng(2)
    head = 1 / (1 + np.exp(-(1.02 * np.log(base.p_good / (1 - base.p_good)) + noise * rng.normal(size=5000))))
    sides = [
        Predictions(pd.DataFrame({"y_true": base.y, "y_proba": p_good}, index=np.arange(5000) + first), pd.DataFrame())
        for p_good, first in ((base.p_good, 0), (head, 0 if paired else 5000))
    ]
    costs = {"evaluate": {"cost_bad_approved": 5.0, "cost_good_refused": 1.0}}
    monkeypatch.setattr(comparison, "PAIR_BINS", 100)  # else there were hardly fewer cells than rows
    found = []
    for most in (20_000, 1000):
        given = replace(params, evaluate=replace(settings, exact_rows=most))
        monkeypatch.setattr(comparison, "load_params", lambda given=given: given)
        thresholds = {"evaluate": {"threshold": THRESHOLD}}, {"evaluate": {"threshold": 0.2}}
        found.append(comparison._intervals((sides[0], sides[1]), thresholds, (costs, costs), 0.95))
    assert_same_bounds(found[1], found[0])
