"""evaluate: score the held-out applicants, with intervals, and write what the plots draw."""

import gc
import logging

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import METRICS, MODELS, PLOTS, PREDICTIONS, PROCESSED, load_params
from mlops_project.files import read_table, rounded, write_json, write_table
from mlops_project.modeling.evaluation import evaluate, permutation_importance, plot_tables, prediction_table
from mlops_project.modeling.model import load_model
from mlops_project.modeling.reasons import reason_table
from mlops_project.runtime import run_stage

logger = logging.getLogger("mlops_project.evaluate")


def main() -> None:
    params = load_params().evaluate
    model = load_model(MODELS / "best_model.joblib")
    X = read_table(PROCESSED / "Xtest.csv", model.contract.text_columns)
    y = read_table(PROCESSED / "ytest.csv").loc[X.index, model.contract.target.name].to_numpy()

    p_good = model.predict_proba(X)[:, 1]
    metrics = evaluate(y, p_good, params)
    tables = plot_tables(y, p_good, params) | {"importance": permutation_importance(model, X, y, params)}
    interval = metrics["interval"]["roc_auc"]
    logger.info(
        "held out: ROC-AUC %.3f (%.3f to %.3f) on %d applicants", metrics["roc_auc"], interval["low"], interval["high"], len(y)
    )

    predictions = prediction_table(X.index, y, p_good, metrics["threshold"])
    if params.reasons:
        predictions = predictions.join(reason_table(model.reasons(X, params.reasons), X.index, params.reasons))
    write_table(predictions, PREDICTIONS / "held_out.csv")
    for name, table in tables.items():
        write_table(table.map(rounded), PLOTS / f"{name}.csv", index=False)
    write_json(metrics, METRICS / "evaluate.json")


if __name__ == "__main__":
    run_stage(main, __doc__)
