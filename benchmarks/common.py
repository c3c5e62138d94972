"""What the benchmarks share: tables, child processes and what they cost, dirty files, a throw-away copy of the tree.

Heavy libraries are imported where they are used: a child's peak memory includes that of the process that started it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlops_project.dataset import Applicants

ROOT = Path(__file__).resolve().parents[1]
# What is measured is the tree around this file, whatever the environment has installed.
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

CLEAN_FILE = ROOT / "data/raw/german_credit_original.csv"
MODELS = ("logistic_regression", "decision_tree", "random_forest", "svm", "xgboost")
ALL_MODELS = ("scorecard", "logistic_regression", "decision_tree", "xgboost_monotone", "svm", "random_forest", "xgboost", "blend")
# Where `make .venv/parquet.done` puts pyarrow: beside the environment, so that nothing has it that does not ask for it.
PARQUET = ROOT / ".venv/parquet"
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Usage(NamedTuple):
    """Cost of a child process and its own children: CPU seconds (user + system), seconds, peak MB of the largest of them."""

    cpu: float
    wall: float
    peak: float


def environment(tree: Path, libraries: Sequence[Path] = ()) -> dict[str, str]:
    """Environment of children that work in ``tree``: its package and ``libraries``, this Python first on PATH, one thread."""
    # Without PYTHONDONTWRITEBYTECODE, which some shells set: every stage would compile the package anew.
    dropped = ("DVC_", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    packages = os.pathsep.join(map(str, [tree / "src", *libraries]))
    site = str(tree.parent / "dvc-site-cache")
    return kept | THREADS | {"PATH": path, "PYTHONPATH": packages, "DVC_SITE_CACHE_DIR": site, "DVC_NO_ANALYTICS": "1"}


def wait(process: subprocess.Popen[bytes], start: float) -> Usage:
    """Wait for a process that began at ``start`` (`time.perf_counter`), and return its cost; its exit code is in it."""
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * unit / 1e6)


def run(
    command: Sequence[str], folder: Path, tree: Path, *, codes: tuple[int, ...] = (0,), libraries: Sequence[Path] = ()
) -> tuple[Usage, str]:
    """Run a command in ``folder`` and return its cost and what it printed.

    Raises
    ------
    SystemExit
        If its exit code is not one of ``codes``; with the command and its last lines.
    """
    log = tree.parent / "output.txt"
    with log.open("wb") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment(tree, libraries), stdout=stream, stderr=subprocess.STDOUT)
        used = wait(process, start)
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode not in codes:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n" + "\n".join(text.splitlines()[-15:]))
    return used, text


def set_params(tree: Path, **values: str) -> None:
    """Set keys of the sections of a copy's params.yaml, each of which stands there once."""
    path = tree / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        text, count = re.subn(rf"^(  {key}:).*$", rf"\1 {value}", text, flags=re.MULTILINE)
        if count != 1:
            sys.exit(f"params.yaml: found {count} lines with the key {key}, expected one")
    path.write_text(text, encoding="utf-8")


def copy_of_tree(folder: Path, revision: str | None = None) -> Path:
    """Clone this repository into ``folder``, with its uncommitted changes, or an earlier revision of it, and its raw files.

    The caller's tree stays as it is.
    """
    tree = folder / "tree"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    names = []
    if revision is None:
        listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    else:
        subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", "--detach", revision], check=True)
    # Raw files are DVC's, not Git's: with them here the copy needs no remote.
    names += [str(path.relative_to(ROOT)) for path in (ROOT / "data/raw").glob("*.csv")]
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
        else:
            (tree / name).unlink(missing_ok=True)
    return tree


def dirty_applicants(seed: int, folder: Path) -> Applicants:
    """Make one dirty file out of the clean rows, and read and clean it as the prepare stage does."""
    import pandas as pd

    from build_raw_data import make_dirty, write_csv
    from mlops_project.config import load_params
    from mlops_project.dataset import DataCleaner, DataLoader
    from mlops_project.schema import load_contract

    params, contract = load_params(ROOT / "params.yaml"), load_contract(ROOT / "data/schema.yaml")
    path = folder / f"german_credit_{seed}.csv"
    write_csv(make_dirty(pd.read_csv(CLEAN_FILE), seed), path)
    prepare = params.prepare
    cleaner = DataCleaner(contract, prepare.duplicate_min_cells, prepare.duplicate_strict_after)
    return cleaner.clean(DataLoader(contract).load(path), path.name)


