"""Where work runs: in this process unless MLOPS_DASK says otherwise, and what it says is checked."""

import sys

import numpy as np
import pytest
from msgspec.structs import replace

from mlops_project import parallel
from mlops_project.errors import PipelineError
from mlops_project.modeling import cross_validation
from mlops_project.modeling.distributed import Tables, is_distributed
from mlops_project.modeling.folds import make_folds
from mlops_project.modeling.models import build_model
from mlops_project.preprocessing import build_preprocessor, value_columns


def test_without_the_variable_tasks_run_here_in_their_order_as_they_are_asked_for(monkeypatch):
    monkeypatch.delenv("MLOPS_DASK", raising=False)
    done = []

    def add(shared, task):
        done.append(task)
        return shared + task

    here = parallel.pool(10)
    found = here.map(add, [1, 2, 3])
    assert (here.size, done) == (1, [])
    assert next(found) == 11
    assert done == [1]
    assert list(found) == [12, 13]


@pytest.mark.parametrize("text", ["yes", "local:0", "local:two", "10.0.0.5:8786", "http://a:1", "tcp://a", "tcp://a:b"])
def test_a_value_that_names_no_cluster_is_refused(monkeypatch, text):
    monkeypatch.setenv("MLOPS_DASK", text)
    with pytest.raises(PipelineError, match=rf"MLOPS_DASK={text}: expected local, local:4, tcp://.*unset MLOPS_DASK"):
        parallel.pool(None)


def test_without_dask_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("MLOPS_DASK", "local")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        PipelineError, match=r"Dask is not installed; install the extra mlops-project\[dask\], or unset MLOPS_DASK"
    ):
        parallel.pool(None)


def test_processes_that_differ_are_told_apart():
    own = parallel.identity()
    assert {"code of mlops_project", "Python", "numpy", "scikit-learn"} <= own.keys()
    parallel.check_identity("a worker", dict(own), own)
    other = {key: value for key, value in own.items() if key != "numpy"} | {"Python": "3.9.0"}
    with pytest.raises(PipelineError, match=r"a worker has Python 3\.9\.0 instead of .*, numpy absent instead of ") as error:
        parallel.check_identity("a worker", other, own)
    assert "joblib" not in str(error.value)


def test_models_of_a_fold_that_are_scored_apart_are_scored_alike(applicants, contract, params, monkeypatch):
    table, y = applicants.table[:300], applicants.target.to_numpy(dtype=int)[:300]
    preprocessor, settings = build_preprocessor(contract, params.featurize), replace(params.train, n_splits=2, n_repeats=1)
    columns = value_columns(preprocessor)
    names = ("scorecard", "logistic_regression")
    models = {name: build_model(name, getattr(params.models, name), settings, columns) for name in names}
    asked = []

    class Wide(parallel.Here):
        size = 100

        def map(self, function, tasks):
            asked.extend(tasks)
            return super().map(function, tasks)

    def scores():
        return cross_validation.cross_validate(models, preprocessor, table, y, make_folds(y, settings), settings)

    together = scores()
    monkeypatch.setattr(cross_validation, "pool", Wide)
    apart = scores()
    assert asked == [(fold, (name,)) for fold in (0, 1) for name in names]
    for name in names:
        assert together[name].test == apart[name].test
        assert together[name].train == apart[name].train
        np.testing.assert_array_equal(together[name].out_of_fold, apart[name].out_of_fold)


def test_xgboost_is_fitted_apart_only_where_nothing_needs_the_rows_together(contract, params, tmp_path, monkeypatch):
    columns = value_columns(build_preprocessor(contract, params.featurize))
    models = {
        name: build_model(name, getattr(params.models, name), params.train, columns) for name in ("xgboost", "blend", "scorecard")
    }
    train, tables = params.train, Tables(tmp_path / "X.parquet", tmp_path / "y.parquet")
    many = 1_000_000
    monkeypatch.delenv("MLOPS_DASK", raising=False)
    assert not is_distributed(models["xgboost"], train, many, tables)
    monkeypatch.setenv("MLOPS_DASK", "local")
    assert is_distributed(models["xgboost"], train, many, tables)
    assert is_distributed(models["xgboost"], replace(train, imbalance="class_weight"), many, tables)
    assert not is_distributed(models["xgboost"], train, many - 1, tables)
    assert not is_distributed(models["xgboost"], train, many, None)
    assert not is_distributed(models["xgboost"], train, many, Tables(tmp_path / "X.csv", tmp_path / "y.csv"))
    assert not is_distributed(models["xgboost"], replace(train, imbalance="SMOTE"), many, tables)
    assert not is_distributed(models["xgboost"], replace(train, calibration="sigmoid"), many, tables)
    assert not is_distributed(models["blend"], train, many, tables)
    assert not is_distributed(models["scorecard"], train, many, tables)
