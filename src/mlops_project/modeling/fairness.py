"""How decisions and probabilities treat the groups of the contract's protected columns."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_project.modeling.bootstrap import count_cells, intervals
from mlops_project.modeling.policy import Scored

if TYPE_CHECKING:
    from mlops_project.config import EvaluateParams
    from mlops_project.schema import Contract

# The four-fifths rule of the Uniform Guidelines on Employee Selection Procedures (1978), which lenders borrow.
FOUR_FIFTHS = 0.8
MISSING = "(missing)"
# Of a row: the groups whose approval rates are compared, and all others.
PAIR, NEITHER = (0, 1), 2


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
        highest, the reference), its bootstrap interval ``low`` and ``high`` for these two groups (above
        ``params.exact_rows`` rows by counts of what is alike, which gives up nothing),
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
        group = np.zeros(len(rows.y), dtype=int)  # of each row
        for place, member in enumerate(groups.values()):
            group[member] = place
        table = _table(name, list(groups), group, rows, params.fairness_min_rows)
        tables.append(table)
        rates = np.where(table["compared"] == 1, table["approval_rate"], np.nan)
        results[name] = dict.fromkeys(("disparity_ratio", "low", "high", "passes_four_fifths", "lowest", "reference"))
        if np.isfinite(rates).sum() > 1 and np.nanmax(rates) > 0:
            pair = [int(np.nanargmin(rates)), int(np.nanargmax(rates))]
            pairs[name] = np.select([group == place for place in pair], PAIR, NEITHER)
            results[name] |= dict(zip(("lowest", "reference"), np.array(list(groups))[pair].tolist(), strict=True))
    if pairs:

        def ratios(draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
            weights = rows.weightings(draws)
            return {name: _ratio(weights, pair, rows.approved) for name, pair in pairs.items()}

        point = ratios()
        if len(rows.y) > params.exact_rows:
            interval = {name: _interval_of_counts(rows, pair, params) for name, pair in pairs.items()}
        else:
            interval = intervals(ratios, len(rows.y), params)
        for name in pairs:
            ratio = float(point[name][0])
            results[name] |= {"disparity_ratio": ratio, **interval[name], "passes_four_fifths": ratio >= FOUR_FIFTHS}
    if not tables:
        return results, _table("", [""], np.zeros(len(rows.y), dtype=int), rows, 1).iloc[:0]
    return results, pd.concat(tables, ignore_index=True)


def _interval_of_counts(rows: Scored, pair: np.ndarray, params: EvaluateParams) -> dict[str, float]:
    """As of the rows: the ratio asks of a row only which group it is of, whether it is approved, and at a prior its outcome."""
    labels, cells = count_cells(4 * pair + 2 * rows.approved + rows.y, rows.weights)
    pair, approved, y = labels // 4, labels // 2 % 2, labels % 2
    counted = Scored(y, approved.astype(float), cells.weights, rows.policy)
    found = intervals(lambda draws: {"ratio": _ratio(counted.weightings(draws), pair, approved)}, cells, params)
    return found["ratio"]


def _table(name: str, words: list[str], group: np.ndarray, rows: Scored, min_rows: int) -> pd.DataFrame:
    weights = rows.weightings()[0]
    bad, approved = (rows.y == 0).astype(float), rows.approved.astype(float)
    counts = np.bincount(group, minlength=len(words))

    def share(values: np.ndarray, of: np.ndarray | float = 1.0) -> np.ndarray:
        """Weighted mean per group of those who count, NaN where there are none."""
        mass = np.bincount(group, weights * of, len(words))
        total = np.bincount(group, weights * of * values, len(words))
        return np.divide(total, mass, out=np.full(len(mass), np.nan), where=mass > 0)

    return pd.DataFrame(
        {
            "column": name,
            "group": words,
            "label": [f"{name}: {word}" for word in words],
            "rows": counts,
            "approval_rate": share(approved),
            "bad_rate": share(bad),
            "predicted_bad_rate": share(1 - rows.p_good),
            "false_refusal_rate": share(1 - approved, of=1 - bad),
            "missed_bad_rate": share(approved, of=bad),
            "compared": [int(n >= min_rows and word != MISSING) for n, word in zip(counts, words, strict=True)],
        }
    )


def _ratio(weights: np.ndarray, pair: np.ndarray, approved: np.ndarray) -> np.ndarray:
    """Approval rate of the first group over that of the second, shape (n weightings,); NaN where there is none.

    ``pair`` says of each row whether it is of the first (0), the second (1) or neither.
    """
    member = (pair == np.array(PAIR)[:, None]).astype(float)
    mass, passed = weights @ member.T, weights @ (member * approved).T
    above, below = passed[:, 0] * mass[:, 1], passed[:, 1] * mass[:, 0]
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
