"""What MLflow serves: a saved model that takes raw rows and gives P(good).

This file itself goes into the logged model, beside the package of the model's own revision ("models from code"): nothing is
pickled but what the train stage pickled.
"""

from __future__ import annotations

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Served(PythonModel):
    """A `RiskModel` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Read the file by the manifest that was logged beside it, with the package of its revision."""
        from mlops_project.modeling.model import load_model

        self.model = load_model(context.artifacts["model"])

    # Hints would be taken as the type of the input, which the signature says.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return P(good) of raw rows, shape (n rows,), as `RiskModel.predict_proba`."""
        return self.model.predict_proba(model_input)[:, 1]


set_model(Served())
