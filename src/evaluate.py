"""evaluate: derive the decision policy, score the held-out applicants, with intervals, and write what the plots draw."""

import gc
import logging

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

import pandas as pd

from mlops_project.config import BEST_MODEL, METRICS, MODELS, PLOTS, PREDICTIONS, PROCESSED, load_params, table_path
from mlops_project.files import TableWriter, atomic_path, read_ids, read_table, rounded, write_json, write_table
from mlops_project.manifest import write_manifest
from mlops_project.modeling.evaluation import (
    average_repeats,
    conformal_metrics,
    evaluate,
    permutation_importance,
    plot_tables,
    prediction_table,
    reductions,
    scorecard_tables,
)
from mlops_project.modeling.fairness import fairness
from mlops_project.modeling.metrics import outcomes
from mlops_project.modeling.model import load_model
from mlops_project.modeling.policy import Scored, make_policy
from mlops_project.modeling.predict import p_good as predict
from mlops_project.modeling.reasons import reason_table
from mlops_project.modeling.stability import Population, stability
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract

logger = logging.getLogger("mlops_project.evaluate")

# Rows that the model is asked for at a time: it holds several views of them.
BLOCK_ROWS = 20_000
# Rows that are written at a time, with their ids and words.
WRITTEN_ROWS = 200_000


def main() -> None:
    params = load_params()
    # Not the model's contract: that may lack the protected columns.
    contract, settings = load_contract(params.data.contract), params.evaluate
    model = load_model(BEST_MODEL)
    # All tables of a split are in one order: rows are found by position, and ids are read when they are written.
    held_out = table_path(PROCESSED, "Xtest", params.data)
    development = read_table(table_path(PROCESSED, "Xtraintest", params.data), contract.text_columns, ids=False)
    known = average_repeats(read_table(table_path(PREDICTIONS, "out_of_fold", params.data), ids=False), len(development))
    if len(known) < len(development):
        development = development.iloc[known.index]
    known_y, known_p = known["y_true"].to_numpy(dtype=int), known["y_proba"].to_numpy()
    X = read_table(held_out, contract.text_columns, ids=False)
    y = outcomes(read_table(table_path(PROCESSED, "ytest", params.data), ids=False)[contract.target.name], len(X))
    known_weights, weights = contract.row_weights(development), contract.row_weights(X)
    p_good = predict(model, X, BLOCK_ROWS)

    policy = sample_policy = make_policy(known_y, known_p, known_weights, settings)
    sample, population = Scored(y, p_good, weights, sample_policy), None
    if settings.prior_default_rate is not None:
        policy = make_policy(known_y, known_p, known_weights, settings, settings.prior_default_rate)
        population = Scored(y, policy.correct(p_good), weights, policy)

    metrics = evaluate(sample, settings, population)
    metrics["conformal"] = conformal_metrics(y, p_good, weights, policy)
    tables = plot_tables(sample, settings, population)
    tables |= scorecard_tables(model)
    tables["importance"] = permutation_importance(model, X, y, settings, weights)
    metrics["fairness"], tables["fairness"] = fairness(population or sample, X, contract, settings)
    metrics["psi"], tables["stability"] = stability(
        Population(development, known_p, known_weights), Population(X, p_good, weights), contract
    )
    metrics |= reductions(len(X), settings)
    interval = metrics["interval"]["roc_auc"]
    logger.info(
        "held out: ROC-AUC %.3f (%.3f to %.3f) on %d applicants", metrics["roc_auc"], interval["low"], interval["high"], len(y)
    )
    if few := "reduced" in metrics:
        logger.info(
            "more than evaluate.exact_rows = %d applicants: intervals from counts in %d steps of the score; importance and"
            " confusion matrix from %d applicants; no reasons (`mlops-predict --reasons` gives those of any)",
            settings.exact_rows, metrics["reduced"]["interval_score_bins"], settings.exact_rows,
        )  # fmt: skip

    with atomic_path(MODELS / "policy.json") as temporary:
        temporary.write_text(policy.to_json(), encoding="utf-8", newline="\n")
    write_manifest(MODELS / "policy.json", made_with=[BEST_MODEL])
    top, ids = 0 if few else settings.reasons, pd.Index(read_ids(held_out))
    with TableWriter(table_path(PREDICTIONS, "held_out", params.data)) as file:
        for start in range(0, len(y), WRITTEN_ROWS):
            rows = slice(start, start + WRITTEN_ROWS)
            predictions = prediction_table(ids[rows], y[rows], p_good[rows], policy)
            file.write(predictions.join(reason_table(model.reasons(X.iloc[rows], top), ids[rows], top)) if top else predictions)
    for old in PLOTS.glob("*.csv"):
        old.unlink()  # of another model, if the stage is run by hand
    for name, table in tables.items():
        write_table(table.map(rounded), PLOTS / f"{name}.csv", index=False)
    write_json(metrics, METRICS / "evaluate.json")


if __name__ == "__main__":
    run_stage(main, __doc__)
