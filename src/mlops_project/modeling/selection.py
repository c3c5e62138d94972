"""Model selection: a leaderboard over the same folds, and the simplest model that is as good as the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from mlops_project.modeling.cross_validation import CrossValidation

LOWER_IS_BETTER = ("brier", "log_loss")


class PairedDifference(NamedTuple):
    """Mean difference over folds, its standard error, and the two-sided p-value of no difference."""

    mean: float
    standard_error: float
    p_value: float


def corrected_t_test(differences: Sequence[float] | np.ndarray, test_share: float) -> PairedDifference:
    """Test paired differences over the folds of (repeated) cross-validation.

    Folds share training rows, so their differences vary less than those of independent samples would: the variance of the
    mean is (1 / n folds + ``test_share``) times that of the folds, not 1 / n folds.

    Parameters
    ----------
    differences : sequence of float, shape (n folds,)
    test_share : float
        Test rows per training row of a fold; 1 / (n_splits − 1).

    References
    ----------
    Nadeau, C. and Bengio, Y. (2003). Inference for the generalization error. Machine Learning 52, 239-281.
    """
    from scipy.special import stdtr

    differences = np.asarray(differences, dtype=float)
    n, mean = len(differences), float(np.mean(differences))
    error = float(np.sqrt((1 / n + test_share) * np.var(differences, ddof=1)))
    if error == 0:
        return PairedDifference(mean, 0.0, float(mean == 0))
    return PairedDifference(mean, error, float(2 * stdtr(n - 1, -abs(mean) / error)))


def interval(found: PairedDifference, n_folds: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a difference that `corrected_t_test` found over ``n_folds`` folds."""
    from scipy.special import stdtrit

    reach = float(stdtrit(n_folds - 1, (1 + confidence) / 2)) * found.standard_error
    return found.mean - reach, found.mean + reach


def leaderboard(results: Mapping[str, CrossValidation], metric: str, test_share: float) -> dict[str, Any]:
    """Rank models by their mean over the folds, and pick one.

    The pick is the first of ``results``, which come simplest first, that is within one standard error (of its paired
    difference) of the best.

    Returns
    -------
    dict
        ``metric``, ``picked``, ``why`` in words, and ``models``: name → ``rank``, ``mean``, ``std``, ``difference`` to the best
        (below 0: worse), ``standard_error`` and ``p_value`` of it; best first.
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    scores = {name: sign * np.array(found.test[metric]) for name, found in results.items()}
    order = sorted(scores, key=lambda name: -scores[name].mean())  # stable: of equals the simpler one leads
    best = order[0]
    paired = {name: corrected_t_test(values - scores[best], test_share) for name, values in scores.items()}
    picked = next(name for name, found in paired.items() if -found.mean <= found.standard_error)
    if len(scores) == 1:
        why = f"{picked} is the only model that train.model names"
    elif picked == best:
        why = f"{picked} has the best {metric}, and no simpler model is within one standard error of it"
    else:
        found = paired[picked]
        why = (
            f"{picked} is the simplest model within one standard error of the best by {metric}: it is {-found.mean:.4f} behind"
            f" {best}, with a standard error of {found.standard_error:.4f}"
        )
    models = {
        name: {"rank": rank, "mean": sign * scores[name].mean(), "std": scores[name].std(), "difference": paired[name].mean}
        | {"standard_error": paired[name].standard_error, "p_value": paired[name].p_value}
        for rank, name in enumerate(order, 1)
    }
    return {"metric": metric, "picked": picked, "why": why, "models": models}


def leaderboard_table(board: Mapping[str, Any]) -> pd.DataFrame:
    """Return a leaderboard as a table, best first: ``model`` and what `leaderboard` says of it."""
    import pandas as pd

    return pd.DataFrame([{"model": name, **entry} for name, entry in board["models"].items()])
