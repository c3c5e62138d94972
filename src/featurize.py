"""featurize: fit the preprocessor on the development rows, and write them as a model sees them."""

import gc

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import FEATURES, MODELS, PROCESSED, load_params, table_path
from mlops_project.files import read_table, write_table
from mlops_project.manifest import dump
from mlops_project.preprocessing import PREPROCESSED_ROWS, feature_table, fit_preprocessor
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract


def main() -> None:
    params = load_params()
    contract = load_contract(params.data.contract)
    # Of millions of rows some are enough to learn scales from, and for people to look at.
    X = read_table(table_path(PROCESSED, "Xtraintest", params.data), contract.text_columns, at_most=PREPROCESSED_ROWS)
    preprocessor = fit_preprocessor(X, contract, params.featurize)
    dump(preprocessor, MODELS / "preprocessor.joblib")
    write_table(feature_table(preprocessor, X), table_path(FEATURES, "Xtraintest", params.data))


if __name__ == "__main__":
    run_stage(main, __doc__)
