"""Nothing that is fitted sees a held-out row, and nobody is on both sides of the split."""

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from build_raw_data import write_csv
from mlops_project.files import read_table
from mlops_project.schema import load_contract

ROOT = Path(__file__).resolve().parents[2]
FITTED = ("models/preprocessor.joblib", "models/best_model.joblib", "data/predictions/out_of_fold.csv", "metrics/train.json")


def run(stage: str) -> None:
    runpy.run_path(str(ROOT / "src" / f"{stage}.py"), run_name="not_main")["main"]()


@pytest.fixture
def workspace(tmp_path, monkeypatch, raw_table):
    (tmp_path / "data/raw").mkdir(parents=True)
    write_csv(raw_table, tmp_path / "data/raw/german_credit_modified.csv")
    (tmp_path / "data/schema.yaml").write_bytes((ROOT / "data/schema.yaml").read_bytes())
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("n_repeats: 3", "n_repeats: 1"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run("prepare")
    return tmp_path


@pytest.mark.parametrize("overrides", [{}, {"model: scorecard": "model: svm", "imbalance: none": "imbalance: SMOTE"}])
def test_held_out_rows_change_nothing_that_is_fitted(workspace, overrides):
    params = workspace / "params.yaml"
    text = params.read_text(encoding="utf-8")
    for old, new in overrides.items():
        assert old in text
        text = text.replace(old, new)
    params.write_text(text, encoding="utf-8")

    def fitted() -> list[str]:
        run("featurize")
        run("train")
        return [hashlib.sha256((workspace / name).read_bytes()).hexdigest() for name in FITTED]

    before = fitted()
    table = pd.read_csv(workspace / "data/processed/Xtest.csv", index_col=0)
    (table * 0 + 1).to_csv(workspace / "data/processed/Xtest.csv")
    target = pd.read_csv(workspace / "data/processed/ytest.csv", index_col=0)
    (1 - target).to_csv(workspace / "data/processed/ytest.csv")
    assert fitted() == before
    # The check can fail: a development row changes everything.
    table = pd.read_csv(workspace / "data/processed/Xtraintest.csv", index_col=0)
    table.iloc[0] = 1
    table.to_csv(workspace / "data/processed/Xtraintest.csv")
    assert all(a != b for a, b in zip(fitted(), before, strict=True))


def test_nobody_is_on_both_sides(workspace):
    contract = load_contract("data/schema.yaml")
    sides = {side: read_table(f"data/processed/X{side}.csv") for side in ("traintest", "test")}
    assert not set(sides["traintest"].index) & set(sides["test"].index)
    development, held_out = (contract.parse_features(table).values for table in sides.values())
    for row in held_out:
        both = ~np.isnan(development) & ~np.isnan(row)
        agree = ((development == row) | ~both).all(axis=1) & (both.sum(axis=1) >= 12)
        assert not agree.any()


def test_cross_validated_auc_is_no_leak(workspace):
    run("featurize")
    run("train")
    mean = pd.read_json(workspace / "metrics/train.json")["roc_auc"]["mean"]
    assert 0.74 < mean < 0.82, "below: the model learnt nothing; above: a leak"
