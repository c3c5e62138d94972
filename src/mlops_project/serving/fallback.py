"""The pipeline itself, for what has no compiled form: it brings pandas and scikit-learn into the worker, and is slower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pandas as pd

from mlops_project.errors import PipelineError
from mlops_project.manifest import unpickle
from mlops_project.modeling.compiled import FORMAT, CompiledScorer, contract_to_plan
from mlops_project.modeling.model import KIND, RiskModel
from mlops_project.modeling.policy import Policy

if TYPE_CHECKING:
    from mlops_project.modeling.reasons import Reason


class PipelineScorer(CompiledScorer):
    """Reads applicants and decides as a compiled scorer does, and asks a `RiskModel` for probabilities and reasons.

    Parameters
    ----------
    model : RiskModel
    policy : Policy
    version : str
        SHA-256 of the model file.
    """

    def __init__(self, model: RiskModel, policy: Policy, version: str) -> None:
        header = {
            "format": FORMAT,
            "name": model.name,
            "model_version": version,
            "contract": contract_to_plan(model.contract),
            "policy": json.loads(policy.to_json()),
            "scale": list(model.scale),
            "columns": list(model.feature_names_in_),
            "value_columns": [],
            "encoded": False,
            "can_explain": False,
            "members": [],
            "params": model.params,
            "training_data_hash": model.training_data_hash,
            "sample_default_rate": model.sample_default_rate,
            "library_versions": model.library_versions,
        }
        nothing = {f"view.{key}": np.empty(0) for key in ("lower", "upper", "numerators", "denominators", "logs")}
        super().__init__(json.loads(json.dumps(msgspec.to_builtins(header))), nothing)
        self.model = model

    def p_good(self, values: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Return P(good) of parsed values, shape (n rows,)."""
        return self.model.predict_proba(self._table(values))[:, 1]

    def reasons(self, values: np.ndarray, top: int = 3, places: np.ndarray | None = None) -> list[list[Reason]]:
        """Return per row the columns that lower its score most."""
        return self.model.reasons(self._table(values), top)

    def _table(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({name: self.contract.labels(name, values[:, i]) for i, name in enumerate(self.columns)})


def load_pipeline(content: bytes, policy: Policy, version: str) -> PipelineScorer:
    """Unpickle a model out of bytes that were verified by their hash. Raises PipelineError if they hold something else."""
    return PipelineScorer(unpickle(content, "the model file", RiskModel, KIND), policy, version)


def load_verified(model: str, policy: str, version: str, policy_sha256: str) -> PipelineScorer:
    """Load model and policy from their files if they are still the ones that passed. Raises PipelineError if not."""
    from mlops_project.serving.state import sha256_of

    content, decision = Path(model).read_bytes(), Path(policy).read_bytes()
    for path, found, expected in ((model, content, version), (policy, decision, policy_sha256)):
        if sha256_of(found) != expected:
            raise PipelineError(f"{path}: is another file than the one that passed")
    return load_pipeline(content, Policy.from_json(decision.decode(), policy), version)
