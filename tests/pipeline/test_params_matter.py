"""Every key of params.yaml, in a configuration where it applies, changes what its stage does."""

import copy
import hashlib
import json
import runpy
import shutil
from pathlib import Path

import pytest
import yaml

from build_raw_data import make_dirty, write_csv
from mlops_project.files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
PARAMS = read_yaml(ROOT / "params.yaml")

IQR = {"featurize.outliers": "iqr"}
PERCENTILES = {"featurize.outliers": "percentiles"}
DATED = {"prepare.split": "by_time", "prepare.date_column": "applied_on"}
GROUPED = {"prepare.split": "by_group", "prepare.group_column": "branch"}


BEST = {"train.model": "best", "train.candidates": ["decision_tree", "logistic_regression"]}


def model(name: str) -> dict:
    return {"train.model": name}


# key → (stage, other value, configuration in which it applies)
CHANGES = {
    "data.raw": ("prepare", "data/raw/other.csv", {}),
    "data.contract": ("prepare", "data/other_schema.yaml", {}),
    "data.tables": ("prepare", "parquet", {}),
    "prepare.duplicate_min_cells": ("prepare", 0, {}),
    "prepare.duplicate_strict_after": ("prepare", 1, {}),
    "prepare.split": ("prepare", "stratified", {}),
    "prepare.group_column": ("prepare", "region", GROUPED),
    "prepare.date_column": ("prepare", "born_on", DATED),
    "prepare.test_size": ("prepare", 0.4, {}),
    "prepare.split_seed": ("prepare", 7, {}),
    "featurize.ratios": ("featurize", [{"name": "rate_per_month", "numerator": "hoehe", "denominator": "laufzeit"}], {}),
    "featurize.log": ("featurize", ["laufzeit"], {}),
    "featurize.numeric_imputation": ("featurize", "mean", {}),
    "featurize.missing_indicators": ("featurize", True, {}),
    "featurize.outliers": ("featurize", "iqr", {}),
    "featurize.iqr_factor": ("featurize", 3.0, IQR),
    "featurize.lower_percentile": ("featurize", 10.0, PERCENTILES),
    "featurize.upper_percentile": ("featurize", 90.0, PERCENTILES),
    "featurize.scale": ("featurize", "robust", {}),
    "featurize.ordinals": ("featurize", "one_hot", {}),
    "featurize.without_protected": ("featurize", True, {}),
    "train.model": ("train", "decision_tree", {}),
    "train.candidates": ("train", ["logistic_regression", "scorecard"], BEST),
    "train.selection_metric": ("train", "log_loss", BEST),
    "train.calibration": ("train", "sigmoid", {}),
    "train.calibration_folds": ("train", 2, {"train.calibration": "isotonic"}),
    "train.imbalance": ("train", "class_weight", {}),
    "train.smote_neighbors": ("train", 2, {"train.imbalance": "SMOTE"}),
    "train.n_splits": ("train", 3, {}),
    "train.n_repeats": ("train", 2, {}),
    "train.one_split_above": ("train", 300, {}),
    "train.quadratic_above": ("train", 300, {}),
    "train.seed": ("train", 7, {}),
    "train.base_score": ("train", 500.0, {}),
    "train.base_odds": ("train", 10.0, {}),
    "train.points_to_double": ("train", 50.0, {}),
    "models.scorecard.max_bins": ("train", 3, model("scorecard")),
    "models.scorecard.min_bin_share": ("train", 0.2, model("scorecard")),
    "models.scorecard.smoothing": ("train", 1.0, model("scorecard")),
    "models.scorecard.C": ("train", 10.0, model("scorecard")),
    "models.scorecard.center": ("train", 0.0, model("scorecard")),
    "models.scorecard.bins": ("train", {"laufzeit": [12, 24]}, model("scorecard")),
    "models.logistic_regression.C": ("train", 0.01, model("logistic_regression")),
    "models.logistic_regression.max_iter": ("train", 900, model("logistic_regression")),
    "models.decision_tree.max_depth": ("train", 2, model("decision_tree")),
    "models.decision_tree.min_samples_leaf": ("train", 60, model("decision_tree")),
    "models.decision_tree.ccp_alpha": ("train", 0.02, model("decision_tree")),
    "models.random_forest.n_estimators": ("train", 7, model("random_forest")),
    "models.random_forest.max_depth": ("train", 2, model("random_forest")),
    "models.random_forest.min_samples_leaf": ("train", 30, model("random_forest")),
    "models.random_forest.max_features": ("train", 0.9, model("random_forest")),
    "models.svm.C": ("train", 5.0, model("svm")),
    "models.svm.gamma": ("train", 0.2, model("svm")),
    "models.svm.calibration_folds": ("train", 3, model("svm")),
    "models.xgboost.n_estimators": ("train", 5, model("xgboost")),
    "models.xgboost.max_depth": ("train", 1, model("xgboost")),
    "models.xgboost.learning_rate": ("train", 0.5, model("xgboost")),
    "models.xgboost.subsample": ("train", 0.3, model("xgboost")),
    "models.xgboost.colsample_bytree": ("train", 1.0, model("xgboost")),
    "models.xgboost.min_child_weight": ("train", 30.0, model("xgboost")),
    "models.xgboost.reg_lambda": ("train", 50.0, model("xgboost")),
    "evaluate.cost_bad_approved": ("evaluate", 2.0, {}),
    "evaluate.cost_good_refused": ("evaluate", 3.0, {}),
    "evaluate.threshold": ("evaluate", 0.4, {}),
    "evaluate.prior_default_rate": ("evaluate", 0.05, {}),
    "evaluate.strategy_thresholds": ("evaluate", [0.1, 0.2], {}),
    "evaluate.conformal_level": ("evaluate", 0.8, {}),
    "evaluate.fairness_min_rows": ("evaluate", 2, {}),
    "evaluate.bootstrap_samples": ("evaluate", 100, {}),
    "evaluate.confidence": ("evaluate", 0.5, {}),
    "evaluate.importance_repeats": ("evaluate", 1, {}),
    "evaluate.exact_rows": ("evaluate", 100, {}),
    "evaluate.reasons": ("evaluate", 0, {}),
    "evaluate.seed": ("evaluate", 7, {}),
}


