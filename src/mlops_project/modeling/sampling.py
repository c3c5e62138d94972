"""Answers to class imbalance: resampling and class weights, applied to training rows only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_project.errors import DataError

if TYPE_CHECKING:
    from mlops_project.features import FeaturePreprocessor


def balance(
    X: np.ndarray,
    y: np.ndarray,
    encoder: FeaturePreprocessor,
    *,
    method: str,
    neighbors: int,
    seed: int,
    weight: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Balance the classes of preprocessed training rows.

    Parameters
    ----------
    X : ndarray of shape (n rows, n columns)
        Preprocessed rows.
    y : ndarray of shape (n rows,)
    encoder : FeaturePreprocessor
        What made ``X``; SMOTENC asks it which columns belong to one code.
    method : {"none", "SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN", "class_weight"}
    neighbors : int
        Neighbours between which synthetic rows are put.
    seed : int
    weight : ndarray of shape (n rows,), optional
        How many applicants each row stands for; only without resampling.

    Returns
    -------
    X, y, sample_weight
        Synthetic rows come last. Weights are None unless rows or classes have some.

    Raises
    ------
    DataError
        If the smaller class has too few rows for the method.
    """
    if method == "none":
        return X, y, weight
    if method == "class_weight":
        return X, y, class_weights(y, weight)
    smaller = int(np.bincount(y, minlength=2).min())
    if smaller <= neighbors:
        raise DataError(
            f"train.imbalance={method}: the smaller class has {smaller} rows in a training fold, expected more than"
            f" train.smote_neighbors = {neighbors}; lower it or use class_weight"
        )
    if method == "SMOTENC":
        return _smotenc(X, y, encoder.one_hot_groups_, neighbors, seed)
    from imblearn import over_sampling

    key = "n_neighbors" if method == "ADASYN" else "k_neighbors"
    sampler = getattr(over_sampling, method)(random_state=seed, **{key: neighbors})
    try:
        X, y = sampler.fit_resample(X, y)
    except (ValueError, RuntimeError) as error:  # ADASYN refuses classes that are balanced or easily told apart
        raise DataError(f"train.imbalance={method}: {' '.join(str(error).split())}; use another method or none") from error
    return X, y, None


def class_weights(y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Return weights of shape (n rows,) with which both classes count the same; rows keep their own ``weight`` within a class."""
    own = np.ones(len(y)) if weight is None else weight
    return own * class_factors(y, own)[y]


def class_factors(y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the factors by which bad (0) and good (1) rows are weighed so that both classes count the same, shape (2,)."""
    return weight.sum() / (2 * np.bincount(y, weight, minlength=2))


def _smotenc(X: np.ndarray, y: np.ndarray, groups: list[list[int]], neighbors: int, seed: int) -> Any:
    """SMOTENC on rows that are one-hot encoded already: each group becomes one code, and is encoded again afterwards."""
    from imblearn.over_sampling import SMOTENC

    if not groups:
        raise DataError("train.imbalance=SMOTENC: the contract has no nominal column; use SMOTE")
    coded = [column for group in groups for column in group]
    rest = np.setdiff1d(np.arange(X.shape[1]), coded)
    # Position of the 1 in the group; -1 where no code was known.
    codes = np.column_stack([np.where(X[:, g].any(axis=1), X[:, g].argmax(axis=1), -1) for g in groups])
    sampler = SMOTENC(categorical_features=list(range(len(groups))), random_state=seed, k_neighbors=neighbors)
    sampled, y = sampler.fit_resample(np.hstack([codes, X[:, rest]]), y)
    out = np.zeros((len(sampled), X.shape[1]))
    out[:, rest] = sampled[:, len(groups) :]
    for position, group in enumerate(groups):
        out[:, group] = sampled[:, [position]] == np.arange(len(group))
    return out, y, None
