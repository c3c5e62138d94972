"""Are the models of params.yaml any good? Judged on many dirty files against a plain logistic regression.

Every file holds the same applicants with other dirt. Each is read, cleaned and merged by the project's own code, and all its
applicants are cross-validated over 5 x 3 repeated stratified folds with the settings of params.yaml. One file moves all
models together by 0.01, so what counts is the paired difference, on the same files and folds, to a logistic regression that
is written here with plain scikit-learn. Exit code 1: a bar was missed.

The files of the bars are seeds 101 to 120. Choose defaults on others, else the bars measure how well they were learned.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common import CLEAN_FILE, MODELS, ROOT, THREADS, dirty_applicants, print_table

if TYPE_CHECKING:
    import numpy as np
    from sklearn.pipeline import Pipeline

    from mlops_project.dataset import Applicants
    from mlops_project.modeling.cross_validation import Fold
    from mlops_project.schema import Contract

# Lowest paired difference in ROC-AUC to the plain logistic regression.
BARS = {"logistic_regression": -0.001, "decision_tree": -0.09, "random_forest": -0.005, "svm": -0.005, "xgboost": 0.001}
# Largest paired difference in Brier score; a single tree is no probability model.
BRIER_BAR = 0.003
WITHOUT_BRIER_BAR = ("decision_tree",)
# Nobody is that good on these applicants: a leak.
LEAK = 0.82
IMBALANCE = ("none", "SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN", "class_weight")
HEADER = (
    "model", "ROC-AUC", "difference", "± s.e.", "worst file", "best file", "bar",
    "Brier", "difference", "bar", "train - test", "CPU s/file", "verdict",
)  # fmt: skip


class Score(NamedTuple):
    """Means over the folds of one file, and the CPU seconds of cross-validation."""

    roc_auc: float
    brier: float
    train_roc_auc: float
    cpu: float


def main() -> int:
    args = _arguments()
    if not CLEAN_FILE.exists():
        sys.exit(f"{CLEAN_FILE.relative_to(ROOT)}: no such file; `dvc pull` fetches it")
    os.environ.update(THREADS)
    scores: dict[str, list[Score]] = {name: [] for name in ("plain", *args.models)}
    for done, seed in enumerate(args.seeds, 1):
        start = time.perf_counter()
        for name, score in score_file(seed, args.models, args.imbalance).items():
            scores[name].append(score)
        print(f"file {done} of {len(args.seeds)} (seed {seed}): {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return report(scores, args.seeds, args.imbalance)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_seeds, default="101-120", help="one dirty file per seed (default: %(default)s)")
    parser.add_argument("--models", type=_models, default=",".join(MODELS), help="default: %(default)s")
    parser.add_argument(
        "--imbalance", choices=IMBALANCE, default="none", help="train.imbalance; bars are judged at none (default: %(default)s)"
    )
    return parser.parse_args()


def _seeds(text: str) -> list[int]:
    """Read ``101-103,110`` as 101, 102, 103, 110."""
    parts = [part.partition("-") for part in text.split(",")]
    seeds = [seed for first, _, last in parts for seed in range(int(first), int(last or first) + 1)]
    if not seeds:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected for instance 101-120 or 1,2,5-8")
    return seeds


def _models(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}, expected some of {', '.join(MODELS)}")
    return names


def score_file(seed: int, models: list[str], imbalance: str) -> dict[str, Score]:
    """Cross-validate the plain model and those of params.yaml on the dirty file of one seed."""
    import msgspec
    from threadpoolctl import threadpool_limits

    from mlops_project.config import load_params
    from mlops_project.modeling.cross_validation import cross_validate, make_folds
    from mlops_project.modeling.models import build_model
    from mlops_project.preprocessing import build_preprocessor
    from mlops_project.schema import load_contract

    params, contract = load_params(ROOT / "params.yaml"), load_contract(ROOT / "data/schema.yaml")
    settings = msgspec.structs.replace(params.train, n_splits=5, n_repeats=3, imbalance=imbalance)
    with tempfile.TemporaryDirectory() as folder:
        applicants = dirty_applicants(seed, Path(folder))
    X, y = applicants.table, applicants.target.to_numpy()
    folds = make_folds(y, settings)
    with threadpool_limits(limits=1):
        scores = {"plain": score_plain(applicants, contract, folds)}
        for name in models:
            # One by one, so that each has its own CPU time; cleaning and encoding are in it.
            start, model = time.process_time(), build_model(name, params.models, settings.seed)
            preprocessor = build_preprocessor(contract, params.featurize)
            found = cross_validate({name: model}, preprocessor, X, y, folds, settings)[name].summary()
            cpu = time.process_time() - start
            scores[name] = Score(found["roc_auc"]["mean"], found["brier"]["mean"], found["roc_auc"]["train_mean"], cpu)
    return scores


def score_plain(applicants: Applicants, contract: Contract, folds: list[Fold]) -> Score:
    """Cross-validate the yardstick; its metrics are scikit-learn's own."""
    import numpy as np
    from sklearn.metrics import brier_score_loss, roc_auc_score

    X, y, start = applicants.table, applicants.target.to_numpy(), time.process_time()
    found = []
    for fold in folds:
        model = plain_model(contract).fit(X.iloc[fold.train], y[fold.train])
        p_good, p_train = (model.predict_proba(X.iloc[rows])[:, 1] for rows in (fold.test, fold.train))
        known = y[fold.test]
        found.append((roc_auc_score(known, p_good), brier_score_loss(known, p_good), roc_auc_score(y[fold.train], p_train)))
    roc_auc, brier, train_roc_auc = np.mean(found, axis=0).tolist()
    return Score(roc_auc, brier, train_roc_auc, time.process_time() - start)


