"""Training: cross-validate what ``train.model`` names, pick a model, and fit it on all development rows."""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from mlops_project.config import (
    BEST_MODEL,
    METRICS,
    MODEL_RESULTS,
    PREDICTIONS,
    REGISTRY,
    SAMPLERS,
    fold_groups,
    load_params,
    table_path,
    with_training,
)
from mlops_project.errors import DataError, ParamsError
from mlops_project.files import atomic_path, rounded, write_json, write_table
from mlops_project.manifest import dump
from mlops_project.modeling.cross_validation import CrossValidation, cross_validate
from mlops_project.modeling.distributed import Share, Tables, fit_xgboost, is_distributed
from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.folds import Fold, make_folds
from mlops_project.modeling.metrics import outcomes
from mlops_project.modeling.model import RiskModel, table_hash
from mlops_project.modeling.models import DISPLAY_NAMES, build_models
from mlops_project.modeling.reasons import make_reference
from mlops_project.modeling.sampling import class_factors
from mlops_project.modeling.scale import ScoreScale
from mlops_project.modeling.selection import leaderboard, leaderboard_table
from mlops_project.preprocessing import value_columns
from mlops_project.schema import load_contract

if TYPE_CHECKING:
    from mlops_project.config import DataParams, ModelParams, TrainParams
    from mlops_project.modeling.models import Model
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

