"""The preprocessor: the transformers of `features` joined as params.yaml says, written and read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, RobustScaler, StandardScaler

from mlops_project.errors import ParamsError
from mlops_project.features import FeaturePreprocessor, InvalidDataHandler, OutlierHandler, RowFeatures
from mlops_project.files import spread
from mlops_project.manifest import load

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from mlops_project.config import FeaturizeParams
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

# Of more rows so many, evenly spread, say what missing cells become and how numbers are scaled: the standard error of a mean
# is then two thousandths of a standard deviation.
PREPROCESSED_ROWS = 200_000
# Rows that are transformed at a time where all would take too much memory.
BLOCK_ROWS = 20_000


class Columns(NamedTuple):
    """The columns of the values view: numbers with gaps, one column per attribute.

    ``kinds`` are numeric, ordinal or nominal; ``directions`` say how P(good) must move as the value rises: increasing,
    decreasing or None. ``contract`` is the one that the preprocessor was built for.
    """

    contract: Contract
    names: list[str]
    kinds: list[str]
    directions: list[str | None]


def build_preprocessor(contract: Contract, params: FeaturizeParams) -> Pipeline:
    """Join the transformers: raw rows with the contract's columns in, the model's view out. Unfitted.

    Raises
    ------
    ParamsError
        If params name a column that is not numeric in the contract, or a new feature takes the name of a column.
    """
    numeric = contract.of_kind("numeric")
    used = [("log", name) for name in params.log]
    used += [("ratios", name) for ratio in params.ratios for name in (ratio.numerator, ratio.denominator)]
    for key, name in used:
        if name not in numeric:
            raise ParamsError(
                f"params.yaml: featurize.{key}: {name!r} is not a numeric column of the contract; those are {numeric}"
            )
    new = [ratio.name for ratio in params.ratios]
    if clash := [name for name in new if name in contract.columns or new.count(name) > 1]:
        raise ParamsError(f"params.yaml: featurize.ratios: the name(s) {clash} are taken; choose others")
    steps: list[tuple[str, Any]] = [("invalid", InvalidDataHandler(contract))]
    if params.outliers != "none":
        steps.append(
            (
                "outliers",
                OutlierHandler(
                    method=params.outliers,
                    factor=params.iqr_factor,
                    lower=params.lower_percentile,
                    upper=params.upper_percentile,
                    columns=[contract.features.index(name) for name in numeric],
                ),
            )
        )
    features = FeaturePreprocessor(
        contract,
        numeric_imputation=params.numeric_imputation,
        missing_indicators=params.missing_indicators,
        scale=params.scale,
        ordinals=params.ordinals,
    )
    # All steps but the last give the values view, numbers with gaps; the last makes the encoded view of it.
    return Pipeline([*steps, ("rows", RowFeatures(contract, params.ratios, params.log)), ("features", features)])


def shown_contract(contract: Contract, params: FeaturizeParams) -> Contract:
    """Return the contract of what a model is shown: without protected columns if params say so."""
    return contract.without(contract.protected) if params.without_protected else contract


def fit_preprocessor(X: pd.DataFrame, contract: Contract, params: FeaturizeParams) -> Pipeline:
    """Build the preprocessor of the columns that `shown_contract` gives, and fit it. Raises as `build_preprocessor`.

    Of more than `PREPROCESSED_ROWS` rows so many are used, evenly spread.
    """
    contract = shown_contract(contract, params)
    if len(X) > PREPROCESSED_ROWS:
        X = X.iloc[spread(len(X), PREPROCESSED_ROWS)]
    preprocessor = build_preprocessor(contract, params).fit(X)
    logger.info(
        "preprocessor: %d columns become %d features, fitted on %d rows",
        len(contract.features),
        len(preprocessor.get_feature_names_out()),
        len(X),
    )
    return preprocessor


def value_columns(preprocessor: Pipeline) -> Columns:
    """Describe the columns that all steps of a preprocessor but the last give; what is new in them is numeric and free."""
    rows = preprocessor.named_steps["rows"]
    contract = rows.contract
    new = [ratio.name for ratio in rows.ratios]
    known = [contract.columns[name] for name in contract.features]
    return Columns(
        contract,
        [*contract.features, *new],
        [*(column.kind for column in known), *("numeric" for _ in new)],
        [*(column.monotone for column in known), *(None for _ in new)],
    )


def encoding_of(features: FeaturePreprocessor) -> dict[str, np.ndarray]:
    """Read what a fitted preprocessor learned, as `forms.Encoding` takes it."""
    none, nowhere = np.empty(0), np.empty(0, dtype=int)
    out = {"numbers": nowhere, "filled": none, "center": none, "spread": none}
    out |= {"coded": nowhere, "filled_code": none, "place": nowhere, "code": none}
    for columns, part in features.parts_:
        imputer, last = part[0], part[-1]
        filled = np.nan_to_num(imputer.statistics_)  # a column without any value becomes 0
        if isinstance(last, OneHotEncoder):
            place = np.repeat(np.arange(len(columns)), [len(codes) for codes in last.categories_])
            out |= {"coded": np.array(columns), "filled_code": filled, "place": place, "code": np.concatenate(last.categories_)}
            continue
        center, spread = np.zeros(len(columns)), np.ones(len(columns))
        if isinstance(last, StandardScaler):
            center, spread = last.mean_, last.scale_
        elif isinstance(last, RobustScaler):
            center, spread = last.center_, last.scale_
        out |= {"numbers": np.array(columns), "filled": filled, "center": center, "spread": spread}
    return out | {"empty": features.empty_, "indicators": np.array([features.missing_indicators])}


def in_blocks(to_values: Pipeline, X: pd.DataFrame) -> np.ndarray:
    """Transform many rows some at a time, shape (n rows, n columns): in single precision if all columns of ``X`` are."""
    single = all(kind == np.float32 for kind in X[to_values[0].feature_names_in_].dtypes)
    out: np.ndarray | None = None
    for start in range(0, len(X), BLOCK_ROWS):
        block = to_values.transform(X.iloc[start : start + BLOCK_ROWS])
        out = np.empty((len(X), block.shape[1]), dtype=np.float32 if single else float) if out is None else out
        out[start : start + BLOCK_ROWS] = block
    return np.empty((0, 0)) if out is None else out


def feature_table(preprocessor: Pipeline, X: pd.DataFrame) -> pd.DataFrame:
    """Return rows as a model sees them, shape (n rows, n features), with the features' names and the rows' index."""
    import pandas as pd

    return pd.DataFrame(preprocessor.transform(X), index=X.index, columns=preprocessor.get_feature_names_out())


def load_preprocessor(path: str | Path, *, trust_file: bool = False) -> Pipeline:
    """Read a preprocessor that the featurize stage wrote; parameters and errors as `manifest.load`."""
    return load(path, Pipeline, "a preprocessor of the featurize stage", trust_file=trust_file)
