"""Rows in blocks: what is fitted to them is what the classifiers' own ``fit`` finds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace
from sklearn.base import clone

from mlops_project.config import AVAILABLE_MODELS, Params, TrainParams
from mlops_project.errors import ParamsError
from mlops_project.modeling import blocks as module
from mlops_project.modeling.blocks import Blocks, fit_in_blocks
from mlops_project.modeling.cross_validation import cross_validate
from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.folds import PARTS, make_folds
from mlops_project.modeling.models import Model, build_model
from mlops_project.modeling.train import fit, train
from mlops_project.preprocessing import Columns, build_preprocessor, value_columns

if TYPE_CHECKING:
    from mlops_project.dataset import Applicants
    from mlops_project.schema import Contract


def exact(name: str, params: Params, columns: Columns, train: TrainParams | None = None) -> Model:
    """A model; the logistic regression goes to its optimum, as it does in blocks, and does not stop at a tolerance of 1e-4."""
    (member,) = build_model(name, getattr(params.models, name), train or params.train, columns)
    if name == "logistic_regression":
        member.classifier.set_params(tol=1e-10)
    return (member,)


SEVERAL = pytest.mark.parametrize("name", ["scorecard", "logistic_regression", "xgboost", "xgboost_monotone", "decision_tree"])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 70 rows, and a start from 150."""
    for holder in ("blocks", "fitting"):
        monkeypatch.setattr(f"mlops_project.modeling.{holder}.BLOCK_ROWS", 70)
    monkeypatch.setattr(module, "STARTING_ROWS", 150)
    monkeypatch.setattr("mlops_project.preprocessing.BLOCK_ROWS", 70)


@pytest.fixture(scope="module")
def rows(_applicants: Applicants) -> tuple[pd.DataFrame, np.ndarray]:
    return _applicants.table.iloc[:600], _applicants.target.to_numpy()[:600]


@SEVERAL
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("imbalance", "calibration"), [("none", "none"), ("class_weight", "sigmoid")])
def test_blocks_find_what_fit_finds(name, imbalance, calibration, rows, contract: Contract, params: Params) -> None:
    X, y = rows
    recipe = build_preprocessor(contract, params.featurize)
    settings = replace(params.train, imbalance=imbalance, calibration=calibration)
    model = exact(name, params, value_columns(recipe), settings)
    plain = Fitter(recipe, X, y, np.arange(500), settings)
    large = Fitter(recipe, X, y, np.arange(500), replace(settings, one_split_above=499))
    assert (plain.large, large.large) == (False, True)
    np.testing.assert_allclose(large.p_good(model), plain.p_good(model), atol=2e-5)
    some = np.array([3, 550, 7])
    np.testing.assert_allclose(large.p_good(model, some), large.p_good(model)[some], atol=1e-12)
    np.testing.assert_allclose(large.pipeline(model).predict_proba(X)[:, 1], plain.p_good(model), atol=2e-5)


@pytest.mark.usefixtures("small_blocks")
def test_weights_count_in_blocks(rows, contract: Contract, params: Params) -> None:
    X, y = rows
    weight = np.random.default_rng(0).uniform(0.5, 3, len(y))
    recipe = build_preprocessor(contract, params.featurize)
    for name in ("scorecard", "logistic_regression", "xgboost"):
        model = exact(name, params, value_columns(recipe))
        plain = Fitter(recipe, X, y, np.arange(600), params.train, weight).p_good(model)
        large = Fitter(recipe, X, y, np.arange(600), replace(params.train, one_split_above=1), weight).p_good(model)
        np.testing.assert_allclose(large, plain, atol=2e-5, err_msg=name)


