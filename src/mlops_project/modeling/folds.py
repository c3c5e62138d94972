"""Folds: which rows are fitted on and which are held out, time and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold

from mlops_project.errors import DataError

if TYPE_CHECKING:
    from mlops_project.config import TrainParams


# Parts of the one held-out fold of many rows: how figures differ between them tells how sure they are.
PARTS = 10


class Fold(NamedTuple):
    """Row positions of one split, and which repeat it belongs to (from 0)."""

    repeat: int
    train: np.ndarray
    test: np.ndarray


def make_folds(y: np.ndarray, params: TrainParams, groups: np.ndarray | None = None) -> list[Fold]:
    """Split rows into ``n_repeats`` × ``n_splits`` stratified folds; with groups no group is on both sides of a fold.

    Of more than ``one_split_above`` rows one fold is held out, once, in `PARTS` parts: folds that share their training rows.

    Raises
    ------
    DataError
        If a class has fewer rows, or there are fewer groups, than folds, or groups leave a fold with one class.
    """
    if len(y) <= params.one_split_above:
        return _split(y, "n_splits", params.n_splits, params.n_repeats, params.seed, groups)
    first, *_ = _split(y, "n_splits", params.n_splits, 1, params.seed, groups)
    # Every tenth row of each class, so that all parts hold the same share of both.
    ordered = first.test[np.argsort(y[first.test], kind="stable")]
    return [Fold(0, first.train, np.sort(ordered[part::PARTS])) for part in range(PARTS)]


def calibration_folds(y: np.ndarray, params: TrainParams, groups: np.ndarray | None = None) -> list[Fold]:
    """Split the rows of one fit into ``calibration_folds`` folds. Raises as `make_folds`."""
    return _split(y, "calibration_folds", params.calibration_folds, 1, params.seed, groups)


def _split(y: np.ndarray, key: str, n_splits: int, n_repeats: int, seed: int, groups: np.ndarray | None) -> list[Fold]:
    counts = np.bincount(y, minlength=2)
    if counts.min() < n_splits:
        raise DataError(
            f"cross-validation: found {counts[1]} good and {counts[0]} bad development rows, expected at least"
            f" train.{key} = {n_splits} of each; use more rows or fewer folds"
        )
    if groups is None:
        splitter = RepeatedStratifiedKFold(n_splits=n_splits, n_repeats=n_repeats, random_state=seed)
        splits = list(splitter.split(np.zeros(len(y)), y))
    else:
        if (found := len(np.unique(groups))) < n_splits:
            raise DataError(f"cross-validation: found {found} groups, expected at least train.{key} = {n_splits}")
        splits = []
        for repeat in range(n_repeats):
            grouped = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=(seed + repeat) % 2**32)
            splits += list(grouped.split(np.zeros(len(y)), y, groups))
        # Large groups can leave a fold without good or without bad rows; nothing could be fitted or scored there.
        if any(np.bincount(y[rows], minlength=2).min() == 0 for split in splits for rows in split):
            raise DataError(
                f"cross-validation: with {found} groups of prepare.group_column a fold would hold one class only, expected"
                f" both; use fewer folds than train.{key} = {n_splits} or smaller groups"
            )
    return [Fold(i // n_splits, train, test) for i, (train, test) in enumerate(splits)]
