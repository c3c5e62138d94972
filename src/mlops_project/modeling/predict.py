"""Predicting rows with a saved model, and what they say of it where their outcome is known."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_project.config import PROCESSED
from mlops_project.files import APPLICANT_ID, read_ids, write_json, write_table
from mlops_project.modeling.metrics import cross_validated_metrics, outcomes
from mlops_project.modeling.model import table_hash
from mlops_project.modeling.reasons import reason_codes
from mlops_project.modeling.scale import log_odds

if TYPE_CHECKING:
    from mlops_project.modeling.model import RiskModel
    from mlops_project.modeling.reasons import Reason
    from mlops_project.modeling.scale import ScoreScale

logger = logging.getLogger(__name__)

# Not metrics/, which belongs to the evaluate stage.
PREDICTED = "predictions/predictions.csv"
PREDICTED_METRICS = "predictions/evaluation_metrics.json"


def predict_and_evaluate(
    model: RiskModel, X_test: pd.DataFrame, y_test: pd.Series, save_predictions: bool = True
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Predict rows whose outcome is known, and compare; warns if the model was trained on them.

    Parameters
    ----------
    model : RiskModel
    X_test : DataFrame of shape (n rows, …)
        Raw or prepared rows with the contract's columns.
    y_test : Series of int, shape (n rows,)
        1 good, 0 bad.
    save_predictions : bool
        Write ``predictions/predictions.csv`` and ``predictions/evaluation_metrics.json``.

    Returns
    -------
    y_pred : ndarray of int, shape (n rows,)
        1 where P(good) is above one half.
    y_proba : ndarray of float, shape (n rows,)
        P(good).
    metrics : dict
        As in cross-validation, decisions at one half.

    Raises
    ------
    DataError
        If a column is absent, or outcomes are not one 1 or 0 per row.
    """
    outcomes(y_test, len(X_test))  # checked before any work
    y_proba = p_good(model, X_test)
    metrics = compare(model, X_test, y_test, y_proba)
    if save_predictions:
        write_table(prediction_table(model, X_test, y_proba, y_test), PREDICTED)
        save_metrics(metrics)
    return (y_proba > 0.5).astype(int), y_proba, metrics


def save_metrics(metrics: dict[str, float] | None) -> None:
    """Write the figures of the predictions that were saved; without any, those of earlier predictions go."""
    if metrics is None:
        Path(PREDICTED_METRICS).unlink(missing_ok=True)
    else:
        write_json(metrics, PREDICTED_METRICS)


def p_good(model: RiskModel, X: pd.DataFrame, batch_size: int | None = None) -> np.ndarray:
    """Return P(good), shape (n rows,), ``batch_size`` rows at a time (default: all)."""
    size = batch_size or max(1, len(X))
    batches = [model.predict_proba(X.iloc[start : start + size])[:, 1] for start in range(0, len(X), size)]
    return np.concatenate(batches)


def compare(model: RiskModel, X: pd.DataFrame, y: pd.Series, y_proba: np.ndarray) -> dict[str, float]:
    """Return the metrics of predictions; warns if the model was trained on any of the rows."""
    if seen := rows_seen(model, X, y):
        logger.warning("%d of %d rows were used to train this model: the figures below are optimistic", seen, len(X))
    weight = model.contract.row_weights(X) if model.contract.weight else None
    return cross_validated_metrics(y.to_numpy(dtype=int), y_proba, weight)


def rows_seen(model: RiskModel, X: pd.DataFrame, y: pd.Series, development: Path | None = None) -> int:
    """Count the rows that the model was trained on: all if they are its training table, else by the development rows' ids."""
    if table_hash(X, y.to_numpy(dtype=int), model.contract) == model.training_data_hash:
        return len(X)
    development = development or next(PROCESSED.glob("Xtraintest.*"), None)
    if X.index.name != APPLICANT_ID or development is None or not development.exists():
        return 0
    return int(X.index.isin(read_ids(development)).sum())


def prediction_table(
    model: RiskModel,
    X: pd.DataFrame,
    y_proba: np.ndarray,
    y: pd.Series | None = None,
    *,
    details: bool = False,
    reasons: int = 0,
) -> pd.DataFrame:
    """One row per applicant: ``y_true`` if known, ``y_pred``, ``y_proba`` = P(good).

    With ``details`` also ``probability_of_default`` and ``score``; ``reasons`` names so many columns that lower the score.
    """
    why = model.reasons(X, reasons) if reasons else None
    table = pd.DataFrame(prediction_columns(y_proba, model.scale if details else None, why, reasons), index=X.index)
    if y is not None:
        table.insert(0, "y_true", y.to_numpy(dtype=int))
    return table


def prediction_columns(
    y_proba: np.ndarray, scale: ScoreScale | None = None, reasons: list[list[Reason]] | None = None, top: int = 0
) -> dict[str, Any]:
    """Return the columns of `prediction_table` that need no outcome, each of shape (n rows,); with a scale also the details."""
    columns: dict[str, Any] = {"y_pred": (y_proba > 0.5).astype(int), "y_proba": y_proba.round(10)}
    if scale is not None:
        points = scale.points(log_odds(y_proba))
        columns |= {"probability_of_default": (1 - y_proba).round(10), "score": points.round(6)}
    return columns if reasons is None else columns | reason_codes(reasons, top)
