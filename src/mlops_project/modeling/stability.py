"""Population stability: how far score and features moved between the development and the held-out rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from mlops_project.schema import Contract

# The usual reading: below the first nothing moved, from the second on something did; between them look at it.
READINGS = (0.1, 0.25)
WORDS = ("stable", "look", "moved")
# A share of 0 has no logarithm.
SMALLEST_SHARE = 1e-4


class Population(NamedTuple):
    """Rows with the contract's columns, the model's P(good) and weights, all of n rows."""

    X: pd.DataFrame
    p_good: np.ndarray
    weights: np.ndarray


def bin_edges(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Distinct deciles of the values that are there; a value belongs to the first edge that is not below it."""
    there = ~np.isnan(values)
    if not there.any():
        return np.array([])
    tenths = np.arange(1, 10) / 10
    return np.unique(np.quantile(values[there], tenths, weights=weights[there], method="inverted_cdf"))


def bin_shares(values: np.ndarray, weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of the weight per bin, that of missing values last; shape (n edges + 2,)."""
    bins = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="left"))
    return np.bincount(bins, weights, len(edges) + 2) / weights.sum()


def population_stability_index(before: np.ndarray, after: np.ndarray) -> float:
    """Σ (after − before) · ln(after / before) over the bins (Siddiqi 2006); empty ones count as 0.01 %."""
    used = (before > 0) | (after > 0)
    before, after = (np.maximum(shares[used], SMALLEST_SHARE) for shares in (before, after))
    return float(((after - before) * np.log(after / before)).sum())


def stability(before: Population, after: Population, contract: Contract) -> tuple[dict[str, Any], pd.DataFrame]:
    """PSI of the score and of every feature of the contract.

    Bins are the deciles of the ``before`` rows for numbers, the codes for coded columns, and one for missing values.

    Returns
    -------
    dict
        ``score``: its PSI; ``largest``: the ``feature`` with the largest ``value``.
    DataFrame
        ``name``, ``psi``, ``by_chance`` (what it is on average if nothing moved: (bins − 1) · (1/n + 1/m), Yurdakul
        2018) and ``reading``: stable below 0.1, look up to 0.25, moved. The score first, then the features by PSI.
    """
    for rows in (before, after):
        contract.require(rows.X.columns, contract.features, "table")
    found = []
    for name in (None, *contract.features):
        # One column after the other: all parsed ones of millions of rows would fill the memory.
        old, new = (rows.p_good if name is None else contract.parse(name, rows.X[name]).values for rows in (before, after))
        if name is not None and contract.columns[name].codes is not None:
            codes = np.concatenate([pd.unique(old), pd.unique(new)])
            edges = np.unique(codes[~np.isnan(codes)])
        else:
            edges = bin_edges(old, before.weights)
        shares = bin_shares(old, before.weights, edges), bin_shares(new, after.weights, edges)
        bins = int(((shares[0] > 0) | (shares[1] > 0)).sum())
        found.append((population_stability_index(*shares), (bins - 1) * (1 / len(old) + 1 / len(new))))
    table = pd.DataFrame(found, columns=["psi", "by_chance"])
    table.insert(0, "name", ["score", *contract.features])
    table["reading"] = np.array(WORDS)[np.searchsorted(READINGS, table["psi"], side="right")]
    features = table.iloc[1:].sort_values("psi", ascending=False, kind="stable")
    psi = table["psi"].to_numpy()
    metrics = {"score": float(psi[0]), "largest": {"feature": features["name"].iloc[0], "value": float(psi[1:].max())}}
    return metrics, pd.concat([table.iloc[:1], features], ignore_index=True)