def leaves(content: dict, prefix: str = "") -> set[str]:
    found = set()
    for key, value in content.items():
        name = f"{prefix}.{key}".lstrip(".")
        found |= leaves(value, name) if value and isinstance(value, dict) else {name}
    return found


for key, (_, value, _) in [(key, change) for key, change in CHANGES.items() if key.startswith("models.xgboost.")]:
    CHANGES[key.replace("xgboost", "xgboost_monotone")] = ("train", value, model("xgboost_monotone"))
# The copies in composite models, each in a configuration that reads it.
for key, (_, value, _) in [(key, change) for key, change in CHANGES.items() if key.startswith("models.")]:
    name = key.split(".")[1]
    other = "decision_tree" if name == "logistic_regression" else "logistic_regression"
    CHANGES[key.replace("models", "models.best", 1)] = ("train", value, BEST | {"train.candidates": [name, other]})
    if name in PARAMS["models"]["blend"]:
        CHANGES[key.replace("models", "models.blend", 1)] = ("train", value, model("blend"))
        blend = BEST | {"train.candidates": ["blend", other]}
        CHANGES[key.replace("models", "models.best.blend", 1)] = ("train", value, blend)


def test_every_key_is_in_the_list():
    beside = ("tune", "monitoring", "quality", "retraining")  # no stage reads them
    assert set(CHANGES) == leaves({name: section for name, section in PARAMS.items() if name not in beside})


def few_trees(models: dict) -> None:
    for section in models.values():
        if "n_estimators" in section:
            section["n_estimators"] = 9
        else:
            few_trees({name: value for name, value in section.items() if isinstance(value, dict)})


