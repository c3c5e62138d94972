"""Is a difference between two revisions more than noise? A paired test over held-out and out-of-fold predictions.

It asks about the two procedures (data, code, params), not about two lucky fits: a change of the random seed is noise even
where one of the two models happens to be better on new applicants. So the variance holds rows and training:

- rows: DeLong's for ROC-AUC, that of the losses for Brier score and log-loss, of the difference per applicant;
- training: adds `TRAINING` times (rows scored / rows trained on) as much. Both come from the distance between the two
  models, so their ratio does not depend on the number of features; Nadeau and Bengio's correction has the same form.
  `benchmarks/verdicts.py` measures that it holds.

References
----------
DeLong, E. R. et al. (1988). Comparing the areas under two or more correlated receiver operating characteristic curves.
Biometrics 44, 837-845. Nadeau, C. and Bengio, Y. (2003). Inference for the generalization error. Machine Learning 52, 239-281.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlops_project.errors import DataError
from mlops_project.modeling.selection import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

# Variance that training adds to that of the rows, per row scored by row trained on; see docs/decisions.md.
TRAINING = 2.0
# Two processors differ in the last bits of a prediction.
SAME_PREDICTION = 1e-6
# With fewer held-out applicants in common (share of either side) the comparison is not paired.
ENOUGH_IN_COMMON = 0.9


class Predictions(NamedTuple):
    """What a revision says of its applicants.

    ``held_out``: ``y_true``, ``y_proba`` = P(good), index applicant id. ``out_of_fold``: the same per applicant and
    repeat, with ``repeat`` and ``fold``; of some applicants only where one split took the place of cross-validation
    (``train.one_split_above``), its parts for folds. ``development``: how many applicants the final model was fitted on,
    None: those out of fold.
    """

    held_out: pd.DataFrame
    out_of_fold: pd.DataFrame
    development: int | None = None


class Difference(NamedTuple):
    """Head minus base on some rows: ``standard_error`` of rows only, ``rows`` applicants."""

    base: float
    head: float
    difference: float
    standard_error: float
    rows: int


class Verdict(NamedTuple):
    """``verdict``: better, worse, within noise or no change; the difference (head minus base) with its interval.

    ``difference`` is the weighted mean of those on held-out and out-of-fold rows.
    """

    metric: str
    verdict: str
    difference: float
    low: float
    high: float
    paired: bool
    held_out: Difference
    out_of_fold: Difference
    why: str


def judge(
    base: Predictions, head: Predictions, metric: str = "roc_auc", *, confidence: float = 0.95, smallest: float = 0.0
) -> Verdict:
    """Compare two revisions by one metric.

    Applicants that both have are paired, and the base's outcomes count for both: noise in the head's training outcomes
    must not improve its figures. Without enough held-out applicants in common each side stands on its own rows and outcomes.
    Where one split stands for cross-validation, its rows count if both sides have the same ones; held-out rows alone decide
    if not.

    Parameters
    ----------
    base, head : Predictions
    metric : str
        roc_auc, brier or log_loss.
    confidence : float
        Of the interval. A verdict of better or worse needs an interval that does not hold 0.
    smallest : float
        Smaller differences are within noise whatever the interval says.

    Returns
    -------
    Verdict

    Raises
    ------
    DataError
        If rows of one class only are left to compare.
    """
    base, head = numbered(base, head)
    together = in_common(base, head)
    paired = together is not None
    one_split = _is_one_split(base) or _is_one_split(head)
    same_folds = not (paired and one_split) or _shared(base.out_of_fold.index, head.out_of_fold.index) is not None
    test_share = _test_share(head)
    if together is not None:
        base = base._replace(held_out=base.held_out.loc[together])
        head = head._replace(held_out=head.held_out.loc[together].assign(y_true=base.held_out["y_true"]))
    if paired and same_folds:
        known = base.out_of_fold.groupby(level=0)["y_true"].first()
        both = known.index.intersection(head.out_of_fold.index.unique())
        base, head = (side._replace(out_of_fold=_rows(side.out_of_fold, known.loc[both])) for side in (base, head))
    held_out = _difference(_influence([base.held_out], metric), _influence([head.held_out], metric), paired=paired)
    out_of_fold = _difference(
        _influence(_folds(base.out_of_fold), metric),
        _influence(_folds(head.out_of_fold), metric),
        paired=paired and same_folds,
    )
    trained = head.development if one_split and head.development else out_of_fold.rows
    inflation = 1 + TRAINING * np.array([held_out.rows / trained, test_share])
    # Weights by numbers of rows, not by variances that are estimated from the same rows.
    weights = np.array([held_out.rows, out_of_fold.rows if same_folds else 0]) / inflation
    weights /= weights.sum()
    difference = float(weights @ [held_out.difference, out_of_fold.difference])
    errors = np.array([held_out.standard_error, out_of_fold.standard_error])
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * float(np.sqrt(weights**2 @ (inflation * errors**2)))
    low, high = difference - reach, difference + reach
    gain = -difference if metric in LOWER_IS_BETTER else difference
    if paired and np.allclose(base.held_out["y_proba"], head.held_out["y_proba"], rtol=0, atol=SAME_PREDICTION):
        verdict, why = "no change", "every held-out applicant has the same prediction"
    elif low <= 0 <= high:
        verdict, why = "within noise", f"the {confidence:.0%} interval holds 0"
    elif abs(gain) < smallest:
        verdict, why = "within noise", f"the difference is below {smallest:g}, the smallest that counts"
    else:
        verdict, why = "better" if gain > 0 else "worse", f"the {confidence:.0%} interval does not hold 0"
    if one_split and verdict != "no change":
        why += (
            "; one split stands for cross-validation"
            if same_folds
            else "; by held-out rows only, as one split stands for cross-validation and is not of the same applicants in both"
        )
    return Verdict(metric, verdict, difference, low, high, paired, held_out, out_of_fold, why)


def numbered(base: Predictions, head: Predictions) -> tuple[Predictions, Predictions]:
    """Give applicants numbers for ids, the same in both: with millions of them, all that follows is quick and small."""
    pairs = [_numbers(*(getattr(side, name).index for side in (base, head))) for name in ("held_out", "out_of_fold")]
    of_base, of_head = (
        side._replace(held_out=side.held_out.set_axis(held_out), out_of_fold=side.out_of_fold.set_axis(out_of_fold))
        for side, held_out, out_of_fold in zip((base, head), *pairs, strict=True)
    )
    return of_base, of_head


def _numbers(base: pd.Index, head: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    if base.equals(head):  # as a rule: the same data
        found, _ = base.factorize()
        return found, found
    found, _ = base.append(head).factorize()
    return found[: len(base)], found[len(base) :]


def in_common(base: Predictions, head: Predictions) -> pd.Index | None:
    """Held-out applicants of both revisions; None if they are too few of either's for a paired comparison."""
    return _shared(base.held_out.index, head.held_out.index)


