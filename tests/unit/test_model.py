"""The saved model takes raw applicants, however they come, and holds what is needed to trust it."""

import datetime as dt
import pickle
import re
from importlib.metadata import version
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace

from mlops_project.config import Params
from mlops_project.dataset import Applicants
from mlops_project.errors import DataError, PipelineError
from mlops_project.files import read_table, write_table
from mlops_project.manifest import dump, write_manifest
from mlops_project.modeling.model import RiskModel, load_model, table_hash
from mlops_project.modeling.train import Training, train
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Column, Contract, Target


def fit(applicants: Applicants, contract: Contract, params: Params, **settings: object) -> Training:
    preprocessor = build_preprocessor(contract, params.featurize)
    chosen = replace(params.train, **{"model": "logistic_regression", "n_splits": 2, "n_repeats": 1, **settings})
    return train(applicants.table[:400], applicants.target[:400], preprocessor, contract, chosen, params.models)


@pytest.fixture(scope="module")
def training(_applicants: Applicants, contract: Contract, params: Params) -> Training:
    return fit(_applicants, contract, params)


@pytest.fixture
def model(training: Training) -> RiskModel:
    return training.model


def test_two_columns_bad_and_good(model: RiskModel, applicants: Applicants) -> None:
    p = model.predict_proba(applicants.table)
    assert p.shape == (len(applicants.table), 2)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert model.classes_.tolist() == [0, 1]
    np.testing.assert_array_equal(model.probability_of_default(applicants.table), p[:, 0])
    np.testing.assert_array_equal(model.predict(applicants.table), p[:, 1] > 0.5)
    # Class 1 is good: those who repaid score higher, also among the rows that no fit has seen.
    unseen = slice(400, None)
    good = applicants.target.to_numpy()[unseen] == 1
    assert p[unseen][good, 1].mean() > p[unseen][~good, 1].mean() + 0.1


def test_xgboost_answers_in_double_precision(applicants: Applicants, contract: Contract, params: Params) -> None:
    few = replace(params, models=replace(params.models, xgboost=replace(params.models.xgboost, n_estimators=20)))
    training = fit(applicants, contract, few, model="xgboost")
    p = training.model.predict_proba(applicants.table)
    assert p.dtype == training.out_of_fold["y_proba"].dtype == float
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)


def test_text_numbers_and_any_order_of_columns_score_alike(model: RiskModel, raw_table: pd.DataFrame) -> None:
    expected = model.predict_proba(raw_table)
    assert np.isfinite(expected).all()
    numbers = raw_table.apply(pd.to_numeric, errors="coerce")
    for table in (
        numbers,
        numbers.astype("Float64"),
        numbers.astype(object),
        raw_table.iloc[:, ::-1],
        raw_table.assign(branch="x", note=1.5),
        raw_table.drop(columns=["kredit", "mixed_type_col"]),
        raw_table.set_axis(range(1000, 1000 + len(raw_table))),
    ):
        np.testing.assert_array_equal(model.predict_proba(table), expected)


def test_one_row_scores_as_in_the_table(model: RiskModel, raw_table: pd.DataFrame) -> None:
    expected = model.predict_proba(raw_table.head(20))
    alone = np.vstack([model.predict_proba(raw_table.iloc[[i]]) for i in range(20)])
    np.testing.assert_allclose(alone, expected, rtol=1e-12)
    record = raw_table.iloc[0].to_dict()
    np.testing.assert_array_equal(model.predict_proba(pd.DataFrame([record])), alone[:1])


def test_dirt_scores_as_a_missing_cell(model: RiskModel, raw_table: pd.DataFrame) -> None:
    table = raw_table.head(50)
    missing = model.predict_proba(table.assign(laufkont="", hoehe=None))
    np.testing.assert_array_equal(model.predict_proba(table.assign(laufkont=" ERROR ", hoehe="99999999")), missing)
    assert (model.predict_proba(table) != missing).any()


def test_nothing_but_dirt_still_gets_a_score(model: RiskModel, contract: Contract) -> None:
    p = model.predict_proba(pd.DataFrame([dict.fromkeys(contract.features, "?")]))
    assert 0 < p[0, 1] < 1


def test_an_absent_column_is_named(model: RiskModel, raw_table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"column\(s\) hoehe, wohn of the contract missing; found laufkont, "):
        model.predict_proba(raw_table.drop(columns=["hoehe", "wohn"]))


def test_scoring_leaves_model_and_table_alone(model: RiskModel, raw_table: pd.DataFrame) -> None:
    before, table = joblib.hash(model), raw_table.copy()
    model.predict_proba(raw_table)
    assert joblib.hash(model) == before
    pd.testing.assert_frame_equal(raw_table, table)


