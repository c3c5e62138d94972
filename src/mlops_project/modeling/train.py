"""Training: cross-validate what ``train.model`` names, pick a model, and fit it on all development rows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mlops_project.errors import DataError
from mlops_project.modeling.cross_validation import CrossValidation, cross_validate
from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.folds import Fold, make_folds
from mlops_project.modeling.model import RiskModel, table_hash
from mlops_project.modeling.models import build_models
from mlops_project.modeling.reasons import make_reference
from mlops_project.modeling.scorecard import ScoreScale
from mlops_project.modeling.selection import leaderboard
from mlops_project.preprocessing import value_columns

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from mlops_project.config import ModelParams, TrainParams
    from mlops_project.modeling.models import Model
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)


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

    Returns
    -------
    Training

    Raises
    ------
    ParamsError
        If bins by hand do not fit the contract.
    DataError
        If there are too few rows of a class, or groups, for the folds, the model or the answer to imbalance.
    """
    outcome = y.to_numpy(dtype=int)
    groups = None if group_column is None else X[group_column].astype(str).to_numpy()
    weight = contract.row_weights(X) if contract.weight else None
    candidates = build_models(models, params, value_columns(preprocessor))
    folds = make_folds(outcome, params, groups)
    check_inner_folds(candidates, outcome, folds)
    # One thread: more cost at these sizes, and the order of summation would depend on their number.
    with threadpool_limits(limits=1):
        results = cross_validate(candidates, preprocessor, X, outcome, folds, params, weight, groups)
        test_share = float(np.mean([len(fold.test) / len(fold.train) for fold in folds]))
        board = leaderboard(results, params.selection_metric, test_share)
        picked = board["picked"]
        fitter = Fitter(preprocessor, X, outcome, np.arange(len(outcome)), params, weight, groups)
        pipeline = fitter.pipeline(candidates[picked])
        columns = value_columns(pipeline)
        reference = make_reference(pipeline[len(fitter.to_values) :], columns.kinds, fitter.views["values"], weight)
    chosen = getattr(models.best if params.model == "best" else models, picked)
    settings = {"train": msgspec.to_builtins(params), picked: msgspec.to_builtins(chosen)}
    default_rate = float(np.average(1 - outcome, weights=weight))
    scale = ScoreScale(params.base_score, params.base_odds, params.points_to_double)
    model = RiskModel(picked, pipeline, contract, settings, table_hash(X, outcome, contract), default_rate, scale, reference)
    for name, entry in board["models"].items():
        logger.info(
            "%s: %s %.3f ± %.3f over %d folds of %d rows",
            name,
            board["metric"],
            entry["mean"],
            entry["std"],
            len(folds),
            len(outcome),
        )
    if len(candidates) > 1:
        logger.info("picked: %s", board["why"])
    out_of_fold = _out_of_fold(X.index, outcome, folds, results[picked])
    return Training(model, results[picked], board, out_of_fold)


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
