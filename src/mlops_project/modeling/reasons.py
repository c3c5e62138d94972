"""Reasons: how much each column moves an applicant's log-odds away from the average applicant's, and the worst in words.

Every model's log-odds are split into one contribution per column of the values view, so that base and contributions add up
to them. Where the model is a sum anyway, so is the split:

- scorecard, logistic regression: coefficient × (weight of evidence, or encoded value, − its mean);
- XGBoost: tree SHAP values [1]_, minus their mean.

Other models (support vector machine, forest, tree, blend) are asked: from a typical applicant, one cell after the other
becomes the scored applicant's, and each step belongs to its column. The mean over orders is the Shapley value [2]_; each
random order comes with its reverse, which makes it exact for all that columns do alone and in pairs [3]_. From these, too,
the mean is subtracted.

Calibration comes on top: sigmoid multiplies by its slope. For isotonic, the contributions are added up in random orders once
more, and each belongs what the log-odds rise with it.

References
----------
.. [1] Lundberg, S. et al. (2020). From local explanations to global understanding with explainable AI for trees.
.. [2] Strumbelj, E. & Kononenko, I. (2014). Explaining prediction models and individual predictions with feature contributions.
.. [3] Mayer, M. & Wüthrich, M. (2025). Shapley values: paired-sampling approximations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

# scikit-learn is imported where models are asked: whoever has contributions from elsewhere needs the words only.
from mlops_project.modeling.scale import log_odds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from sklearn.pipeline import Pipeline

    from mlops_project.features import FeaturePreprocessor
    from mlops_project.schema import Contract

# Random orders, each taken forwards and backwards; docs/decisions.md says what precision that buys.
ORDERS = 2
ORDERS_OF_SUMS = 50
SEED = 0
# Rows behind the mean of contributions that are asked for: a forest takes its time.
ROWS_ASKED = 100
# The same where the model is a sum: nearer than a hundredth of a standard deviation.
ROWS_SUMMED = 20_000
# Cells of made-up applicants held in memory at once.
MAX_CELLS = 2_000_000
# Log-odds up to which a contribution may be rounding: XGBoost computes in single precision.
NEGLIGIBLE = 1e-6
# Up to so many reasons are looked for one by one, in half the time of sorting.
FEW = 5
# Texts that are remembered: applicants share most of them.
REMEMBERED = 50_000
# Places are numbers of fewer bits.
PLACE_BITS = 24


class Reference(NamedTuple):
    """The average applicant, from whom contributions are measured.

    Attributes
    ----------
    typical : ndarray of shape (n columns,)
        Row of the values view from which paths start: medians, and the most frequent codes.
    mean : ndarray of shape (n columns,)
        Mean over training rows of what `split` says of each column.
    """

    typical: np.ndarray
    mean: np.ndarray


class Reason(msgspec.Struct, frozen=True, gc=False):
    """Why a score is lower than the average applicant's."""

    column: str
    """Name in the contract, or of a ratio."""
    code: str
    """The column, with ``_missing`` behind it if the cell was missing or not valid."""
    contribution: float
    """Log-odds of good, below 0."""
    points: float
    """The same on the scale of scores."""
    text: str
    """For people."""


def make_reference(pipeline: Pipeline, kinds: Sequence[str], values: np.ndarray, weight: np.ndarray | None = None) -> Reference:
    """Describe the average applicant of the training rows.

    Parameters
    ----------
    pipeline : Pipeline
        Fitted model that takes values.
    kinds : sequence of {"numeric", "ordinal", "nominal"}
    values : ndarray of shape (n rows, n columns)
        Training rows in the values view.
    weight : ndarray of shape (n rows,), optional
    """
    typical = np.array([_typical(column, kind) for column, kind in zip(values.T, kinds, strict=True)])
    used = min(len(values), ROWS_SUMMED if _is_sum(pipeline[-1]) else ROWS_ASKED)
    rows = np.linspace(0, len(values) - 1, used).round().astype(int)
    _, parts = split(pipeline, values[rows], typical)
    return Reference(typical, np.average(parts, axis=0, weights=None if weight is None else weight[rows]))