class Workspace:
    """A folder in which single stages run on the outputs of the stages before them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def configure(self, overrides: dict) -> None:
        content = copy.deepcopy(PARAMS)
        # Small and quick: what matters is whether outputs change.
        content["train"] |= {"n_splits": 2, "n_repeats": 1}
        content["evaluate"]["bootstrap_samples"] = 200
        few_trees(content["models"])
        for name, value in overrides.items():
            *sections, key = name.split(".")
            place = content
            for section in sections:
                place = place[section]
            place[key] = value
        (self.path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def outputs(self, stage: str, overrides: dict) -> dict[str, str]:
        """Run one stage and return what it wrote, path → hash."""
        self.configure(overrides)
        before = {path: path.stat().st_mtime_ns for path in self.files()}
        runpy.run_path(str(ROOT / "src" / f"{stage}.py"), run_name="not_main")["main"]()
        written = [path for path in self.files() if before.get(path) != path.stat().st_mtime_ns]
        assert written
        return {str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in written}

    def files(self) -> list[Path]:
        folders = ("data/processed", "data/features", "data/predictions", "models", "metrics")
        return [path for folder in folders for path in (self.path / folder).rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, clean_table) -> Path:
    """A table with two dates and two groups beside the usual columns, taken through all stages once."""
    path = tmp_path_factory.mktemp("params")
    (path / "data/raw").mkdir(parents=True)
    table = make_dirty(clean_table, seed=7)
    table = table.assign(
        applied_on=[f"2024-{i % 12 + 1:02}-{i % 28 + 1:02}" for i in range(len(table))],
        born_on=[f"{1960 + i * 7 % 40}-01-01" for i in range(len(table))],
        branch=[f"b{i % 40}" for i in range(len(table))],
        region=[f"r{i % 9}" for i in range(len(table))],
    )
    write_csv(table, path / PARAMS["data"]["raw"])
    write_csv(table.head(700), path / "data/raw/other.csv")
    contract = read_yaml(ROOT / PARAMS["data"]["contract"])
    contract["columns"] |= {"applied_on": {"kind": "date"}, "born_on": {"kind": "date"}}
    contract["columns"] |= {"branch": {"kind": "identifier"}, "region": {"kind": "identifier"}}
    (path / PARAMS["data"]["contract"]).write_text(yaml.safe_dump(contract, sort_keys=False), encoding="utf-8")
    name = contract["target"]["name"]
    contract["target"] = {"name": name, "good": 0, "bad": 1}
    (path / "data/other_schema.yaml").write_text(yaml.safe_dump(contract, sort_keys=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for stage in ("prepare", "featurize", "train", "evaluate"):
            Workspace(path).outputs(stage, {})
    return path


def workspace_in(path: Path, prepared: Path, monkeypatch) -> Workspace:
    shutil.copytree(prepared, path)
    monkeypatch.chdir(path)
    return Workspace(path)


# What a stage writes in a configuration, run once and asked by every key that is changed in it.
WRITTEN: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("key", CHANGES)
def test_changing_a_param_changes_what_its_stage_writes(prepared, tmp_path, monkeypatch, key):
    if key == "data.tables":
        pytest.importorskip("pyarrow", reason="the extra `parquet`")
    stage, value, configuration = CHANGES[key]
    name = json.dumps([stage, configuration])
    if name not in WRITTEN:
        WRITTEN[name] = workspace_in(tmp_path / "before", prepared, monkeypatch).outputs(stage, configuration)
    changed = workspace_in(tmp_path / "changed", prepared, monkeypatch).outputs(stage, configuration | {key: value})
    assert changed != WRITTEN[name]


@pytest.mark.parametrize("stage", ["prepare", "featurize", "train", "evaluate"])
def test_the_same_params_write_the_same_bytes(prepared, tmp_path, monkeypatch, stage):
    configuration = model("blend") if stage == "train" else {}
    one, other = (workspace_in(tmp_path / name, prepared, monkeypatch).outputs(stage, configuration) for name in "ab")
    assert one == other