def test_beyond_the_memory_xgboost_works_in_files(rows, contract, params, monkeypatch, tmp_path) -> None:
    X, y = rows
    monkeypatch.chdir(tmp_path)
    recipe = build_preprocessor(contract, params.featurize)
    (member,) = build_model("xgboost", params.models.xgboost, params.train, value_columns(recipe))
    encoded = recipe.fit(X).transform(X)
    monkeypatch.setattr(module, "BLOCK_ROWS", 200)
    found = []
    for memory in (1 << 40, 0):
        monkeypatch.setattr(module, "_memory", lambda memory=memory: memory)
        blocks = Blocks(lambda rows: encoded[rows], np.arange(600), y, np.ones(600))
        found.append(fit_in_blocks(clone(member.classifier), blocks).predict_proba(encoded)[:, 1])
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    assert not list(tmp_path.iterdir()), "files of the work are removed"


# --- one split


@pytest.mark.usefixtures("small_blocks")
def test_above_the_limit_one_fold_is_held_out_once(rows, contract: Contract, params: Params) -> None:
    X, y = rows
    settings = replace(params.train, one_split_above=599)
    folds = make_folds(y, settings)
    (first, *_) = make_folds(y, params.train)
    assert len(folds) == PARTS
    assert all(fold.train is folds[0].train for fold in folds)
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    assert tested.tolist() == np.setdiff1d(np.arange(600), folds[0].train).tolist()
    assert len(tested) == pytest.approx(len(first.test), abs=1)
    shares = [y[fold.test].mean() for fold in folds]
    assert max(shares) - min(shares) < 0.1
    recipe = build_preprocessor(contract, params.featurize)
    model = build_model("logistic_regression", params.models.logistic_regression, settings, value_columns(recipe))
    found = cross_validate({"m": model}, recipe, X, y, folds, settings)["m"]
    known = ~np.isnan(found.out_of_fold[0])
    assert np.flatnonzero(known).tolist() == tested.tolist()
    assert len(found.test["roc_auc"]) == PARTS
    assert len(set(found.train["roc_auc"])) == 1, "the training rows are the same for all parts"
    expected = Fitter(recipe, X, y, folds[0].train, settings).p_good(model, tested)
    np.testing.assert_allclose(found.out_of_fold[0][known], expected, atol=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_training_says_what_it_did_with_many_rows(rows, contract: Contract, params: Params, caplog) -> None:
    X, y = rows
    settings = replace(params.train, one_split_above=599, model="best", candidates=["scorecard", "logistic_regression"])
    recipe = build_preprocessor(contract, params.featurize)
    with caplog.at_level("INFO", logger="mlops_project"):
        result = train(X, pd.Series(y), recipe, contract, settings, params.models)
    assert "over 10 parts of 120 held-out rows, fitted once to 480" in caplog.text
    assert len(result.out_of_fold) == 120
    assert set(result.out_of_fold["fold"]) == set(range(PARTS))
    assert 0 < result.leaderboard["models"]["scorecard"]["std"] < 0.3


def test_what_takes_time_by_the_square_is_refused(rows, contract: Contract, params: Params) -> None:
    X, y = rows
    recipe = build_preprocessor(contract, params.featurize)
    few = replace(params.train, quadratic_above=599)
    for settings, named in (
        ({"model": "svm"}, "train.model=svm: found 600 development rows, expected at most train.quadratic_above = 599"),
        ({"model": "blend"}, "train.model=blend: found 600"),
        ({"model": "best"}, "train.model=svm, train.model=blend: found 600 .* use scorecard"),
        ({"model": "scorecard", "imbalance": "SMOTE"}, "train.imbalance=SMOTE: found 600 .* use class_weight or none"),
    ):
        for work in (fit, train):
            if work is fit and settings["model"] == "best":
                continue
            with pytest.raises(ParamsError, match=named):
                work(X, pd.Series(y), recipe, contract, replace(few, **settings), params.models)
    assert set(AVAILABLE_MODELS) > {"svm", "blend"}


@pytest.mark.skipif(sys.platform == "win32", reason="os.sysconf")
def test_the_memory_of_this_machine_is_known() -> None:
    assert 1 << 28 < module._memory() < 1 << 50
