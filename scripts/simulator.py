"""Applicants and their outcomes, simulated: a population whose behaviour is known, and the same after it changed.

How it is made, from the clean table (1,000 applicants) and the contract, with no column named here:

- **Applicants.** One of the clean rows is drawn. Each number then becomes that of a row close by in its order (up to
  `NEIGHBOURS` ranks away), so that nobody is met twice and each column keeps its distribution, round figures included.
  Codes stay: how they hang together is real. At last cells are spoilt as in the raw table (`build_raw_data.make_dirty`).
- **Outcomes.** A logistic regression on numbers and codes, fitted once to the clean outcomes, is the truth: the probability of
  default is a constant and one effect per column, and the outcome is a draw with it. The log-odds are stretched by `STRETCH`:
  a penalised fit is flatter than what it was fitted to. With it 5 % of those default whom the shipped model approves, as among
  its out-of-fold predictions, which mlops-monitor compares with; without it 9 %, a difference that it may well find.
- **The shifted population** differs in two ways. Rows are drawn with weights that raise the mean of the contract's first number
  (a longer duration) by about `SHIFT` standard deviations: drift that can be seen at once. And `REVERSED` columns of codes, those
  with the strongest effects but the very first, work the other way round with the same mean: some who looked safe now fail.
  That is seen in outcomes only. (With the first as well, a model that has learnt it treats protected groups so differently that
  the gate refuses it, rightly.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from build_raw_data import make_dirty

if TYPE_CHECKING:
    from mlops_project.schema import Contract

NEIGHBOURS = 25
SHIFT = 0.5
REVERSED = 4
STRETCH = 1.3


class Applicants(NamedTuple):
    """Applicants as they apply, and what will become of them."""

    cells: pd.DataFrame
    """Text as callers send it, the contract's columns, shape (n, k)."""
    good: np.ndarray
    """Whether each would repay, bool, shape (n,)."""


class Simulator:
    """Draws applicants of either population.

    Parameters
    ----------
    clean : DataFrame
        Rows without dirt: numbers, the contract's features and target.
    contract : Contract
    """

    def __init__(self, clean: pd.DataFrame, contract: Contract) -> None:
        from sklearn.linear_model import LogisticRegression

        self.contract = contract
        self.numbers = [name for name in contract.features if contract.columns[name].kind == "numeric"]
        self.rows = clean[[*contract.features]].reset_index(drop=True)
        self._mean, self._sd = self.rows[self.numbers].mean(), self.rows[self.numbers].std()
        self._levels = {name: sorted(set(self.rows[name])) for name in self.rows if name not in self.numbers}
        bad = (clean[contract.target.name] == contract.target.bad).to_numpy()
        # C: a little penalty, so that rare codes are not certain of their outcome.
        fitted = LogisticRegression(C=0.3, max_iter=1000).fit(self._encoded(self.rows).to_numpy(), bad)
        self._constant, self._weights = STRETCH * float(fitted.intercept_[0]), STRETCH * fitted.coef_[0]
        effects = self.effects(self.rows)
        self._means = effects.mean()
        self.reversed = list(effects[[*self._levels]].std().nlargest(REVERSED + 1).index[1:])
        """Columns that work the other way round in the shifted population."""

    def _encoded(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Numbers standardised, a 0/1 column per code; two levels of columns, the first the contract's."""
        parts: dict[tuple[Any, str], Any] = {
            (name, ""): (rows[name] - self._mean[name]) / self._sd[name] for name in self.numbers
        }
        parts |= {(name, str(level)): rows[name] == level for name, levels in self._levels.items() for level in levels}
        return pd.DataFrame(parts).astype(float)

    def effects(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Effect of each column on the log-odds of default, shape (n rows, n features)."""
        return (self._encoded(rows) * self._weights).T.groupby(level=0).sum().T

    def default_probability(self, rows: pd.DataFrame, *, shifted: bool = False) -> np.ndarray:
        """Return the true probability of default of clean rows, shape (n rows,)."""
        effects = self.effects(rows)
        if shifted:
            effects[self.reversed] = 2 * self._means[self.reversed] - effects[self.reversed]
        return 1 / (1 + np.exp(-self._constant - effects.sum(axis=1).to_numpy()))

    def draw(self, n: int, seed: int, *, shifted: bool = False) -> Applicants:
        """Draw applicants.

        Parameters
        ----------
        n : int
        seed : int
            The same seed gives the same applicants.
        shifted : bool
            Of the shifted population, in both of its ways.
        """
        rng = np.random.default_rng([seed, shifted])
        first = self.numbers[0]
        tilt = (self.rows[first] - self._mean[first]) / self._sd[first] * SHIFT * shifted
        weights = np.exp(tilt.to_numpy())
        rows = self.rows.iloc[rng.choice(len(self.rows), n, p=weights / weights.sum())].reset_index(drop=True)
        for name in self.numbers:
            ordered = np.sort(self.rows[name].to_numpy())
            last = len(ordered) - 1
            # Ties: any rank of the value.
            low, high = (np.searchsorted(ordered, rows[name], side) for side in ("left", "right"))
            rank = np.abs(rng.integers(low, high) + rng.integers(-NEIGHBOURS, NEIGHBOURS + 1, n))
            rows[name] = ordered[np.where(rank > last, 2 * last - rank, rank)]
        good = rng.random(n) >= self.default_probability(rows, shifted=shifted)
        # Outcomes are known as they are: the target is there because the spoiler asks for one.
        target = self.contract.target.name
        dirty = make_dirty(rows.assign(**{target: 0}), int(rng.integers(2**31)), target=target, copies=0.0)
        return Applicants(dirty[[*self.contract.features]], good)
