"""A team's own file of the same kind, put in place, gives a model of the same quality, with no other change."""

import runpy
from pathlib import Path

import pandas as pd
import pytest

from build_raw_data import make_dirty, write_csv

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("seed", "rates"),
    [
        (11, {}),
        (12, {"copies": 0.1, "missing": 0.03}),
        (13, {"altered": 0.03, "tokens": 0.02, "case": 0.2}),
        (14, {"copies": 0.0, "altered": 0.0, "missing": 0.0, "tokens": 0.0, "case": 0.0}),
    ],
)
def test_another_file_of_the_kind(tmp_path, monkeypatch, clean_table, seed, rates):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/raw").mkdir(parents=True)
    for name in ("data/schema.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    write_csv(make_dirty(clean_table, seed, **rates), tmp_path / "data/raw/german_credit_modified.csv")
    for stage in ("prepare", "featurize", "train", "evaluate"):
        runpy.run_path(str(ROOT / "src" / f"{stage}.py"), run_name="not_main")["main"]()
    rows = pd.read_json("metrics/prepare.json")["rows"]
    copies = round(len(clean_table) * rates.get("copies", 0.02))
    assert 0.7 * copies - 1 <= rows["duplicates_merged"] <= copies, "duplicates are found, and nobody is merged who is not one"
    roc_auc = pd.read_json("metrics/train.json")["roc_auc"]
    assert 0.76 < roc_auc["mean"] < 0.82
    assert pd.read_json("metrics/evaluate.json")["roc_auc"].iloc[0] > 0.70
