"""A tracking server, and its errors as one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException
from requests import RequestException

from mlops_project.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_URI = "http://127.0.0.1:5000"
DEFAULT_EXPERIMENT = "credit_classification"


class NoAnswerError(PipelineError):
    """The server is not there, so that no other request would do better."""


@contextmanager
def connected(uri: str, experiment: str) -> Iterator[None]:
    """Make a tracking server and an experiment the ones that MLflow talks to.

    Raises
    ------
    NoAnswerError
        If the server cannot be reached: at once, or whenever inside.
    PipelineError
        If it refuses a request.
    """
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        mlflow.set_experiment(experiment)
        yield
    except (MlflowException, RequestException) as error:  # the latter where an artifact is refused
        text = " ".join(str(error).split())
        kind: type[PipelineError]
        if "failed with exception" in text:
            # The causes are nested in the text; its begin says which request failed, its end why.
            kind, what = NoAnswerError, f"the MLflow server does not answer ({_shortened(text)}); start it"
        else:
            kind, what = PipelineError, f"the MLflow server refuses: {text[:300]}; mend that"
        raise kind(
            f"{uri}: {what}, or name another with --tracking-uri or MLFLOW_TRACKING_URI; what was written before stays, the"
            " command can be run again"
        ) from error


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:90]} … {text[-100:]}"
