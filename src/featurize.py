"""featurize: fit the preprocessor on the development rows, and write them as a model sees them."""

import gc
import logging

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import FEATURES, MODELS, PROCESSED, load_params
from mlops_project.files import dump, read_table, write_table
from mlops_project.preprocessing import build_preprocessor, feature_table
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract

logger = logging.getLogger("mlops_project.featurize")


def main() -> None:
    params = load_params()
    contract = load_contract(params.data.contract)
    X = read_table(PROCESSED / "Xtraintest.csv", contract.text_columns)

    if params.featurize.without_protected:
        contract = contract.without(contract.protected)
    preprocessor = build_preprocessor(contract, params.featurize).fit(X)
    features = feature_table(preprocessor, X)
    logger.info(
        "preprocessor: %d columns become %d features, fitted on %d rows", len(contract.features), features.shape[1], len(X)
    )

    dump(preprocessor, MODELS / "preprocessor.joblib")
    write_table(features, FEATURES / "Xtraintest.csv")


if __name__ == "__main__":
    run_stage(main, __doc__)