def contributions(pipeline: Pipeline, values: np.ndarray, reference: Reference) -> tuple[float, np.ndarray]:
    """Split log-odds into a base, the average applicant's, and one contribution per column.

    Parameters
    ----------
    pipeline : Pipeline
        Fitted model that takes values.
    values : ndarray of shape (n rows, n columns)
    reference : Reference

    Returns
    -------
    base : float
    contributions : ndarray of shape (n rows, n columns)
        Base and the sum of a row are ln(P(good) / P(bad)); the mean of a column over the training rows is 0.
    """
    base, parts = split(pipeline, values, reference.typical)
    return base + float(reference.mean.sum()), parts - reference.mean


def split(pipeline: Pipeline, values: np.ndarray, typical: np.ndarray) -> tuple[float, np.ndarray]:
    """Return base and contributions as the model has them, before the mean is subtracted."""
    from mlops_project.modeling.calibration import Calibrated, Sigmoid

    classifier = pipeline[-1]
    features = pipeline[-2] if len(pipeline) > 1 else None
    if not isinstance(classifier, Calibrated):
        return _split_margin(features, classifier, values, typical)
    calibrator = classifier.calibrator
    if isinstance(calibrator, Sigmoid):
        base, parts = _split_margin(features, classifier.classifier, values, typical)
        return calibrator.slope_ * base + calibrator.intercept_, calibrator.slope_ * parts
    base, parts = _split_margin(features, classifier.classifier, np.vstack([typical, values]), typical)
    return map_sums(lambda margins: log_odds(calibrator.predict(margins)), base + parts[0].sum(), parts[1:] - parts[0])


def _is_sum(classifier: Any) -> bool:
    from mlops_project.modeling.calibration import Calibrated

    if isinstance(classifier, Calibrated):
        classifier = classifier.classifier
    return hasattr(classifier, "coef_") or hasattr(classifier, "get_booster")


def _split_margin(
    features: FeaturePreprocessor | None, classifier: Any, values: np.ndarray, typical: np.ndarray
) -> tuple[float, np.ndarray]:
    """Split `margin`: the log-odds, or what calibration maps to them."""
    from mlops_project.modeling.calibration import margin
    from mlops_project.modeling.scorecard import Scorecard

    def encode(rows: np.ndarray) -> np.ndarray:
        return rows if features is None else features.transform(rows)

    if isinstance(classifier, Scorecard):
        return float(classifier.intercept_[0]), classifier.encoder_.transform(values) * classifier.coef_[0]
    if hasattr(classifier, "coef_"):
        base, parts = float(classifier.intercept_[0]), encode(values) * classifier.coef_[0]
    elif hasattr(classifier, "get_booster"):
        from xgboost import DMatrix

        encoded = encode(values)
        found = classifier.get_booster().predict(DMatrix(encoded, nthread=1), pred_contribs=True).astype(float)
        base, parts = float(found[0, -1]), found[:, :-1]
        # In single precision they add up to some 1e-6; isotonic calibration can make a step of that. All columns share it.
        parts += (margin(classifier, encoded) - base - parts.sum(axis=1))[:, np.newaxis] / parts.shape[1]
    else:
        return shapley_values(lambda rows: margin(classifier, encode(rows)), values, typical)
    if features is not None:  # one-hot columns and indicators belong to the column that they come from
        parts = parts @ (features.source_columns()[:, np.newaxis] == np.arange(values.shape[1])).astype(float)
    return base, parts


