"""train: cross-validate the chosen model, or all candidates, on the development rows, then fit the pick on all of them."""

import gc

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import MODELS, PROCESSED, fold_groups, load_params, table_path
from mlops_project.files import read_outcomes, read_table
from mlops_project.modeling.distributed import Tables
from mlops_project.modeling.train import save_training, train
from mlops_project.preprocessing import load_preprocessor
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract


def main() -> None:
    params = load_params()
    contract = load_contract(params.data.contract)
    tables = Tables(*(table_path(PROCESSED, name, params.data) for name in ("Xtraintest", "ytraintest")))
    X = read_table(tables.X, contract.text_columns)
    y = read_outcomes(tables.y, X, contract.target.name)
    preprocessor = load_preprocessor(MODELS / "preprocessor.joblib")
    result = train(X, y, preprocessor, contract, params.train, params.models, fold_groups(params.prepare), tables)
    save_training(result, params.data)


if __name__ == "__main__":
    run_stage(main, __doc__)
