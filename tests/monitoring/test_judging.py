"""When a challenger is better, and when it only looks so."""

import msgspec
import numpy as np
import pandas as pd
import pytest

from mlops_project.modeling.policy import Policy
from mlops_project.monitoring.judging import Decision, Rows, Side, decide
from mlops_project.review.settings import parse_review

N_OLD, N_NEW, N_FOLDS = 400, 300, 400


def logistic(x):
    return 1 / (1 + np.exp(-x))


class Case:
    """Two models of applicants with two signals; what each sees of them is up to the test."""

    def __init__(self, root, contract, params, raw_table, seed=0):
        self.rng = np.random.default_rng(seed)
        self.contract, self.params = contract, msgspec.structs.replace(params.evaluate, bootstrap_samples=300)
        self.review = parse_review((root / "review.yaml").read_text(encoding="utf-8"), "review.yaml")
        n = N_OLD + N_NEW
        self.new = np.arange(n) >= N_OLD
        # Protected groups at random: nobody is treated worse for them.
        self.X = raw_table.sample(n, replace=True, random_state=seed).reset_index(drop=True)
        self.X.index = pd.Index([f"a{i}" for i in range(n)], name="applicant_id")
        self.a, self.b = self.rng.normal(size=(2, n))
        self.y = (self.rng.uniform(size=n) < logistic(1.2 + 1.6 * self.a)).astype(int)
        self.policy = Policy(
            threshold=1 / 6, threshold_from="costs", cost_bad_approved=5.0, cost_good_refused=1.0, sample_default_rate=0.3,
            prior_default_rate=None, conformal_level=0.9, conformal_cutoff_good=0.1, conformal_cutoff_bad=0.1,
        )  # fmt: skip

    def folds(self, strength):
        rng = np.random.default_rng(9)
        a = rng.normal(size=N_FOLDS)
        y = (rng.uniform(size=N_FOLDS) < logistic(1.2 + 1.6 * a)).astype(int)
        index = pd.Index([f"d{i}" for i in range(N_FOLDS)], name="applicant_id")
        p_good = logistic(1.2 + strength * a)
        return pd.DataFrame({"y_true": y, "y_proba": p_good, "repeat": 0, "fold": np.arange(N_FOLDS) % 5}, index=index)

    def side(self, p_good, strength=1.0):
        return Side(p_good, self.folds(strength), self.policy, {"train": {"roc_auc": {"mean": 0.78}}})

    def decide(self, champion, challenger, **options) -> Decision:
        settings = {"concept_drift": False, "min_outcomes": 20, "approved_only": False} | options
        rows = Rows(self.X, self.y, self.new)
        sides = [side if isinstance(side, Side) else self.side(side) for side in (champion, challenger)]
        return decide(rows, *sides, self.contract, self.review, self.params, **settings)


@pytest.fixture
def case(root, contract, params, raw_table):
    found = Case(root, contract, params, raw_table)
    # The approval rates of groups are another rule's matter; see the last test.
    fairness = msgspec.structs.replace(found.review.gate.fairness, tolerance=None)
    gate = msgspec.structs.replace(found.review.gate, fairness=fairness, leak_alarm=None)
    found.review = msgspec.structs.replace(found.review, gate=gate)
    return found


def test_what_sees_more_is_promoted_and_the_reason_names_the_metric(case):
    found = case.decide(logistic(1.2 + 0.7 * case.a + 0.6 * case.b), logistic(1.2 + 1.6 * case.a))
    assert found.promote
    assert found.reasons[0].startswith("evaluate.roc_auc is better: ")


def test_the_same_model_is_rejected_as_not_better(case):
    p_good = logistic(1.2 + 1.6 * case.a)
    found = case.decide(p_good, p_good)
    assert not found.promote
    assert found.reasons == ["not worse in any guarded metric, and better in none by more than noise"]


def test_what_ranks_better_and_costs_more_is_rejected(case):
    champion, challenger = logistic(1.2 + 1.2 * case.a + 0.5 * case.b), logistic(5.2 + 1.6 * case.a)
    found = case.decide(champion, challenger)
    assert not found.promote
    assert any(reason.startswith("evaluate.expected_cost") for reason in found.reasons)


def test_a_champion_below_its_floor_gives_way_to_what_is_not_worse(case):
    gate = case.review.gate
    rules = [msgspec.structs.replace(rule, tolerance=None, limit=None) for rule in gate.rules]
    floor = msgspec.structs.replace(gate.rules[0], limit=0.6)
    case.review = msgspec.structs.replace(case.review, gate=msgspec.structs.replace(gate, rules=[floor, *rules[1:]]))
    champion, challenger = logistic(1.2 + 1.6 * case.b), logistic(1.2 + 1.6 * case.a)
    found = case.decide(champion, challenger)
    assert found.promote
    assert any(reason.startswith("the champion fails its floor: evaluate.roc_auc") for reason in found.reasons)


