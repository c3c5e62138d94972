"""featurize: fit the preprocessor on the development rows, and write them as a model sees them."""

import gc

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import FEATURES, MODELS, PROCESSED, load_params
from mlops_project.files import read_table, write_table
from mlops_project.manifest import dump
from mlops_project.preprocessing import feature_table, fit_preprocessor
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract


def main() -> None:
    params = load_params()
    contract = load_contract(params.data.contract)
    X = read_table(PROCESSED / "Xtraintest.csv", contract.text_columns)
    preprocessor = fit_preprocessor(X, contract, params.featurize)
    dump(preprocessor, MODELS / "preprocessor.joblib")
    write_table(feature_table(preprocessor, X), FEATURES / "Xtraintest.csv")


if __name__ == "__main__":
    run_stage(main, __doc__)
