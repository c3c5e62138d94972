"""Training: what is fitted, what is reported, and which settings reach which model."""

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import asdict, replace

from mlops_project.config import Params
from mlops_project.dataset import Applicants
from mlops_project.errors import DataError
from mlops_project.modeling.evaluation import scorecard_tables
from mlops_project.modeling.metrics import ranking_metrics
from mlops_project.modeling.models import BUILDERS, build_model
from mlops_project.modeling.train import Training, train
from mlops_project.preprocessing import build_preprocessor, value_columns
from mlops_project.schema import Contract


def fit(applicants: Applicants, contract: Contract, params: Params, rows: int = 300, **settings: object) -> Training:
    group = settings.pop("group_column", None)
    preprocessor = build_preprocessor(contract, params.featurize)
    chosen = replace(params.train, **{"model": "logistic_regression", "n_splits": 2, "n_repeats": 1, **settings})
    table, target = applicants.table[:rows], applicants.target[:rows]
    return train(table, target, preprocessor, contract, chosen, params.models, group)


def test_out_of_fold_predictions_are_a_row_per_applicant_and_repeat(contract: Contract, params: Params, applicants) -> None:
    result = fit(applicants, contract, params, n_splits=3, n_repeats=2)
    table = result.out_of_fold
    assert list(table) == ["repeat", "fold", "y_true", "y_proba"]
    assert table.index.name == "applicant_id"
    assert len(table) == 2 * 300
    for repeat, rows in table.groupby("repeat"):
        assert list(rows.index) == list(applicants.table.index[:300])
        assert rows["y_true"].tolist() == applicants.target[:300].tolist()
        assert set(rows["fold"]) == {0 + 3 * repeat, 1 + 3 * repeat, 2 + 3 * repeat}
    for fold, rows in table.groupby("fold"):
        roc_auc = ranking_metrics(rows["y_true"].to_numpy(), rows["y_proba"].to_numpy())["roc_auc"][0]
        assert roc_auc == pytest.approx(result.cross_validation.test["roc_auc"][fold])


def test_the_final_model_is_fitted_on_all_rows(contract: Contract, params: Params, applicants: Applicants) -> None:
    one, other = fit(applicants, contract, params), fit(applicants, contract, params, n_splits=3, seed=1)
    np.testing.assert_array_equal(one.model.predict_proba(applicants.table), other.model.predict_proba(applicants.table))
    scored = ranking_metrics(applicants.target.to_numpy()[:300], one.model.predict_proba(applicants.table[:300])[:, 1])
    assert scored["roc_auc"][0] > one.cross_validation.summary()["roc_auc"]["mean"]


@pytest.mark.parametrize("method", ["SMOTE", "class_weight"])
def test_an_answer_to_imbalance_reaches_the_final_model_and_leaves_no_sampler_in_it(
    method: str, contract: Contract, params: Params, applicants: Applicants
) -> None:
    plain, other = fit(applicants, contract, params), fit(applicants, contract, params, imbalance=method)
    assert list(other.model.pipeline.named_steps) == list(plain.model.pipeline.named_steps)
    p_bad = [result.model.probability_of_default(applicants.table).mean() for result in (plain, other)]
    assert p_bad[1] > p_bad[0] + 0.1


def test_groups_stay_together(contract: Contract, params: Params, applicants: Applicants) -> None:
    branches = np.random.default_rng(0).integers(0, 50, len(applicants.table))
    grouped = applicants._replace(table=applicants.table.assign(branch=branches))
    table = fit(grouped, contract, params, n_splits=3, n_repeats=2, group_column="branch").out_of_fold
    folds = table.assign(branch=np.tile(branches[:300], 2)).groupby(["repeat", "branch"])["fold"].nunique()
    assert (folds == 1).all()


def test_a_support_vector_machine_without_rows_to_calibrate_on_is_refused(contract: Contract, params: Params, applicants) -> None:
    y = applicants.target
    few = [*y.index[y == 0][:6], *y.index[y == 1][:50]]
    small = applicants._replace(table=applicants.table.loc[few], target=y.loc[few])
    with pytest.raises(
        DataError, match=r"svm: the smaller class has 4 rows in a training fold, expected .*calibration_folds = 5"
    ):
        fit(small, contract, params, model="svm", n_splits=3)
    three = replace(params, models=replace(params.models, svm=replace(params.models.svm, calibration_folds=3)))
    assert fit(small, contract, three, model="svm").model.predict_proba(small.table).shape == (56, 2)


# --- scorecard and best


def test_the_points_of_a_scorecard_add_up_to_the_score(contract: Contract, params: Params, applicants: Applicants) -> None:
    for calibration in ("none", "sigmoid"):
        result = fit(applicants, contract, params, model="scorecard", calibration=calibration)
        points = scorecard_tables(result.model)["scorecard"]
        values = result.model.pipeline[:-1].transform(applicants.table)
        card = result.model.pipeline[-1]
        card = card.classifier if calibration == "sigmoid" else card
        total = np.zeros(len(values))
        for i, (name, bins) in enumerate(zip(card.encoder_.names_, card.encoder_.bins_, strict=True)):
            rows = points[points["attribute"] == name]["points"].to_numpy()
            total += rows[bins.assign(values[:, i])]
        np.testing.assert_allclose(total, result.model.score(applicants.table), atol=1e-6)
    assert list(scorecard_tables(result.model)["information_value"]["attribute"][:1]) == ["laufkont"]


