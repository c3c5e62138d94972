"""Scales of a score: log-odds, and points. NumPy only, for processes that do no more than score."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

# Beyond these log-odds a few hundred rows say nothing.
LARGEST_LOG_ODDS = 15.0


def log_odds(p_good: Any) -> Any:
    """Return ln(P(good) / P(bad)) of a number or an array, cut off at ± `LARGEST_LOG_ODDS`."""
    if isinstance(p_good, float) and 0 < p_good < 1:  # an eighth of the time
        return min(max(math.log(p_good) - math.log1p(-p_good), -LARGEST_LOG_ODDS), LARGEST_LOG_ODDS)
    with np.errstate(divide="ignore"):
        found = np.log(p_good) - np.log1p(-p_good)
    return np.minimum(np.maximum(found, -LARGEST_LOG_ODDS), LARGEST_LOG_ODDS)  # half the time of np.clip for one row


class ScoreScale(NamedTuple):
    """The scale of scores: ``base_score`` points stand for ``base_odds`` good to one bad, ``points_to_double`` more for twice."""

    base_score: float
    base_odds: float
    points_to_double: float

    @property
    def points_per_log_odds(self) -> float:
        return self.points_to_double / math.log(2)

    def points(self, log_odds: Any) -> Any:
        """Return the points of ln(P(good) / P(bad)), a number or an array."""
        return self.base_score + self.points_per_log_odds * (log_odds - math.log(self.base_odds))
