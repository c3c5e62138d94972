"""A saved model as MLflow logs it: with signature, input example and the code that reads it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

from mlops_project.manifest import manifest_path

if TYPE_CHECKING:
    import pandas as pd

    from mlops_project.modeling.model import RiskModel

# What loading the package inside a logged model imports, besides the model's own libraries.
PACKAGE_LIBRARIES = ("mlflow", "msgspec", "pyyaml", "threadpoolctl")
EXAMPLE_ROWS = 5


def log_model(model: RiskModel, file: Path, rows: pd.DataFrame, code: Path) -> None:
    """Log a model under the name ``model`` to the active run.

    Parameters
    ----------
    model : RiskModel
    file : Path
        What the train stage wrote, with its manifest beside it.
    rows : DataFrame
        Applicants; the first ones become the input example.
    code : Path
        Folder of the package that reads the file.
    """
    example = rows[model.feature_names_in_].head(EXAMPLE_ROWS).astype(object).reset_index(drop=True)
    # A cell may be text or a number, and absent: what the contract does not allow is missing, not refused.
    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in model.feature_names_in_])
    libraries = model.library_versions | {name: version(name) for name in PACKAGE_LIBRARIES}
    mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"model": str(file), "manifest": str(manifest_path(file))},
        code_paths=[str(code)],
        signature=ModelSignature(inputs, Schema([ColSpec(DataType.double)])),
        input_example=example.where(example.notna(), None),
        pip_requirements=[f"{name}=={number}" for name, number in libraries.items()],
    )
