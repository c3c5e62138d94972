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

from common import ALL_MODELS, CLEAN_FILE, ROOT, THREADS, dirty_applicants, print_table

if TYPE_CHECKING:
    import numpy as np
    from sklearn.pipeline import Pipeline

    from mlops_project.config import EvaluateParams
    from mlops_project.dataset import Applicants
    from mlops_project.modeling.folds import Fold
    from mlops_project.schema import Contract

# Lowest paired difference in ROC-AUC to the plain logistic regression.
BARS = {
    "scorecard": -0.002, "logistic_regression": -0.001, "decision_tree": -0.09, "random_forest": -0.005, "svm": -0.005,
    "xgboost": 0.001, "blend": 0.012,
}  # fmt: skip
# The best of those that a risk officer can read.
INTERPRETABLE, INTERPRETABLE_BAR = ("scorecard", "logistic_regression", "xgboost_monotone"), 0.004
# Largest paired difference in Brier score; a single tree is no probability model.
BRIER_BARS = {name: 0.003 for name in ALL_MODELS if name != "decision_tree"} | {"blend": -0.002}
# Largest expected calibration error of the default model, over all rows that no fit of their fold has seen.
CALIBRATION_BAR = 0.05
# Nobody is that good on these applicants: a leak.
LEAK = 0.82
IMBALANCE = ("none", "SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN", "class_weight")
# Named after the default model, its protected columns left out.
WITHOUT_PROTECTED = ", unprotected"
HEADER = (
    "model", "ROC-AUC", "difference", "± s.e.", "worst file", "best file", "bar",
    "Brier", "difference", "bar", "cost", "difference", "± s.e.", "ECE", "train - test", "CPU s/file", "verdict",
)  # fmt: skip
REFERENCES = """References on these applicants, each with its own folds and coding of the columns, so only roughly comparable:
  0.7955  tuned random forest, 10 folds (AMLB 2019, OpenML task 31)
  0.802   TabPFN-3.5, 15 fits (third-party notes)"""


class Score(NamedTuple):
    """Means over the folds of one file, calibration error over all its rows, and the CPU seconds of cross-validation."""

    roc_auc: float
    brier: float
    train_roc_auc: float
    cost: float
    calibration_error: float
    cpu: float


def main() -> int:
    args = _arguments()
    if not CLEAN_FILE.exists():
        sys.exit(f"{CLEAN_FILE.relative_to(ROOT)}: no such file; `dvc pull` fetches it")
    os.environ.update(THREADS)
    scores: dict[str, list[Score]] = {}
    for done, seed in enumerate(args.seeds, 1):
        start = time.perf_counter()
        for name, score in score_file(seed, args.models, args.imbalance).items():
            scores.setdefault(name, []).append(score)
        print(f"file {done} of {len(args.seeds)} (seed {seed}): {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return report(scores, args.seeds, args.imbalance)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_seeds, default="101-120", help="one dirty file per seed (default: %(default)s)")
    parser.add_argument("--models", type=_models, default=",".join(ALL_MODELS), help="default: %(default)s")
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
    if unknown := [name for name in names if name not in ALL_MODELS]:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}, expected some of {', '.join(ALL_MODELS)}")
    return names


def score_file(seed: int, models: list[str], imbalance: str) -> dict[str, Score]:
    """Cross-validate the plain model and those of params.yaml on the dirty file of one seed."""
    import msgspec
    from threadpoolctl import threadpool_limits

    from mlops_project.config import load_params
    from mlops_project.modeling.cross_validation import cross_validate
    from mlops_project.modeling.folds import make_folds
    from mlops_project.modeling.models import build_model
    from mlops_project.preprocessing import build_preprocessor, value_columns
    from mlops_project.schema import load_contract

    params, contract = load_params(ROOT / "params.yaml"), load_contract(ROOT / "data/schema.yaml")
    settings = msgspec.structs.replace(params.train, n_splits=5, n_repeats=3, imbalance=imbalance)
    with tempfile.TemporaryDirectory() as folder:
        applicants = dirty_applicants(seed, Path(folder))
    X, y = applicants.table, applicants.target.to_numpy()
    folds = make_folds(y, settings)
    judged = [(name, name, contract) for name in models]
    default = params.train.model
    if default in models:
        judged.append((default + WITHOUT_PROTECTED, default, contract.without(contract.protected)))
    with threadpool_limits(limits=1):
        scores = {"plain": score_plain(applicants, contract, folds, params.evaluate)}
        for label, name, seen in judged:
            # One by one, so that each has its own CPU time; cleaning and encoding are in it.
            start, preprocessor = time.process_time(), build_preprocessor(seen, params.featurize)
            model = build_model(name, getattr(params.models, name), settings, value_columns(preprocessor))
            found = cross_validate({name: model}, preprocessor, X, y, folds, settings)[name]
            cpu = time.process_time() - start
            summary, seen_by_none = found.summary(), _decisions(y, found.out_of_fold, folds, params.evaluate)
            means = (summary["roc_auc"]["mean"], summary["brier"]["mean"], summary["roc_auc"]["train_mean"])
            scores[label] = Score(*means, *seen_by_none, cpu)
    return scores