def test_what_is_saved_is_what_is_loaded(model: RiskModel, raw_table: pd.DataFrame, tmp_path: Path) -> None:
    dump(model, tmp_path / "model.joblib")
    loaded = load_model(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(raw_table), model.predict_proba(raw_table))
    assert (loaded.contract, loaded.params) == (model.contract, model.params)
    assert loaded.training_data_hash == model.training_data_hash
    assert loaded.library_versions == model.library_versions


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"model.joblib: not found; run `dvc repro` to make it, or `dvc pull` to fetch it"):
        load_model(tmp_path / "model.joblib")
    (tmp_path / "model.joblib").write_bytes(b"damaged")
    write_manifest(tmp_path / "model.joblib")
    with pytest.raises(PipelineError, match=r"model.joblib: cannot be loaded \(\w+\); run `dvc repro` to write it anew"):
        load_model(tmp_path / "model.joblib")
    dump([1, 2], tmp_path / "model.joblib")
    with pytest.raises(PipelineError, match=r"model.joblib: found a list, expected a RiskModel of the train stage"):
        load_model(tmp_path / "model.joblib")


def test_what_is_needed_to_trust_it_is_inside(
    model: RiskModel, contract: Contract, params: Params, applicants: Applicants
) -> None:
    assert model.contract == contract
    assert model.feature_names_in_ == contract.features
    assert model.params["train"]["model"] == "logistic_regression"
    assert model.params["logistic_regression"] == {"C": params.models.logistic_regression.C, "max_iter": 1000}
    assert set(model.params) == {"train", "logistic_regression"}
    assert model.name == "logistic_regression"
    assert model.sample_default_rate == pytest.approx(1 - applicants.target[:400].mean())
    assert model.training_data_hash == table_hash(applicants.table[:400], applicants.target.to_numpy()[:400], contract)
    for name in ("numpy", "pandas", "scikit-learn"):
        assert model.library_versions[name] == version(name)
    assert any(name.startswith("xgboost") for name in model.library_versions)


def test_nothing_inside_changes_from_run_to_run(
    training: Training, contract: Contract, params: Params, applicants, tmp_path
) -> None:
    again = fit(applicants, contract, params)
    for name, result in {"one": training, "two": again}.items():
        dump(result.model, tmp_path / f"{name}.joblib")
    assert (tmp_path / "one.joblib").read_bytes() == (tmp_path / "two.joblib").read_bytes()
    pd.testing.assert_frame_equal(training.out_of_fold, again.out_of_fold)
    text = pickle.dumps(training.model, protocol=0).decode("latin-1")
    assert str(Path.cwd()) not in text
    assert not re.search(rf"{dt.datetime.now(tz=dt.UTC):%Y-%m}-\d\d", text)


# --- the hash of the training rows


@pytest.fixture(scope="module")
def small() -> Contract:
    columns = {
        "n": Column(kind="numeric", range=[0.0, 100.0]),
        "t": Column(kind="nominal", codes=["01", "b"]),
        "i": Column(kind="identifier"),
    }
    return Contract(target=Target(name="y", good=1, bad=0), missing_tokens=["?"], columns=columns)


def test_the_hash_of_a_table_is_that_of_its_values(small: Contract, tmp_path: Path) -> None:
    y = np.array([1, 0, 1])
    text = pd.DataFrame({"n": [" 7.0 ", "-0", "101"], "t": ["01", " B ", "?"], "i": ["1", "2", "3"]})
    expected = table_hash(text, y, small)
    assert re.fullmatch("[0-9a-f]{64}", expected)
    typed = pd.DataFrame({"t": ["01", "b", None], "n": [7, 0, None]}, index=["x", "y", "z"])
    assert table_hash(typed, y.astype(float), small) == expected
    assert table_hash(typed.astype({"n": "Int32", "t": "category"}), y.astype("int8"), small) == expected
    write_table(typed.rename_axis("applicant_id"), tmp_path / "x.csv")
    assert table_hash(read_table(tmp_path / "x.csv", small.text_columns), y, small) == expected


def test_the_hash_of_a_table_changes_with_a_value_a_row_or_an_outcome(small: Contract) -> None:
    table, y = pd.DataFrame({"n": [1, 2, 3], "t": ["01", "b", "b"]}), np.array([1, 0, 1])
    hashes = {
        table_hash(table, y, small),
        table_hash(table.assign(n=[1, 2, 4]), y, small),
        table_hash(table.assign(t=["01", "b", None]), y, small),
        table_hash(table, np.array([1, 1, 1]), small),
        table_hash(table[:2], y[:2], small),
        table_hash(table.iloc[[1, 0, 2]], y[[1, 0, 2]], small),
    }
    assert len(hashes) == 6
