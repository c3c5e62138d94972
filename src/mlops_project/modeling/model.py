"""The saved model: one object, raw applicant rows in, P(good) out, with what is needed to trust it inside."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

# Not needed to define the class, but to load one: the pipeline inside holds these estimators.
from mlops_project import features
from mlops_project.manifest import load
from mlops_project.modeling import ensemble, scorecard
from mlops_project.modeling.reasons import Reason, Reference, Wording, contributions
from mlops_project.modeling.scale import log_odds
from mlops_project.preprocessing import value_columns
from mlops_project.schema import Contract  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from sklearn.pipeline import Pipeline

    from mlops_project.modeling.scale import ScoreScale

__all__ = ["RiskModel", "ensemble", "features", "load_model", "scorecard", "table_hash"]

KIND = "a RiskModel of the train stage"
# Rows that are hashed at a time.
HASHED_ROWS = 50_000
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
    scale : ScoreScale
        Of `score`.
    reference : Reference, optional
        The average applicant; without it there are no contributions and no reasons.

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
        scale: ScoreScale,
        reference: Reference | None = None,
    ) -> None:
        self.name = name
        self.pipeline = pipeline
        self.contract = contract
        self.params = params
        self.training_data_hash = training_data_hash
        self.sample_default_rate = sample_default_rate
        self.scale = scale
        self.reference = reference
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
        """Return points on the model's scale, shape (n rows,): higher is safer."""
        return self.scale.points(log_odds(self.predict_proba(table)[:, 1]))

    def contributions(self, table: pd.DataFrame) -> tuple[float, pd.DataFrame]:
        """Split ln(P(good) / P(bad)) of raw rows into what each column adds; see `reasons`.

        Returns
        -------
        base : float
            The average applicant's log-odds.
        contributions : DataFrame of shape (n rows, n columns)
            The columns that the model reads, then ratios. Base and the sum of a row are its log-odds, which `score` cuts off at
            ± 15 if they reach that far.

        Raises
        ------
        DataError
            If a column of the contract is absent.
        ValueError
            If the model has no reference.
        """
        import pandas as pd

        _, base, parts = self._explain(table)
        return base, pd.DataFrame(parts, index=table.index, columns=value_columns(self.pipeline).names)

    def reasons(self, table: pd.DataFrame, top: int = 3) -> list[list[Reason]]:
        """Return for each raw row the columns that lower its score most, the heaviest first; raises as `contributions`.

        ``top`` at most, fewer if fewer columns count against the applicant, be the score high or low. A protected column may be
        among them where the model reads it; ``featurize.without_protected`` hides it from both.
        """
        cells, _, parts = self._explain(table)
        wording = Wording(self.contract, value_columns(self.pipeline).names)
        return wording.reasons(cells, parts, self.scale.points_per_log_odds, top)

    def _explain(self, table: pd.DataFrame) -> tuple[np.ndarray, float, np.ndarray]:
        """Return parsed cells (ratios behind them), base and contributions."""
        if self.reference is None:
            raise ValueError("this model was made without a reference; train it anew")
        with threadpool_limits(limits=1):
            after_rows = [name for name, _ in self.pipeline.steps].index("rows") + 1
            parsed = self.pipeline[0].transform(table)
            values = self.pipeline[1:after_rows].transform(parsed)
            base, parts = contributions(self.pipeline[after_rows:], values, self.reference)
        return np.hstack([parsed, values[:, parsed.shape[1] :]]), base, parts


def table_hash(table: pd.DataFrame, y: np.ndarray, contract: Contract) -> str:
    """SHA-256 of parsed feature values and outcomes, whatever file or frame they came in."""
    digest = hashlib.sha256()
    for start in range(0, len(table), HASHED_ROWS):
        values = contract.parse_features(table.iloc[start : start + HASHED_ROWS]).values
        digest.update(np.ascontiguousarray(values + 0.0, dtype="<f8").tobytes())
    digest.update(np.ascontiguousarray(y, dtype="<i8").tobytes())
    return digest.hexdigest()


def load_model(path: str | Path, *, trust_file: bool = False) -> RiskModel:
    """Read a model that the train stage wrote, if the manifest beside it names its SHA-256; parameters and errors as `load`."""
    return load(path, RiskModel, KIND, trust_file=trust_file)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
