"""The strategy table and the cost curve say what each threshold would have done."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.modeling.metrics import decision_metrics, expected_cost
from mlops_project.modeling.policy import Policy, Scored
from mlops_project.modeling.strategy import cost_curve, strategy_table


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


def test_the_table_by_hand() -> None:
    y, p_good = np.array([1, 0, 1, 1, 0]), 1 - np.array([0.125, 0.25, 0.25, 0.5, 0.75])
    table = strategy_table(rows(y, p_good, threshold=0.25), [0.5])
    assert table["threshold"].tolist() == [0.25, 0.5]
    assert table["approval_rate"].tolist() == pytest.approx([1 / 5, 3 / 5])
    assert table["bad_rate_approved"].tolist() == pytest.approx([0, 1 / 3])
    assert table["bad_caught"].tolist() == pytest.approx([1, 1 / 2])
    assert table["expected_cost"].tolist() == pytest.approx([2 / 5, (5 + 1) / 5])
    assert table["chosen"].tolist() == [1, 0]


row = st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(1, 3))


@given(st.lists(row, min_size=2, max_size=25), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_every_line_is_what_the_decision_metrics_say(drawn: list[tuple[int, int, int]], eighths: list[int]) -> None:
    y, p_good, weights = (np.array(column, dtype=float) for column in zip(*drawn, strict=True))
    scored = rows(y.astype(int), p_good / 8, weights)
    for line in strategy_table(scored, np.array(eighths) / 8).itertuples():
        expected = decision_metrics(scored.y, scored.p_good, line.threshold, weights[None])
        assert line.approval_rate == pytest.approx(expected["approval_rate"][0])
        assert line.bad_rate_approved == pytest.approx(expected["bad_rate_approved"][0])
        assert line.expected_cost == pytest.approx(expected_cost(expected, 5, 1)[0])
        if (y == 0).any():
            assert line.bad_caught == pytest.approx(expected["recall_bad"][0])


def test_the_curve_goes_from_refusing_all_to_approving_all_and_marks_the_policy() -> None:
    rng = np.random.default_rng(0)
    p_good = rng.beta(3, 1, 500)
    y = (rng.random(500) < p_good).astype(int)
    curve = cost_curve(rows(y, p_good))
    assert curve["expected_cost"].iloc[0] == pytest.approx(y.mean())
    assert curve["expected_cost"].iloc[-1] == pytest.approx(5 * (1 - y.mean()))
    chosen = curve[curve["chosen"] == 1]
    assert chosen["threshold"].tolist() == [1 / 6]
    assert (curve["policy"] == chosen["expected_cost"].iloc[0]).all()