def fit_all(way: str, method: str) -> None:
    """Cross-validate all models with resampling and print CPU seconds of the fits, seconds and ROC-AUC per fold as JSON.

    ``together``: by the project, rows cleaned, encoded and resampled once per fold for all models. ``plain``: by
    scikit-learn, one pipeline after the other, the same metrics. Runs in a child in the copied tree.
    """
    import imblearn.over_sampling
    import msgspec
    import sklearn.ensemble
    import sklearn.svm  # noqa: F401 - imported before the clock starts, as the next one
    import xgboost  # noqa: F401
    from imblearn.metrics import geometric_mean_score
    from imblearn.pipeline import Pipeline
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import cross_validate as sklearn_cross_validate
    from threadpoolctl import threadpool_limits

    from mlops_project.config import load_params
    from mlops_project.files import read_table
    from mlops_project.modeling.cross_validation import cross_validate
    from mlops_project.modeling.folds import make_folds
    from mlops_project.modeling.metrics import ranking_metrics
    from mlops_project.modeling.models import build_model
    from mlops_project.preprocessing import build_preprocessor, value_columns
    from mlops_project.schema import load_contract

    params, contract = load_params(), load_contract("data/schema.yaml")
    settings = msgspec.structs.replace(params.train, n_splits=5, n_repeats=3, imbalance=method)
    X = read_table("data/processed/Xtraintest.csv", contract.text_columns)
    y = read_table("data/processed/ytraintest.csv")[contract.target.name].to_numpy()
    folds, preprocessor = make_folds(y, settings), build_preprocessor(contract, params.featurize)
    columns = value_columns(preprocessor)
    built = {name: build_model(name, getattr(params.models, name), settings, columns) for name in MODELS}
    probabilities = ("roc_auc", "average_precision", "neg_brier_score", "neg_log_loss")
    decisions = ("accuracy", "balanced_accuracy", "f1", "precision", "recall")
    scorers: dict[str, Any] = {name: name for name in (*probabilities, *decisions)}
    scorers["geometric_mean"] = make_scorer(geometric_mean_score)
    scorers["ks"] = make_scorer(lambda known, p: ranking_metrics(known, p)["ks"][0], response_method="predict_proba")
    start, wall, roc_auc = time.process_time(), time.perf_counter(), []
    with threadpool_limits(limits=1):
        if way == "together":
            together = cross_validate(built, preprocessor, X, y, folds, settings)
            roc_auc = [value for result in together.values() for value in result.test["roc_auc"]]
        else:
            for (member,) in built.values():
                sampler = getattr(imblearn.over_sampling, method)(
                    random_state=settings.seed, k_neighbors=settings.smote_neighbors
                )
                one = Pipeline([*preprocessor.steps, ("balance", sampler), ("model", member.classifier)])
                splits = [(fold.train, fold.test) for fold in folds]
                result = sklearn_cross_validate(one, X, y, cv=splits, scoring=scorers, return_train_score=True)
                roc_auc += result["test_roc_auc"].tolist()
    print(json.dumps({"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, "roc_auc": roc_auc}))


def write_rows(path: Path, rows: int) -> None:
    """Write a large dirty table chunk by chunk, no two of them alike. Runs in a child in the copied tree."""
    import pandas as pd

    from build_raw_data import make_dirty

    clean = pd.read_csv("data/raw/german_credit_original.csv")
    size, written = 50_000, 0
    with path.open("w", encoding="utf-8", newline="") as stream:
        while written < rows:
            chunk = make_dirty(clean.sample(size, replace=True, random_state=written), written, copies=0.0)
            chunk.iloc[: rows - written].to_csv(stream, index=False, header=written == 0, lineterminator="\n")
            written += size


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table that is aligned for the eye; the first column to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in [header, rule, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()