def score_plain(applicants: Applicants, contract: Contract, folds: list[Fold], params: EvaluateParams) -> Score:
    """Cross-validate the yardstick; its metrics are scikit-learn's own."""
    import numpy as np
    from sklearn.metrics import brier_score_loss, roc_auc_score

    X, y, start = applicants.table, applicants.target.to_numpy(), time.process_time()
    found, out_of_fold = [], np.empty((1 + max(fold.repeat for fold in folds), len(y)))
    for fold in folds:
        model = plain_model(contract).fit(X.iloc[fold.train], y[fold.train])
        p_good, p_train = (model.predict_proba(X.iloc[rows])[:, 1] for rows in (fold.test, fold.train))
        known = y[fold.test]
        found.append((roc_auc_score(known, p_good), brier_score_loss(known, p_good), roc_auc_score(y[fold.train], p_train)))
        out_of_fold[fold.repeat, fold.test] = p_good
    cpu = time.process_time() - start
    roc_auc, brier, train_roc_auc = np.mean(found, axis=0).tolist()
    return Score(roc_auc, brier, train_roc_auc, *_decisions(y, out_of_fold, folds, params), cpu)


def _decisions(y: np.ndarray, out_of_fold: np.ndarray, folds: list[Fold], params: EvaluateParams) -> tuple[float, float]:
    """Return mean expected cost per applicant over the folds, at the threshold of the costs, and calibration error."""
    import numpy as np

    from mlops_project.modeling.metrics import decision_metrics, expected_cost
    from mlops_project.modeling.reliability import equal_mass_bins, expected_calibration_error

    bad, good = params.cost_bad_approved, params.cost_good_refused
    costs = [
        expected_cost(decision_metrics(y[fold.test], out_of_fold[fold.repeat, fold.test], good / (good + bad)), bad, good)[0]
        for fold in folds
    ]
    pooled_y, pooled = np.tile(y, len(out_of_fold)), out_of_fold.ravel()
    ones = np.ones((1, len(pooled)))
    error = expected_calibration_error(pooled_y, pooled, equal_mass_bins(pooled, ones[0]), ones)
    return float(np.mean(costs)), float(error[0])


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

    from mlops_project.config import load_params

    default = load_params(ROOT / "params.yaml").train.model
    values = {name: np.array(files) for name, files in scores.items()}
    plain, judged = values["plain"], imbalance == "none"
    rows, missed = [], []
    for name, files in values.items():
        roc_auc, brier, train_roc_auc, cost, calibration_error, cpu = files.mean(axis=0)
        gain, brier_gain, cost_gain = (files[:, i] - plain[:, i] for i in (0, 1, 3))
        bar, brier_bar = (BARS.get(name), BRIER_BARS.get(name)) if judged else (None, None)
        reasons = []
        if bar is not None and gain.mean() < bar:
            reasons.append("ROC-AUC")
        if brier_bar is not None and brier_gain.mean() > brier_bar:
            reasons.append("Brier")
        if judged and name == "blend" and len(gain) > 1 and gain.mean() - 1.96 * _error(gain) <= 0:
            reasons.append("interval")
        if judged and name == default and calibration_error > CALIBRATION_BAR:
            reasons.append("calibration")
        if roc_auc > LEAK:
            reasons.append("leak")
        missed += [f"{name} ({reason})" for reason in reasons]
        row = [name, f"{roc_auc:.4f}", *_difference(gain, name), "" if bar is None else f"{bar:+.3f}", f"{brier:.4f}"]
        row += ["" if name == "plain" else f"{brier_gain.mean():+.4f}", "" if brier_bar is None else f"{brier_bar:+.3f}"]
        row += [f"{cost:.4f}", *_difference(cost_gain, name)[:2], f"{calibration_error:.3f}"]
        verdict = "FAIL: " + ", ".join(reasons) if reasons else "" if bar is None else "pass"
        rows.append([*row, f"{train_roc_auc - roc_auc:.3f}", f"{cpu:.1f}", verdict])
    print(f"{len(seeds)} files, seeds {seeds[0]} to {seeds[-1]}, 5 x 3 folds, imbalance {imbalance};")
    print("differences are paired, to the plain model on the same files and folds; s.e. over files; ± 0.01 ROC-AUC is noise;")
    print(f"cost per applicant at the threshold of the costs; calibration error (ECE) of {default}: at most {CALIBRATION_BAR}")
    print_table(HEADER, rows)
    if judged:
        missed += _compared(values)
    print(REFERENCES)
    print(f"missed: {', '.join(missed)}" if missed else f"no bar missed; a mean ROC-AUC over {LEAK} would be a leak")
    return 1 if missed else 0


def _compared(values: dict[str, np.ndarray]) -> list[str]:
    """Judge the bars that compare models, print what was found and return those missed."""
    missed = []
    gains = {name: float((values[name][:, 0] - values["plain"][:, 0]).mean()) for name in INTERPRETABLE if name in values}
    if set(gains) == set(INTERPRETABLE):
        best = max(gains, key=lambda name: gains[name])
        print(f"best interpretable model: {best}, {gains[best]:+.4f} ROC-AUC (bar {INTERPRETABLE_BAR:+.3f})")
        missed += [f"{best} (interpretable)"] if gains[best] < INTERPRETABLE_BAR else []
    single = [name for name in values if name in ALL_MODELS and name != "blend"]
    if "scorecard" in single:
        cheapest = min(single, key=lambda name: values[name][:, 3].mean())
        more = values["scorecard"][:, 3] - values[cheapest][:, 3]
        error = _error(more) if len(more) > 1 else 0.0
        print(f"lowest cost of a single model: {cheapest}; the scorecard costs {more.mean():+.4f} ± {error:.4f} more")
        missed += ["scorecard (cost)"] if more.mean() > 1.96 * error else []
    return missed


def _error(differences: np.ndarray) -> float:
    return float(differences.std(ddof=1) / len(differences) ** 0.5)


def _difference(differences: np.ndarray, name: str) -> list[str]:
    if name == "plain":
        return [""] * 4
    error = f"{_error(differences):.4f}" if len(differences) > 1 else ""
    return [f"{differences.mean():+.4f}", error, f"{differences.min():+.4f}", f"{differences.max():+.4f}"]


if __name__ == "__main__":
    sys.exit(main())
