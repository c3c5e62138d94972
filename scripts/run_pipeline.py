"""Prepare, train and predict by the package API: python scripts/run_pipeline.py --model NAME [--no-smote]."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from mlops_project.config import AVAILABLE_MODELS, load_params, setup_logging, validate_inputs
from mlops_project.dataset import load_and_prepare_data
from mlops_project.errors import PipelineError
from mlops_project.features import prepare_features
from mlops_project.modeling.predict import predict_and_evaluate
from mlops_project.modeling.train import train_model
from mlops_project.runtime import guarded

logger = logging.getLogger("mlops_project.run_pipeline")


def run(model_name: str, use_smote: bool) -> None:
    raw = load_params().data.raw
    try:
        validate_inputs([raw])
    except FileNotFoundError as error:
        raise PipelineError(str(error)) from None
    X_train, X_test, y_train, y_test = load_and_prepare_data(raw)
    _, _, preprocessor = prepare_features(X_train)
    model, results = train_model(X_train, y_train, preprocessor, model_name, use_smote=use_smote)
    _, _, metrics = predict_and_evaluate(model, X_test, y_test)
    if results is not None:
        logger.info("cross-validated ROC-AUC %.3f ± %.3f", results["roc_auc"]["test_mean"], results["roc_auc"]["test_std"])
    logger.info("held out: ROC-AUC %.3f on %d applicants", metrics["roc_auc"], len(y_test))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", choices=(*AVAILABLE_MODELS, "best"), default="logistic_regression", help="default: %(default)s"
    )
    parser.add_argument(
        "--no-smote", dest="smote", action="store_false", help="without synthetic rows (default: BorderlineSMOTE)"
    )
    args = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[1])
    setup_logging()
    return guarded(lambda: run(args.model, args.smote))


if __name__ == "__main__":
    sys.exit(main())
