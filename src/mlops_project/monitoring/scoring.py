"""Scoring a window by the model's plan, which is kept: reading the model imports scikit-learn, and costs as much as all else."""

from __future__ import annotations

import contextlib
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_project.errors import PipelineError
from mlops_project.modeling import compiled

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mlops_project.schema import Contract

PLANS = Path("var/drift")


def p_good(model: Path, values: np.ndarray, table: pd.DataFrame, contract: Contract) -> np.ndarray:
    """Return P(good), shape (n,), of parsed rows; of their cells where the model has another contract or no plan.

    Parameters
    ----------
    model : Path
        What the train stage wrote.
    values : ndarray of shape (n, n features)
        Parsed cells in the order of ``contract``.
    table : DataFrame of shape (n, …)
        The same rows as they came.
    contract : Contract

    Raises
    ------
    PipelineError
        If the file is no model.
    """
    scorer = _scorer(model)
    if scorer is not None:
        hidden = set(contract.features).difference(scorer.columns)
        if scorer.contract in (contract, contract.without(hidden)):
            return scorer.p_good(values[:, [contract.features.index(name) for name in scorer.columns]])
    from mlops_project.modeling.model import load_model

    return load_model(model).predict_proba(table)[:, 1]


def _scorer(model: Path) -> compiled.CompiledScorer | None:
    """Read the plan that was made of this file by this version, or make it; None if it has none."""
    key = hashlib.sha256(version("mlops-project").encode())
    for part in (model, *sorted(Path(compiled.__file__).parent.glob("*.py"))):
        key.update(part.read_bytes())
    kept = PLANS / f"{key.hexdigest()[:32]}.npz"
    if kept.exists():
        with contextlib.suppress(PipelineError):  # damaged: it is made anew
            return compiled.CompiledScorer.load(kept, lean=True)
    from mlops_project.modeling.compiling import NotCompilable, compile_model
    from mlops_project.modeling.model import load_model

    try:
        scorer = compile_model(load_model(model))
    except NotCompilable:
        return None
    with contextlib.suppress(PipelineError):  # a folder that cannot be written only costs time
        scorer.save(kept)
        for old in PLANS.glob("*.npz"):
            if old != kept:
                old.unlink(missing_ok=True)
    return scorer
