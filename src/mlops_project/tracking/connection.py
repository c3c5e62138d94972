"""A tracking server, and its errors as one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException

from mlops_project.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_URI = "http://127.0.0.1:5000"
DEFAULT_EXPERIMENT = "credit_classification"


@contextmanager
def connected(uri: str, experiment: str) -> Iterator[None]:
    """Make a tracking server and an experiment the ones that MLflow talks to.

    Raises
    ------
    PipelineError
        If the server cannot be reached, or refuses a request: at once, or whenever inside.
    """
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        mlflow.set_experiment(experiment)
        yield
    except MlflowException as error:
        text = " ".join(str(error).split())
        if "failed with exception" in text:
            # The causes are nested in the text; its begin says which request failed, its end why.
            what = f"the MLflow server does not answer ({_shortened(text)}); start it, or name another with"
        else:
            what = f"the MLflow server refuses: {_shortened(text)}; mend that, or name another with"
        raise PipelineError(
            f"{uri}: {what} --tracking-uri or MLFLOW_TRACKING_URI; what was written before stays, the command can be run again"
        ) from error


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:90]} … {text[-100:]}"
