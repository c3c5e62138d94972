"""prepare: raw applications → clean applicants, split for good into development and held-out rows."""

import gc

if __name__ == "__main__":
    gc.disable()  # a stage is mostly imports, and they make no garbage; run_stage turns it on again

from mlops_project.config import METRICS, PROCESSED, load_params
from mlops_project.dataset import DataCleaner, DataLoader, DataSplitter, split_report
from mlops_project.files import write_json, write_table
from mlops_project.runtime import run_stage
from mlops_project.schema import load_contract


def main() -> None:
    params = load_params()
    contract = load_contract(params.data.contract)

    raw = DataLoader(contract).load(params.data.raw)
    applicants = DataCleaner(contract, params.prepare.duplicate_min_cells).clean(raw, params.data.raw)
    held_out = DataSplitter(params.prepare).held_out(applicants)

    report = applicants.report | {"split": split_report(applicants.target.to_numpy(), held_out)}
    for name, rows in (("traintest", ~held_out), ("test", held_out)):
        write_table(applicants.table[rows], PROCESSED / f"X{name}.csv")
        write_table(applicants.target[rows], PROCESSED / f"y{name}.csv")
    write_json(report, METRICS / "prepare.json")


if __name__ == "__main__":
    run_stage(main, __doc__)
