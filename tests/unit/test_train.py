"""Training: what is fitted, what is reported, and which settings reach which model."""

import numpy as np
import pytest
from msgspec.structs import asdict, replace

from mlops_project.config import Params
from mlops_project.dataset import Applicants
from mlops_project.errors import DataError
from mlops_project.modeling.metrics import ranking_metrics
from mlops_project.modeling.models import BUILDERS, build_model
from mlops_project.modeling.train import Training, train
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Contract


def fit(applicants: Applicants, contract: Contract, params: Params, rows: int = 300, **settings: object) -> Training:
    group = settings.pop("group_column", None)
    preprocessor = build_preprocessor(contract, params.featurize)
    chosen = replace(params.train, **{"n_splits": 2, "n_repeats": 1, **settings})
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


# --- models

CHANGES = {
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


@pytest.mark.parametrize("name", list(BUILDERS))
def test_every_setting_reaches_the_model(name: str, params: Params) -> None:
    changed = replace(getattr(params.models, name), **CHANGES[name])
    assert set(CHANGES[name]) == set(asdict(changed))
    model = build_model(name, replace(params.models, **{name: changed}), seed=11)
    given = model.get_params()
    seed = "cv" if name == "svm" else "random_state"
    if name == "svm":
        folds = given["cv"]
        given = given["estimator"].get_params() | {"calibration_folds": folds.n_splits, "cv": folds.random_state}
    assert {key: given[key] for key in CHANGES[name]} == CHANGES[name]
    assert given[seed] == 11
    assert given.get("n_jobs", 1) in (1, None)


def test_every_model_of_params_has_a_builder(params: Params) -> None:
    assert set(BUILDERS) == set(params.models.__struct_fields__)
