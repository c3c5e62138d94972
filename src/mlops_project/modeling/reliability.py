"""Do probabilities come true: expected calibration error and the reliability table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from mlops_project.modeling.policy import Scored

BINS = 10


def equal_mass_bins(p_good: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin of each row, 0 for the safest, such that all bins hold the same weight as nearly as rows allow."""
    order = np.argsort(1 - p_good, kind="stable")
    before = np.cumsum(weights[order]) - weights[order] / 2
    found = np.empty(len(p_good), dtype=int)
    found[order] = np.minimum(bins * before / weights.sum(), bins - 1).astype(int)
    return found


def expected_calibration_error(y: np.ndarray, p_good: np.ndarray, bins: np.ndarray, weightings: np.ndarray) -> np.ndarray:
    """Mean distance of predicted and observed default rate over the bins, each by its weight (Naeini et al. 2015).

    Parameters
    ----------
    y, p_good, bins : ndarray of shape (n rows,)
    weightings : ndarray of shape (n weightings, n rows)

    Returns
    -------
    ndarray of shape (n weightings,)
        Chance alone makes it larger than 0 on few rows, however true the probabilities are.
    """
    # Not a product with a matrix of members: that is of n rows times n bins numbers.
    sums = np.array([np.bincount(bins, weights * (p_good - y)) for weights in weightings])
    return np.abs(sums).sum(axis=1) / weightings.sum(axis=1)


def calibration_table(rows: Scored, bins: int = BINS) -> pd.DataFrame:
    """Mean predicted and observed probability of default per bin of equal weight, with Wilson's 95 % interval."""
    weights = rows.weightings()[0]
    _, found = np.unique(equal_mass_bins(rows.p_good, weights, bins), return_inverse=True)
    mass, squares, bad, default = (np.bincount(found, weights * values) for values in (1, weights, rows.y == 0, 1 - rows.p_good))
    share, predicted, counts = bad / mass, default / mass, np.bincount(found, weights > 0).astype(int)
    n, z2 = mass**2 / squares, 1.96**2  # Kish's effective number of rows
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return pd.DataFrame(
        {
            "predicted": predicted,
            "observed": share,
            "low": np.maximum(centre - reach, 0),
            "high": np.minimum(centre + reach, 1),
            "rows": counts,
            "perfect": predicted,
        }
    )
