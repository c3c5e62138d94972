"""Do conformal sets hold each class as often as they say? Measured over many random splits of all merged applicants.

Each split holds out as large a share as params.yaml says, cross-fits the model of params.yaml on the rest as
the train stage does, takes the cutoffs from these out-of-fold probabilities, and counts on the held-out applicants, scored
by a model fitted on all of the rest. The models inside the folds see fewer rows than that one, so the coverage is not exact
by theory and must be measured. Exit code 1: the mean coverage of a class is more than 2 points away from the level.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from common import ALL_MODELS, ROOT, THREADS, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from mlops_project.config import Params
    from mlops_project.dataset import Applicants
    from mlops_project.schema import Contract

BAR = 0.02
HEADER = ("class", "level", "mean coverage", "± s.e.", "5th percentile", "95th percentile", "bar", "verdict")


def main() -> int:
    args = _arguments()
    os.environ.update(THREADS)
    import numpy as np

    from mlops_project.config import load_params
    from mlops_project.dataset import DataCleaner, DataLoader
    from mlops_project.schema import load_contract

    params, contract = load_params(ROOT / "params.yaml"), load_contract(ROOT / "data/schema.yaml")
    raw = ROOT / params.data.raw
    if not raw.exists():
        sys.exit(f"{params.data.raw}: no such file; `dvc pull` fetches it")
    cleaner = DataCleaner(contract, params.prepare.duplicate_min_cells, params.prepare.duplicate_strict_after)
    applicants = cleaner.clean(DataLoader(contract).load(raw), str(raw))
    model = args.model or params.train.model
    found = measure(applicants, contract, params, model, args.splits, args.repeats or params.train.n_repeats)
    return report(np.array(list(found)), params.evaluate.conformal_level, model)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=200, help="random splits, 100 or more to judge (default: %(default)s)")
    parser.add_argument(
        "--model",
        choices=[name for name in ALL_MODELS if name != "blend"],
        help="default: train.model, which must be a single model then",
    )
    parser.add_argument("--repeats", type=int, default=None, help="of cross-fitting (default: train.n_repeats)")
    return parser.parse_args()


def measure(
    applicants: Applicants, contract: Contract, params: Params, model: str, n_splits: int, n_repeats: int
) -> Iterator[tuple[float, float, float]]:
    """Yield coverage of the good, coverage of the bad and the share referred, per split."""
    import numpy as np
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    from mlops_project.modeling.evaluation import conformal_metrics
    from mlops_project.modeling.models import build_model
    from mlops_project.modeling.policy import make_policy
    from mlops_project.preprocessing import build_preprocessor, value_columns

    preprocessor = build_preprocessor(contract, params.featurize)
    (member,) = build_model(model, getattr(params.models, model), params.train, value_columns(preprocessor))
    steps = preprocessor.steps[: -1 if member.view == "values" else None]
    pipeline = Pipeline([*steps, ("model", member.classifier)])
    X, y = applicants.table, applicants.target.to_numpy(dtype=int)
    with threadpool_limits(limits=1):
        for split in range(n_splits):
            known, new = train_test_split(np.arange(len(y)), test_size=params.prepare.test_size, random_state=split)
            out_of_fold = np.mean(
                [
                    cross_val_predict(
                        clone(pipeline),
                        X.iloc[known],
                        y[known],
                        cv=StratifiedKFold(params.train.n_splits, shuffle=True, random_state=1000 * split + repeat),
                        method="predict_proba",
                    )[:, 1]
                    for repeat in range(n_repeats)
                ],
                axis=0,
            )
            policy = make_policy(y[known], out_of_fold, np.ones(len(known)), params.evaluate)
            p_good = clone(pipeline).fit(X.iloc[known], y[known]).predict_proba(X.iloc[new])[:, 1]
            found = conformal_metrics(y[new], p_good, np.ones(len(new)), policy)
            yield found["coverage_good"], found["coverage_bad"], found["referred"]


def report(found: np.ndarray, level: float, model: str) -> int:
    """Print the table of figures of shape (n splits, 3) and return the exit code."""
    import numpy as np

    rows, missed = [], False
    for name, values in (("good", found[:, 0]), ("bad", found[:, 1]), ("referred", found[:, 2])):
        low, high = np.percentile(values, [5, 95])
        row = [name, "", f"{values.mean():.4f}", f"{values.std(ddof=1) / len(values) ** 0.5:.4f}", f"{low:.3f}", f"{high:.3f}"]
        if name == "referred":
            rows.append([*row, "", ""])
            continue
        failed = abs(values.mean() - level) > BAR
        missed |= failed
        row[1] = f"{level:g}"
        rows.append([*row, f"± {BAR:g}", "FAIL" if failed else "pass"])
    print(f"{len(found)} random splits, {model}, cutoffs from out-of-fold probabilities; referred: both classes or none")
    print_table(HEADER, rows)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