def plain_model(contract: Contract) -> Pipeline:
    """Logistic regression as anybody would write it: one-hot codes, scaled numbers, C = 0.1."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    codes = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    columns = make_column_transformer((codes, contract.of_kind("nominal", "ordinal")), (numbers, contract.of_kind("numeric")))
    return make_pipeline(columns, LogisticRegression(C=0.1, max_iter=1000))


def report(scores: dict[str, list[Score]], seeds: list[int], imbalance: str) -> int:
    """Print the table and return the exit code."""
    import numpy as np

    values = {name: np.array(files) for name, files in scores.items()}
    rows, missed = [], []
    for name, files in values.items():
        roc_auc, brier, train_roc_auc, cpu = files.mean(axis=0)
        judged = imbalance == "none" and name in BARS
        row = [name, f"{roc_auc:.4f}", *_difference(files[:, 0] - values["plain"][:, 0], name)]
        row += [f"{BARS[name]:+.3f}" if judged else "", f"{brier:.4f}"]
        brier_difference = brier - values["plain"][:, 1].mean()
        has_brier_bar = judged and name not in WITHOUT_BRIER_BAR
        row += [f"{brier_difference:+.4f}" if name != "plain" else "", f"{BRIER_BAR:+.3f}" if has_brier_bar else ""]
        row += [f"{train_roc_auc - roc_auc:.3f}", f"{cpu:.1f}"]
        reasons = []
        if judged and (files[:, 0] - values["plain"][:, 0]).mean() < BARS[name]:
            reasons.append("ROC-AUC")
        if has_brier_bar and brier_difference > BRIER_BAR:
            reasons.append("Brier")
        if roc_auc > LEAK:
            reasons.append("leak")
        missed += [f"{name} ({reason})" for reason in reasons]
        rows.append([*row, "FAIL: " + ", ".join(reasons) if reasons else "pass" if judged else ""])
    print(f"{len(seeds)} files, seeds {seeds[0]} to {seeds[-1]}, 5 x 3 folds, imbalance {imbalance};")
    print("differences are paired, to the plain model on the same files and folds; s.e. over files; ± 0.01 ROC-AUC is noise")
    print_table(HEADER, rows)
    print(f"missed: {', '.join(missed)}" if missed else f"no bar missed; a mean ROC-AUC over {LEAK} would be a leak")
    return 1 if missed else 0


def _difference(differences: np.ndarray, name: str) -> list[str]:
    if name == "plain":
        return [""] * 4
    error = f"{differences.std(ddof=1) / len(differences) ** 0.5:.4f}" if len(differences) > 1 else ""
    return [f"{differences.mean():+.4f}", error, f"{differences.min():+.4f}", f"{differences.max():+.4f}"]


if __name__ == "__main__":
    sys.exit(main())
