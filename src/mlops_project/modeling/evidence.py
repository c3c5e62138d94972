"""Weight of evidence: each column cut into a few bins, each bin replaced by how much it speaks for a good applicant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import ClassifierTags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_feature_names_in, _check_sample_weight, check_is_fitted, validate_data

from mlops_project.modeling.binning import SIGNS, Binner, by_hand

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sklearn.utils import Tags

KINDS = ("numeric", "ordinal", "nominal")


class WeightOfEvidence(TransformerMixin, BaseEstimator):
    """Replaces each value by the weight of evidence of its bin, ln(share of the good / share of the bad): higher is safer.

    Numbers and ranks get bins whose weight of evidence only rises or only falls; codes get groups of similar bad rates.
    Missing is a bin of its own, and a code that training did not see is neutral, 0: joining it to the nearest bin would need
    its outcome. Bins are those of isotonic regression, joined where that costs the least likelihood.

    Parameters
    ----------
    names : sequence of str, optional
        Names of the columns; by default those of the table, or x0, x1, …
    kinds : sequence of {"numeric", "ordinal", "nominal"}, optional
        One per column; all numeric by default.
    directions : sequence of {"increasing", "decreasing", None}, optional
        How P(good) must move as the value rises; None takes the direction that fits better. Nominal columns have none.
    max_bins : int
        Bins per column at most, missing not counted.
    min_bin_share : float
        Share of the rows per bin at least; smaller bins join their cheaper neighbour.
    smoothing : float
        Rows at the overall rate of good that are added to each bin: draws small bins to 0.
    overrides : mapping of str to list, optional
        Bins by hand, per column name: rising cut points, each the lowest value of its upper bin; for nominal columns lists
        of codes, and the codes that no list names form one more bin. They hold as they are, monotone or not.

    Attributes
    ----------
    bins_ : list of Bins
    names_ : ndarray of str
    classes_ : ndarray of shape (2,)
        Bad, good.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        directions: Sequence[str | None] | None = None,
        max_bins: int = 8,
        min_bin_share: float = 0.03,
        smoothing: float = 30.0,
        overrides: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.names = names
        self.kinds = kinds
        self.directions = directions
        self.max_bins = max_bins
        self.min_bin_share = min_bin_share
        self.smoothing = smoothing
        self.overrides = overrides

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> WeightOfEvidence:
        """Learn the bins from float values of shape (n rows, n columns), NaN where missing, and two classes, the higher good.

        Raises
        ------
        ValueError
            If there are not two classes, or a setting does not fit the columns.
        """
        X, y = validate_data(self, X, y, dtype=float, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) != 2:
            # scikit-learn's own words; its checks look for them.
            raise ValueError(f"Only binary classification is supported: found {len(self.classes_)} class(es) in y, expected 2")
        weight = _check_sample_weight(sample_weight, X, dtype=float, ensure_non_negative=True)
        good = y == self.classes_[1]
        counted = weight > 0
        if not counted.all():  # a row that counts nothing must not move a quantile either
            X, good, weight = X[counted], good[counted], weight[counted]
        total = np.array([weight[~good].sum(), weight[good].sum()])
        self.names_ = self._names()
        return self._learn([(column, good, weight) for column in X.T], total)

    def fit_counts(self, counts: Sequence[np.ndarray]) -> WeightOfEvidence:
        """Learn the bins from what `fit` would count: per column the distinct values, NaN where missing, and weights.

        Parameters
        ----------
        counts : sequence of ndarray of shape (n values, 3)
            Each value with the weight of the bad (0) and of the good (1) rows that have it.

        Raises
        ------
        ValueError
            As `fit`.
        """
        self.classes_, self.n_features_in_ = np.array([0, 1]), len(counts)
        self.names_ = self._names()
        columns = []
        for found in counts:
            values, good, weight = np.tile(found[:, 0], 2), np.repeat([False, True], len(found)), found[:, 1:].T.ravel()
            columns.append((values[weight > 0], good[weight > 0], weight[weight > 0]))
        return self._learn(columns, counts[0][:, 1:].sum(axis=0))

    def _learn(self, columns: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], total: np.ndarray) -> WeightOfEvidence:
        """Learn the bins of columns, each given by values, who is good, and weights, from rows of ``total`` weight per class."""
        if not total.all():
            raise ValueError("y: only one class has rows of positive weight, expected two, bad and good")
        kinds, directions, overrides = self._settings()
        prior = total / total.sum()
        binner = Binner(prior, self.max_bins, self.min_bin_share * total.sum(), self.smoothing)
        self.bins_ = []
        for i, (values, good, weight) in enumerate(columns):
            name = self.names_[i]
            points, groups = (
                by_hand(name, kinds[i], values, overrides[name])
                if name in overrides
                else binner.cut(kinds[i], directions[i], values, good, weight)
            )
            self.bins_.append(binner.weigh(kinds[i], points, groups, values, good, weight))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the weights of evidence, shape (n rows, n columns)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=float, ensure_all_finite="allow-nan", reset=False)
        out = np.empty(X.shape)
        for i, bins in enumerate(self.bins_):
            out[:, i] = bins.woe[bins.assign(X[:, i])]
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns."""
        check_is_fitted(self)
        _check_feature_names_in(self, input_features)
        return self.names_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        tags.classifier_tags = ClassifierTags(multi_class=False)
        return tags

    def _names(self) -> np.ndarray:
        if self.names is None:
            return _check_feature_names_in(self)
        return np.array(self.names, dtype=object)

    def _settings(self) -> tuple[Sequence[str], Sequence[str | None], Mapping[str, Sequence[Any]]]:
        n = self.n_features_in_
        kinds = ["numeric"] * n if self.kinds is None else self.kinds
        directions: Sequence[str | None] = [None] * n if self.directions is None else self.directions
        for key, found in (("names", self.names_), ("kinds", kinds), ("directions", directions)):
            if len(found) != n:
                raise ValueError(f"{key}: found {len(found)} entries, expected one for each of {n} columns")
        for key, found, known in (("kinds", kinds, KINDS), ("directions", directions, tuple(SIGNS))):
            if unknown := [item for item in found if item not in known]:
                raise ValueError(f"{key}: found {unknown[0]!r}, expected one of {known}")
        for name, kind, direction in zip(self.names_, kinds, directions, strict=True):
            if kind == "nominal" and direction is not None:
                raise ValueError(f"directions: {name!r} is nominal and has no order, found {direction!r}, expected None")
        if self.max_bins < 1 or not 0 <= self.min_bin_share < 1 or self.smoothing < 0:
            raise ValueError(
                f"found max_bins {self.max_bins}, min_bin_share {self.min_bin_share}, smoothing {self.smoothing};"
                " expected at least 1, 0 to below 1, at least 0"
            )
        overrides = self.overrides or {}
        if unknown := [name for name in overrides if name not in self.names_]:
            raise ValueError(f"overrides: no column {unknown[0]!r}; found {', '.join(map(str, self.names_))}")
        return kinds, directions, overrides
