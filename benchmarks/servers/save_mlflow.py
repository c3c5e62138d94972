"""Save a model for ``mlflow models serve``, as `mlops-mlflow-sync` logs it: ``save_mlflow.py MODEL FOLDER``."""

import sys
from pathlib import Path

import joblib
import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import mlops_project
from mlops_project.manifest import manifest_path

names = joblib.load(sys.argv[1]).feature_names_in_
mlflow.pyfunc.save_model(
    sys.argv[2],
    python_model=str(Path(mlops_project.__file__).parent / "tracking/served.py"),
    artifacts={"model": sys.argv[1], "manifest": str(manifest_path(sys.argv[1]))},
    signature=ModelSignature(
        Schema([ColSpec(AnyType(), name, required=False) for name in names]), Schema([ColSpec(DataType.double)])
    ),
    pip_requirements=[f"mlflow=={mlflow.__version__}"],
)