REPORTED = ("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "geometric_mean")


class Training(NamedTuple):
    """The picked model, fitted, with its cross-validation and P(good) of every development row from folds without it.

    ``leaderboard`` is that of `selection.leaderboard`. ``out_of_fold`` has one row per applicant and repeat: ``repeat``,
    ``fold``, ``y_true``, ``y_proba``.
    """

    model: RiskModel
    cross_validation: CrossValidation
    leaderboard: dict[str, Any]
    out_of_fold: pd.DataFrame


def train(
    X: pd.DataFrame,
    y: pd.Series,
    preprocessor: Pipeline,
    contract: Contract,
    params: TrainParams,
    models: ModelParams,
    group_column: str | None = None,
    tables: Tables | None = None,
) -> Training:
    """Cross-validate and fit ``params.model``, or the pick of ``params.candidates`` if that is ``best``.

    Parameters
    ----------
    X : DataFrame of shape (n rows, …)
        Development rows with the contract's columns; the index is the applicant id.
    y : Series of int, shape (n rows,)
        1 good, 0 bad.
    preprocessor : Pipeline
        Taken as a recipe: it is cloned unfitted for every fold and for the final fit.
    contract : Contract
        Its weight column, if it has one, weighs rows in fits and metrics.
    params : TrainParams
    models : ModelParams
    group_column : str, optional
        No value of this column stands on both sides of a fold.
    tables : Tables, optional
        The same rows in Parquet, from which a Dask cluster may fit XGBoost.

    Returns
    -------
    Training

    Raises
    ------
    ParamsError
        If bins by hand do not fit the contract, or a model or answer to imbalance is none for so many rows.
    DataError
        If there are too few rows of a class, or groups, for the folds, the model or the answer to imbalance.
    """
    outcome = outcomes(y, len(X))
    groups = None if group_column is None else X[group_column].astype(str).to_numpy()
    weight = contract.row_weights(X) if contract.weight else None
    candidates = build_models(models, params, value_columns(preprocessor))
    check_size(candidates, len(outcome), params)
    folds = make_folds(outcome, params, groups)
    check_inner_folds(candidates, outcome, folds)
    # One thread: more cost at these sizes, and the order of summation would depend on their number.
    with threadpool_limits(limits=1):
        results = cross_validate(candidates, preprocessor, X, outcome, folds, params, weight, groups)
        test_share = float(np.mean([len(fold.test) / len(fold.train) for fold in folds]))
        board = leaderboard(results, params.selection_metric, test_share)
    picked = board["picked"]
    model = _fit(picked, candidates[picked], X, outcome, preprocessor, contract, params, models, weight, groups, tables)
    over = f"{len(folds)} folds of {len(outcome)} rows"
    if len(outcome) > params.one_split_above:
        over = (
            f"{len(folds)} parts of {sum(len(fold.test) for fold in folds)} held-out rows, fitted once to {len(folds[0].train)}"
        )
    for name, entry in board["models"].items():
        logger.info("%s: %s %.3f ± %.3f over %s", name, board["metric"], entry["mean"], entry["std"], over)
    if len(candidates) > 1:
        logger.info("picked: %s", board["why"])
    out_of_fold = _out_of_fold(X.index, outcome, folds, results[picked])
    return Training(model, results[picked], board, out_of_fold)


def fit(
    X: pd.DataFrame,
    y: pd.Series,
    preprocessor: Pipeline,
    contract: Contract,
    params: TrainParams,
    models: ModelParams,
    group_column: str | None = None,
) -> RiskModel:
    """Fit the model that `train` would, without cross-validation; parameters and errors as there, ``best`` is refused."""
    candidates = build_models(models, params, value_columns(preprocessor))
    if params.model == "best":
        raise ParamsError("train.model=best compares by cross-validation; name a model, or evaluate")
    outcome = outcomes(y, len(X))
    check_size(candidates, len(outcome), params)
    groups = None if group_column is None else X[group_column].astype(str).to_numpy()
    weight = contract.row_weights(X) if contract.weight else None
    return _fit(params.model, candidates[params.model], X, outcome, preprocessor, contract, params, models, weight, groups)


def _fit(
    name: str,
    candidate: Model,
    X: pd.DataFrame,
    y: np.ndarray,
    preprocessor: Pipeline,
    contract: Contract,
    params: TrainParams,
    models: ModelParams,
    weight: np.ndarray | None,
    groups: np.ndarray | None,
    tables: Tables | None = None,
) -> RiskModel:
    fitted_by: dict[str, Any] = {}
    with threadpool_limits(limits=1):
        fitter = Fitter(preprocessor, X, y, np.arange(len(y)), params, weight, groups)
        if tables is not None and is_distributed(candidate, params, len(y), tables):
            encoder = [("features", fitter.to_encoded)] if candidate[0].view == "encoded" else []
            to_view = Pipeline([*fitter.to_values.steps, *encoder])
            balanced = params.imbalance == "class_weight"
            factors = class_factors(y, np.ones(len(y)) if weight is None else weight) if balanced else None
            share = Share(tables, to_view, contract, factors)
            classifier, workers = fit_xgboost(candidate[0].classifier, share)
            pipeline = Pipeline([*to_view.steps, ("model", classifier)])
            fitted_by = {"fitted_by": {"xgboost.dask": {"workers": workers}}}
        else:
            pipeline = fitter.pipeline(candidate)
        columns = value_columns(pipeline)
        reference = make_reference(pipeline[len(fitter.to_values) :], columns.kinds, fitter.values, weight)
    chosen = getattr(models.best if params.model == "best" else models, name)
    settings = {"train": msgspec.to_builtins(params), name: msgspec.to_builtins(chosen)} | fitted_by
    default_rate = float(np.average(1 - y, weights=weight))
    scale = ScoreScale(params.base_score, params.base_odds, params.points_to_double)
    return RiskModel(name, pipeline, contract, settings, table_hash(X, y, contract), default_rate, scale, reference)


def save_training(result: Training, data: DataParams) -> None:
    """Write the outputs of the train stage."""
    dump(result.model, BEST_MODEL)
    write_table(result.out_of_fold, table_path(PREDICTIONS, "out_of_fold", data))
    write_json(result.leaderboard, METRICS / "leaderboard.json")
    write_table(leaderboard_table(result.leaderboard).map(rounded), METRICS / "leaderboard.csv", index=False)
    write_json(result.cross_validation.summary(), METRICS / "train.json")
    save_results(result)


def save_results(result: Training) -> None:
    """Write ``models/model_results.json``: name, display name, full configuration and cross-validation of a model."""
    model = result.model
    content = {
        "model": model.name,
        "display_name": DISPLAY_NAMES[model.name],
        "params": model.params,  # not rounded: small values would lose digits
        "results": rounded(cross_validation_results(result.cross_validation)),
    }
    with atomic_path(MODEL_RESULTS) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def save_version(model: RiskModel, path: str | Path, result: Training | None = None) -> None:
    """Write a model beside the pipeline's own, and a line about it to ``models/registry.jsonl``.

    The line says when, where, SHA-256 of the file, `table_hash` of the training rows, settings, and means over the folds.
    """
    dump(model, path)
    found = {} if result is None else cross_validation_results(result.cross_validation)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "path": str(path),
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "model": model.name,
        "training_data": model.training_data_hash,
        "params": model.params,
        "metrics": {name: rounded(entry["test_mean"]) for name, entry in found.items()},
    }
    with open(REGISTRY, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")


def cross_validation_results(found: CrossValidation) -> dict[str, dict[str, float]]:
    """Per metric of ``REPORTED`` the ``test_mean``, ``test_std``, ``train_mean`` and ``train_std`` over the folds."""
    summary = found.summary()
    return {
        name: {
            "test_mean": summary[name]["mean"],
            "test_std": summary[name]["std"],
            "train_mean": summary[name]["train_mean"],
            "train_std": summary[name]["train_std"],
        }
        for name in REPORTED
    }


def train_model(
    X_train: pd.DataFrame,
    y_train: pd.Series,
    preprocessor: Pipeline,
    model_name: str = "logistic_regression",
    use_smote: bool = True,
    smote_method: str = "BorderlineSMOTE",
    evaluate: bool = True,
    save_model: bool = True,
) -> tuple[RiskModel, dict[str, dict[str, float]] | None]:
    """Train as the train stage does, by the contract and the other params of the working directory.

    Parameters
    ----------
    X_train : DataFrame of shape (n rows, …)
        Rows with the contract's columns, as `dataset.load_and_prepare_data` returns them, not as `features` transforms them.
    y_train : Series of int, shape (n rows,)
        1 good, 0 bad.
    preprocessor : Pipeline
        A recipe: cloned unfitted in every fold.
    model_name : str
        One of ``config.AVAILABLE_MODELS``, or best.
    use_smote : bool
    smote_method : {"SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN"}
    evaluate : bool
        Cross-validate.
    save_model : bool
        Write what the train stage writes; without evaluation only the model.

    Returns
    -------
    pipeline : RiskModel
        Raw rows in, P(good) out.
    results : dict, optional
        See `cross_validation_results`.

    Raises
    ------
    ParamsError
        If there is no such model or method.
    DataError
        As `train`.
    """
    if smote_method not in SAMPLERS:
        raise ParamsError(f"smote_method: found {smote_method!r}, expected one of {', '.join(SAMPLERS)}")
    params = with_training(load_params(), model_name, smote_method if use_smote else "none")
    contract = load_contract(params.data.contract)
    settings = preprocessor, contract, params.train, params.models, fold_groups(params.prepare)
    if not evaluate:
        model = fit(X_train, y_train, *settings)
        if save_model:
            dump(model, BEST_MODEL)
        return model, None
    result = train(X_train, y_train, *settings)
    if save_model:
        save_training(result, params.data)
    return result.model, cross_validation_results(result.cross_validation)


def check_size(models: dict[str, Model], n_rows: int, params: TrainParams) -> None:
    """Raise ParamsError if there are more than ``quadratic_above`` rows for what takes time by their square."""
    if n_rows <= params.quadratic_above:
        return
    found = [f"train.model={name}" for name, model in models.items() if any(member.quadratic for member in model)]
    instead = "scorecard, logistic_regression or xgboost (in train.candidates only such, if it is best)"
    if not found and params.imbalance in SAMPLERS:
        found, instead = [f"train.imbalance={params.imbalance}"], "class_weight or none"
    if found:
        raise ParamsError(
            f"{', '.join(found)}: found {n_rows} development rows, expected at most train.quadratic_above ="
            f" {params.quadratic_above}, because the time grows with their square; use {instead}, or raise the limit"
        )


def check_inner_folds(models: dict[str, Model], y: np.ndarray, folds: list[Fold]) -> None:
    """Raise DataError if a model makes more folds of its training rows than the smaller class has rows in ``folds``."""
    fewest = min(int(np.bincount(y[fold.train], minlength=2).min()) for fold in folds)
    for name, model in models.items():
        if (needed := max(member.inner_folds for member in model)) > fewest:
            raise DataError(
                f"train.model={name}: the smaller class has {fewest} rows in a training fold, expected at least"
                f" calibration_folds = {needed} of the support vector machine; lower it or use another model"
            )


def _out_of_fold(ids: pd.Index, y: np.ndarray, folds: list[Fold], result: CrossValidation) -> pd.DataFrame:
    fold_of = np.zeros(result.out_of_fold.shape, dtype=int)
    for number, fold in enumerate(folds):
        fold_of[fold.repeat, fold.test] = number
    # With one split most rows are in no fold; of the others it is said where they stand, so that nobody must look up ids.
    repeat, row = np.nonzero(~np.isnan(result.out_of_fold))
    found = pd.DataFrame(
        {
            "repeat": repeat,
            "fold": fold_of[repeat, row],
            "y_true": y[row],
            "y_proba": result.out_of_fold[repeat, row].round(10),
        },
        index=ids.take(row),
    )
    return found if len(found) == result.out_of_fold.size else found.assign(row=row)
