"""Fitting on one set of rows: cleaning, encoding, resampling and every member are done once, whoever asks for them."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from mlops_project.errors import DataError
from mlops_project.files import spread
from mlops_project.modeling.blocks import Blocks, fit_in_blocks
from mlops_project.modeling.calibration import Calibrated, fit_calibrator, margin
from mlops_project.modeling.ensemble import SoftVote
from mlops_project.modeling.folds import calibration_folds
from mlops_project.modeling.forms import Encoding
from mlops_project.modeling.sampling import balance, class_weights
from mlops_project.preprocessing import BLOCK_ROWS, PREPROCESSED_ROWS, encoding_of, in_blocks

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
        ``imbalance``, ``smote_neighbors``, ``calibration``, ``calibration_folds``, ``seed`` and ``one_split_above`` are read:
        above so many ``rows`` they are fitted to block by block.
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
        self.large = len(rows) > params.one_split_above
        some = rows[spread(len(rows), PREPROCESSED_ROWS)]
        self.to_values = clone(preprocessor[:-1]).fit(X.iloc[some], y[some])
        self.values = in_blocks(self.to_values, X) if self.large else self.to_values.transform(X)
        self.to_encoded = clone(preprocessor[-1]).fit(self.values[some], y[some])
        # Of many rows only blocks are encoded, each time anew, in a quarter of the time that scikit-learn takes.
        self._encoded = None if self.large else self.to_encoded.transform(self.values)
        self._encode = Encoding(**encoding_of(self.to_encoded))
        self._made: dict[bytes, TrainingRows] = {}
        self._fitted: dict[str, ClassifierMixin] = {}
        self._scored: dict[str, np.ndarray] = {}

    def view(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return rows of the table as a member sees them: ``values`` or ``encoded``, shape (n, n columns)."""
        if name == "values":
            return self.values[rows]
        return self._encode(self.values[rows]) if self._encoded is None else self._encoded[rows]

    def p_good(self, model: Model, rows: np.ndarray | None = None) -> np.ndarray:
        """Return P(good) of some rows of the table, by default of all, shape (n,)."""
        rows = np.arange(len(self.values)) if rows is None else rows
        return np.mean([self._score(member, rows) for member in model], axis=0)

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

    def _score(self, member: Member, rows: np.ndarray) -> np.ndarray:
        classifier = self._fit(member)

        def scored(rows: np.ndarray) -> np.ndarray:
            return classifier.predict_proba(self.view(member.view, rows))[:, 1].astype(float)  # XGBoost: single precision

        if self.large:
            return np.concatenate([scored(rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS)])
        if member.key not in self._scored:
            self._scored[member.key] = scored(np.arange(len(self.values)))
        return self._scored[member.key][rows]

    def _fit(self, member: Member) -> ClassifierMixin:
        if member.key not in self._fitted:
            classifier = self._fit_rows(member, np.arange(len(self.rows)))
            if self.params.calibration != "none":
                margins = np.empty(len(self.y))
                for fold in self._inner:
                    inner = self._fit_rows(member, fold.train)
                    for start in range(0, len(fold.test), BLOCK_ROWS):
                        block = fold.test[start : start + BLOCK_ROWS]
                        margins[block] = margin(inner, self.view(member.view, self.rows[block]))
                calibrator = fit_calibrator(self.params.calibration, margins, self.y, self.weight)
                classifier = Calibrated(classifier, calibrator)
            self._fitted[member.key] = classifier
        return self._fitted[member.key]

    def _fit_rows(self, member: Member, chosen: np.ndarray) -> ClassifierMixin:
        classifier = clone(member.classifier)
        if self.large:
            y, weight = self.y[chosen], None if self.weight is None else self.weight[chosen]
            if self.params.imbalance == "class_weight":
                weight = class_weights(y, weight)
            weight = np.ones(len(y)) if weight is None else weight
            return fit_in_blocks(classifier, Blocks(partial(self.view, member.view), self.rows[chosen], y, weight))
        rows = self._balanced(chosen)
        return classifier.fit(rows.views[member.view], rows.y, sample_weight=rows.weight)

    @cached_property
    def _inner(self) -> list[Fold]:
        """Calibration folds; what is scored in them is never a synthetic row."""
        return calibration_folds(self.y, self.params, self.groups)

    def _balanced(self, chosen: np.ndarray) -> TrainingRows:
        """Rows to fit on, balanced; made once for all members."""
        key = chosen.tobytes()
        if key not in self._made:
            self._made[key] = self._balance(chosen)
        return self._made[key]

    def _balance(self, chosen: np.ndarray) -> TrainingRows:
        rows, params = self.rows[chosen], self.params
        values, encoded = (self.view(name, rows) for name in ("values", "encoded"))
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
