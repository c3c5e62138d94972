"""Repeated stratified cross-validation in which everything that is fitted is fitted inside the fold."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlops_project.files import spread
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
    """What all folds share: the parameters of `cross_validate`. The folds of a round have the same training rows."""

    models: Mapping[str, Model]
    preprocessor: Pipeline
    X: pd.DataFrame
    y: np.ndarray
    rounds: list[list[Fold]]
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
    rounds = [list(same) for _, same in groupby(folds, key=lambda fold: id(fold.train))]
    workers = pool(Shared(models, preprocessor, X, y, rounds, params, weight, groups))
    # What models share is done once per round, unless that would leave workers idle.
    parts = [tuple(models)] if len(rounds) >= workers.size else [(name,) for name in models]
    tasks = [(number, names) for number in range(len(rounds)) for names in parts]
    with tqdm(total=len(folds) * len(models), desc="cross-validation", unit="fit", disable=not sys.stderr.isatty()) as bar:
        for (number, names), scored in zip(tasks, workers.map(_score_round, tasks), strict=True):
            for name, found in zip(names, scored, strict=True):
                for fold, one in zip(rounds[number], found, strict=True):
                    results[name].out_of_fold[fold.repeat, fold.test] = one.p_good
                    for scores, values in ((results[name].test, one.test), (results[name].train, one.train)):
                        for metric, value in values.items():
                            scores[metric].append(value)
                    bar.update()
    return results


def _score_round(shared: Shared, task: tuple[int, tuple[str, ...]]) -> list[list[Scored]]:
    """Fit the named models to the training rows of a round, and score them in each of its folds."""
    number, names = task
    models, preprocessor, X, y, rounds, params, weight, groups = shared
    folds, scored = rounds[number], []
    train = folds[0].train
    fitter = Fitter(preprocessor, X, y, train, params, weight, groups)
    # As many training rows as test rows tell how much better a model is on rows that it has seen.
    seen = train if len(folds) == 1 else train[spread(len(train), sum(len(fold.test) for fold in folds))]

    def metrics(rows: np.ndarray, p_good: np.ndarray) -> dict[str, float]:
        return cross_validated_metrics(y[rows], p_good, None if weight is None else weight[rows])

    for name in names:
        trained = metrics(seen, fitter.p_good(models[name], seen))
        tested = [fitter.p_good(models[name], fold.test) for fold in folds]
        scored.append([Scored(p, metrics(fold.test, p), trained) for fold, p in zip(folds, tested, strict=True)])
    return scored
