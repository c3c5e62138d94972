"""The scorecard: a logistic regression on weights of evidence, and its tables of bins and points."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from mlops_project.errors import ParamsError
from mlops_project.modeling.evidence import WeightOfEvidence

# Models that were saved before it moved ask for it here.
from mlops_project.modeling.scale import ScoreScale  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from sklearn.utils import Tags

    from mlops_project.modeling.binning import Bins
    from mlops_project.schema import Contract

    # Column name → code → what it means.
    Labels = Mapping[str, Mapping[float, str]]


class Scorecard(ClassifierMixin, BaseEstimator):
    """Logistic regression on weights of evidence, with coefficients of 0 or more: no bin counts against its own bad rate.

    Were the columns independent, each coefficient would be 1; correlated columns share what they say. So the penalty draws
    coefficients not to 0, where evidence would be thrown away, but to ``center``.

    Parameters
    ----------
    names, kinds, directions, max_bins, min_bin_share, smoothing, overrides
        See `WeightOfEvidence`.
    C : float
        Inverse strength of the L2 penalty on the coefficients' distance to ``center``.
    center : float
        What coefficients are drawn to; 0 is the usual penalty.

    Attributes
    ----------
    encoder_ : WeightOfEvidence
    coef_ : ndarray of shape (1, n columns)
        All ≥ 0; a column with 0 is left out of the card.
    intercept_ : ndarray of shape (1,)
    classes_ : ndarray of shape (2,)
        Bad, good.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        directions: Sequence[str | None] | None = None,
        max_bins: int = 8,
        min_bin_share: float = 0.03,
        smoothing: float = 30.0,
        overrides: Mapping[str, Sequence[Any]] | None = None,
        C: float = 0.05,
        center: float = 0.6,
    ) -> None:
        self.names = names
        self.kinds = kinds
        self.directions = directions
        self.max_bins = max_bins
        self.min_bin_share = min_bin_share
        self.smoothing = smoothing
        self.overrides = overrides
        self.C = C
        self.center = center

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Scorecard:
        """Fit bins and coefficients to float values of shape (n rows, n columns), NaN where missing.

        Raises
        ------
        ValueError
            As `WeightOfEvidence.fit`; or if ``C`` is not above 0 or ``center`` below 0.
        """
        if not self.C > 0 or not self.center >= 0:
            raise ValueError(f"found C {self.C} and center {self.center}, expected above 0, and 0 or more")
        encoder = self.encoder().fit(X, y, sample_weight)
        if hasattr(encoder, "feature_names_in_"):
            self.feature_names_in_ = encoder.feature_names_in_
        woe = encoder.transform(X)
        sign = np.where(np.asarray(y).ravel() == encoder.classes_[1], 1.0, -1.0)
        weight = _check_sample_weight(sample_weight, woe, dtype=float)
        self.set_fitted(encoder, *fit_coefficients(woe, sign, weight, self.C, self.center))
        return self

    def encoder(self) -> WeightOfEvidence:
        """Return the encoder of this card, unfitted."""
        return WeightOfEvidence(
            self.names, self.kinds, self.directions, self.max_bins, self.min_bin_share, self.smoothing, self.overrides
        )

    def set_fitted(self, encoder: WeightOfEvidence, coefficients: np.ndarray, intercept: np.ndarray) -> None:
        """Take what was fitted: the encoder, coefficients of shape (n columns,) and the intercept of shape (1,)."""
        self.encoder_, self.coef_, self.intercept_ = encoder, coefficients[np.newaxis], intercept
        self.classes_, self.n_features_in_ = encoder.classes_, encoder.n_features_in_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return ln(P(good) / P(bad)), shape (n rows,)."""
        check_is_fitted(self)
        return self.encoder_.transform(X) @ self.coef_[0] + self.intercept_[0]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return P(bad) and P(good), shape (n rows, 2)."""
        from scipy.special import expit

        log_odds = self.decision_function(X)
        return np.column_stack([expit(-log_odds), expit(log_odds)])

    def predict(self, X: Any) -> np.ndarray:
        """Return the more probable class of each row."""
        log_odds = self.decision_function(X)
        return self.classes_[(log_odds > 0).astype(int)]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.multi_class = False
        return tags


