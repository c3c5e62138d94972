"""What other thresholds would have done: the strategy table and the cost curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlops_project.modeling.policy import Scored

CURVE = np.linspace(0, 1, 101)


def strategy_table(rows: Scored, thresholds: Iterable[float]) -> pd.DataFrame:
    """One row per threshold and for the policy's own, in rising order.

    Parameters
    ----------
    rows : Scored
    thresholds : iterable of float
        Probabilities of default, at the policy's prior, from which on an applicant is refused.

    Returns
    -------
    DataFrame
        ``threshold``, ``approval_rate``, ``bad_rate_approved`` (0 if nobody is approved), ``bad_caught`` (share of the
        bad who are refused), ``expected_cost`` per applicant and ``chosen``, 1 for the policy's threshold.
    """
    policy = rows.policy
    thresholds = np.unique([*thresholds, policy.threshold])
    weights = rows.weightings()[0]
    default = 1 - rows.p_good
    order = np.argsort(default, kind="stable")
    # Those strictly below a threshold are approved.
    approved = np.searchsorted(default[order], thresholds, side="left")
    bad, good = (np.r_[0, np.cumsum(weights[order] * (rows.y[order] == label))] for label in (0, 1))
    bad_approved, good_approved, total = bad[approved], good[approved], weights.sum()
    both = bad_approved + good_approved
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "approval_rate": both / total,
            "bad_rate_approved": np.divide(bad_approved, both, out=np.zeros(len(both)), where=both > 0),
            "bad_caught": 1 - bad_approved / bad[-1] if bad[-1] > 0 else np.nan,
            "expected_cost": (policy.cost_bad_approved * bad_approved + policy.cost_good_refused * (good[-1] - good_approved))
            / total,
            "chosen": (thresholds == policy.threshold).astype(int),
        }
    )


def cost_curve(rows: Scored, thresholds: Iterable[float] = CURVE) -> pd.DataFrame:
    """Expected cost against threshold, and beside it, as a level line, that of the policy."""
    table = strategy_table(rows, thresholds)
    policy = table.loc[table["chosen"] == 1, "expected_cost"].iloc[0]
    return table[["threshold", "expected_cost", "chosen"]].assign(policy=policy)
