"""train: cross-validate the chosen model, or all candidates, on the development rows, then fit the pick on all of them."""

import gc

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import METRICS, MODELS, PREDICTIONS, PROCESSED, load_params
from mlops_project.files import dump, read_table, rounded, write_json, write_table
from mlops_project.modeling.selection import leaderboard_table
from mlops_project.modeling.train import train
from mlops_project.preprocessing import load_preprocessor
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract


def main() -> None:
    params = load_params()
    contract = load_contract(params.data.contract)
    X = read_table(PROCESSED / "Xtraintest.csv", contract.text_columns)
    y = read_table(PROCESSED / "ytraintest.csv").loc[X.index, contract.target.name]
    preprocessor = load_preprocessor(MODELS / "preprocessor.joblib")
    groups = params.prepare.group_column if params.prepare.split == "by_group" else None

    result = train(X, y, preprocessor, contract, params.train, params.models, groups)

    dump(result.model, MODELS / "best_model.joblib")
    write_table(result.out_of_fold, PREDICTIONS / "out_of_fold.csv")
    write_json(result.leaderboard, METRICS / "leaderboard.json")
    write_table(leaderboard_table(result.leaderboard).map(rounded), METRICS / "leaderboard.csv", index=False)
    write_json(result.cross_validation.summary(), METRICS / "train.json")


if __name__ == "__main__":
    run_stage(main, __doc__)
