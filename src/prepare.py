"""prepare: raw applications → clean applicants, split for good into development and held-out rows."""

import gc

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import load_params
from mlops_project.dataset import prepare, save_prepared
from mlops_project.files import require_form
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract


def main() -> None:
    params = load_params()
    require_form(params.data.tables)
    prepared = prepare(params.data.raw, load_contract(params.data.contract), params.prepare)
    save_prepared(prepared, tables=params.data.tables)


if __name__ == "__main__":
    run_stage(main, __doc__)
