"""The saved model: one object, raw applicant rows in, P(good) out, with what is needed to trust it inside."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

# Not needed to define the class, but to load one: the pipeline inside holds these estimators.
from mlops_project import features, files
from mlops_project.modeling import ensemble, scorecard
from mlops_project.modeling.calibration import log_odds
from mlops_project.schema import Contract  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from sklearn.pipeline import Pipeline

__all__ = ["RiskModel", "ensemble", "features", "load_model", "scorecard", "table_hash"]

LIBRARIES = ("numpy", "scipy", "pandas", "scikit-learn", "imbalanced-learn", "xgboost", "xgboost-cpu", "joblib")


class RiskModel:
    """A fitted credit-risk model.

    Parameters
    ----------
    name : str
        Which of the models it is.
    pipeline : Pipeline
        Fitted preprocessor and classifier.
    contract : Contract
        The data contract of the rows that it takes.
    params : dict
        The settings that made it: ``train`` and the section of the selected model.
    training_data_hash : str
        `table_hash` of the rows that it was fitted on.
    sample_default_rate : float
        Weighted share of bad among these rows: the default rate that the probabilities assume.

    Attributes
    ----------
    classes_ : ndarray
        [0, 1]: bad, good.
    feature_names_in_ : list of str
        The columns that it reads; others are ignored.
    library_versions : dict of str
    """

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        contract: Contract,
        params: dict[str, Any],
        training_data_hash: str,
        sample_default_rate: float,
    ) -> None:
        self.name = name
        self.pipeline = pipeline
        self.contract = contract
        self.params = params
        self.training_data_hash = training_data_hash
        self.sample_default_rate = sample_default_rate
        self.classes_ = np.array([0, 1])
        # Fewer than the contract's where protected columns are hidden.
        self.feature_names_in_ = list(pipeline.feature_names_in_)
        self.library_versions = {name: found for name in LIBRARIES if (found := _version(name))}

    def predict_proba(self, table: pd.DataFrame) -> np.ndarray:
        """Return P(bad) and P(good) of raw rows, shape (n rows, 2).

        Cells may be text or numbers, clean or not: what the contract does not allow is treated as missing.

        Raises
        ------
        DataError
            If a column of the contract is absent.
        """
        # One thread: more cost at these sizes, and the order of summation would depend on their number.
        with threadpool_limits(limits=1):
            # XGBoost answers in single precision.
            return self.pipeline.predict_proba(table).astype(float)

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        """Return 1 where P(good) is above one half, else 0. A decision at other costs needs its own threshold."""
        return (self.predict_proba(table)[:, 1] > 0.5).astype(int)

    def probability_of_default(self, table: pd.DataFrame) -> np.ndarray:
        """Return 1 − P(good), shape (n rows,)."""
        return self.predict_proba(table)[:, 0]

    def score(self, table: pd.DataFrame) -> np.ndarray:
        """Return points, shape (n rows,): higher is safer, ``base_score`` stands for odds of ``base_odds`` good to one bad.

        ``points_to_double`` more points double the odds. All three are settings of ``train``.
        """
        scale = self.params["train"]
        factor = scale["points_to_double"] / np.log(2)
        return scale["base_score"] + factor * (log_odds(self.predict_proba(table)[:, 1]) - np.log(scale["base_odds"]))


def table_hash(table: pd.DataFrame, y: np.ndarray, contract: Contract) -> str:
    """SHA-256 of parsed feature values and outcomes, whatever file or frame they came in."""
    digest = hashlib.sha256(np.ascontiguousarray(contract.parse_features(table).values + 0.0, dtype="<f8").tobytes())
    digest.update(np.ascontiguousarray(y, dtype="<i8").tobytes())
    return digest.hexdigest()


def load_model(path: str | Path) -> RiskModel:
    """Read a model that the train stage wrote.

    Unpickling runs code: load only models of this repository's own pipeline. Raises PipelineError if it is not one.
    """
    return files.load(path, lambda found: isinstance(found, RiskModel), "a RiskModel of the train stage")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
