"""The blend: several fitted models vote with equal weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

if TYPE_CHECKING:
    from collections.abc import Sequence


class SoftVote(ClassifierMixin, BaseEstimator):
    """Mean of the members' P(good). Takes values and encodes them once for all members that want it.

    Parameters
    ----------
    features : transformer
        Fitted; values to encoded rows.
    members : sequence of (str, classifier)
        Fitted; each with the view that it reads, ``values`` or ``encoded``.
    """

    def __init__(self, features: Any, members: Sequence[tuple[str, ClassifierMixin]]) -> None:
        self.features = features
        self.members = members
        self.classes_ = np.array([0, 1])

    def fit(self, X: np.ndarray, y: np.ndarray | None = None) -> SoftVote:
        """Learn nothing: the members are fitted. A pipeline takes no step without this method for an estimator."""
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return P(bad) and P(good), shape (n rows, 2)."""
        views = {"values": X, "encoded": self.features.transform(X)}
        p_good = np.mean([c.predict_proba(views[view])[:, 1].astype(float) for view, c in self.members], axis=0)
        return np.column_stack([1 - p_good, p_good])
