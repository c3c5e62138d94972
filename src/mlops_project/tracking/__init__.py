"""A view of the record in an MLflow tracking server (needs the extra ``mlflow``).

Git and DVC are the record: whatever is on the server can be pushed again. No stage and no other room imports this one.
"""

import os
from importlib.util import find_spec

from mlops_project.errors import PipelineError

# Read when MLflow is imported or asked; who sets them decides. Its own patience with a silent server is minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

if find_spec("mlflow") is None:
    raise PipelineError("mlflow is not installed; `uv pip install -e '.[mlflow]'` installs the extra mlops-project[mlflow]")
