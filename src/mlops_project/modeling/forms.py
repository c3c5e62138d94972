"""Compiled forms of models: plain arrays, and how to score with them. NumPy only; XGBoost where a plan holds its trees.

A form takes rows of one view (``values`` or ``encoded``) and knows three things: ``p_good``; ``margin``, what calibration maps
to probabilities; and ``split``, base and one contribution per column as `mlops_project.modeling.reasons.split` has them, or
None where contributions need the model itself. `mlops_project.modeling.compiling` makes the arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlops_project.modeling.scale import log_odds

if TYPE_CHECKING:
    from collections.abc import Callable

    Split = tuple[float, np.ndarray]

# Rows × array entries held in memory at once: what a processor caches. Ten times as many take half as long again.
MAX_CELLS = 100_000
# From so many rows on, one search per column is faster than one comparison of everything.
ROWS_TO_SEARCH = 64
# Tables in which many rows are looked up at a time, so that what is found is added while it is in the cache.
TABLES = 48
# Up to so many rows trees are faster in NumPy than through XGBoost's interface.
ROWS_IN_NUMPY = 24


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(−x))."""
    return 1 / (1 + np.exp(np.minimum(-x, 700.0)))  # exp(710) is infinite; with 700 the quotient is 1e-304


def _in_parts(f: Callable[[np.ndarray], np.ndarray], X: np.ndarray, width: int) -> np.ndarray:
    """Return f(X), shape (n rows,), of parts in which rows × ``width`` stays within `MAX_CELLS`."""
    size = max(1, MAX_CELLS // width)
    return f(X) if len(X) <= size else np.concatenate([f(X[i : i + size]) for i in range(0, len(X), size)])


class RowView(NamedTuple):
    """Parsed cells → the values view: numbers capped, quotients added, logarithms taken.

    ``lower`` and ``upper`` are bounds of shape (n features,), empty if nothing is capped; ``numerators``, ``denominators`` and
    ``logs`` are positions.
    """

    lower: np.ndarray
    upper: np.ndarray
    numerators: np.ndarray
    denominators: np.ndarray
    logs: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return float values of shape (n rows, n features + n ratios)."""
        if len(self.lower):
            values = np.clip(values, self.lower, self.upper)
        if not len(self.numerators) and not len(self.logs):
            return values
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            quotients = values[:, self.numerators] / values[:, self.denominators]
            out = np.hstack([values, quotients])
            out[:, self.logs] = np.log1p(out[:, self.logs])
        new = [*range(values.shape[1], out.shape[1]), *self.logs]
        out[:, new] = np.where(np.isfinite(out[:, new]), out[:, new], np.nan)
        return out


class Encoding(NamedTuple):
    """The values view → the encoded view, as `FeaturePreprocessor` does it.

    Attributes
    ----------
    empty : ndarray of bool, shape (n columns,)
        Columns that training had no value of.
    numbers, filled, center, spread : ndarray of shape (n numbers,)
        Positions of imputed and scaled columns, what stands for a missing one, and the scale.
    coded, filled_code : ndarray of shape (n coded,)
        Positions of one-hot columns, and the code that stands for a missing one.
    place, code : ndarray of shape (n codes,)
        For each 0/1 column its position in ``coded``, and the code that it is 1 for.
    indicators : ndarray of shape (1,)
        Whether there is a 0/1 column per column that says where it is missing.
    """

    empty: np.ndarray
    numbers: np.ndarray
    filled: np.ndarray
    center: np.ndarray
    spread: np.ndarray
    coded: np.ndarray
    filled_code: np.ndarray
    place: np.ndarray
    code: np.ndarray
    indicators: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return encoded rows, float of shape (n rows, n encoded columns)."""
        # Column by column, as rows lie that are many.
        cells = values.T
        gaps = np.isnan(cells) | self.empty[:, np.newaxis]
        first, last = len(self.numbers), len(self.numbers) + len(self.code)
        out = np.empty((last + (len(self.empty) if self.indicators[0] else 0), len(values)))
        numbers = np.where(gaps[self.numbers], self.filled[:, np.newaxis], cells[self.numbers])
        numbers -= self.center[:, np.newaxis]
        np.divide(numbers, self.spread[:, np.newaxis], out=out[:first])
        codes = np.where(gaps[self.coded], self.filled_code[:, np.newaxis], cells[self.coded])
        out[first:last] = codes[self.place] == self.code[:, np.newaxis]
        if self.indicators[0]:
            out[last:] = gaps
        return out.T


class Sum:
    """A sum over columns of steps and straight lines: scorecard and logistic regression.

    Parameters
    ----------
    column : ndarray of int, shape (n steps,)
        Position of the column that a step belongs to, rising.
    start : ndarray of shape (n steps,)
        Lowest value of the step; the first of each column is −inf, which every number reaches and no missing one.
    rise : ndarray of shape (n steps,)
        What reaching the step adds.
    missing : ndarray of shape (n columns,)
        What a column adds before its first step, where it is missing.
    slope, center : ndarray of shape (n columns,)
        (value − center) × slope is added where the value is there.
    intercept : ndarray of shape (1,)
    """

    def __init__(
        self,
        column: np.ndarray,
        start: np.ndarray,
        rise: np.ndarray,
        missing: np.ndarray,
        slope: np.ndarray,
        center: np.ndarray,
        intercept: np.ndarray,
    ) -> None:
        self.column, self.start, self.rise = column, start, rise
        self.missing, self.slope, self.center = missing, slope, center
        self.intercept = float(intercept[0])
        self.base = self.intercept + float(missing.sum())
        self.straight = np.flatnonzero(slope)
        # Per column: where its steps start, and what it adds from each on; behind them NaN and what it adds when missing.
        self.levels = []
        for i in range(len(missing)):
            levels = missing[i] + np.cumsum(rise[column == i])
            self.levels.append((np.append(start[column == i], np.nan), np.append(levels, missing[i])))

    def margin(self, values: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """Return the log-odds, shape (n rows,); what each column adds may be ``known``."""
        if known is not None or len(values) >= ROWS_TO_SEARCH:
            return self.intercept + self.split(values, known)[1].sum(axis=1)
        reached = values[:, self.column] >= self.start  # never where missing
        out = self.base + reached @ self.rise
        if len(self.straight):
            out += self._lines(values[:, self.straight], self.straight).sum(axis=1)
        return out

    def p_good(self, values: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """Return P(good), shape (n rows,)."""
        return sigmoid(self.margin(values, known))

    def split(self, values: np.ndarray, known: np.ndarray | None = None) -> Split:
        """Return the intercept and what each column adds, shape (n rows, n columns)."""
        return self.intercept, self._parts(values) if known is None else known

    def part(self, i: int, values: np.ndarray) -> np.ndarray:
        """Return what column ``i`` adds, shape (n rows,); its ``values`` are those of the view."""
        starts, levels = self.levels[i]
        # NaN comes behind all numbers, so a missing value reaches the last level.
        out = levels[starts.searchsorted(values, side="right") - 1]
        return out + self._lines(values, i) if self.slope[i] else out

    def _parts(self, values: np.ndarray) -> np.ndarray:
        if len(values) >= ROWS_TO_SEARCH:
            return np.array([self.part(i, column) for i, column in enumerate(values.T)]).T
        added = (values[:, self.column] >= self.start) * self.rise
        firsts = np.flatnonzero(np.isneginf(self.start))
        out = self.missing + np.add.reduceat(added, firsts, axis=1)
        if len(self.straight):
            out[:, self.straight] += self._lines(values[:, self.straight], self.straight)
        return out

    def _lines(self, values: np.ndarray, columns: Any) -> np.ndarray:
        with np.errstate(over="ignore"):
            found = (values - self.center[columns]) * self.slope[columns]
        # Bounded, so that two monstrous values of opposite effect do not add up to NaN.
        return np.where(np.isnan(found), 0.0, np.minimum(np.maximum(found, -1e9), 1e9))


class Trees:
    """Decision trees side by side in flat arrays; a leaf is its own child.

    Parameters
    ----------
    roots : ndarray of int, shape (n trees,)
    feature : ndarray of int, shape (n nodes,)
    threshold : ndarray of float32, shape (n nodes,)
        Left is what is below it in single precision, which is what both libraries compare in.
    left, right : ndarray of int, shape (n nodes,)
    missing_left : ndarray of bool, shape (n nodes,)
    value : ndarray of shape (n nodes,)
    depth : ndarray of int, shape (1,)
    """

    def __init__(
        self,
        roots: np.ndarray,
        feature: np.ndarray,
        threshold: np.ndarray,
        left: np.ndarray,
        right: np.ndarray,
        missing_left: np.ndarray,
        value: np.ndarray,
        depth: np.ndarray,
    ) -> None:
        self.roots, self.feature, self.threshold, self.missing_left = roots, feature, threshold, missing_left
        self.children = np.column_stack([right, left]).ravel()
        self.value = value
        self.depth = int(depth[0])

    def values(self, X: np.ndarray) -> np.ndarray:
        """Return the value of the leaf that each row reaches in each tree, shape (n rows, n trees)."""
        with np.errstate(over="ignore"):
            X = X.astype(np.float32, order="C")
        rows = np.arange(len(X))[:, np.newaxis]
        gaps = np.isnan(X).any()
        node = np.broadcast_to(self.roots, (len(X), len(self.roots)))
        for _ in range(self.depth):
            x = X[rows, self.feature[node]]
            goes_left = x < self.threshold[node]
            if gaps:
                goes_left |= np.isnan(x) & self.missing_left[node]
            node = self.children[2 * node + goes_left]
        return self.value[node]


class Forest:
    """Mean of the trees' P(good): random forest, and a decision tree by itself."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.trees = Trees(**arrays)

    def p_good(self, X: np.ndarray) -> np.ndarray:
        """Return P(good), shape (n rows,)."""
        return _in_parts(lambda rows: self.trees.values(rows).mean(axis=1), X, len(self.trees.roots))

    def margin(self, X: np.ndarray) -> np.ndarray:
        """Return the log-odds, shape (n rows,)."""
        return log_odds(self.p_good(X))

    def split(self, X: np.ndarray) -> Split | None:
        return None


class Tables:
    """Trees of few splits, looked up: what they add to the log-odds, and their tree SHAP values.

    The ways in which a row goes at all splits of a tree make a pattern, and to each pattern belongs a leaf, and one contribution
    per column that the tree asks. So nothing is left to do but to compare and to add [1]_. A contribution depends only on the
    splits above and below those of its column, and trees ask the same again and again: so the contributions to a column
    are tabulated together where they ask up to `BITS` comparisons.

    Parameters
    ----------
    column : ndarray of int, shape (n comparisons,)
        The column of the view that is compared.
    threshold : ndarray of float32, shape (n comparisons,)
        What a value is below for the comparison to hold.
    missing_left : ndarray of bool, shape (n comparisons,)
        Whether it holds for a missing value.
    split : ndarray of int, shape (n splits, n trees)
        The comparison that each split of a tree asks.
    value : ndarray of float32, shape (n trees, 2 ** n splits)
        Of the leaf, by pattern, whose bits are the splits at which a row goes left.
    asked : ndarray of int, shape (BITS, n parts)
        The comparisons that each table of contributions asks.
    part : ndarray of float32, shape (n parts, 2 ** BITS)
        Contribution by pattern.
    receiver : ndarray of int, shape (n parts,)
        The column of the values view that it belongs to, rising.
    base : ndarray of shape (1,)
        Mean of the log-odds as the trees weigh it.
    n_columns : int
        Of the values view.

    References
    ----------
    .. [1] Yang, J. (2021). Fast TreeSHAP: accelerating SHAP value computation for trees.
    """

    # Patterns are bytes.
    BITS = 8

    def __init__(
        self,
        column: np.ndarray,
        threshold: np.ndarray,
        missing_left: np.ndarray,
        split: np.ndarray,
        value: np.ndarray,
        asked: np.ndarray,
        part: np.ndarray,
        receiver: np.ndarray,
        base: np.ndarray,
        n_columns: int,
    ) -> None:
        self.column, self.threshold, self.split, self.asked = column, threshold[:, np.newaxis], split, asked
        self.holds_missing = np.flatnonzero(missing_left)
        self.value, self.part, self.base, self.n_columns = value, part, float(base[0]), n_columns
        self.firsts = np.flatnonzero(np.diff(receiver, prepend=-1))
        self.receivers = receiver[self.firsts]
        # What is taken at a time, and for which column.
        ends = [*self.firsts[1:].tolist(), len(part)]
        self.blocks = [
            (receiver, slice(i, min(i + TABLES, end)))
            for receiver, first, end in zip(self.receivers.tolist(), self.firsts.tolist(), ends, strict=True)
            for i in range(first, end, TABLES)
        ]
        # Patterns are bytes, of which a processor caches as many as of two floats.
        self._width = 1 + max(split.shape[1], asked.shape[1]) // 16

    def compare(self, X: np.ndarray) -> np.ndarray:
        """Return whether each comparison holds, uint8 of shape (n comparisons, n rows): all that the tables ask of rows."""
        with np.errstate(over="ignore"):
            x = X.T.astype(np.float32)
        holds = x.take(self.column, axis=0) < self.threshold  # never where missing
        gaps = np.isnan(x)
        if gaps.any():
            holds[self.holds_missing] |= gaps.take(self.column[self.holds_missing], axis=0)
        return holds.view(np.uint8)

    def leaves(self, compared: np.ndarray) -> np.ndarray:
        """Return what each tree adds, float32 of shape (n trees, n rows)."""
        return _look_up(self.value, _patterns(compared, self.split))

    def margin(self, start: np.ndarray, compared: np.ndarray) -> np.ndarray:
        """Return ``start`` and what the trees add, float32 of shape (n rows,), one after the other, as XGBoost adds."""
        return _in_parts(lambda rows: self._margin(start, rows), compared.T, self._width)

    def _margin(self, start: np.ndarray, compared: np.ndarray) -> np.ndarray:
        patterns, margin = _patterns(compared.T, self.split), start.repeat(len(compared))
        for i in range(0, len(patterns), TABLES):
            for leaf in _look_up(self.value[i : i + TABLES], patterns[i : i + TABLES]):
                margin += leaf
        return margin

    def contributions(self, compared: np.ndarray) -> np.ndarray:
        """Return contributions, shape (n rows, n columns of the values view)."""
        return _in_parts(self._contributions, compared.T, self._width)

    def _contributions(self, compared: np.ndarray) -> np.ndarray:
        patterns = _patterns(compared.T, self.asked)
        out = np.zeros((self.n_columns, len(compared)))
        if len(compared) < ROWS_TO_SEARCH:
            out[self.receivers] = np.add.reduceat(_look_up(self.part, patterns), self.firsts, axis=0)
        else:
            for receiver, tables in self.blocks:
                out[receiver] += _look_up(self.part[tables], patterns[tables]).sum(axis=0)
        return out.T


def _patterns(compared: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the bits of (n bits, n) ``asked`` comparisons as numbers, uint8 of shape (n, n rows)."""
    compared = np.ascontiguousarray(compared)
    pattern = compared.take(asked[-1], axis=0)
    for bit in asked[-2::-1]:
        pattern += pattern  # NumPy shifts bytes in ten times the time
        pattern += compared.take(bit, axis=0)
    return pattern


def _look_up(tables: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Return of each of n tables, shape (n, size), what ``patterns``, uint8 of shape (n, n rows), say; of their shape."""
    # Of two bytes where they are enough: NumPy widens them while it takes.
    kind: Any = np.uint16 if tables.size <= 2**16 else np.intp
    at = patterns.astype(kind)
    at += np.arange(0, tables.size, tables.shape[1], dtype=kind)[:, np.newaxis]
    return tables.ravel().take(at, mode="wrap")  # none is outside, and looking costs more


class Boosted:
    """XGBoost's trees: in NumPy for few rows or if they have few splits, where its interface costs more, else by XGBoost itself.

    Parameters
    ----------
    raw : ndarray of uint8
        What `Booster.save_raw` gave.
    start : ndarray of float32, shape (1,)
        Log-odds before the first tree.
    exact : ndarray of bool, shape (1,)
        Whether the last digit matters, so that XGBoost is always asked.
    to_columns : ndarray of bool, shape (n columns of the view, n columns of the values view)
        Which column each comes from: one-hot columns and indicators belong to it.
    **arrays : ndarray
        Of `Trees`, and of `Tables` with ``tables.`` before their names if the trees have few splits.
    """

    def __init__(
        self, raw: np.ndarray, start: np.ndarray, exact: np.ndarray, to_columns: np.ndarray, **arrays: np.ndarray
    ) -> None:
        import xgboost

        self.booster = xgboost.Booster({"nthread": 1})
        self.booster.load_model(bytearray(raw.tobytes()))
        self.booster.set_param({"nthread": 1})
        tables = {name.removeprefix("tables."): arrays.pop(name) for name in [*arrays] if name.startswith("tables.")}
        self.tables: Any = Tables(**tables, n_columns=to_columns.shape[1]) if tables else None
        self.trees = Trees(**arrays)
        self.start = start
        self.to_columns = to_columns.astype(float)
        self.rows_in_numpy = 0 if exact[0] else ROWS_IN_NUMPY

    def p_good(self, X: np.ndarray, compared: np.ndarray | None = None) -> np.ndarray:
        """Return P(good), shape (n rows,); `Tables.compare` may have ``compared`` the rows before."""
        # In XGBoost's own order and precision: the margin is the same to the last bit, P(good) almost always.
        if len(X) <= self.rows_in_numpy:
            rows = np.empty((len(X), 1 + len(self.trees.roots)), dtype=np.float32)
            rows[:, 0], rows[:, 1:] = self.start, self.trees.values(X) if compared is None else self.tables.leaves(compared).T
            margin = np.add.accumulate(rows, axis=1)[:, -1]
        elif self.tables is not None:
            margin = self.tables.margin(self.start, self.tables.compare(X) if compared is None else compared)
        else:
            return self.booster.inplace_predict(np.ascontiguousarray(X), validate_features=False).astype(float)
        odds_of_bad = np.exp(-margin.astype(float)).astype(np.float32)
        return (1 / (odds_of_bad + np.float32(1))).astype(float)

    def margin(self, X: np.ndarray, compared: np.ndarray | None = None) -> np.ndarray:
        """Return the log-odds, shape (n rows,)."""
        return log_odds(self.p_good(X, compared))

    def split(self, X: np.ndarray, compared: np.ndarray | None = None) -> Split:
        """Return base and tree SHAP values, shape (n rows, n columns of the values view)."""
        if self.tables is not None:
            return self.tables.base, self.tables.contributions(self.tables.compare(X) if compared is None else compared)
        from xgboost import DMatrix

        found = self.booster.predict(DMatrix(X, nthread=1), pred_contribs=True).astype(float)
        base, parts = float(found[0, -1]), found[:, :-1]
        parts += (self.margin(X) - base - parts.sum(axis=1))[:, np.newaxis] / parts.shape[1]
        return base, parts @ self.to_columns


class Kernel:
    """A support vector machine with radial kernel, and the sigmoid that gives it probabilities (none if calibrated later).

    Parameters
    ----------
    vectors : ndarray of shape (n support vectors, n encoded columns)
    weight : ndarray of shape (n support vectors,)
    intercept, gamma : ndarray of shape (1,)
    platt : ndarray of shape (2,) or (0,)
        Slope and intercept of P(good) = 1 / (1 + exp(slope · margin + intercept)).
    """

    def __init__(
        self, vectors: np.ndarray, weight: np.ndarray, intercept: np.ndarray, gamma: np.ndarray, platt: np.ndarray
    ) -> None:
        self.vectors, self.weight, self.intercept, self.gamma, self.platt = vectors, weight, intercept[0], gamma[0], platt
        self.lengths = (vectors**2).sum(axis=1)

    def decide(self, X: np.ndarray) -> np.ndarray:
        """Return the decision function, shape (n rows,)."""
        return _in_parts(self._decide, X, len(self.vectors))

    def _decide(self, X: np.ndarray) -> np.ndarray:
        X = np.ascontiguousarray(X)
        distances = (X**2).sum(axis=1)[:, np.newaxis] + self.lengths - 2 * (X @ self.vectors.T)
        return np.exp(-self.gamma * np.maximum(distances, 0)) @ self.weight + self.intercept

    def p_good(self, X: np.ndarray) -> np.ndarray:
        """Return P(good), shape (n rows,)."""
        return sigmoid(-(self.platt[0] * self.decide(X) + self.platt[1]))

    def margin(self, X: np.ndarray) -> np.ndarray:
        """Return what calibration maps to probabilities, shape (n rows,)."""
        return log_odds(self.p_good(X)) if len(self.platt) else self.decide(X)

    def split(self, X: np.ndarray) -> Split | None:
        return None


FORMS: dict[str, type[Sum | Forest | Boosted | Kernel]] = {"sum": Sum, "forest": Forest, "boosted": Boosted, "kernel": Kernel}