def _shared(base: pd.Index, head: pd.Index) -> pd.Index | None:
    together = base.intersection(head, sort=False)
    return together if len(together) >= ENOUGH_IN_COMMON * min(base.nunique(), head.nunique()) else None


def _rows(out_of_fold: pd.DataFrame, outcomes: pd.Series) -> pd.DataFrame:
    kept = out_of_fold[out_of_fold.index.isin(outcomes.index)]
    return kept.assign(y_true=outcomes.loc[kept.index])


def _folds(out_of_fold: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, fold in out_of_fold.dropna(subset="y_proba").groupby(["repeat", "fold"]):
        yield fold


def _is_one_split(side: Predictions) -> bool:
    """Whether most development rows are in no fold."""
    return side.development is not None and side.out_of_fold.index.nunique() < side.development / 2


def _test_share(side: Predictions) -> float:
    """Rows of a fold per row that its model was trained on: 1 / (number of folds - 1); the parts of one split share a model."""
    if side.development is not None and _is_one_split(side):
        rows = side.out_of_fold.index.nunique()
        return rows / (side.development - rows)
    folds = side.out_of_fold.groupby("repeat")["fold"].nunique().min()
    return 1 / max(1, folds - 1)


def _influence(parts: list[pd.DataFrame] | Iterator[pd.DataFrame], metric: str) -> tuple[float, pd.Series]:
    """Mean of a metric over parts (folds), and what each applicant adds to it: their squares sum to its variance."""
    import pandas as pd

    values, influences = [], []
    for part in parts:
        y, p_good = part["y_true"].to_numpy(dtype=int), part["y_proba"].to_numpy(dtype=float)
        if 0 < y.sum() < len(y):
            value, influence = _roc_auc(y, p_good) if metric == "roc_auc" else _mean_loss(y, p_good, metric)
            values.append(value)
            influences.append(pd.Series(influence, index=part.index))
    if not values:
        raise DataError("the predictions that both revisions have hold one outcome only, expected good and bad rows")
    return float(np.mean(values)), pd.concat(influences).groupby(level=0).sum() / len(values)


def _roc_auc(y: np.ndarray, p_good: np.ndarray) -> tuple[float, np.ndarray]:
    """ROC-AUC (ties count half) and DeLong's placements about it, scaled to sum to the variance in squares."""
    good, bad = p_good[y == 1], p_good[y == 0]
    influence = np.empty(len(y))
    placed_good, placed_bad = _share_below(bad, good), 1 - _share_below(good, bad)
    value = placed_good.mean()
    for label, placed in ((1, placed_good), (0, placed_bad)):
        influence[y == label] = (placed - value) / np.sqrt(len(placed) * max(1, len(placed) - 1))
    return float(value), influence


def _share_below(of: np.ndarray, values: np.ndarray) -> np.ndarray:
    ordered = np.sort(of)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(of))


def _mean_loss(y: np.ndarray, p_good: np.ndarray, metric: str) -> tuple[float, np.ndarray]:
    if metric == "brier":
        losses = (p_good - y) ** 2
    else:
        clipped = np.clip(p_good, np.finfo(float).eps, 1 - np.finfo(float).eps)
        losses = -np.where(y == 1, np.log(clipped), np.log(1 - clipped))
    return float(losses.mean()), (losses - losses.mean()) / np.sqrt(len(y) * max(1, len(y) - 1))


def _difference(base: tuple[float, pd.Series], head: tuple[float, pd.Series], *, paired: bool) -> Difference:
    if paired:
        both = head[1].sub(base[1], fill_value=0.0)
        variance, rows = float((both**2).sum()), len(both)
    else:
        variance, rows = float((base[1] ** 2).sum() + (head[1] ** 2).sum()), min(len(base[1]), len(head[1]))
    return Difference(base[0], head[0], head[0] - base[0], float(np.sqrt(variance)), rows)
