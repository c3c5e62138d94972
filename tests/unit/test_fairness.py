"""Fairness: groups in the contract's words, rates by hand, and the four-fifths rule."""

import math

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace

from mlops_project.config import EvaluateParams, Params
from mlops_project.modeling.fairness import MISSING, fairness, groups_of
from mlops_project.modeling.policy import Policy, Scored
from mlops_project.schema import Column, Contract, Target

CONTRACT = Contract(
    target=Target(name="y", good=1, bad=0),
    columns={
        "age": Column(kind="numeric", range=[18, 80], protected=True, bands=[26, 41]),
        "sex": Column(kind="nominal", codes={1: "female", 2: "male", 3: "female"}, protected=True),
        "origin": Column(kind="nominal", codes=["here", "there"], protected=True),
        "amount": Column(kind="numeric"),
    },
)
POLICY = Policy(
    threshold=0.5,
    threshold_from="params",
    cost_bad_approved=5.0,
    cost_good_refused=1.0,
    sample_default_rate=0.3,
    prior_default_rate=None,
    conformal_level=0.9,
    conformal_cutoff_good=0.5,
    conformal_cutoff_bad=0.5,
)


@pytest.fixture
def settings(params: Params) -> EvaluateParams:
    return replace(params.evaluate, bootstrap_samples=300, fairness_min_rows=2)


def people(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    p_good = rng.beta(3, 1, n)
    table = pd.DataFrame(
        {"age": rng.integers(18, 70, n), "sex": rng.integers(1, 3, n), "origin": rng.choice(["here", "there"], n)}
    )
    return (rng.random(n) < p_good).astype(int), p_good, table


def test_groups_are_in_the_words_of_the_contract() -> None:
    table = pd.DataFrame(
        {"age": ["25", "26", "40", "41", "?"], "sex": [1, 2, 3, 9, 1], "origin": ["here", "THERE", "", "here", "x"]}
    )
    found = {name: {word: member.tolist() for word, member in groups_of(name, CONTRACT, table).items()} for name in table}
    yes, no = True, False
    assert found["age"] == {
        "under 26": [yes, no, no, no, no],
        "26 to under 41": [no, yes, yes, no, no],
        "41 and over": [no, no, no, yes, no],
        MISSING: [no, no, no, no, yes],
    }
    assert found["sex"] == {"female": [yes, no, yes, no, yes], "male": [no, yes, no, no, no], MISSING: [no, no, no, yes, no]}
    assert found["origin"] == {
        "here": [yes, no, no, yes, no],
        "there": [no, yes, no, no, no],
        MISSING: [no, no, yes, no, yes],
    }


def test_rates_by_hand(settings: EvaluateParams) -> None:
    X = pd.DataFrame({"age": 30, "sex": [1, 1, 1, 1, 2, 2, 2], "origin": "here"})
    y, p_good = np.array([1, 1, 0, 0, 1, 1, 0]), np.array([0.9, 0.2, 0.8, 0.1, 0.7, 0.8, 0.9])
    metrics, table = fairness(Scored(y, p_good, np.ones(7), POLICY), X, CONTRACT, settings)
    female, male, missing = (table[(table["column"] == "sex")].iloc[i] for i in range(3))
    assert female["rows"] == 4
    assert female["approval_rate"] == female["bad_rate"] == female["false_refusal_rate"] == female["missed_bad_rate"] == 0.5
    assert female["predicted_bad_rate"] == pytest.approx(0.5)
    assert (male["approval_rate"], male["false_refusal_rate"], male["missed_bad_rate"]) == (1, 0, 1)
    assert missing["rows"] == 0
    assert math.isnan(missing["approval_rate"])
    assert table.loc[table["column"] == "sex", "compared"].tolist() == [1, 1, 0]
    sex = metrics["sex"]
    assert (sex["disparity_ratio"], sex["lowest"], sex["reference"]) == (0.5, "female", "male")
    assert sex["passes_four_fifths"] is False
    assert sex["low"] <= 0.5 <= sex["high"]
    # All in one group: nothing to compare with.
    assert set(metrics["age"].values()) == set(metrics["origin"].values()) == {None}


def test_equal_groups_pass_and_a_disadvantaged_one_does_not(settings: EvaluateParams) -> None:
    y, p_good, X = people(3000)
    equal, _ = fairness(Scored(y, p_good, np.ones(3000), POLICY), X, CONTRACT, settings)
    assert all(found["passes_four_fifths"] and found["low"] <= found["disparity_ratio"] <= 1 for found in equal.values())
    worse = np.where(X["age"] < 26, p_good * 0.6, p_good)
    found, _ = fairness(Scored(y, worse, np.ones(3000), POLICY), X, CONTRACT, settings)
    assert (found["age"]["lowest"], found["age"]["passes_four_fifths"]) == ("under 26", False)
    assert found["age"]["high"] < 0.8
    assert found["origin"]["passes_four_fifths"]


def test_small_groups_are_shown_and_not_compared(settings: EvaluateParams) -> None:
    y, p_good, X = people(200)
    X.loc[:4, "age"], X.loc[5:, "age"] = 20, np.where(np.arange(195) % 2, 30, 50)
    p_good[:5] = 0.0
    found, table = fairness(Scored(y, p_good, np.ones(200), POLICY), X, CONTRACT, replace(settings, fairness_min_rows=6))
    assert table.set_index("label").loc["age: under 26", ["rows", "approval_rate", "compared"]].tolist() == [5, 0, 0]
    assert found["age"]["lowest"] != "under 26"
    assert found["age"]["disparity_ratio"] > 0.5


def test_nobody_approved_is_no_disparity(settings: EvaluateParams) -> None:
    y, _, X = people(100)
    found, _ = fairness(Scored(y, np.zeros(100), np.ones(100), POLICY), X, CONTRACT, settings)
    assert set(found["sex"].values()) == {None}


def test_weights_are_repeated_rows(settings: EvaluateParams) -> None:
    y, p_good, X = people(200)
    weights = np.random.default_rng(1).integers(1, 4, 200)
    weighted, table = fairness(Scored(y, p_good, weights.astype(float), POLICY), X, CONTRACT, settings)
    many = X.loc[np.repeat(X.index, weights)]
    repeated, other = fairness(
        Scored(np.repeat(y, weights), np.repeat(p_good, weights), np.ones(len(many)), POLICY), many, CONTRACT, settings
    )
    pd.testing.assert_frame_equal(table.drop(columns="rows"), other.drop(columns="rows"))
    for name, found in weighted.items():
        assert found["disparity_ratio"] == pytest.approx(repeated[name]["disparity_ratio"])


def test_a_contract_without_protected_columns_has_an_empty_table(settings: EvaluateParams) -> None:
    y, p_good, X = people(50)
    rows = Scored(y, p_good, np.ones(50), POLICY)
    found, table = fairness(rows, X, CONTRACT.without(["age", "sex", "origin"]), settings)
    assert found == {}
    assert table.empty
    assert list(table) == list(fairness(rows, X, CONTRACT, settings)[1])
