"""Applicants → what a model sees: four scikit-learn transformers. `preprocessing` joins them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, RobustScaler, StandardScaler
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from sklearn.pipeline import Pipeline
    from sklearn.utils import Tags

    from mlops_project.config import Ratio
    from mlops_project.schema import Contract


class _AllowsMissing(BaseEstimator):
    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class InvalidDataHandler(OneToOneFeatureMixin, TransformerMixin, _AllowsMissing):
    """Turns raw cells into numbers: what the data contract does not allow becomes missing.

    Parameters
    ----------
    contract : Contract, optional
        The data contract. Without it all columns are numbers, and infinite ones become missing.

    Attributes
    ----------
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n features,)
        The contract's feature columns, in its order. Further columns of the input are ignored.
    """

    def __init__(self, contract: Contract | None = None) -> None:
        self.contract = contract

    def fit(self, X: Any, y: Any = None) -> InvalidDataHandler:
        """Check that the columns are there. Nothing is learned from the rows."""
        if self.contract is None:
            validate_data(self, X, dtype=float, ensure_all_finite=False)
            return self
        self.contract.require(self._frame(X).columns, self.contract.features, "table")
        self.feature_names_in_ = np.array(self.contract.features, dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return float values of shape (n rows, n features), NaN where missing or invalid; see `Contract.parse`."""
        check_is_fitted(self, "n_features_in_")
        if self.contract is None:
            values = validate_data(self, X, dtype=float, ensure_all_finite=False, reset=False)
            return np.where(np.isfinite(values), values, np.nan)
        return self.contract.parse_features(self._frame(X)).values

    def _frame(self, X: Any) -> Any:
        if hasattr(X, "columns"):
            return X
        import pandas as pd

        names = self.contract.features if self.contract is not None else None
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != len(names or ()):
            raise ValueError(f"found an array of shape {X.shape}, expected a table or an array with the columns {names}")
        return pd.DataFrame(X, columns=names)


class OutlierHandler(OneToOneFeatureMixin, TransformerMixin, _AllowsMissing):
    """Caps extreme numbers at bounds learned from the fitted rows; missing stays missing.

    Parameters
    ----------
    method : {"iqr", "percentiles"}
        ``iqr``: quartiles minus and plus ``factor`` times the interquartile range (Tukey's fences).
        ``percentiles``: the ``lower`` and ``upper`` percentile.
    factor : float
    lower, upper : float
        Percentiles, 0 to 100.
    columns : sequence of int, optional
        Positions of the columns to cap; all by default.

    Attributes
    ----------
    lower_, upper_ : ndarray of shape (n features,)
        The bounds, infinite where nothing is capped.
    """

    def __init__(
        self,
        method: str = "iqr",
        factor: float = 1.5,
        lower: float = 1.0,
        upper: float = 99.0,
        columns: Sequence[int] | None = None,
    ) -> None:
        self.method = method
        self.factor = factor
        self.lower = lower
        self.upper = upper
        self.columns = columns

    def fit(self, X: Any, y: Any = None) -> OutlierHandler:
        """Learn the bounds. Raises ValueError for an unknown method."""
        X = validate_data(self, X, dtype=float, ensure_all_finite="allow-nan")
        if self.method not in ("iqr", "percentiles"):
            raise ValueError(f"method: found {self.method!r}, expected 'iqr' or 'percentiles'")
        self.lower_ = np.full(X.shape[1], -np.inf)
        self.upper_ = np.full(X.shape[1], np.inf)
        for i in range(X.shape[1]) if self.columns is None else self.columns:
            present = X[~np.isnan(X[:, i]), i]
            if present.size == 0:
                continue
            if self.method == "iqr":
                first, third = np.percentile(present, [25, 75])
                reach = self.factor * (third - first)
                self.lower_[i], self.upper_[i] = first - reach, third + reach
            else:
                self.lower_[i], self.upper_[i] = np.percentile(present, [self.lower, self.upper])
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the capped values, shape (n rows, n features)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=float, ensure_all_finite="allow-nan", reset=False)
        return np.clip(X, self.lower_, self.upper_)