def test_other_models_have_no_points(contract: Contract, params: Params, applicants: Applicants) -> None:
    assert scorecard_tables(fit(applicants, contract, params).model) == {}


def test_the_score_doubles_the_odds_every_so_many_points(contract: Contract, params: Params, applicants: Applicants) -> None:
    model = fit(applicants, contract, params, base_score=500.0, base_odds=4.0, points_to_double=30.0).model
    p = model.predict_proba(applicants.table)
    expected = 500 + 30 * np.log2(p[:, 1] / p[:, 0] / 4)
    np.testing.assert_allclose(model.score(applicants.table), expected)


def test_best_fits_the_pick_of_the_candidates_as_if_it_were_named(contract: Contract, params: Params, applicants) -> None:
    names = ["decision_tree", "scorecard", "logistic_regression"]
    best = fit(applicants, contract, params, model="best", candidates=names)
    picked = best.leaderboard["picked"]
    assert picked == best.model.name == "scorecard"
    alone = fit(applicants, contract, params, model="scorecard")
    assert best.cross_validation.test == alone.cross_validation.test
    pd.testing.assert_frame_equal(best.out_of_fold, alone.out_of_fold)
    np.testing.assert_array_equal(best.model.predict_proba(applicants.table), alone.model.predict_proba(applicants.table))
    assert set(best.leaderboard["models"]) == set(names)
    assert set(best.model.params) == {"train", "scorecard"}


def test_weights_reach_fits_and_metrics(contract: Contract, params: Params, applicants: Applicants) -> None:
    from mlops_project.schema import Column

    weighted = replace(contract, columns={**contract.columns, "stands_for": Column(kind="weight")})
    weight = np.random.default_rng(0).uniform(0.2, 5, len(applicants.table))
    rows = applicants._replace(table=applicants.table.assign(stands_for=weight))
    ones = applicants._replace(table=applicants.table.assign(stands_for=1.0))
    plain = fit(applicants, contract, params)
    assert fit(ones, weighted, params).cross_validation.test == plain.cross_validation.test
    found = fit(rows, weighted, params)
    assert found.model.sample_default_rate == pytest.approx(np.average(1 - applicants.target[:300], weights=weight[:300]))
    assert found.cross_validation.test["brier"] != plain.cross_validation.test["brier"]
    assert (found.model.predict_proba(rows.table) != plain.model.predict_proba(rows.table)).any()


# --- models

CHANGES = {
    "scorecard": {
        "max_bins": 3,
        "min_bin_share": 0.25,
        "smoothing": 3.0,
        "C": 0.7,
        "center": 0.25,
        "bins": {"laufzeit": [12, 24]},
    },
    "logistic_regression": {"C": 0.7, "max_iter": 77},
    "decision_tree": {"max_depth": 2, "min_samples_leaf": 7, "ccp_alpha": 0.25},
    "random_forest": {"n_estimators": 7, "max_depth": 2, "min_samples_leaf": 9, "max_features": 0.5},
    "svm": {"C": 0.7, "gamma": 0.125, "calibration_folds": 4},
    "xgboost": {
        "n_estimators": 7,
        "max_depth": 2,
        "learning_rate": 0.25,
        "subsample": 0.5,
        "colsample_bytree": 0.75,
        "min_child_weight": 3.0,
        "reg_lambda": 5.0,
    },
}
CHANGES["xgboost_monotone"] = CHANGES["xgboost"]


@pytest.mark.parametrize("name", list(BUILDERS))
def test_every_setting_reaches_the_model(name: str, contract: Contract, params: Params) -> None:
    changed = replace(getattr(params.models, name), **CHANGES[name])
    assert set(CHANGES[name]) == set(asdict(changed))
    columns = value_columns(build_preprocessor(contract, params.featurize))
    (member,) = build_model(name, changed, replace(params.train, seed=11), columns)
    given = member.classifier.get_params()
    if name == "scorecard":
        assert {**given, "bins": given["overrides"]} == {**given, **CHANGES[name]}
        return
    if name == "xgboost_monotone":
        directions = dict(zip(contract.features, given["monotone_constraints"], strict=True))
        assert {"laufzeit": -1, "alter": 1, "verm": 0, "laufkont": 0}.items() <= directions.items()
    seed = "cv" if name == "svm" else "random_state"
    if name == "svm":
        folds = given["cv"]
        given = given["estimator"].get_params() | {"calibration_folds": folds.n_splits, "cv": folds.random_state}
    assert {key: given[key] for key in CHANGES[name]} == CHANGES[name]
    assert given[seed] == 11
    assert given.get("n_jobs", 1) in (1, None)


def test_every_model_of_params_has_a_builder(params: Params) -> None:
    assert set(BUILDERS) | {"blend", "best"} == set(params.models.__struct_fields__)
