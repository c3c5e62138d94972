"""Calibration: probabilities that mean what they say, fitted on scores of rows that the classifier has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin

from mlops_project.modeling.scale import log_odds


def margin(classifier: ClassifierMixin, X: np.ndarray) -> np.ndarray:
    """Return what calibration maps to probabilities: the decision function, else the log-odds; shape (n rows,)."""
    if hasattr(classifier, "decision_function"):
        return classifier.decision_function(X)
    return log_odds(classifier.predict_proba(X)[:, 1].astype(float))


class Sigmoid(BaseEstimator):
    """P(good) = 1 / (1 + exp(−(slope · margin + intercept))).

    References
    ----------
    Platt, J. (1999). Probabilistic outputs for support vector machines.
    """

    def fit(self, margins: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Sigmoid:
        """Fit slope and intercept by maximum likelihood, on margins in units of their spread."""
        from sklearn.linear_model import LogisticRegression

        spread = float(np.std(margins)) or 1.0
        found = LogisticRegression(C=1e6).fit(margins[:, np.newaxis] / spread, y, sample_weight)
        self.slope_, self.intercept_ = float(found.coef_[0, 0]) / spread, float(found.intercept_[0])
        return self

    def predict(self, margins: np.ndarray) -> np.ndarray:
        """Return P(good), shape (n rows,)."""
        return expit(self.slope_ * margins + self.intercept_)


class Calibrated(ClassifierMixin, BaseEstimator):
    """A fitted classifier and the fitted map of its margins to P(good)."""

    def __init__(self, classifier: ClassifierMixin, calibrator: Any) -> None:
        self.classifier = classifier
        self.calibrator = calibrator
        self.classes_ = np.array([0, 1])

    def fit(self, X: np.ndarray, y: np.ndarray | None = None) -> Calibrated:
        """Learn nothing: the classifier is fitted. A pipeline takes no step without this method for an estimator."""
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return P(bad) and P(good), shape (n rows, 2)."""
        p_good = self.calibrator.predict(margin(self.classifier, X))
        return np.column_stack([1 - p_good, p_good])


def fit_calibrator(method: str, margins: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Any:
    """Fit ``sigmoid`` (two numbers, for few rows) or ``isotonic`` (any rising steps, for thousands) to unseen rows."""
    if method == "sigmoid":
        return Sigmoid().fit(margins, y, sample_weight)
    from sklearn.isotonic import IsotonicRegression

    # A step of only good rows is not certain to be good: probabilities of 0 and 1 would cost an infinite log-loss.
    edge = 1 / (2 * len(y))
    return IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(margins, y, sample_weight)