class RowFeatures(TransformerMixin, _AllowsMissing):
    """Features that one row gives by itself: quotients and logarithms. Nothing is learned; missing stays missing.

    Parameters
    ----------
    contract : Contract, optional
        Names the columns; without it there is nothing to name, and the rows pass unchanged.
    ratios : sequence of Ratio
        Quotients of two numeric columns to add behind the others; missing where the denominator is 0.
    log : sequence of str
        Numeric columns to replace by log(1 + x).
    """

    def __init__(self, contract: Contract | None = None, ratios: Sequence[Ratio] = (), log: Sequence[str] = ()) -> None:
        self.contract = contract
        self.ratios = ratios
        self.log = log

    def fit(self, X: Any, y: Any = None) -> RowFeatures:
        """Check the shape."""
        validate_data(self, X, dtype=float, ensure_all_finite="allow-nan")
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return float values of shape (n rows, n features + n ratios)."""
        check_is_fitted(self, "n_features_in_")
        X = validate_data(self, X, dtype=float, ensure_all_finite="allow-nan", reset=False)
        if self.contract is None or not (self.ratios or self.log):
            return X
        position = {name: i for i, name in enumerate(self.contract.features)}
        columns = list(X.T.copy())
        with np.errstate(divide="ignore", invalid="ignore"):
            for ratio in self.ratios:
                quotient = X[:, position[ratio.numerator]] / X[:, position[ratio.denominator]]
                columns.append(np.where(np.isfinite(quotient), quotient, np.nan))
            for name in self.log:
                logged = np.log1p(X[:, position[name]])
                columns[position[name]] = np.where(np.isfinite(logged), logged, np.nan)
        return np.column_stack(columns)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, then of the ratios."""
        check_is_fitted(self, "n_features_in_")
        given = self.contract.features if self.contract is not None else _check_feature_names_in(self, input_features)
        return np.array([*given, *(ratio.name for ratio in self.ratios)], dtype=object)


