"""Fitting on one set of rows: cleaning, encoding, resampling and every member are done once, whoever asks for them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from mlops_project.errors import DataError
from mlops_project.modeling.calibration import Calibrated, fit_calibrator, margin
from mlops_project.modeling.ensemble import SoftVote
from mlops_project.modeling.folds import calibration_folds
from mlops_project.modeling.sampling import balance

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.base import ClassifierMixin

    from mlops_project.config import TrainParams
    from mlops_project.modeling.folds import Fold
    from mlops_project.modeling.models import Member, Model


class TrainingRows(NamedTuple):
    """What a classifier is fitted on: both views of the rows, outcomes and weights; synthetic rows included."""

    views: dict[str, np.ndarray]
    y: np.ndarray
    weight: np.ndarray | None


class Fitter:
    """Fits models to some rows of a table, and scores the whole table.

    Parameters
    ----------
    preprocessor : Pipeline
        A recipe: cloned, and fitted to ``rows`` only. All steps but the last give the values view, the last encodes it.
    X : DataFrame of shape (n rows, …)
    y : ndarray of int, shape (n rows,)
    rows : ndarray of int
        Positions of the rows to fit on.
    params : TrainParams
        ``imbalance``, ``smote_neighbors``, ``calibration``, ``calibration_folds`` and ``seed`` are read.
    weight : ndarray of shape (n rows,), optional
        How many applicants each row stands for.
    groups : ndarray of shape (n rows,), optional
        No group is on both sides of a calibration fold.

    Raises
    ------
    DataError
        If there are too few rows of a class for resampling or calibration, or weighted rows shall be resampled.
    """

    def __init__(
        self,
        preprocessor: Pipeline,
        X: pd.DataFrame,
        y: np.ndarray,
        rows: np.ndarray,
        params: TrainParams,
        weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        self.params = params
        self.rows = rows
        self.y = y[rows]
        self.weight = None if weight is None else weight[rows]
        self.groups = None if groups is None else groups[rows]
        self.to_values = clone(preprocessor[:-1]).fit(X.iloc[rows], self.y)
        values = self.to_values.transform(X)
        self.to_encoded = clone(preprocessor[-1]).fit(values[rows], self.y)
        self.views = {"values": values, "encoded": self.to_encoded.transform(values)}
        self._fitted: dict[str, ClassifierMixin] = {}
        self._scored: dict[str, np.ndarray] = {}

    def p_good(self, model: Model) -> np.ndarray:
        """Return P(good) of every row of the table, shape (n rows,)."""
        return np.mean([self._score(member) for member in model], axis=0)

    def pipeline(self, model: Model) -> Pipeline:
        """Return the fitted model as a pipeline that takes raw rows. Samplers made training rows only and are not in it."""
        fitted = [(member.view, self._fit(member)) for member in model]
        if len(fitted) > 1:
            return Pipeline([*self.to_values.steps, ("model", SoftVote(self.to_encoded, fitted))])
        ((view, classifier),) = fitted
        encoder = [("features", self.to_encoded)] if view == "encoded" else []
        return Pipeline([*self.to_values.steps, *encoder, ("model", classifier)])

    def forget(self) -> None:
        """Drop the fitted models and their scores, and keep the prepared rows: for those who fit hundreds."""
        self._fitted.clear()
        self._scored.clear()

    def _score(self, member: Member) -> np.ndarray:
        if member.key not in self._scored:
            p_good = self._fit(member).predict_proba(self.views[member.view])[:, 1]
            self._scored[member.key] = p_good.astype(float)  # XGBoost answers in single precision
        return self._scored[member.key]

    def _fit(self, member: Member) -> ClassifierMixin:
        if member.key not in self._fitted:
            classifier = _fit(member, self._all)
            if self.params.calibration != "none":
                margins = np.empty(len(self.y))
                for fold, rows in self._inner:
                    margins[fold.test] = margin(_fit(member, rows), self.views[member.view][self.rows[fold.test]])
                calibrator = fit_calibrator(self.params.calibration, margins, self.y, self.weight)
                classifier = Calibrated(classifier, calibrator)
            self._fitted[member.key] = classifier
        return self._fitted[member.key]

    @cached_property
    def _all(self) -> TrainingRows:
        return self._balanced(np.arange(len(self.rows)))

    @cached_property
    def _inner(self) -> list[tuple[Fold, TrainingRows]]:
        """Calibration folds; what is scored in them is never a synthetic row."""
        return [(fold, self._balanced(fold.train)) for fold in calibration_folds(self.y, self.params, self.groups)]

    def _balanced(self, chosen: np.ndarray) -> TrainingRows:
        rows, params = self.rows[chosen], self.params
        values, encoded = (self.views[view][rows] for view in ("values", "encoded"))
        own = None if self.weight is None else self.weight[chosen]
        if own is not None and params.imbalance not in ("none", "class_weight"):
            raise DataError(
                f"train.imbalance={params.imbalance}: the contract has a weight column, and a row between two rows has no"
                " weight; use none or class_weight"
            )
        balanced, y, weight = balance(
            encoded,
            self.y[chosen],
            self.to_encoded,
            method=params.imbalance,
            neighbors=params.smote_neighbors,
            seed=params.seed,
            weight=own,
        )
        if len(balanced) > len(encoded):  # the synthetic rows come last
            values = np.vstack([values, self.to_encoded.inverse_transform(balanced[len(encoded) :])])
        return TrainingRows({"values": values, "encoded": balanced}, y, weight)


def _fit(member: Member, rows: TrainingRows) -> ClassifierMixin:
    return clone(member.classifier).fit(rows.views[member.view], rows.y, sample_weight=rows.weight)
