"""Train models with and without SMOTE, each as a run of an MLflow tracking server, all under one parent run."""

from __future__ import annotations

import argparse
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from mlops_project.config import AVAILABLE_MODELS, BEST_MODEL, MODEL_RESULTS, RANDOM_SEED, load_params, setup_logging
from mlops_project.dataset import load_and_prepare_data
from mlops_project.features import prepare_features
from mlops_project.modeling.train import train_model
from mlops_project.review.revisions import flat
from mlops_project.runtime import guarded

EXAMPLES = """examples:
  python scripts/mlflow_experiments.py
  python scripts/mlflow_experiments.py --models logistic_regression svm --tracking-uri http://127.0.0.1:8080
"""
PACKAGE = Path(__file__).resolve().parents[1] / "src/mlops_project"
MODELS = ("logistic_regression", "random_forest", "xgboost")


@cache
def _rows() -> tuple[Any, ...]:
    """Development rows, their outcomes, and the preprocessor; the pipeline's own files stay as they are."""
    X, _, y, _ = load_and_prepare_data(load_params().data.raw, save_processed=False)
    return X, y, prepare_features(X, save_preprocessor=False)[2]


def run_experiment_with_mlflow(model_name: str, use_smote: bool) -> str:
    """Train a model, log it to the server of MLFLOW_TRACKING_URI, print and return the id of the run.

    The run is called ``<model>_smote-<bool>``, a child of the active run if there is one. It holds the settings, what
    cross-validation found, ``models/model_results.json``, and the model under the name ``model``. Training writes what
    `train_model` writes with ``save_model=True``.

    Raises
    ------
    PipelineError
        If MLflow is not installed, the server does not answer or refuses, or the model cannot be trained.
    """
    from mlops_project.tracking.connection import DEFAULT_EXPERIMENT, DEFAULT_URI, connected, mlflow
    from mlops_project.tracking.models import log_model

    uri, name = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI, f"{model_name}_smote-{use_smote}"
    # The run is begun before any work is done: the server is known to be there.
    with connected(uri, DEFAULT_EXPERIMENT), mlflow.start_run(run_name=name, nested=mlflow.active_run() is not None) as run:
        X, y, preprocessor = _rows()
        model, results = train_model(X, y, preprocessor, model_name, use_smote=use_smote)
        mlflow.log_params({"model_name": model_name, "use_smote": use_smote, "random_seed": RANDOM_SEED})
        mlflow.log_params(flat(model.params[model.name]))
        metrics = {f"{metric}_{key}": value for metric, entry in (results or {}).items() for key, value in entry.items()}
        mlflow.log_metrics(metrics)
        mlflow.log_artifact(str(MODEL_RESULTS))
        log_model(model, BEST_MODEL, X, PACKAGE)
    print(f"Run ID: {run.info.run_id}", flush=True)
    return str(run.info.run_id)


def run_all(models: list[str]) -> None:
    from mlops_project.tracking.connection import DEFAULT_EXPERIMENT, DEFAULT_URI, connected, mlflow

    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    todo = [(name, use_smote) for name in models for use_smote in (False, True)]
    with connected(uri, DEFAULT_EXPERIMENT), mlflow.start_run(run_name="models with and without SMOTE"):
        for number, (name, use_smote) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {name}, {'with' if use_smote else 'without'} SMOTE", file=sys.stderr)
            run_experiment_with_mlflow(name, use_smote)
    print(f"see {uri}; models/ holds the last of these models: `dvc repro` makes the pipeline's own again", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=AVAILABLE_MODELS, default=list(MODELS), help="default: %(default)s")
    parser.add_argument("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, else http://127.0.0.1:5000")
    args = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[1])
    if args.tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = args.tracking_uri
    setup_logging()
    return guarded(lambda: run_all(args.models))


if __name__ == "__main__":
    sys.exit(main())
