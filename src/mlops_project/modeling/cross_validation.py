"""Repeated stratified cross-validation in which everything that is fitted is fitted inside the fold."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.metrics import CROSS_VALIDATED, cross_validated_metrics

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
        for fold in folds:
            fitter = Fitter(preprocessor, X, y, fold.train, params, weight, groups)
            for name, model in models.items():
                p_good = fitter.p_good(model)
                results[name].out_of_fold[fold.repeat, fold.test] = p_good[fold.test]
                for scores, rows in ((results[name].test, fold.test), (results[name].train, fold.train)):
                    counted = None if weight is None else weight[rows]
                    for metric, value in cross_validated_metrics(y[rows], p_good[rows], counted).items():
                        scores[metric].append(value)
                bar.update()
    return results
