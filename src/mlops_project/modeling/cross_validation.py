"""Repeated stratified cross-validation in which everything that is fitted is fitted inside the fold."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.metrics import CROSS_VALIDATED, cross_validated_metrics
from mlops_project.preprocessing import spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from sklearn.pipeline import Pipeline

    from mlops_project.config import TrainParams
    from mlops_project.modeling.folds import Fold
    from mlops_project.modeling.models import Model


class CrossValidation(NamedTuple):
    """What cross-validation found for one model.

    ``test`` and ``train``: metric → one value per fold. ``out_of_fold``: P(good) of shape (n repeats, n rows).
    """

    test: dict[str, list[float]]
    train: dict[str, list[float]]
    out_of_fold: np.ndarray

    def summary(self) -> dict[str, dict[str, float]]:
        """Per metric ``mean`` and ``std`` over the held-out folds, ``train_mean`` and ``train_std`` over the training folds."""
        return {
            name: {
                "mean": float(np.mean(self.test[name])),
                "std": float(np.std(self.test[name])),
                "train_mean": float(np.mean(self.train[name])),
                "train_std": float(np.std(self.train[name])),
            }
            for name in CROSS_VALIDATED
        }


def cross_validate(
    models: Mapping[str, Model],
    preprocessor: Pipeline,
    X: pd.DataFrame,
    y: np.ndarray,
    folds: list[Fold],
    params: TrainParams,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, CrossValidation]:
    """Cross-validate models over the same folds; what they share is done once per fold, see `Fitter`.

    Parameters
    ----------
    models : mapping of str to Model
    preprocessor, X, y, params, weight, groups
        See `Fitter`.
    folds : list of Fold

    Returns
    -------
    dict of str to CrossValidation
    """
    from tqdm import tqdm

    n_repeats = 1 + max(fold.repeat for fold in folds)
    results = {
        name: CrossValidation(
            {m: [] for m in CROSS_VALIDATED}, {m: [] for m in CROSS_VALIDATED}, np.full((n_repeats, len(y)), np.nan)
        )
        for name in models
    }
    with tqdm(total=len(folds) * len(models), desc="cross-validation", unit="fit", disable=not sys.stderr.isatty()) as bar:
        for _, same in groupby(folds, key=lambda fold: id(fold.train)):
            parts = list(same)
            fitter = Fitter(preprocessor, X, y, parts[0].train, params, weight, groups)
            for name, model in models.items():
                # As many training rows as test rows tell how much better a model is on rows that it has seen.
                seen = parts[0].train if len(parts) == 1 else parts[0].train[spread(len(parts[0].train), len(parts[0].test))]
                trained = _metrics(fitter, model, seen, y, weight)[1]
                for fold in parts:
                    p_good, tested = _metrics(fitter, model, fold.test, y, weight)
                    results[name].out_of_fold[fold.repeat, fold.test] = p_good
                    for scores, found in ((results[name].test, tested), (results[name].train, trained)):
                        for metric, value in found.items():
                            scores[metric].append(value)
                    bar.update()
    return results


def _metrics(
    fitter: Fitter, model: Model, rows: np.ndarray, y: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, dict[str, float]]:
    p_good = fitter.p_good(model, rows)
    return p_good, cross_validated_metrics(y[rows], p_good, None if weight is None else weight[rows])