def shapley_values(
    f: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, typical: np.ndarray, orders: int = ORDERS
) -> tuple[float, np.ndarray]:
    """Split f(row) − f(typical) into contributions of the columns, by random orders and their reverses.

    Parameters
    ----------
    f : callable
        Rows of shape (n, n columns) to numbers of shape (n,).
    rows : ndarray of shape (n rows, n columns)
        May hold NaN.
    typical : ndarray of shape (n columns,)
        Where all paths start.
    orders : int
        The same for all rows, so that nobody's reasons depend on who else is scored.

    Returns
    -------
    base : float
        f(typical).
    contributions : ndarray of shape (n rows, n columns)
        Base and the sum of a row are f(row).
    """
    n_columns = rows.shape[1]
    rng = np.random.default_rng(SEED)
    forwards = [rng.permutation(n_columns) for _ in range(orders)]
    base = float(f(typical[np.newaxis])[0])
    out = np.zeros(rows.shape)
    size = max(1, MAX_CELLS // n_columns**2)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        moves = ~((chunk == typical) | (np.isnan(chunk) & np.isnan(typical)))
        for order in [*forwards, *(order[::-1] for order in forwards)]:
            # reached[step, column]: whether the cell is the row's after this step. Steps that change nothing are left out.
            reached = np.argsort(order) <= np.arange(n_columns)[:, np.newaxis]
            row, step = np.nonzero(moves[:, order])
            if not len(row):
                continue
            found = f(np.where(reached[step], chunk[row], typical))
            before = np.r_[base, found[:-1]]
            before[np.r_[True, row[1:] != row[:-1]]] = base
            out[start + row, order[step]] += found - before
    return base, out / (2 * orders)


def map_sums(g: Callable[[np.ndarray], np.ndarray], start: float, parts: np.ndarray) -> tuple[float, np.ndarray]:
    """Split g(start + sum of parts) − g(start): Shapley values, where g takes sums of shape (n,). Needs no model, so many orders.

    If g only rises, so do the contributions with the parts: columns keep their order.

    Parameters
    ----------
    g : callable
    start : float
    parts : ndarray of shape (n rows, n columns)

    Returns
    -------
    base : float
        g(start).
    contributions : ndarray of shape (n rows, n columns)
    """
    rng = np.random.default_rng(SEED)
    orders = np.array([rng.permutation(parts.shape[1]) for _ in range(ORDERS_OF_SUMS)])
    orders = np.vstack([orders, orders[:, ::-1]])
    back = np.argsort(orders, axis=1)
    out = np.empty(parts.shape)
    size = max(1, MAX_CELLS // orders.size)
    for begin in range(0, len(parts), size):
        moves = parts[begin : begin + size, orders]  # (rows, orders, steps)
        sums = start + np.cumsum(np.insert(moves, 0, 0.0, axis=2), axis=2)
        steps = np.diff(g(sums.ravel()).reshape(sums.shape), axis=2)
        out[begin : begin + size] = np.take_along_axis(steps, back[np.newaxis], axis=2).mean(axis=1)
    return float(g(np.array([start]))[0]), out


class Wording:
    """Puts contributions into the contract's words.

    Parameters
    ----------
    contract : Contract
    names : sequence of str
        Columns that contributions belong to, ratios among them.
    """

    def __init__(self, contract: Contract, names: Sequence[str]) -> None:
        self._columns = []
        for name in names:
            column = contract.columns.get(name)  # a ratio of params has no entry
            english = (column.english if column else "").replace("_", " ") or name
            unit = f" {column.unit}" if column and column.unit else ""
            self._columns.append((name, english, contract.code_labels.get(name, {}), unit))
        # By column, cell and points, or by place and points.
        self._said: dict[tuple[int, float | None, int] | int, Reason] = {}

    def __len__(self) -> int:
        return len(self._columns)

    def reasons(
        self,
        cells: np.ndarray,
        parts: np.ndarray,
        points_per_log_odds: float,
        top: int,
        places: np.ndarray | None = None,
        *,
        alike: bool = False,
    ) -> list[list[Reason]]:
        """Put the columns that lower each row's score most into words.

        Parameters
        ----------
        cells : ndarray of shape (n rows, n columns)
            Parsed cells, as they were before any transformation; NaN where missing or not valid.
        parts : ndarray of shape (n rows, n columns)
            Contributions.
        points_per_log_odds : float
        top : int
            Reasons per row at most; a row has fewer if fewer columns count against it.
        places : ndarray of int, shape (n columns, n rows), optional
            Cells that have the same place are the same; 0: no place.
        alike : bool
            Whether cells that have the same place also have the same contribution.

        Returns
        -------
        list of list of Reason
            The heaviest first; of equal ones the contract's first.
        """
        worst = _smallest(parts, top)
        # Where they are in tables that lie column by column, as all of many rows do.
        at = worst * len(parts) + np.arange(len(parts))[:, np.newaxis]
        heaviest = parts.T.ravel().take(at)
        against = heaviest <= -NEGLIGIBLE
        at, columns, contributions = at[against], worst[against], heaviest[against]
        of_cells, points = cells.T.ravel().take(at), points_per_log_odds * contributions
        lost = np.rint(-points).astype(int)
        keys: Any
        if places is None:
            named = [None if cell != cell else cell for cell in of_cells.tolist()]  # noqa: PLR0124 - NaN is not equal to itself
            keys, known = list(zip(columns.tolist(), named, lost.tolist(), strict=True)), None
        else:
            known = places.ravel().take(at)
            keys = (known if alike else known + (lost + 1 << PLACE_BITS)).tolist()
        found: list[Any] = list(map(self._said.get, keys))
        if not all(found):
            for i in [i for i, said in enumerate(found) if said is None]:
                found[i] = self._say(*(of_all[i].item() for of_all in (columns, of_cells, lost, contributions, points)))
                if (known is None or known[i]) and len(self._said) < REMEMBERED:
                    self._said[keys[i]] = found[i]
        if not alike:
            numbers = zip(found, contributions.tolist(), points.tolist(), strict=True)
            found = [Reason(said.column, said.code, contribution, fewer, said.text) for said, contribution, fewer in numbers]
        if len(parts) == 1:
            return [found]
        ends = against.T.copy().sum(axis=0).cumsum().tolist()
        return [found[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _say(self, place: int, cell: float, lost: int, contribution: float, points: float) -> Reason:
        """Word a reason: a cell (NaN: missing) of a column, and the points that it costs."""
        name, english, meanings, unit = self._columns[place]
        missing = cell != cell  # noqa: PLR0124
        value = "missing" if missing else meanings.get(cell) or f"{cell:.6g}{unit}"
        amount = "less than a point" if lost == 0 else f"{lost} point{'s' if lost > 1 else ''}"
        code = f"{name}_missing" if missing else name
        return Reason(name, code, contribution, points, f"{english}: {value} ({amount} below the average applicant)")


def _smallest(parts: np.ndarray, top: int) -> np.ndarray:
    """Return the positions of the ``top`` smallest entries of each row, the smallest first; of equal ones the first."""
    if top > FEW or len(parts) <= FEW:
        return np.argsort(parts, axis=1, kind="stable")[:, :top]
    left, rows = parts.T.copy(), np.arange(len(parts))
    found = np.empty((len(parts), min(top, parts.shape[1])), dtype=int)
    for i in range(found.shape[1]):
        found[:, i] = (left == left.min(axis=0)).argmax(axis=0)  # in two thirds of the time of argmin
        left[found[:, i], rows] = np.inf
    return found


def reason_table(reasons: list[list[Reason]], index: pd.Index, top: int) -> pd.DataFrame:
    """Return reason codes as columns ``reason_1`` to ``reason_<top>``, empty where a row has fewer."""
    import pandas as pd

    return pd.DataFrame(reason_codes(reasons, top), index=index)


def reason_codes(reasons: list[list[Reason]], top: int) -> dict[str, list[str | None]]:
    """Return the columns of `reason_table` as lists of shape (n rows,)."""
    return {f"reason_{i + 1}": [row[i].code if i < len(row) else None for row in reasons] for i in range(top)}


def _typical(values: np.ndarray, kind: str) -> float:
    """Return the lower median, or the most frequent code: something that somebody has."""
    present = np.sort(values[~np.isnan(values)])
    if not len(present):
        return np.nan
    if kind == "nominal":
        codes, counts = np.unique(present, return_counts=True)
        return float(codes[counts.argmax()])
    return float(present[(len(present) - 1) // 2])