class FeaturePreprocessor(TransformerMixin, _AllowsMissing):
    """Imputation, scaling and encoding of the numbers that `InvalidDataHandler` and `RowFeatures` give.

    Parameters
    ----------
    contract : Contract, optional
        Says which columns are numeric, ordinal and nominal; further columns, and all without it, are numeric.
    numeric_imputation : {"median", "mean"}
        For numeric and ordinal columns; nominal ones take the most frequent code.
    missing_indicators : bool
        Add a 0/1 column per feature that says where it was missing.
    scale : {"standard", "robust", "none"}
        Mean and standard deviation, or median and interquartile range.
    ordinals : {"rank", "one_hot"}
        Ordinal codes as one number each, or as one 0/1 column per code.

    Attributes
    ----------
    parts_ : list of (list of int, Pipeline)
        Which columns are imputed and scaled, which imputed and one-hot encoded.
    empty_ : ndarray of bool, shape (n columns,)
        Columns without any value in the fitted rows; they stay constant.
    one_hot_groups_ : list of list of int
        Output columns that belong to one coded column.
    """

    def __init__(
        self,
        contract: Contract | None = None,
        numeric_imputation: str = "median",
        missing_indicators: bool = False,
        scale: str = "standard",
        ordinals: str = "rank",
    ) -> None:
        self.contract = contract
        self.numeric_imputation = numeric_imputation
        self.missing_indicators = missing_indicators
        self.scale = scale
        self.ordinals = ordinals

    def fit(self, X: Any, y: Any = None) -> FeaturePreprocessor:
        """Learn imputation values and scales from rows of shape (n rows, n columns)."""
        X = validate_data(self, X, dtype=float, ensure_all_finite="allow-nan")
        scalers = {"standard": StandardScaler(), "robust": RobustScaler(), "none": FunctionTransformer()}
        if self.scale not in scalers:
            raise ValueError(f"scale: found {self.scale!r}, expected one of {list(scalers)}")
        if self.ordinals not in ("rank", "one_hot"):
            raise ValueError(f"ordinals: found {self.ordinals!r}, expected 'rank' or 'one_hot'")
        self.empty_ = np.isnan(X).all(axis=0)
        coded = self._coded()
        numbers = [i for i in range(X.shape[1]) if i not in coded]
        self.parts_ = []
        # Kept when empty: a column without any value becomes a constant instead of changing the shape.
        if numbers:
            impute = SimpleImputer(strategy=self.numeric_imputation, keep_empty_features=True)
            self.parts_.append((numbers, make_pipeline(impute, scalers[self.scale]).fit(X[:, numbers])))
        if coded:
            # All codes of the contract, seen or not, so that the model's view does not depend on the rows.
            codes = [np.array(codes) for codes, _ in coded.values()]
            encoder = OneHotEncoder(categories=codes, handle_unknown="ignore", sparse_output=False)
            impute = SimpleImputer(strategy="most_frequent", keep_empty_features=True)
            self.parts_.append((list(coded), make_pipeline(impute, encoder).fit(X[:, list(coded)])))
        ends = len(numbers) + np.cumsum([0, *(len(codes) for codes, _ in coded.values())])
        self.one_hot_groups_ = [list(range(a, b)) for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the encoded view, float of shape (n rows, n encoded columns), without missing values."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=float, ensure_all_finite="allow-nan", reset=False)
        # Of a column without any value nothing was learned, no scale either: what comes later must not count.
        X = np.where(self.empty_, np.nan, X)
        parts = [part.transform(X[:, columns]) for columns, part in self.parts_]
        return np.hstack([*parts, np.isnan(X).astype(float)] if self.missing_indicators else parts)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return encoded rows as numbers again, shape (n rows, n columns); what was imputed stays so.

        A row between two others (SMOTE) has the code with the largest share; NaN where no code was known.
        """
        check_is_fitted(self)
        values = np.full((len(X), self.n_features_in_), np.nan)
        for columns, part in self.parts_:
            if isinstance(part[-1], OneHotEncoder):
                for column, codes, group in zip(columns, part[-1].categories_, self.one_hot_groups_, strict=True):
                    values[:, column] = np.where(X[:, group].any(axis=1), codes[X[:, group].argmax(axis=1)], np.nan)
            else:
                values[:, columns] = part[-1].inverse_transform(X[:, : len(columns)])
        return np.where(self.empty_, np.nan, values)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the output columns: ``laufzeit``, ``moral_4`` (column and code), ``hoehe_missing``."""
        check_is_fitted(self)
        names = list(_check_feature_names_in(self, input_features))
        if self.contract is not None:
            names[: len(self.contract.features)] = self.contract.features
        coded = self._coded()
        out = [name for i, name in enumerate(names) if i not in coded]
        out += [f"{names[i]}_{label}" for i, (_, labels) in coded.items() for label in labels]
        out += [f"{name}_missing" for name in names] if self.missing_indicators else []
        return np.array(out, dtype=object)

    def source_columns(self) -> np.ndarray:
        """Return the position of the input column that each output column comes from, int of shape (n encoded columns,)."""
        check_is_fitted(self)
        coded = self._coded()
        columns = range(self.n_features_in_)
        out = [i for i in columns if i not in coded]
        out += [i for i, (codes, _) in coded.items() for _ in codes]
        out += columns if self.missing_indicators else []
        return np.array(out)

    def _coded(self) -> dict[int, tuple[list[float], list[Any]]]:
        """Position → (parsed codes, labels) of the columns to one-hot encode."""
        if self.contract is None:
            return {}
        kinds = ("nominal", "ordinal") if self.ordinals == "one_hot" else ("nominal",)
        coded = {}
        for i, name in enumerate(self.contract.features):
            column = self.contract.columns[name]
            if column.kind in kinds:
                labels = column.code_list
                codes = list(range(len(labels))) if column.has_text_codes else labels
                pairs = sorted(zip(map(float, codes), labels, strict=True))
                coded[i] = ([code for code, _ in pairs], [label for _, label in pairs])
        return coded


def prepare_features(
    X_train: pd.DataFrame, X_test: pd.DataFrame | None = None, save_preprocessor: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame | None, Pipeline]:
    """Fit the preprocessor as the featurize stage does, by the contract and the params of the working directory.

    Parameters
    ----------
    X_train : DataFrame of shape (n rows, …)
        Rows with the contract's columns; only on these is anything fitted.
    X_test : DataFrame, optional
        Further rows to transform.
    save_preprocessor : bool
        Write ``models/preprocessor.joblib``.

    Returns
    -------
    X_train_t, X_test_t : DataFrame of shape (n rows, n features)
        Rows as a model sees them; None without ``X_test``.
    preprocessor : Pipeline
    """
    # Here and not above: `preprocessing` joins the transformers of this module.
    from mlops_project.config import MODELS, load_params
    from mlops_project.manifest import dump
    from mlops_project.preprocessing import feature_table, fit_preprocessor
    from mlops_project.schema import load_contract

    params = load_params()
    preprocessor = fit_preprocessor(X_train, load_contract(params.data.contract), params.featurize)
    if save_preprocessor:
        dump(preprocessor, MODELS / "preprocessor.joblib")
    test = None if X_test is None else feature_table(preprocessor, X_test)
    return feature_table(preprocessor, X_train), test, preprocessor
