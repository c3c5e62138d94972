"""Training: cross-validate the chosen model, then fit it on all development rows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from mlops_project.errors import DataError
from mlops_project.modeling.cross_validation import CrossValidation, Fold, cross_validate, make_folds
from mlops_project.modeling.model import RiskModel, table_hash
from mlops_project.modeling.models import build_model
from mlops_project.modeling.sampling import balance

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

    from mlops_project.config import ModelParams, TrainParams
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)


class Training(NamedTuple):
    """The fitted model, its cross-validation, and P(good) of every development row from folds that did not see it.

    ``out_of_fold`` has one row per applicant and repeat: ``repeat``, ``fold``, ``y_true``, ``y_proba``.
    """

    model: RiskModel
    cross_validation: CrossValidation
    out_of_fold: pd.DataFrame


def train(
    X: pd.DataFrame,
    y: pd.Series,
    preprocessor: Pipeline,
    contract: Contract,
    params: TrainParams,
    models: ModelParams,
    group_column: str | None = None,
) -> Training:
    """Cross-validate and fit ``params.model``.

    Parameters
    ----------
    X : DataFrame of shape (n rows, …)
        Development rows with the contract's columns; the index is the applicant id.
    y : Series of int, shape (n rows,)
        1 good, 0 bad.
    preprocessor : Pipeline
        Taken as a recipe: it is cloned unfitted for every fold and for the final fit.
    contract : Contract
    params : TrainParams
    models : ModelParams
    group_column : str, optional
        No value of this column stands on both sides of a fold.

    Returns
    -------
    Training

    Raises
    ------
    DataError
        If there are too few rows of a class, or groups, for the folds, the model or the answer to imbalance.
    """
    outcome = y.to_numpy(dtype=int)
    groups = None if group_column is None else X[group_column].astype(str).to_numpy()
    model = build_model(params.model, models, params.seed)
    folds = make_folds(outcome, params, groups)
    fewest = min(int(np.bincount(outcome[fold.train], minlength=2).min()) for fold in folds)
    if params.model == "svm" and fewest < models.svm.calibration_folds:
        raise DataError(
            f"train.model=svm: the smaller class has {fewest} rows in a training fold, expected at least"
            f" models.svm.calibration_folds = {models.svm.calibration_folds}; lower it or use another model"
        )
    # One thread: more cost at these sizes, and the order of summation would depend on their number.
    with threadpool_limits(limits=1):
        result = cross_validate({params.model: model}, preprocessor, X, outcome, folds, params)[params.model]
        pipeline = _fit(model, preprocessor, X, outcome, params)
    settings = {"train": msgspec.to_builtins(params), params.model: msgspec.to_builtins(getattr(models, params.model))}
    risk_model = RiskModel(pipeline, contract, settings, table_hash(X, outcome, contract))
    roc_auc = result.summary()["roc_auc"]
    logger.info(
        "%s: ROC-AUC %.3f ± %.3f over %d folds of %d rows",
        params.model,
        roc_auc["mean"],
        roc_auc["std"],
        len(folds),
        len(outcome),
    )
    return Training(risk_model, result, _out_of_fold(X.index, outcome, folds, result))


def _fit(model: ClassifierMixin, preprocessor: Pipeline, X: pd.DataFrame, y: np.ndarray, params: TrainParams) -> Pipeline:
    fitted = clone(preprocessor).fit(X, y)
    fit_X, fit_y, weight = balance(
        fitted.transform(X), y, fitted, method=params.imbalance, neighbors=params.smote_neighbors, seed=params.seed
    )
    classifier = clone(model).fit(fit_X, fit_y, sample_weight=weight)
    # The sampler made training rows only: what scores applicants is the preprocessor and the classifier.
    return Pipeline([*fitted.steps, ("model", classifier)])


def _out_of_fold(ids: pd.Index, y: np.ndarray, folds: list[Fold], result: CrossValidation) -> pd.DataFrame:
    n_repeats, n_rows = result.out_of_fold.shape
    fold_of = np.zeros((n_repeats, n_rows), dtype=int)
    for number, fold in enumerate(folds):
        fold_of[fold.repeat, fold.test] = number
    return pd.DataFrame(
        {
            "repeat": np.repeat(np.arange(n_repeats), n_rows),
            "fold": fold_of.ravel(),
            "y_true": np.tile(y, n_repeats),
            "y_proba": result.out_of_fold.ravel().round(10),
        },
        index=ids.append([ids] * (n_repeats - 1)),
    )