def fit_coefficients(
    woe: np.ndarray, sign: np.ndarray, weight: np.ndarray, C: float, center: float
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the weighted log loss plus the penalty, with coefficients ≥ 0. Convex, so there is one answer."""
    from scipy.optimize import minimize
    from scipy.special import expit

    total = weight.sum()

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (woe @ beta[:-1] + beta[-1])
        pull = beta[:-1] - center
        wrong = weight * sign * expit(-margin)
        value = weight @ np.logaddexp(0, -margin) + pull @ pull / (2 * C)
        return value / total, np.append(pull / C - wrong @ woe, -wrong.sum()) / total

    start = np.full(woe.shape[1] + 1, center)
    start[-1] = math.log(weight[sign > 0].sum() / weight[sign < 0].sum())
    bounds = [(0.0, None)] * woe.shape[1] + [(None, None)]
    tight = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=tight).x
    return found[:-1], found[-1:]


def bins_by_code(
    bins: Mapping[str, Sequence[Any]], contract: Contract, names: Sequence[str], key: str = "models.scorecard.bins"
) -> dict[str, Any]:
    """Translate bins by hand from the contract's codes into parsed numbers, as `WeightOfEvidence` takes them.

    Raises
    ------
    ParamsError
        If a column is not among ``names``, a code not in the contract, or a list has the wrong form for the column's kind.
    """
    out: dict[str, Any] = {}
    for name, entries in bins.items():
        if name not in names:
            raise ParamsError(f"{key}: found {name!r}, expected a column that the model sees: {', '.join(names)}")
        column = contract.columns.get(name)
        if column is None:  # a ratio of params has no entry in the contract
            out[name] = list(entries)
            continue
        nominal = column.kind == "nominal"
        if any(isinstance(entry, (list, tuple)) != nominal for entry in entries):
            form = "lists of codes" if nominal else "cut points"
            raise ParamsError(f"{key}.{name}: is {column.kind}; found {list(entries)}, expected {form}")
        number = {code: float(i) if column.has_text_codes else code for i, code in enumerate(column.code_list)}
        flat = [code for entry in entries for code in entry] if nominal else list(entries)
        if column.codes and (unknown := [code for code in flat if code not in number]):
            raise ParamsError(f"{key}.{name}: found {unknown[0]!r}, expected {column.domain}")
        if len(set(flat)) < len(flat):
            raise ParamsError(f"{key}.{name}: found {list(entries)}, expected no code or cut point twice")
        if not nominal and (cuts := [number.get(cut, cut) for cut in flat]) != sorted(cuts):
            raise ParamsError(f"{key}.{name}: found {flat}, expected cut points in rising order")
        out[name] = [[number[code] for code in entry] for entry in entries] if nominal else [number.get(c, c) for c in flat]
    return out


def bins_table(encoder: WeightOfEvidence, labels: Labels | None = None) -> pd.DataFrame:
    """Return one row per attribute and bin, in the order of the values; nominal bins from risky to safe.

    Parameters
    ----------
    encoder : WeightOfEvidence
        Fitted.
    labels : mapping, optional
        Column → code → words; codes without words are shown as numbers.

    Returns
    -------
    DataFrame
        ``attribute``, ``bin``, ``rows`` (weight of the training rows), ``share`` of all rows, ``bad_rate`` (NaN without rows),
        ``woe``, ``iv`` (the bin's part of the information value, by the smoothed weight of evidence).
    """
    import pandas as pd

    parts = []
    for name, bins in zip(encoder.names_, encoder.bins_, strict=True):
        rows = bins.good + bins.bad
        with np.errstate(invalid="ignore"):
            part = {"attribute": name, "bin": bin_labels(bins, (labels or {}).get(name, {})), "rows": rows}
            part |= {"share": rows / rows.sum(), "bad_rate": bins.bad / rows, "woe": bins.woe, "iv": _information(bins)}
        # Codes that training did not see are a row too: they will be scored. An order has no unknown codes.
        parts.append(pd.DataFrame(part).iloc[: None if bins.kind == "nominal" else -1])
    return pd.concat(parts, ignore_index=True)


def attributes_table(encoder: WeightOfEvidence) -> pd.DataFrame:
    """Return one row per attribute, the most informative first.

    Returns
    -------
    DataFrame
        ``attribute``, ``kind``, ``bins`` (missing not counted), ``iv`` (information value), ``missing`` (share), ``bad_rate``:
        how it moves over the bins as the value rises, ``falls``, ``rises``, ``constant``, ``both`` (only by hand), or missing
        where codes have no order.
    """
    import pandas as pd

    rows = []
    for name, bins in zip(encoder.names_, encoder.bins_, strict=True):
        weight = bins.good + bins.bad
        shape = {(True, True): "constant", (True, False): "falls", (False, True): "rises", (False, False): "both"}
        rows.append({
            "attribute": name,
            "kind": bins.kind,
            "bins": bins.n,
            "iv": float(_information(bins).sum()),
            "missing": float(weight[bins.n] / weight.sum()),
            "bad_rate": None if bins.kind == "nominal" else shape[bins.rising, bins.falling],
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("iv", ascending=False, kind="stable", ignore_index=True)


def points_table(
    card: Scorecard,
    scale: ScoreScale,
    labels: Labels | None = None,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> pd.DataFrame:
    """Return `bins_table` with the points of each bin; an applicant's score is the sum over the attributes.

    As scorecards usually do, intercept and base score are spread evenly over the attributes that count, so that there is no
    base to add. Should none count, a first row holds the base. ``slope`` and ``intercept`` are those of a calibration of the
    log-odds.

    Returns
    -------
    DataFrame
        The columns of `bins_table`, ``coefficient``, ``points`` (exact) and ``rounded`` (for people; a sum of these is off by
        half a point per attribute at most).

    References
    ----------
    Siddiqi, N. (2006). Credit Risk Scorecards. Wiley. Chapter 6, scaling.
    """
    import pandas as pd

    table = bins_table(card.encoder_, labels)
    base = scale.points(slope * card.intercept_[0] + intercept)
    coefficients = pd.Series(slope * card.coef_[0], index=card.encoder_.names_)
    table["coefficient"] = coefficients[table["attribute"]].to_numpy()
    used = int((coefficients > 0).sum())
    table["points"] = scale.points_per_log_odds * table["coefficient"] * table["woe"] + (table["coefficient"] > 0) * base / max(
        used, 1
    )
    if not used:
        first = pd.DataFrame([{"attribute": "", "bin": "base", "points": base}])
        table = pd.concat([first, table], ignore_index=True)
    table["rounded"] = table["points"].round().astype(int)
    return table


def bin_labels(bins: Bins, labels: Mapping[float, str]) -> list[str]:
    """Return what each bin holds, in words where ``labels`` has them, then "missing" and "other"."""
    if bins.kind == "nominal":
        groups = [bins.points[bins.groups == i] for i in range(bins.n)]
        found = [" | ".join(labels.get(code, f"{code:.15g}") for code in group) for group in groups]
    elif labels:
        codes = np.array(sorted(labels))
        places = bins.assign(codes)
        found = [" | ".join(labels[code] for code in codes[places == i]) or "none" for i in range(bins.n)]
    else:
        ends = [f"{cut:.15g}" for cut in bins.points]
        between = [f"{low} to < {high}" for low, high in pairwise(ends)]
        found = [f"< {ends[0]}", *between, f">= {ends[-1]}"] if ends else ["any"]
    return [*found, "missing", "other"]


def _information(bins: Bins) -> np.ndarray:
    return (bins.good / bins.good.sum() - bins.bad / bins.bad.sum()) * bins.woe
