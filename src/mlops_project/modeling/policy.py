"""The decision policy: from P(good) to approve, refuse or refer. The evaluate stage writes it, a service reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np

from mlops_project.config import Positive, Share  # noqa: TC001 - msgspec reads them
from mlops_project.errors import ParamsError
from mlops_project.modeling.metrics import rank
from mlops_project.strict import Strict, convert

if TYPE_CHECKING:
    from mlops_project.config import EvaluateParams


class Policy(Strict, frozen=True):
    """What is decided from the model's P(good), and from what that was derived.

    Attributes
    ----------
    threshold : float
        Probability of default, at the prior, from which on an applicant is refused.
    threshold_from : {"costs", "tuned", "params"}
    cost_bad_approved, cost_good_refused : float
    sample_default_rate : float
        Share of bad among the development rows, to which the model's probabilities belong.
    prior_default_rate : float or None
        Share of bad among those who will be decided upon; None: as in the sample.
    conformal_level : float
        Share of each class whose conformal set holds the class.
    conformal_cutoff_good, conformal_cutoff_bad : float
        Smallest probability of the class, as the model gives it, with which the class is in the set.
    """

    threshold: float
    threshold_from: Literal["costs", "tuned", "params"]
    cost_bad_approved: Positive
    cost_good_refused: Positive
    sample_default_rate: Share
    prior_default_rate: Share | None
    conformal_level: Share
    conformal_cutoff_good: float
    conformal_cutoff_bad: float

    def correct(self, p_good: Any) -> np.ndarray:
        """Move P(good) from the sample's default rate to the prior by a shift of the log-odds.

        Saerens, Latinne and Decaestecker (2002): each class probability times its share at the prior over its share in
        the sample, then scaled to a sum of one. What separates good from bad must be the same in both.
        """
        p_good = _numbers(p_good)
        if self.prior_default_rate is None:
            return p_good
        good = p_good * (1 - self.prior_default_rate) / (1 - self.sample_default_rate)
        bad = (1 - p_good) * self.prior_default_rate / self.sample_default_rate
        return good / (good + bad)

    def approved(self, p_good: Any) -> np.ndarray:
        """Whether the model's P(good) is enough, bool of the same shape."""
        return 1 - self.correct(p_good) < self.threshold

    def conformal_sets(self, p_good: Any) -> tuple[np.ndarray, np.ndarray]:
        """Whether good and whether bad are in the conformal set, two arrays of bool. The prior does not matter."""
        p_good = _numbers(p_good)
        return p_good >= self.conformal_cutoff_good, 1 - p_good >= self.conformal_cutoff_bad

    def conformal_set(self, p_good: Any) -> np.ndarray:
        """Return approve (only good is in the set), reject (only bad is) or refer (both or none), str of the same shape."""
        good, bad = self.conformal_sets(p_good)
        return np.where(good == bad, "refer", np.where(good, "approve", "reject"))

    def to_json(self) -> str:
        """All digits: a rounded threshold would decide otherwise at the edge."""
        return json.dumps(msgspec.to_builtins(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "policy.json") -> Policy:
        """Read what `to_json` wrote. Raises ParamsError if it is not that."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ParamsError(f"{source}: is not JSON ({error}); run `dvc repro` to write it anew") from error
        return convert(content, cls, source, ParamsError)


def make_policy(
    y: np.ndarray, p_good: np.ndarray, weights: np.ndarray, params: EvaluateParams, prior: float | None = None
) -> Policy:
    """Derive the policy from the development rows.

    Parameters
    ----------
    y : ndarray of int, shape (n rows,)
        1 good, 0 bad.
    p_good : ndarray of float, shape (n rows,)
        Out-of-fold: a model knows the rows that it was fitted on too well.
    weights : ndarray of float, shape (n rows,)
    params : EvaluateParams
    prior : float, optional
        Share of bad among those who will be decided upon.
    """
    cutoffs = {
        f"conformal_cutoff_{name}": conformal_cutoff(p[y == label], weights[y == label], params.conformal_level)
        for name, label, p in (("good", 1, p_good), ("bad", 0, 1 - p_good))
    }
    policy = Policy(
        threshold=params.cost_good_refused / (params.cost_good_refused + params.cost_bad_approved),
        threshold_from="costs",
        cost_bad_approved=params.cost_bad_approved,
        cost_good_refused=params.cost_good_refused,
        sample_default_rate=float(np.average(y == 0, weights=weights)),
        prior_default_rate=prior,
        conformal_level=params.conformal_level,
        **cutoffs,
    )
    threshold = params.threshold
    if threshold == "costs":
        # Approving costs p · cost_bad_approved, refusing (1 − p) · cost_good_refused; here they are equal.
        return policy
    if threshold == "tuned":
        found = lowest_cost_threshold(Scored(y, policy.correct(p_good), weights, policy))
        return msgspec.structs.replace(policy, threshold=found, threshold_from="tuned")
    return msgspec.structs.replace(policy, threshold=threshold, threshold_from="params")


def _numbers(p_good: Any) -> Any:
    """Array, or the number itself: for one applicant arrays cost more than all else."""
    return p_good if isinstance(p_good, float) else np.asarray(p_good, dtype=float)


class Scored(NamedTuple):
    """Rows with a known outcome as a policy sees them.

    ``p_good`` is P(good) at the policy's prior, ``weights`` are the rows' own; all of shape (n rows,).
    """

    y: np.ndarray
    p_good: np.ndarray
    weights: np.ndarray
    policy: Policy

    @property
    def approved(self) -> np.ndarray:
        return 1 - self.p_good < self.policy.threshold

    def weightings(self, draws: np.ndarray | None = None) -> np.ndarray:
        """Weights with the prior's share of bad, one weighting per row of ``draws`` (bootstrap counts; one of ones).

        A weighting with one class only has no share to move and stays as it is.
        """
        weights = self.weights[None] if draws is None else draws * self.weights
        prior = self.policy.prior_default_rate
        if prior is None:
            return weights
        bad, total = weights @ (self.y == 0).astype(float), weights.sum(axis=1)
        good = total - bad
        both = (bad > 0) & (good > 0)
        of_bad = np.divide(prior * total, bad, out=np.ones(len(bad)), where=both)
        of_good = np.divide((1 - prior) * total, good, out=np.ones(len(bad)), where=both)
        return weights * np.where(self.y == 0, of_bad[:, None], of_good[:, None])


def lowest_cost_threshold(rows: Scored) -> float:
    """The threshold with the lowest expected cost on these rows; of equal ones that which approves the fewest.

    It lies halfway between two neighbouring scores.
    """
    scores, good, bad = rank(rows.y, rows.p_good, rows.weightings())
    approved_good, approved_bad = np.r_[0, good[0]], np.r_[0, bad[0]]
    policy = rows.policy
    cost = policy.cost_bad_approved * approved_bad + policy.cost_good_refused * (approved_good[-1] - approved_good)
    edges = np.r_[0, 1 - scores, 1 + 1e-9]  # above 1, so that whoever is certain to default can be approved too
    best = int(np.argmin(cost))
    return float((edges[best] + edges[best + 1]) / 2)


def conformal_cutoff(p_class: np.ndarray, weights: np.ndarray, level: float) -> float:
    """The smallest probability of its own class with which a row's conformal set holds that class.

    Class-conditional (Mondrian) split conformal prediction: of a new row of the class, the probability of that class is
    at least the cutoff in at least ``level`` of cases (Vovk, Gammerman and Shafer 2005), if new rows are like these.

    Parameters
    ----------
    p_class, weights : ndarray of float, shape (n rows of the class,)
    level : float

    Returns
    -------
    float
        0 where the rows are too few to exclude anything.
    """
    n = weights.sum() ** 2 / (weights**2).sum()  # Kish's effective number of rows; n if the weights are equal
    # The tolerance keeps rounding errors from asking for one row more.
    share = np.ceil((n + 1) * level - 1e-9) / n - 1e-9
    if share > 1:
        return 0.0
    return float(-np.quantile(-p_class, share, weights=weights, method="inverted_cdf"))
