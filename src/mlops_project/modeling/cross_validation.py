"""Repeated stratified cross-validation in which everything that is fitted is fitted inside the fold."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold

from mlops_project.errors import DataError
from mlops_project.modeling.metrics import CROSS_VALIDATED, cross_validated_metrics
from mlops_project.modeling.sampling import balance

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from sklearn.base import ClassifierMixin
    from sklearn.pipeline import Pipeline

    from mlops_project.config import TrainParams


class Fold(NamedTuple):
    """Row positions of one split, and which repeat it belongs to (from 0)."""

    repeat: int
    train: np.ndarray
    test: np.ndarray


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


def make_folds(y: np.ndarray, params: TrainParams, groups: np.ndarray | None = None) -> list[Fold]:
    """Split rows into ``n_repeats`` × ``n_splits`` stratified folds; with groups no group is on both sides of a fold.

    Raises
    ------
    DataError
        If a class has fewer rows, or there are fewer groups, than folds, or groups leave a fold with one class.
    """
    n_splits, n_repeats = params.n_splits, params.n_repeats
    counts = np.bincount(y, minlength=2)
    if counts.min() < n_splits:
        raise DataError(
            f"cross-validation: found {counts[1]} good and {counts[0]} bad development rows, expected at least"
            f" train.n_splits = {n_splits} of each; use more rows or fewer folds"
        )
    if groups is None:
        splitter = RepeatedStratifiedKFold(n_splits=n_splits, n_repeats=n_repeats, random_state=params.seed)
        splits = list(splitter.split(np.zeros(len(y)), y))
    else:
        if (found := len(np.unique(groups))) < n_splits:
            raise DataError(f"cross-validation: found {found} groups, expected at least train.n_splits = {n_splits}")
        splits = []
        for repeat in range(n_repeats):
            grouped = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=(params.seed + repeat) % 2**32)
            splits += list(grouped.split(np.zeros(len(y)), y, groups))
        # Large groups can leave a fold without good or without bad rows; nothing could be fitted or scored there.
        if any(np.bincount(y[rows], minlength=2).min() == 0 for split in splits for rows in split):
            raise DataError(
                f"cross-validation: with {found} groups of prepare.group_column a fold would hold one class only, expected"
                f" both; use fewer folds than train.n_splits = {n_splits} or smaller groups"
            )
    return [Fold(i // n_splits, train, test) for i, (train, test) in enumerate(splits)]


def cross_validate(
    models: Mapping[str, ClassifierMixin],
    preprocessor: Pipeline,
    X: pd.DataFrame,
    y: np.ndarray,
    folds: list[Fold],
    params: TrainParams,
) -> dict[str, CrossValidation]:
    """Cross-validate models over the same folds; cleaning, encoding and resampling are done once per fold for all.

    Parameters
    ----------
    models : mapping of str to classifier
        Unfitted; cloned for every fold.
    preprocessor : Pipeline
        Cloned for every fold and fitted on its training rows only, whether or not it is fitted already.
    X : DataFrame of shape (n rows, …)
        Rows with the contract's columns.
    y : ndarray of int, shape (n rows,)
        1 good, 0 bad.
    folds : list of Fold
    params : TrainParams
        ``imbalance``, ``smote_neighbors`` and ``seed`` are read.

    Returns
    -------
    dict of str to CrossValidation
    """
    from tqdm import tqdm

    n_repeats = 1 + max(fold.repeat for fold in folds)
    empty: dict[str, Any] = {metric: [] for metric in CROSS_VALIDATED}
    results = {
        name: CrossValidation({m: [] for m in empty}, {m: [] for m in empty}, np.full((n_repeats, len(y)), np.nan))
        for name in models
    }
    with tqdm(total=len(folds) * len(models), desc="cross-validation", unit="fit", disable=not sys.stderr.isatty()) as bar:
        for fold in folds:
            encoder = clone(preprocessor).fit(X.iloc[fold.train], y[fold.train])
            encoded = encoder.transform(X)
            fit_X, fit_y, weight = balance(
                encoded[fold.train],
                y[fold.train],
                encoder,
                method=params.imbalance,
                neighbors=params.smote_neighbors,
                seed=params.seed,
            )
            for name, model in models.items():
                p_good = clone(model).fit(fit_X, fit_y, sample_weight=weight).predict_proba(encoded)[:, 1].astype(float)
                results[name].out_of_fold[fold.repeat, fold.test] = p_good[fold.test]
                for scores, rows in ((results[name].test, fold.test), (results[name].train, fold.train)):
                    for metric, value in cross_validated_metrics(y[rows], p_good[rows]).items():
                        scores[metric].append(value)
                bar.update()
    return results
