"""Evaluation on held-out rows: intervals that mean what they say, and tables that draw what was measured."""

import math

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace
from sklearn import metrics as skm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_project.config import EvaluateParams, Params
from mlops_project.errors import DataError
from mlops_project.features import FeaturePreprocessor, InvalidDataHandler
from mlops_project.modeling import bootstrap
from mlops_project.modeling.evaluation import (
    AT_PRIOR,
    COUNTS,
    WITH_INTERVAL,
    average_repeats,
    conformal_metrics,
    evaluate,
    permutation_importance,
    plot_tables,
    prediction_table,
    reductions,
)
from mlops_project.modeling.metrics import bootstrap_weights, decision_metrics, expected_cost, ranking_metrics
from mlops_project.modeling.model import RiskModel
from mlops_project.modeling.policy import Policy, Scored
from mlops_project.modeling.scale import ScoreScale
from mlops_project.schema import Column, Contract, Target


@pytest.fixture
def settings(params: Params) -> EvaluateParams:
    return replace(params.evaluate, bootstrap_samples=300)


def scored(n: int, seed: int, distance: float = 1.0, bad_share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Draw outcomes and P(good) whose log-odds are normal, the good ones' mean higher by ``distance`` deviations."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) >= bad_share).astype(int)
    return y, 1 / (1 + np.exp(-(rng.normal(size=n) + distance * y)))


def policy(threshold: float = 1 / 6, prior: float | None = None) -> Policy:
    return Policy(
        threshold=threshold,
        threshold_from="params",
        cost_bad_approved=5.0,
        cost_good_refused=1.0,
        sample_default_rate=0.3,
        prior_default_rate=prior,
        conformal_level=0.9,
        conformal_cutoff_good=0.5,
        conformal_cutoff_bad=0.25,
    )


def rows(y: np.ndarray, p_good: np.ndarray, weights: np.ndarray | None = None, **given: float | None) -> Scored:
    return Scored(y, p_good, np.ones(len(y)) if weights is None else weights, policy(**given))


# --- figures and their intervals


def test_figures_are_those_of_the_metrics(settings: EvaluateParams) -> None:
    y, p_good = scored(400, seed=1)
    found = evaluate(rows(y, p_good), settings)
    decisions = decision_metrics(y, p_good, 1 / 6)
    expected = {name: values[0] for name, values in (ranking_metrics(y, p_good) | decisions).items()}
    expected["expected_cost"] = expected_cost(decisions, 5, 1)[0]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) == {*expected, "ece", "threshold", "rows", "interval"}
    assert (found["threshold"], found["rows"]) == (1 / 6, 400)
    assert all(type(found[name]) is int for name in COUNTS)
    assert sum(found[name] for name in COUNTS) == 400


@pytest.mark.parametrize("seed", range(3))
def test_intervals_hold_the_figure_and_widen_with_confidence(seed: int, settings: EvaluateParams) -> None:
    y, p_good = scored(400, seed=seed)
    found = evaluate(rows(y, p_good), settings)
    wider = evaluate(rows(y, p_good), replace(settings, confidence=0.995))
    assert set(found["interval"]) == set(WITH_INTERVAL)
    for name, interval in found["interval"].items():
        assert interval["low"] < found[name] <= interval["high"], name
        assert wider["interval"][name]["low"] <= interval["low"]
        assert wider["interval"][name]["high"] >= interval["high"]


def test_intervals_are_percentiles_of_the_bootstrap(settings: EvaluateParams) -> None:
    y, p_good = scored(400, seed=1)
    weights = bootstrap_weights(400, settings.bootstrap_samples, settings.seed)
    for confidence, percentiles in {0.95: [2.5, 97.5], 0.5: [25, 75]}.items():
        low, high = np.percentile(ranking_metrics(y, p_good, weights)["roc_auc"], percentiles)
        interval = evaluate(rows(y, p_good), replace(settings, confidence=confidence))["interval"]["roc_auc"]
        assert interval == pytest.approx({"low": low, "high": high})


