"""The same work the plain way, to compare with: pandas, a ColumnTransformer, the same XGBoost, four steps with files between.

As somebody who knows these libraries would write it in a day: the contract's domains, exact duplicates only (by text), features
encoded once, Parquet between the steps, one validation split and the fit on all rows. It does less than the stages: no merging of
copies with dirt of their own, no split that survives appended rows, no intervals, fairness, importance, reasons, lineage.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import pandas as pd
import yaml


class Job(NamedTuple):
    """The raw table, the folder of the steps' files, and what data/schema.yaml and params.yaml hold."""

    raw: Path
    folder: Path
    contract: dict[str, Any]
    params: dict[str, Any]


def prepare(job: Job) -> None:
    from sklearn.model_selection import train_test_split

    target, columns = job.contract["target"], job.contract["columns"]
    table = pd.read_csv(job.raw, usecols=[*columns, target["name"]], dtype=str, na_values=job.contract["missing_tokens"])
    table = table.drop_duplicates()
    for name in table:
        # Padded cells such as " NULL " are no numbers either.
        table[name] = pd.to_numeric(table[name], errors="coerce")
    for name, column in columns.items():
        allowed = table[name].between(*column["range"]) if "range" in column else table[name].isin(list(column["codes"]))
        table[name] = table[name].where(allowed)
    table = table[table[target["name"]].isin([target["good"], target["bad"]])]
    y = table.pop(target["name"]).astype(int)
    settings = job.params["prepare"]
    X_train, X_test, y_train, y_test = train_test_split(
        table, y, test_size=settings["test_size"], stratify=y, random_state=settings["split_seed"]
    )
    for name, part in (("X_train", X_train), ("X_test", X_test), ("y_train", y_train.to_frame()), ("y_test", y_test.to_frame())):
        part.to_parquet(job.folder / f"{name}.parquet")


def features(job: Job) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    names = {
        kind: [n for n, c in job.contract["columns"].items() if c["kind"] == kind] for kind in ("numeric", "ordinal", "nominal")
    }
    encoder = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), names["numeric"]),
            ("ordinals", make_pipeline(SimpleImputer(strategy="most_frequent"), StandardScaler()), names["ordinal"]),
            (
                "codes",
                make_pipeline(
                    SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore", sparse_output=False)
                ),
                names["nominal"],
            ),
        ]
    ).set_output(transform="pandas")
    encoder.fit_transform(pd.read_parquet(job.folder / "X_train.parquet")).to_parquet(job.folder / "features_train.parquet")
    joblib.dump(encoder, job.folder / "encoder.joblib")


def train(job: Job) -> None:
    from sklearn.base import clone
    from sklearn.model_selection import train_test_split
    from xgboost import XGBClassifier

    X = pd.read_parquet(job.folder / "features_train.parquet")
    y = pd.read_parquet(job.folder / "y_train.parquet").iloc[:, 0]
    settings = job.params["train"]
    model = XGBClassifier(**job.params["models"]["xgboost"], n_jobs=1, random_state=settings["seed"])
    X_fit, X_valid, y_fit, y_valid = train_test_split(
        X, y, test_size=1 / settings["n_splits"], stratify=y, random_state=settings["seed"]
    )
    p_good = clone(model).fit(X_fit, y_fit).predict_proba(X_valid)[:, 1]
    (job.folder / "validation.json").write_text(json.dumps(metrics(y_valid, p_good)))
    joblib.dump(model.fit(X, y), job.folder / "model.joblib")


def evaluate(job: Job) -> None:
    X = pd.read_parquet(job.folder / "X_test.parquet")
    y = pd.read_parquet(job.folder / "y_test.parquet").iloc[:, 0]
    p_good = joblib.load(job.folder / "model.joblib").predict_proba(joblib.load(job.folder / "encoder.joblib").transform(X))[:, 1]
    pd.DataFrame({"y_true": y, "p_good": p_good}).to_parquet(job.folder / "predictions.parquet")
    (job.folder / "metrics.json").write_text(json.dumps(metrics(y, p_good)))


def metrics(y: pd.Series, p_good: pd.Series) -> dict[str, float]:
    from sklearn.metrics import (
        accuracy_score,
        average_precision_score,
        balanced_accuracy_score,
        brier_score_loss,
        f1_score,
        log_loss,
        roc_auc_score,
    )

    ranked = {
        "roc_auc": roc_auc_score,
        "average_precision": average_precision_score,
        "brier": brier_score_loss,
        "log_loss": log_loss,
    }
    decided = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score, "f1": f1_score}
    return {name: float(metric(y, p_good)) for name, metric in ranked.items()} | {
        name: float(metric(y, p_good >= 0.5)) for name, metric in decided.items()
    }


STEPS = {step.__name__: step for step in (prepare, features, train, evaluate)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("raw", type=Path, help="the raw table, CSV")
    parser.add_argument("folder", type=Path, help="where the steps' files are")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    contract, params = (yaml.safe_load(Path(name).read_text(encoding="utf-8")) for name in ("data/schema.yaml", "params.yaml"))
    STEPS[args.step](Job(args.raw, args.folder, contract, params))


if __name__ == "__main__":
    sys.exit(main())
