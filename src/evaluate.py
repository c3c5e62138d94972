"""evaluate: derive the decision policy, score the held-out applicants, with intervals, and write what the plots draw."""

import gc
import logging

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import BEST_MODEL, METRICS, MODELS, PLOTS, PREDICTIONS, PROCESSED, load_params
from mlops_project.files import atomic_path, read_table, rounded, write_json, write_table
from mlops_project.manifest import write_manifest
from mlops_project.modeling.evaluation import (
    average_repeats,
    conformal_metrics,
    evaluate,
    permutation_importance,
    plot_tables,
    prediction_table,
    scorecard_tables,
)
from mlops_project.modeling.fairness import fairness
from mlops_project.modeling.model import load_model
from mlops_project.modeling.policy import Scored, make_policy
from mlops_project.modeling.reasons import reason_table
from mlops_project.modeling.stability import Population, stability
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract

logger = logging.getLogger("mlops_project.evaluate")


def main() -> None:
    params = load_params()
    # Not the model's contract: that may lack the protected columns.
    contract, settings = load_contract(params.data.contract), params.evaluate
    model = load_model(BEST_MODEL)
    known = average_repeats(read_table(PREDICTIONS / "out_of_fold.csv"))
    development = read_table(PROCESSED / "Xtraintest.csv", contract.text_columns).loc[known.index]
    known_y, known_p = known["y_true"].to_numpy(dtype=int), known["y_proba"].to_numpy()
    X = read_table(PROCESSED / "Xtest.csv", contract.text_columns)
    y = read_table(PROCESSED / "ytest.csv").loc[X.index, contract.target.name].to_numpy()
    known_weights, weights = contract.row_weights(development), contract.row_weights(X)
    p_good = model.predict_proba(X)[:, 1]

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
    interval = metrics["interval"]["roc_auc"]
    logger.info(
        "held out: ROC-AUC %.3f (%.3f to %.3f) on %d applicants", metrics["roc_auc"], interval["low"], interval["high"], len(y)
    )

    with atomic_path(MODELS / "policy.json") as temporary:
        temporary.write_text(policy.to_json(), encoding="utf-8", newline="\n")
    write_manifest(MODELS / "policy.json", made_with=[BEST_MODEL])
    predictions = prediction_table(X.index, y, p_good, policy)
    if settings.reasons:
        predictions = predictions.join(reason_table(model.reasons(X, settings.reasons), X.index, settings.reasons))
    write_table(predictions, PREDICTIONS / "held_out.csv")
    for old in PLOTS.glob("*.csv"):
        old.unlink()  # of another model, if the stage is run by hand
    for name, table in tables.items():
        write_table(table.map(rounded), PLOTS / f"{name}.csv", index=False)
    write_json(metrics, METRICS / "evaluate.json")


if __name__ == "__main__":
    run_stage(main, __doc__)