def test_intervals_hold_the_truth_as_often_as_they_say(settings: EvaluateParams) -> None:
    """Two normal distributions one deviation apart: ROC-AUC = Φ(1/√2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    ninety = replace(settings, confidence=0.9, bootstrap_samples=200)
    intervals = [evaluate(rows(*scored(250, seed=seed)), ninety)["interval"]["roc_auc"] for seed in range(100)]
    held = np.mean([interval["low"] <= truth <= interval["high"] for interval in intervals])
    assert 0.83 <= held <= 0.96
    below = np.mean([interval["high"] < truth for interval in intervals])
    assert 0.01 <= below <= 0.12


def test_more_rows_make_narrower_intervals(settings: EvaluateParams) -> None:
    few, many = (evaluate(rows(*scored(n, seed=5)), settings)["interval"]["roc_auc"] for n in (200, 3200))
    assert (many["high"] - many["low"]) == pytest.approx((few["high"] - few["low"]) / 4, rel=0.4)


def test_intervals_follow_the_seed(settings: EvaluateParams) -> None:
    y, p_good = scored(200, seed=1)
    assert evaluate(rows(y, p_good), settings) == evaluate(rows(y, p_good), settings)
    other = evaluate(rows(y, p_good), replace(settings, seed=settings.seed + 1))
    assert other["interval"] != evaluate(rows(y, p_good), settings)["interval"]
    assert other["roc_auc"] == evaluate(rows(y, p_good), settings)["roc_auc"]


def test_large_tables_are_resampled_in_parts(settings: EvaluateParams, monkeypatch: pytest.MonkeyPatch) -> None:
    y, p_good = scored(400, seed=1)
    whole = evaluate(rows(y, p_good), settings)["interval"]["roc_auc"]
    drawn = []
    original = bootstrap.bootstrap_weights

    def spy(n_rows: int, n_samples: int, seed: int) -> np.ndarray:
        drawn.append(original(n_rows, n_samples, seed))
        return drawn[-1]

    monkeypatch.setattr(bootstrap, "bootstrap_weights", spy)
    monkeypatch.setattr(bootstrap, "MAX_CELLS", 70 * 400)
    parts = evaluate(rows(y, p_good), settings)["interval"]["roc_auc"]
    assert [len(weights) for weights in drawn] == [70, 70, 70, 70, 20]
    assert len(np.unique(np.vstack(drawn), axis=0)) == 300
    assert parts == pytest.approx(whole, abs=0.02)


def test_resamples_of_one_class_are_left_out(settings: EvaluateParams) -> None:
    y, p_good = np.array([0] + [1] * 20), np.r_[0.5, np.linspace(0.3, 0.9, 20)]
    interval = evaluate(rows(y, p_good), settings)["interval"]["roc_auc"]
    assert 0 <= interval["low"] <= interval["high"] <= 1


def test_the_interval_of_the_calibration_error_holds_the_truth_more_often_than_percentiles(settings: EvaluateParams) -> None:
    rng, held, percentiles, truth = np.random.default_rng(0), [], [], 0.05
    for seed in range(60):
        score = rng.normal(1, 1.2, 300)
        y = (rng.random(300) < 1 / (1 + np.exp(-(score + 0.3)))).astype(int)
        found = evaluate(rows(y, 1 / (1 + np.exp(-score))), replace(settings, bootstrap_samples=100, seed=seed))
        interval, point = found["interval"]["ece"], found["ece"]
        held.append(interval["low"] <= truth <= interval["high"])
        percentiles.append(2 * point - interval["high"] <= truth <= 2 * point - interval["low"])
    assert np.mean(held) > 0.75
    assert np.mean(percentiles) < np.mean(held)


def test_weights_are_repeated_rows(settings: EvaluateParams) -> None:
    y, p_good = scored(200, seed=8)
    weights = np.random.default_rng(0).integers(1, 4, 200)
    one = rows(y, p_good, weights.astype(float))
    many = rows(np.repeat(y, weights), np.repeat(p_good, weights))
    weighted, repeated = evaluate(one, settings), evaluate(many, settings)
    # A row may straddle two bins of equal weight, its copies need not.
    assert weighted.pop("ece") == pytest.approx(repeated.pop("ece"), abs=0.02)
    for found in (weighted, repeated):
        del found["interval"], found["rows"]
    assert weighted == pytest.approx(repeated)
    for name, table in plot_tables(one, settings).items():
        other = plot_tables(many, settings)[name]
        if name not in ("confusion", "calibration"):
            pd.testing.assert_frame_equal(table, other)


def test_fractional_weights_make_fractional_counts(settings: EvaluateParams) -> None:
    found = evaluate(rows(*scored(200, seed=8), np.full(200, 0.7)), settings)
    assert sum(found[name] for name in COUNTS) == pytest.approx(140)
    assert found["rows"] == 200
    for name, interval in evaluate(rows(*scored(200, seed=8)), settings)["interval"].items():
        assert found["interval"][name] == pytest.approx(interval)


def test_the_weight_column_of_the_contract_weighs_the_rows() -> None:
    table = pd.DataFrame({"n": ["2", "0.5"], "noise": [1, 2]})
    contract = replace(CONTRACT, columns={**CONTRACT.columns, "n": Column(kind="weight")})
    assert contract.row_weights(table).tolist() == [2, 0.5]
    assert CONTRACT.row_weights(table).tolist() == [1, 1]


def test_repeats_are_averaged_per_row_and_found_by_position() -> None:
    table = pd.DataFrame({"repeat": [0, 0, 0, 1, 1, 1], "y_true": [1, 0, 1] * 2, "y_proba": [0.8, 0.1, None, 0.6, 0.3, None]})
    found = average_repeats(table, 3)
    assert found.index.tolist() == [0, 1]
    assert found["y_true"].tolist() == [1, 0]
    assert found["y_proba"].tolist() == pytest.approx([0.7, 0.2])
    # One fold of one split: the rows say which they are.
    assert average_repeats(table.assign(row=[5, 2, 3, 5, 2, 3]), 6).index.tolist() == [5, 2]
    for wrong, rows in ((table, 4), (table.assign(row=6), 6)):
        with pytest.raises(DataError, match=f"found 6, expected some for each of {rows} development rows"):
            average_repeats(wrong, rows)


# --- the prior


def test_the_sample_keeps_its_own_figures_beside_those_at_the_prior(settings: EvaluateParams) -> None:
    y, p_good = scored(400, seed=1)
    sample, target = rows(y, p_good), policy(prior=0.05)
    population = Scored(y, target.correct(p_good), np.ones(400), target)
    found = evaluate(sample, settings, population)
    at_prior = found.pop("at_prior")
    assert found == evaluate(sample, settings)
    assert set(at_prior) == {*AT_PRIOR, "default_rate", "threshold", "interval"}
    assert set(at_prior["interval"]) == set(AT_PRIOR)
    assert at_prior["default_rate"] == 0.05
    # By hand: each class weighs as much as at the prior.
    approved, bad = 1 - target.correct(p_good) < 1 / 6, y == 0
    caught, kept = 0.05 * approved[bad].mean(), 0.95 * approved[~bad].mean()
    assert at_prior["approval_rate"] == pytest.approx(caught + kept)
    assert at_prior["bad_rate_approved"] == pytest.approx(caught / (caught + kept))
    assert at_prior["expected_cost"] == pytest.approx(5 * caught + 0.95 - kept)
    assert at_prior["brier"] == pytest.approx(
        0.05 * ((target.correct(p_good) - y) ** 2)[bad].mean() + 0.95 * ((target.correct(p_good) - y) ** 2)[~bad].mean()
    )
    for name in AT_PRIOR:
        assert at_prior["interval"][name]["low"] < at_prior[name] <= at_prior["interval"][name]["high"], name


def test_tables_at_the_prior_stand_beside_those_of_the_sample(settings: EvaluateParams) -> None:
    y, p_good = scored(400, seed=1)
    sample, target = rows(y, p_good), policy(threshold=0.12, prior=0.05)
    population = Scored(y, target.correct(p_good), np.ones(400), target)
    tables, alone = plot_tables(sample, settings, population), plot_tables(sample, settings)
    assert set(tables) == set(alone)
    for name in ("calibration", "cost_curve", "strategy"):
        assert set(tables[name]) > set(alone[name])
        assert not tables[name].isna().any(axis=None)
    strategy = tables["strategy"].set_index("threshold")
    assert strategy["chosen"].idxmax() == 1 / 6
    assert strategy["chosen_at_prior"].idxmax() == 0.12
    assert strategy.loc[0.12, "expected_cost_at_prior"] == pytest.approx(
        evaluate(sample, settings, population)["at_prior"]["expected_cost"]
    )


def test_predictions_show_the_default_probability_at_the_prior() -> None:
    y, p_good = scored(50, seed=1)
    table = prediction_table(pd.RangeIndex(50), y, p_good, policy(prior=0.05))
    decided = (table["probability_of_default_at_prior"] < 1 / 6).astype(int)
    assert decided.tolist() == table["approved"].tolist()
    assert (table["probability_of_default_at_prior"] < table["probability_of_default"]).all()


# --- conformal sets


def test_conformal_coverage_is_counted_per_class() -> None:
    # Sets with the cutoffs 0.5 and 0.25: bad, bad, both, good.
    y, p_good = np.array([1, 0, 1, 0]), np.array([0.1, 0.4, 0.6, 0.9])
    found = conformal_metrics(y, p_good, np.array([1.0, 1.0, 3.0, 1.0]), policy())
    assert found == pytest.approx(
        {
            "level": 0.9,
            "coverage_good": 3 / 4,
            "coverage_bad": 1 / 2,
            "approved": 1 / 6,
            "rejected": 2 / 6,
            "referred": 3 / 6,
        }
    )


# --- tables


def test_predictions_say_what_was_decided(settings: EvaluateParams) -> None:
    y, p_good = scored(200, seed=2)
    p_good[0] = 1 - 0.25
    ids = pd.Index([f"a{i}" for i in range(200)], name="applicant_id")
    table = prediction_table(ids, y, p_good, policy(0.25))
    assert list(table) == ["y_true", "y_proba", "probability_of_default", "approved", "conformal"]
    assert table.index.equals(ids)
    np.testing.assert_allclose(table["y_proba"] + table["probability_of_default"], 1)
    assert table["approved"].iloc[0] == 0
    found = evaluate(rows(y, p_good, threshold=0.25), settings)
    assert table["approved"].mean() == found["approval_rate"]
    counts = pd.crosstab(table["y_true"], table["approved"])
    assert counts.loc[1, 1] == found["good_approved"]
    assert counts.loc[0, 1] == found["bad_approved"]


def test_the_roc_curve(settings: EvaluateParams) -> None:
    y, p_good = scored(300, seed=3)
    p_good = p_good.round(2)
    roc = plot_tables(rows(y, p_good), settings)["roc"]
    assert roc.iloc[0].tolist() == [0, 0]
    assert roc.iloc[-1].tolist() == [1, 1]
    assert (roc.diff().dropna() >= 0).all(axis=None)
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(skm.roc_auc_score(y, p_good))
    fpr, tpr, _ = skm.roc_curve(y, p_good, drop_intermediate=False)
    np.testing.assert_allclose(roc, np.column_stack([fpr, tpr]))


def test_the_precision_recall_curve(settings: EvaluateParams) -> None:
    y, p_good = scored(300, seed=3)
    curve = plot_tables(rows(y, p_good), settings)["precision_recall"]
    precision, recall, _ = skm.precision_recall_curve(y, p_good)
    # scikit-learn goes from the last score up and adds the point (0, 1).
    np.testing.assert_allclose(curve[["recall", "precision"]], np.column_stack([recall, precision])[-2::-1])
    assert curve.iloc[-1].tolist() == [1, y.mean()]


def test_long_curves_are_thinned_and_keep_their_area(settings: EvaluateParams) -> None:
    y, p_good = scored(20_000, seed=4)
    tables = plot_tables(rows(y, p_good), settings)
    assert len(tables["roc"]) == 501
    assert len(tables["precision_recall"]) == 500
    assert tables["roc"].iloc[-1].tolist() == [1, 1]
    assert np.trapezoid(tables["roc"]["tpr"], tables["roc"]["fpr"]) == pytest.approx(skm.roc_auc_score(y, p_good), abs=1e-4)


def test_the_score_distribution(settings: EvaluateParams) -> None:
    y = np.array([1, 1, 1, 1, 0, 0])
    table = plot_tables(rows(y, np.array([1.0, 0.99, 0.5, 0.0, 0.02, 0.0])), settings)["scores"]
    assert len(table) == 20
    assert table["probability_of_default"].tolist() == pytest.approx(np.arange(0.025, 1, 0.05))
    shares = table.set_index(table["probability_of_default"].round(9))[["good", "bad"]]
    assert shares["good"][shares["good"] > 0].to_dict() == {0.025: 0.5, 0.525: 0.25, 0.975: 0.25}
    assert shares["bad"][shares["bad"] > 0].to_dict() == {0.975: 1.0}


def test_the_confusion_table_counts_as_the_figures_do(settings: EvaluateParams) -> None:
    y, p_good = scored(250, seed=6)
    found = evaluate(rows(y, p_good), settings)
    counts = plot_tables(rows(y, p_good), settings)["confusion"].value_counts()
    assert {name: counts[tuple(name.split("_"))] for name in COUNTS} == {name: found[name] for name in COUNTS}


def test_above_exact_rows_the_confusion_table_keeps_its_proportions(settings: EvaluateParams) -> None:
    sample = rows(*scored(7001, seed=6))
    table = plot_tables(sample, replace(settings, exact_rows=1000))["confusion"]
    assert len(table) == 1000
    found = evaluate(sample, settings)
    counts = table.value_counts()
    assert {name: counts[tuple(name.split("_"))] for name in COUNTS} == pytest.approx(
        {name: found[name] / 7.001 for name in COUNTS}, abs=1
    )


def test_what_was_reduced_is_said_only_where_it_was(settings: EvaluateParams) -> None:
    assert reductions(settings.exact_rows, settings) == {}
    assert reductions(settings.exact_rows + 1, settings)["reduced"]["importance_rows"] == settings.exact_rows


# --- permutation importance

CONTRACT = Contract(
    target=Target(name="y", good=1, bad=0),
    columns={
        "noise": Column(kind="numeric"),
        "home": Column(kind="nominal", codes=["own", "rent"]),
        "planted": Column(kind="numeric"),
        "ignored": Column(kind="numeric"),
    },
)


def applicants(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    table = pd.DataFrame(
        {
            "noise": rng.normal(size=n),
            "home": np.where(rng.random(n) < 0.5 + 0.2 * y, "own", "rent"),
            "planted": rng.normal(size=n) + 2 * y,
            "ignored": "",
        },
        index=pd.Index([f"a{i}" for i in range(n)], name="applicant_id"),
    )
    return table, y


@pytest.fixture(scope="module")
def model() -> RiskModel:
    table, y = applicants(500, seed=0)
    steps = [
        ("invalid", InvalidDataHandler(CONTRACT)),
        ("features", FeaturePreprocessor(CONTRACT)),
        ("model", LogisticRegression()),
    ]
    return RiskModel("logistic_regression", Pipeline(steps).fit(table, y), CONTRACT, {}, "", 0.5, ScoreScale(600, 20, 20))


def naive_importance(model: RiskModel, X: pd.DataFrame, y: np.ndarray, settings: EvaluateParams) -> np.ndarray:
    """Shuffle one column of the whole table at a time; falls of shape (repeats, features)."""
    rng = np.random.default_rng(settings.seed)
    base = skm.roc_auc_score(y, model.predict_proba(X)[:, 1])
    falls = np.empty((settings.importance_repeats, len(CONTRACT.features)))
    for repeat in range(settings.importance_repeats):
        for i, name in enumerate(CONTRACT.features):
            shuffled = X.assign(**{name: rng.permutation(X[name].to_numpy())})
            falls[repeat, i] = base - skm.roc_auc_score(y, model.predict_proba(shuffled)[:, 1])
    return falls


@pytest.mark.parametrize("n", [2, 3, 60])
def test_importance_is_that_of_shuffling_one_column_at_a_time(n: int, model: RiskModel, settings: EvaluateParams) -> None:
    X, y = applicants(n, seed=1)
    y[:2] = [0, 1]
    falls = naive_importance(model, X, y, settings)
    found = permutation_importance(model, X.assign(more="x"), y, settings).set_index("feature")
    np.testing.assert_allclose(found.loc[CONTRACT.features, "importance"], falls.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.loc[CONTRACT.features, "std"], falls.std(axis=0), atol=1e-12)


def test_importance_finds_the_planted_feature(model: RiskModel, settings: EvaluateParams) -> None:
    X, y = applicants(300, seed=2)
    before = X.copy()
    found = permutation_importance(model, X, y, settings)
    assert list(found) == ["feature", "importance", "std"]
    assert found["feature"].tolist()[:2] == ["planted", "home"]
    assert found.loc[0, "importance"] > 0.2
    assert found["importance"].is_monotonic_decreasing
    by_name = found.set_index("feature")
    assert by_name.loc["ignored"].tolist() == [0, 0]
    assert abs(by_name.loc["noise", "importance"]) < 0.02
    pd.testing.assert_frame_equal(X, before)
    pd.testing.assert_frame_equal(permutation_importance(model, X, y, settings), found)


def test_above_exact_rows_each_repeat_has_rows_of_its_own(model: RiskModel, settings: EvaluateParams) -> None:
    X, y = applicants(6000, seed=1)
    scored_rows = []

    class Spy:
        feature_names_in_ = model.feature_names_in_

        def predict_proba(self, table: pd.DataFrame) -> np.ndarray:
            scored_rows.append(len(table))
            return model.predict_proba(table)

    few = permutation_importance(Spy(), X, y, replace(settings, exact_rows=1000)).set_index("feature")
    per_repeat = 1000 // settings.importance_repeats
    assert sum(scored_rows) == 1000 * (1 + len(CONTRACT.features))
    assert set(scored_rows) == {per_repeat, per_repeat * len(CONTRACT.features)}
    every = permutation_importance(model, X, y, settings).set_index("feature")
    assert few["importance"].idxmax() == "planted"
    assert few.loc["planted", "importance"] == pytest.approx(every.loc["planted", "importance"], abs=0.05)
