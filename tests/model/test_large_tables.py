"""Tables above evaluate.exact_rows, as CSV and as Parquet: the same figures, with less work."""

import copy
import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mlops_project.files import read_table, read_yaml, write_table
from mlops_project.reporting.card import model_card
from mlops_project.reporting.results import read_results

ROOT = Path(__file__).resolve().parents[2]


def run(stage: str, params: dict) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    runpy.run_path(str(ROOT / "src" / f"{stage}.py"), run_name="not_main")["main"]()


def figures() -> dict:
    return json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))


def test_tables_of_many_rows(workdir, new_rows):
    new_rows(4500, seed=1).astype(str).to_csv("raw.csv", index=False)
    params = copy.deepcopy(read_yaml(ROOT / "params.yaml"))
    params["data"] |= {"raw": "raw.csv", "contract": str(ROOT / "data/schema.yaml"), "tables": "csv"}
    params["train"] |= {"model": "logistic_regression", "n_splits": 3, "n_repeats": 1}
    params["evaluate"] |= {"bootstrap_samples": 500, "reasons": 1}
    for stage in ("prepare", "featurize", "train", "evaluate"):
        run(stage, params)
    exact, table = figures(), read_table("data/predictions/held_out.csv")
    assert "reduced" not in exact
    assert "reason_1" in table

    params["evaluate"]["exact_rows"] = 1000
    run("evaluate", params)
    found, predictions = figures(), read_table("data/predictions/held_out.csv")
    assert found["rows"] > 1000
    assert found.pop("reduced") == {
        "interval_score_bins": 1000,
        "importance_rows": 1000,
        "confusion_rows": 1000,
        "reasons_rows": 0,
    }
    pd.testing.assert_frame_equal(predictions, table.drop(columns="reason_1"))
    for name, interval in exact["interval"].items():
        width = interval["high"] - interval["low"]
        assert found["interval"][name] == pytest.approx(interval, abs=0.2 * width), name
    same = ("roc_auc", "ece", "expected_cost", "conformal", "psi")
    assert {name: found[name] for name in same} == {name: exact[name] for name in same}
    assert len(pd.read_csv("metrics/plots/confusion.csv")) == 1000
    card = model_card(read_results())
    assert "1,000 applicants drawn at random" in card
    assert "`mlops-predict --reasons`" in card

    pytest.importorskip("pyarrow", reason="the extra `parquet`")
    for path in Path("data").glob("p*/*.csv"):
        write_table(read_table(path), path.with_suffix(".parquet"))
        path.unlink()
    params["data"]["tables"] = "parquet"
    run("evaluate", params)
    assert figures() == found | {"reduced": figures()["reduced"]}
    pd.testing.assert_frame_equal(read_table("data/predictions/held_out.parquet"), predictions)

    # One split in place of cross-validation: rows of one fold, which say where they stand.
    params["train"]["one_split_above"] = 1000
    run("train", params)
    fold = read_table("data/predictions/out_of_fold.parquet")
    development = read_table("data/processed/Xtraintest.parquet")
    assert len(fold) < len(development) / 2
    assert fold.index.equals(development.index[fold["row"]])
    run("evaluate", params)
    assert figures()["roc_auc"] == pytest.approx(found["roc_auc"], abs=0.002)  # many rows are fitted otherwise
    assert figures()["psi"] != found["psi"]
    assert json.loads(Path("models/policy.json").read_text(encoding="utf-8"))["sample_default_rate"] == pytest.approx(
        1 - fold["y_true"].mean()
    )
