"""Repeated stratified cross-validation in which everything that is fitted is fitted inside the fold."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.metrics import CROSS_VALIDATED, cross_validated_metrics
from mlops_project.parallel import pool

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


class Shared(NamedTuple):
    """What all folds share: the parameters of `cross_validate`."""

    models: Mapping[str, Model]
    preprocessor: Pipeline
    X: pd.DataFrame
    y: np.ndarray
    folds: list[Fold]
    params: TrainParams
    weight: np.ndarray | None
    groups: np.ndarray | None


class Scored(NamedTuple):
    """A model in one fold: P(good) of its held-out rows, and the metrics of held-out and training rows."""

    p_good: np.ndarray
    test: dict[str, float]
    train: dict[str, float]


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
    """Cross-validate models over the same folds, here or on a cluster (`parallel`); what they share is done once per fold.

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
    workers = pool(Shared(models, preprocessor, X, y, folds, params, weight, groups))
    # What models share is done once per fold, unless that would leave workers idle.
    parts = [tuple(models)] if len(folds) >= workers.size else [(name,) for name in models]
    tasks = [(number, names) for number in range(len(folds)) for names in parts]
    with tqdm(total=len(folds) * len(models), desc="cross-validation", unit="fit", disable=not sys.stderr.isatty()) as bar:
        for (number, names), scored in zip(tasks, workers.map(_score_fold, tasks), strict=True):
            fold = folds[number]
            for name, found in zip(names, scored, strict=True):
                results[name].out_of_fold[fold.repeat, fold.test] = found.p_good
                for scores, values in ((results[name].test, found.test), (results[name].train, found.train)):
                    for metric, value in values.items():
                        scores[metric].append(value)
            bar.update(len(names))
    return results


def _score_fold(shared: Shared, task: tuple[int, tuple[str, ...]]) -> list[Scored]:
    """Fit and score the named models in one fold."""
    number, names = task
    models, preprocessor, X, y, folds, params, weight, groups = shared
    fold, found = folds[number], []
    fitter = Fitter(preprocessor, X, y, fold.train, params, weight, groups)
    for name in names:
        p_good = fitter.p_good(models[name])
        test, train = (
            cross_validated_metrics(y[rows], p_good[rows], None if weight is None else weight[rows])
            for rows in (fold.test, fold.train)
        )
        found.append(Scored(p_good[fold.test], test, train))
    return found
