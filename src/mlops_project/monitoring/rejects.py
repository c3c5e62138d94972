"""Refused applicants, whose outcome nobody will know, and what guessing it would change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pandas as pd

from mlops_project.config import fold_groups, with_training
from mlops_project.identity import hash_rows
from mlops_project.modeling.train import fit
from mlops_project.schema import Column

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from mlops_project.config import Params
    from mlops_project.modeling.model import RiskModel
    from mlops_project.schema import Contract

# No contract can have it: it is not YAML's plain text.
WEIGHT = "\0weight"


def fuzzy_augmentation(
    X: pd.DataFrame,
    y: pd.Series,
    refused: pd.DataFrame,
    model: RiskModel,
    preprocessor: Pipeline,
    contract: Contract,
    params: Params,
    held_out: pd.Index,
) -> tuple[RiskModel, int]:
    """Fit the model once more with the refused: each as a good row that weighs P(good) and a bad one that weighs the rest.

    Parameters
    ----------
    X : DataFrame
        Development rows, with the contract's columns.
    y : Series
        Their outcomes, 1 good, 0 bad.
    refused : DataFrame
        Cells of refused applicants, as they were sent.
    model : RiskModel
        Says P(good) of the refused, and by its name what is fitted.
    preprocessor : Pipeline
        Recipe, fitted anew.
    contract : Contract
    params : Params
    held_out : Index
        Ids of applicants who must not be trained on, refused or not.

    Returns
    -------
    model : RiskModel
    int
        Number of refused applicants used.

    References
    ----------
    Siddiqi, N. (2006). Credit Risk Scorecards, chapter 6.
    """
    values = contract.parse_features(refused).values
    mine = ~np.isin(hash_rows(values, contract), [str(name)[:16] for name in held_out])
    cleaned = pd.DataFrame({name: contract.labels(name, values[:, i]) for i, name in enumerate(contract.features)})[mine]
    p_good = model.predict_proba(cleaned)[:, 1] if len(cleaned) else np.empty(0)
    own = contract.row_weights(X)
    table = pd.concat([X, *[cleaned.reindex(columns=X.columns)] * 2], ignore_index=True)
    table[WEIGHT] = np.r_[own, p_good, 1 - p_good]
    outcome = pd.Series(np.r_[y.to_numpy(), np.ones(len(cleaned)), np.zeros(len(cleaned))].astype(int))
    weighted = table[WEIGHT] > 0  # certain ones have no other copy
    columns = {name: column for name, column in contract.columns.items() if column.kind != "weight"}
    with_weights = msgspec.structs.replace(contract, columns=columns | {WEIGHT: Column(kind="weight")})
    settings = with_training(params, model.name)
    found = fit(
        table[weighted].reset_index(drop=True), outcome[weighted.to_numpy()].reset_index(drop=True), preprocessor, with_weights,
        settings.train, settings.models, fold_groups(params.prepare),
    )  # fmt: skip
    return found, len(cleaned)
