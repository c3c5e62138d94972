"""How decisions and probabilities treat the groups of the contract's protected columns."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_project.modeling.bootstrap import intervals

if TYPE_CHECKING:
    from mlops_project.config import EvaluateParams
    from mlops_project.modeling.policy import Scored
    from mlops_project.schema import Contract

# The four-fifths rule of the Uniform Guidelines on Employee Selection Procedures (1978), which lenders borrow.
FOUR_FIFTHS = 0.8
MISSING = "(missing)"


def groups_of(name: str, contract: Contract, X: pd.DataFrame) -> dict[str, np.ndarray]:
    """The groups of a protected column in the words of the contract, and who is in each: bool, shape (n rows,).

    Codes are groups; numbers are grouped by the column's bands. Rows without a valid value are the last group, ``(missing)``.
    """
    column, values = contract.columns[name], contract.parse(name, X[name]).values
    if column.bands is not None:
        bands = column.bands
        limits = pairwise([-np.inf, *bands, np.inf])
        words = [f"under {bands[0]:g}", *(f"{a:g} to under {b:g}" for a, b in pairwise(bands)), f"{bands[-1]:g} and over"]
        found = {word: (values >= low) & (values < high) for word, (low, high) in zip(words, limits, strict=True)}
    else:
        meanings = column.codes if isinstance(column.codes, dict) else {code: str(code) for code in column.code_list}
        numbers = range(len(meanings)) if column.has_text_codes else column.code_list
        found = {}
        for number, meaning in zip(numbers, meanings.values(), strict=True):
            # Codes that share a meaning are one group.
            found[meaning] = (values == number) | found.get(meaning, False)
    return found | {MISSING: np.isnan(values)}


def fairness(rows: Scored, X: pd.DataFrame, contract: Contract, params: EvaluateParams) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare the groups of every protected column.

    Parameters
    ----------
    rows : Scored
        Held-out rows.
    X : DataFrame
        The same rows with the contract's columns.
    contract : Contract
        The one of the data, which holds the protected columns even if the model may not see them.
    params : EvaluateParams

    Returns
    -------
    dict
        Column → ``disparity_ratio`` (approval rate of the group with the lowest over that of the group with the
        highest, the reference), its bootstrap interval ``low`` and ``high`` for these two groups,
        ``passes_four_fifths``, ``lowest`` and ``reference``. Groups under ``params.fairness_min_rows`` rows and the
        missing are not compared; None where fewer than two groups remain or nobody is approved.
    DataFrame
        One row per column and group: ``column``, ``group``, ``label`` (both), ``rows``, ``approval_rate``, ``bad_rate``,
        ``predicted_bad_rate`` (mean probability of default), ``false_refusal_rate`` (share of the good refused),
        ``missed_bad_rate`` (share of the bad approved) and ``compared`` (1 or 0).
    """
    tables, pairs = [], {}
    results: dict[str, Any] = {}
    for name in contract.protected:
        groups = groups_of(name, contract, X)
        member = np.array(list(groups.values()), dtype=float)
        table = _table(name, list(groups), member, rows, params.fairness_min_rows)
        tables.append(table)
        rates = np.where(table["compared"] == 1, table["approval_rate"], np.nan)
        results[name] = dict.fromkeys(("disparity_ratio", "low", "high", "passes_four_fifths", "lowest", "reference"))
        if np.isfinite(rates).sum() > 1 and np.nanmax(rates) > 0:
            pair = [int(np.nanargmin(rates)), int(np.nanargmax(rates))]
            pairs[name] = member[pair]
            results[name] |= dict(zip(("lowest", "reference"), np.array(list(groups))[pair].tolist(), strict=True))
    if pairs:

        def ratios(draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
            weights = rows.weightings(draws)
            return {name: _ratio(weights, pair, rows.approved) for name, pair in pairs.items()}

        point, interval = ratios(), intervals(ratios, len(rows.y), params)
        for name in pairs:
            ratio = float(point[name][0])
            results[name] |= {"disparity_ratio": ratio, **interval[name], "passes_four_fifths": ratio >= FOUR_FIFTHS}
    columns = _table("", [], np.empty((0, len(rows.y))), rows, 1)
    return results, pd.concat(tables, ignore_index=True) if tables else columns


def _table(name: str, words: list[str], member: np.ndarray, rows: Scored, min_rows: int) -> pd.DataFrame:
    weighted = member * rows.weightings()[0]
    bad, approved = (rows.y == 0).astype(float), rows.approved.astype(float)
    counts = member.sum(axis=1).astype(int)
    return pd.DataFrame(
        {
            "column": name,
            "group": words,
            "label": [f"{name}: {word}" for word in words],
            "rows": counts,
            "approval_rate": _share(weighted, approved),
            "bad_rate": _share(weighted, bad),
            "predicted_bad_rate": _share(weighted, 1 - rows.p_good),
            "false_refusal_rate": _share(weighted * (1 - bad), 1 - approved),
            "missed_bad_rate": _share(weighted * bad, approved),
            "compared": [int(n >= min_rows and word != MISSING) for n, word in zip(counts, words, strict=True)],
        }
    )


def _share(weighted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted mean per group, NaN where the group is empty."""
    mass = weighted.sum(axis=1)
    return np.divide(weighted @ values, mass, out=np.full(len(mass), np.nan), where=mass > 0)


def _ratio(weights: np.ndarray, pair: np.ndarray, approved: np.ndarray) -> np.ndarray:
    """Approval rate of the first group over that of the second, shape (n weightings,); NaN where there is none."""
    mass, passed = weights @ pair.T, weights @ (pair * approved).T
    above, below = passed[:, 0] * mass[:, 1], passed[:, 1] * mass[:, 0]
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
