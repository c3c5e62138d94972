"""Percentile bootstrap over applicants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from mlops_project.modeling.metrics import bootstrap_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlops_project.config import EvaluateParams

# Bootstrap samples × rows held in memory at once.
MAX_CELLS = 4_000_000


def intervals(
    statistic: Callable[[np.ndarray], dict[str, np.ndarray]], n_rows: int, params: EvaluateParams
) -> dict[str, dict[str, float]]:
    """Intervals of several figures on the same resamples.

    Parameters
    ----------
    statistic : callable
        From counts of shape (n samples, n rows) to figures by name, each of shape (n samples,); NaN where a resample
        tells nothing, such as the ROC-AUC of one class.
    n_rows : int
    params : EvaluateParams

    Returns
    -------
    dict
        Name → ``low`` and ``high``, the percentiles that hold ``params.confidence`` between them.
    """
    chunk = max(1, MAX_CELLS // n_rows)
    # One thread: more cost at these sizes, and the order of summation would depend on their number.
    with threadpool_limits(limits=1):
        parts = [
            statistic(bootstrap_weights(n_rows, min(chunk, params.bootstrap_samples - start), params.seed + start))
            for start in range(0, params.bootstrap_samples, chunk)
        ]
    tail = 100 * (1 - params.confidence) / 2
    found = {}
    for name in parts[0]:
        low, high = np.nanpercentile(np.concatenate([part[name] for part in parts]), [tail, 100 - tail])
        found[name] = {"low": float(low), "high": float(high)}
    return found