def drifted(case):
    """The new rows behave by the other signal, which the challenger has learnt and pays for on the old rows."""
    case.y = np.where(case.new, case.rng.uniform(size=len(case.y)) < logistic(1.2 + 1.6 * case.b), case.y).astype(int)
    return logistic(1.2 + 1.6 * case.a), logistic(1.2 + 1.6 * case.b)


def test_without_confirmed_concept_drift_what_lost_on_the_old_rows_is_rejected(case):
    assert not case.decide(*drifted(case)).promote


def test_under_confirmed_concept_drift_the_new_rows_decide_and_the_old_are_reported(case):
    found = case.decide(*drifted(case), concept_drift=True)
    assert found.promote
    old = found.report["populations"]["old"]
    assert old["challenger"]["roc_auc"] < 0.6 < old["champion"]["roc_auc"], "it must have lost there"
    assert found.report["rows"] == N_NEW


def test_noise_in_the_new_outcomes_is_no_reason_even_under_concept_drift(case):
    # The challenger has learnt that everybody is a coin, which is the better Brier score on coins.
    case.y = np.where(case.new, case.rng.uniform(size=len(case.y)) < 0.5, case.y).astype(int)
    found = case.decide(logistic(1.2 + 1.6 * case.a), logistic(0.1 * case.a + 0.1 * case.b), concept_drift=True)
    assert not found.promote
    assert any("evaluate.roc_auc" in reason and "floor" in reason for reason in found.reasons)


def test_too_few_outcomes_decide_nothing(case):
    case.y = np.where(case.new, 1, case.y)
    found = case.decide(*[logistic(case.a)] * 2, concept_drift=True)
    assert not found.promote
    assert "300 good and 0 bad, expected 20 or more of each" in found.reasons[0]
    assert found.report["populations"]["new"]["champion"]["roc_auc"] is None, "one class has no ROC-AUC"


def test_limits_move_with_the_population_when_only_the_approved_have_outcomes(case):
    p_good = logistic(1.2 + 1.6 * case.a)
    approved = 1 - p_good < case.policy.threshold
    keep = ~case.new | approved
    case.X, case.y, case.new, case.a, case.b = case.X[keep], case.y[keep], case.new[keep], case.a[keep], case.b[keep]
    p_good = p_good[keep]
    found = case.decide(p_good, p_good, concept_drift=True, min_outcomes=5)
    assert found.report["new_rows_selected"]
    old, among = (found.report["populations"][name]["champion"]["roc_auc"] for name in ("old", "old_approved"))
    assert found.report["limits_moved"]["evaluate.roc_auc"] == pytest.approx(among - old)
    assert among < old - 0.02, "the approved are more alike"
    assert not any("below the floor" in reason for reason in found.reasons)


def test_a_group_that_is_approved_less_often_than_before_is_a_reason_against(root, contract, params, raw_table):
    case = Case(root, contract, params, raw_table)
    name = contract.protected[0]
    group = contract.parse(name, case.X[name]).values
    lowest = group == np.nanmin(group)
    champion = logistic(1.2 + 0.7 * case.a + 0.6 * case.b)
    found = case.decide(champion, np.where(lowest, 0.01, logistic(1.2 + 1.6 * case.a)))
    assert not found.promote
    assert any(reason.startswith("fairness: ") for reason in found.reasons)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_of_the_scores_are_rarely_taken_for_better(root, contract, params, raw_table, seed):
    case = Case(root, contract, params, raw_table, seed)
    fairness = msgspec.structs.replace(case.review.gate.fairness, tolerance=None)
    gate = msgspec.structs.replace(case.review.gate, fairness=fairness, leak_alarm=None)
    case.review = msgspec.structs.replace(case.review, gate=gate)
    noise = case.rng.normal(scale=0.2, size=(2, len(case.y)))
    assert not case.decide(*(logistic(1.2 + 1.6 * case.a + one) for one in noise)).promote


def test_groups_are_compared_where_the_champion_has_not_chosen(root, contract, params, raw_table):
    # Of those whom it approved, the champion approves all groups alike, so any challenger would look unfair beside it.
    case = Case(root, contract, params, raw_table)
    champion = logistic(1.2 + 1.6 * case.a)
    keep = ~case.new | case.policy.approved(champion)
    case.X, case.y, case.new, champion = case.X[keep], case.y[keep], case.new[keep], champion[keep]
    group = contract.parse(contract.protected[0], case.X[contract.protected[0]]).values
    one = group == pd.Series(group).mode()[0]
    options = {"concept_drift": True, "approved_only": True, "min_outcomes": 5}
    unfair = {
        where: [
            reason
            for reason in case.decide(champion, np.where(refused, 0.01, champion), **options).reasons
            if reason.startswith("fairness: ")
        ]
        for where, refused in (("among the approved", one & case.new), ("among all", one))
    }
    assert not unfair["among the approved"]
    assert unfair["among all"]
