"""Hyper-parameter search: nested and honest, resumable to the same end, and written back without touching other bytes."""

import copy
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins
from msgspec.structs import replace
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from scipy import stats

from mlops_project import cli
from mlops_project.config import SINGLE_MODELS, Params, check_params, load_params, search_space
from mlops_project.dataset import Applicants
from mlops_project.errors import DataError, ParamsError, PipelineError
from mlops_project.files import read_yaml, write_table
from mlops_project.modeling.folds import make_folds
from mlops_project.modeling.selection import corrected_t_test, interval
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Contract
from mlops_project.tuning import Tuning, tune, with_scalars, write_values

NAME = "logistic_regression"
COMPLETE, FAIL = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL


def quick(params: Params, space: dict[str, Any] | None = None, name: str = NAME, **settings: Any) -> Params:
    """Two outer and two inner folds; ``settings`` of train, models or tune by their names."""
    train = replace(params.train, n_splits=settings.pop("n_splits", 2), n_repeats=1)
    models = replace(params.models, **settings.pop("models", {}))
    tuned = replace(params.tune, **settings)
    if space is not None:
        tuned = replace(tuned, space=replace(tuned.space, **{name: space}))
    return replace(params, train=train, models=models, tune=tuned)


def run(applicants: Applicants, contract: Contract, params: Params, folder: Path, n_trials: int = 3, name: str = NAME) -> Tuning:
    table, target = applicants.table[:300], applicants.target[:300]
    preprocessor = build_preprocessor(contract, params.featurize)
    return tune(table, target, preprocessor, contract, params, folder, name=name, n_trials=n_trials)


def without_seconds(found: Tuning) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    trials = [{key: value for key, value in trial.items() if key != "seconds"} for trial in found.trials]
    return {key: value for key, value in found.report.items() if key != "seconds"}, trials


def trials_in(journal: Path) -> dict[tuple[str, int], optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    return {(n, t.number): t for n in names for t in optuna.load_study(study_name=n, storage=storage).trials}


# --- spaces


@pytest.fixture(scope="module")
def content(root: Path) -> dict[str, Any]:
    return read_yaml(root / "params.yaml")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("depth", {"low": 1, "high": 2}, "unknown key 'tune.space.xgboost.depth'; allowed: n_estimators, max_depth, "),
        ("max_depth", 3, "tune.space.xgboost.max_depth: found 3; expected {low: …, high: …} or a list of choices"),
        ("max_depth", None, "max_depth: found None; expected {low: …, high: …} or a list"),
        ("max_depth", {"low": 1}, "the key 'tune.space.xgboost.max_depth.high' is missing; expected there: low, high, log, step"),
        ("max_depth", {"low": 1, "hihg": 2}, "unknown key 'tune.space.xgboost.max_depth.hihg'; did you mean 'high'?"),
        ("max_depth", {"low": 4, "high": 4}, "expected low below high"),
        ("max_depth", {"low": 0, "high": 4}, "tune.space.xgboost.max_depth: found 0; expected int >= 1"),
        ("max_depth", {"low": 1, "high": 4.5}, "tune.space.xgboost.max_depth: found 4.5; expected int, got float"),
        ("max_depth", {"low": "1", "high": 4}, "tune.space.xgboost.max_depth.low: found '1'; expected int | float, got str"),
        ("max_depth", {"low": True, "high": 4}, "tune.space.xgboost.max_depth.low: found True; expected int | float, got bool"),
        ("max_depth", {"low": 1, "high": 4, "log": 1}, "tune.space.xgboost.max_depth.log: found 1; expected bool"),
        ("max_depth", {"low": 1, "high": 4, "step": 2}, "expected a step that leads from low to high"),
        ("max_depth", {"low": 1, "high": 4, "step": 0}, "expected a step above 0"),
        ("max_depth", {"low": 1, "high": 4, "step": 1.5}, "whole if the setting is"),
        ("max_depth", {"low": 1, "high": 4, "step": 1, "log": True}, "none on a log scale"),
        ("subsample", {"low": 0.5, "high": 1.5}, "tune.space.xgboost.subsample: found 1.5; expected float <= 1.0"),
        ("subsample", {"low": 0.1, "high": 1.0, "step": 0.4}, "expected a step that leads from low to high"),
        ("reg_lambda", {"low": 0.0, "high": 1.0, "log": True}, "expected low above 0 for a log scale"),
        ("reg_lambda", {"low": 0.0, "high": float("inf")}, "tune.space.xgboost.reg_lambda.high: found inf; expected float <= 1"),
        ("reg_lambda", {"low": float("nan"), "high": 1.0}, "tune.space.xgboost.reg_lambda.low: found nan; expected float >= "),
        ("max_depth", [], "expected two different choices or more"),
        ("max_depth", [3], "expected two different choices or more"),
        ("reg_lambda", [1, 1.0], "expected two different choices or more"),
        ("max_depth", [3, "deep"], "tune.space.xgboost.max_depth: found 'deep'; expected int, got str"),
        ("max_depth", [3, [4]], "expected numbers or names as choices"),
        ("max_depth", [3, None], "tune.space.xgboost.max_depth: found None; expected int, got null"),
    ],
)
def test_bad_spaces_are_refused(setting: str, value: object, message: str, content: dict[str, Any]) -> None:
    changed = copy.deepcopy(content)
    changed["tune"]["space"]["xgboost"][setting] = value
    with pytest.raises(ParamsError) as caught:
        check_params(changed, "params.yaml")
    assert str(caught.value).startswith("params.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_trials", 0, "tune.n_trials: found 0; expected int >= 1"),
        ("metric", "auc", "tune.metric: found 'auc'; allowed: roc_auc, average_precision, "),
        ("outer_repeats", 0, "expected int >= 1"),
        ("inner_repeats", 1.0, "expected int, got float"),
        ("seed", -1, "expected int >= 0"),
        ("space", {"xgbost": {}}, "unknown key 'tune.space.xgbost'; did you mean 'xgboost'?"),
    ],
)
def test_bad_settings_are_refused(key: str, value: object, message: str, content: dict[str, Any]) -> None:
    with pytest.raises(ParamsError) as caught:
        check_params(content | {"tune": content["tune"] | {key: value}})
    assert message in str(caught.value)


def test_bounds_have_the_type_of_the_setting(params: Params) -> None:
    space = {"C": {"low": 1, "high": 3}, "gamma": [1, "scale"]}
    found = search_space(quick(params, space, "svm"), "svm")
    assert repr(found) == "{'C': Range(low=1.0, high=3.0, log=False, step=None), 'gamma': [1.0, 'scale']}"


@pytest.mark.parametrize("name", ["best", "blend", "lightgbm"])
def test_what_has_no_hyper_parameters_of_its_own_is_refused(name, applicants, contract, params, tmp_path) -> None:
    with pytest.raises(ParamsError, match=f"^{name} has no hyper-parameters of its own; tune its members, one of scorecard, "):
        run(applicants, contract, params, tmp_path, name=name)
    with pytest.raises(ParamsError, match=r"^params.yaml: tune.space.svm: found no setting, expected one or more"):
        run(applicants, contract, quick(params, {}, "svm"), tmp_path, name="svm")
    assert not list(tmp_path.iterdir())


# --- the search


@pytest.mark.parametrize("name", SINGLE_MODELS)
def test_every_model_can_be_searched_in_its_default_space(name, applicants, contract, params, tmp_path) -> None:
    cheap = {} if name not in ("xgboost", "xgboost_monotone") else {"n_estimators": {"low": 10, "high": 30, "step": 10}}
    space = getattr(params.tune.space, name) | cheap
    few = {"random_forest": replace(params.models.random_forest, n_estimators=10)}
    found = run(applicants, contract, quick(params, space, name, models=few), tmp_path, n_trials=2, name=name)
    assert [trial["search"] for trial in found.trials] == ["fold 1"] * 2 + ["fold 2"] * 2 + ["all rows"] * 2
    content = to_builtins(params)
    for trial in found.trials:
        tried = content["models"][name] | {key: trial[key] for key in space}
        check_params(content | {"models": content["models"] | {name: tried}})
        assert 0.4 < trial["roc_auc"] < 0.95
    json.dumps(found.report, allow_nan=False)
    assert set(found.report["values"]) == set(space)


def test_a_search_sees_no_row_of_its_outer_fold(applicants, contract, params, tmp_path) -> None:
    small = quick(params)
    held_out = make_folds(applicants.target.to_numpy()[:300], small.train)[0].test
    before = run(applicants, contract, small, tmp_path / "a")
    column = contract.of_kind("numeric")[0]
    table = applicants.table.copy()
    table.iloc[held_out, table.columns.get_loc(column)] = table[column].iloc[held_out].sample(frac=1, random_state=0).to_numpy()
    after = run(applicants._replace(table=table), contract, small, tmp_path / "b")
    trials = [without_seconds(found)[1] for found in (before, after)]
    assert trials[0][:3] == trials[1][:3], "fold 1 is searched without the changed rows"
    assert trials[0][3:6] != trials[1][3:6], "fold 2 is searched on them"
    assert before.report["folds"][0]["tuned"] != after.report["folds"][0]["tuned"]


def test_inner_folds_that_a_model_needs_are_checked_first(applicants, contract, params, tmp_path) -> None:
    y = applicants.target
    few = [*y.index[y == 0][:12], *y.index[y == 1][:50]]
    small = applicants._replace(table=applicants.table.loc[few], target=y.loc[few])
    with pytest.raises(DataError, match=r"the smaller class has 3 rows in a training fold, expected .*calibration_folds = 5"):
        run(small, contract, quick(params), tmp_path, name="svm")


def test_a_clear_gain_is_called_one(applicants, contract, params, tmp_path) -> None:
    poor = {NAME: replace(params.models.logistic_regression, C=1e-6)}
    small = quick(params, {"C": {"low": 0.05, "high": 0.2}}, models=poor, metric="log_loss", n_splits=3, outer_repeats=2)
    report = run(applicants, contract, small, tmp_path).report
    assert report["better"]
    assert report["verdict"] == "searching gains"
    assert len(report["folds"]) == 6
    differences = [fold["current"] - fold["tuned"] for fold in report["folds"]]  # log loss: lower is better
    found = corrected_t_test(differences, 0.5)
    assert report["gain"]["mean"] == pytest.approx(found.mean, abs=2e-6)
    assert (report["gain"]["low"], report["gain"]["high"]) == pytest.approx(interval(found, 6), abs=1e-4)
    assert report["gain"]["low"] > 0


def test_a_gain_that_may_be_noise_is_called_noise(applicants, contract, params, tmp_path) -> None:
    report = run(applicants, contract, quick(params), tmp_path).report
    assert report["gain"]["low"] <= 0 <= report["gain"]["high"]
    assert report["verdict"].startswith("the gain is noise: its interval includes 0")
    assert not report["better"]


def test_current_values_that_nothing_beats_stay(applicants, contract, params, tmp_path) -> None:
    small = quick(params, {"C": [1e-7, 1e-6]}, metric="log_loss")
    report = run(applicants, contract, small, tmp_path).report
    assert report["values"] == report["current"] == {"C": params.models.logistic_regression.C}
    assert report["gain"]["mean"] == report["gain"]["standard_error"] == 0
    assert not report["better"]
    assert report["verdict"].startswith("no search found better values")


def test_groups_stay_together(applicants, contract, params, tmp_path) -> None:
    branches = np.random.default_rng(0).integers(0, 5, len(applicants.table))
    grouped = applicants._replace(table=applicants.table.assign(branch=branches))
    by_group = replace(params, prepare=replace(params.prepare, split="by_group", group_column="branch"))
    assert run(grouped, contract, quick(by_group), tmp_path).report["rows"] == 300
    with pytest.raises(DataError, match="found 4 groups, expected at least"):  # of the 5, those of one training fold
        run(grouped, contract, quick(by_group, n_splits=5), tmp_path)


def test_the_interval_is_that_of_student() -> None:
    found = corrected_t_test([0.01, 0.03, -0.01, 0.02, 0.0], 0.25)
    expected = stats.t.interval(0.9, 4, loc=found.mean, scale=found.standard_error)
    assert interval(found, 5, 0.9) == pytest.approx(expected)


# --- going on


def test_a_second_run_has_nothing_to_do_and_reports_the_same(applicants, contract, params, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "mlops_project")
    first = run(applicants, contract, quick(params), tmp_path)
    assert "nothing left" not in caplog.text
    before = trials_in(tmp_path / f"{NAME}.journal")
    assert run(applicants, contract, quick(params), tmp_path) == first  # seconds included: they are those of the trials
    assert "nothing left to search: all 9 trials are there" in caplog.text
    assert trials_in(tmp_path / f"{NAME}.journal") == before


def test_more_trials_go_on_to_the_end_of_a_longer_search(applicants, contract, params, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "mlops_project")
    run(applicants, contract, quick(params), tmp_path / "a", n_trials=4)
    longer = run(applicants, contract, quick(params), tmp_path / "a", n_trials=12)  # more than the random start of the sampler
    assert "going on after 12 of 36 trials" in caplog.text
    at_once = run(applicants, contract, quick(params), tmp_path / "b", n_trials=12)
    assert without_seconds(longer) == without_seconds(at_once)
    fewer = run(applicants, contract, quick(params), tmp_path / "a", n_trials=4)
    assert without_seconds(fewer) == without_seconds(run(applicants, contract, quick(params), tmp_path / "c", n_trials=4))


def test_other_data_and_settings_start_afresh_and_say_so(applicants, contract, params, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "mlops_project")
    run(applicants, contract, quick(params), tmp_path, n_trials=1)
    assert "afresh" not in caplog.text
    done = 3
    table = applicants.table.copy()
    table.iloc[0, 0] = table.iloc[1, 0] if table.iloc[0, 0] != table.iloc[1, 0] else None
    others = [
        (applicants._replace(table=table), quick(params)),
        (applicants, quick(params, {"C": {"low": 0.1, "high": 1.0}})),
        (applicants, quick(params, models={NAME: replace(params.models.logistic_regression, max_iter=900)})),
        (applicants, quick(params, metric="brier")),
        (applicants, quick(params, seed=7)),
        (applicants, quick(params, n_splits=3)),
    ]
    for rows, changed in others:
        caplog.clear()
        done += len(run(rows, contract, changed, tmp_path, n_trials=1).trials)
        assert "starting afresh" in caplog.text
        assert len(trials_in(tmp_path / f"{NAME}.journal")) == done
    # The values that are searched, and how many outer folds, do not change a trial.
    caplog.clear()
    moved = {NAME: replace(params.models.logistic_regression, C=5.0)}
    run(applicants, contract, quick(params, models=moved, outer_repeats=2), tmp_path, n_trials=1)
    assert "going on after 3 of 5 trials" in caplog.text


def test_two_searches_of_a_model_do_not_mix(applicants, contract, params, tmp_path) -> None:
    code = (
        "import fcntl, sys, time; held = open(sys.argv[1], 'a'); fcntl.flock(held, fcntl.LOCK_EX); print(1, flush=True);"
        " time.sleep(60)"
    )
    journal = tmp_path / f"{NAME}.journal"
    with subprocess.Popen([sys.executable, "-c", code, str(journal)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(PipelineError, match="another search of logistic_regression is at work"):
                run(applicants, contract, quick(params), tmp_path)
        finally:
            other.kill()
    assert len(run(applicants, contract, quick(params), tmp_path).trials) == 9


def test_a_running_trial_half_a_line_and_a_lock_that_a_kill_left_are_mended(applicants, contract, params, tmp_path) -> None:
    whole = run(applicants, contract, quick(params), tmp_path / "a", n_trials=3)
    run(applicants, contract, quick(params), tmp_path / "b", n_trials=2)
    journal = tmp_path / "b" / f"{NAME}.journal"
    storage = JournalStorage(JournalFileBackend(str(journal)))
    name = next(name for name in optuna.get_all_study_names(storage) if name.endswith("fold 2"))
    optuna.load_study(study_name=name, storage=storage).ask()
    text = journal.read_bytes()
    journal.write_bytes(text + text[: text.index(b"\n") // 2])
    journal.with_name(f"{journal.name}.lock").symlink_to("nowhere")  # as Optuna's is: relative to another folder
    mended = run(applicants, contract, quick(params), tmp_path / "b", n_trials=3)
    assert without_seconds(mended) == without_seconds(whole)
    states = [trial.state for trial in trials_in(journal).values()]
    assert (states.count(COMPLETE), states.count(FAIL), len(states)) == (9, 1, 10)


def test_without_optuna_the_message_says_how_to_get_it(applicants, contract, params, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PipelineError, match=r"optuna is not installed: use `make tune`, or install .*\[tuning\]"):
        run(applicants, contract, quick(params), tmp_path)


# --- the command


@pytest.fixture
def workspace(workdir: Path, root: Path, applicants: Applicants, contract: Contract) -> Path:
    """A folder with development rows, and no others, and quick settings."""
    (workdir / "data/processed").mkdir(parents=True)
    shutil.copy(root / "data/schema.yaml", workdir / "data/schema.yaml")
    write_table(applicants.table[:300], workdir / "data/processed/Xtraintest.csv")
    write_table(applicants.target[:300].to_frame(), workdir / "data/processed/ytraintest.csv")
    text = (root / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("n_splits: 5", "n_splits: 2").replace("model: scorecard", f"model: {NAME}")
    (workdir / "params.yaml").write_text(text, encoding="utf-8")
    return workdir


def test_the_command_reports_and_leaves_params_as_they_are_when_the_gain_is_noise(workspace, capsys) -> None:
    before = (workspace / "params.yaml").read_bytes()
    assert cli.tune(["--trials", "3"]) == 0
    printed = capsys.readouterr().out
    assert "the gain is noise: its interval includes 0" in printed
    assert printed.endswith("params.yaml is left as it is\n")
    assert (workspace / "params.yaml").read_bytes() == before
    assert {path.name for path in (workspace / "tuning").iterdir()} == {f"{NAME}.{end}" for end in ("csv", "journal", "json")}
    report = json.loads((workspace / f"tuning/{NAME}.json").read_text(encoding="utf-8"))
    assert report["n_trials"] == 3
    assert len((workspace / f"tuning/{NAME}.csv").read_text(encoding="utf-8").splitlines()) == 1 + 9
    assert not (workspace / "data/processed/Xtest.csv").exists()


def test_the_command_writes_on_request_and_then_compares_with_what_it_wrote(workspace, capsys) -> None:
    text = (workspace / "params.yaml").read_text(encoding="utf-8").replace("C: 0.1\n", "C: 0.00001\n")
    (workspace / "params.yaml").write_text(text, encoding="utf-8")
    command = ["--trials", "2", "--model", NAME]
    assert cli.tune([*command, "--write", "never"]) == 0
    assert (workspace / "params.yaml").read_text(encoding="utf-8") == text
    assert cli.tune([*command, "--write", "always"]) == 0
    printed = capsys.readouterr().out
    assert "params.yaml: written to models.logistic_regression, models.best.logistic_regression; train it" in printed
    found = json.loads((workspace / f"tuning/{NAME}.json").read_text(encoding="utf-8"))["values"]
    models = load_params().models
    assert models.logistic_regression.C == models.best.logistic_regression.C == found["C"] != 0.00001
    assert cli.tune([*command, "--write", "always"]) == 0
    assert capsys.readouterr().out.endswith("params.yaml is left as it is\n")


def test_wrong_arguments_are_refused(workspace, capsys) -> None:
    assert cli.tune(["--model", "best"]) == 1
    assert "error: best has no hyper-parameters of its own" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.tune(["--trials", "0"])
    with pytest.raises(SystemExit):
        cli.tune(["--help"])
    assert "mlops-tune --model xgboost --trials 50" in capsys.readouterr().out
    (workspace / "data/processed/Xtraintest.csv").unlink()
    assert cli.tune([]) == 1
    assert "Xtraintest.csv: not found; run `dvc repro`" in capsys.readouterr().err


def test_a_killed_search_goes_on_and_ends_where_it_would_have(workspace) -> None:
    command = [sys.executable, "-c", "import sys; from mlops_project.cli import tune; sys.exit(tune())", "--trials", "15"]
    journal, other = workspace / f"tuning/{NAME}.journal", workspace.with_name(f"{workspace.name}-other")
    shutil.copytree(workspace, other)
    with subprocess.Popen(command, cwd=workspace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b'"state":1') < 20):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    killed = trials_in(journal)
    completed = {key: trial for key, trial in killed.items() if trial.state == COMPLETE}
    assert 20 <= len(completed) < 45

    resumed = subprocess.run(command, cwd=workspace, check=True, capture_output=True, text=True)
    assert f"going on after {len(completed)} of 45 trials" in resumed.stderr
    after = trials_in(journal)
    assert {key: after[key] for key in completed} == completed, "what was done was not run again"
    assert sum(trial.state == COMPLETE for trial in after.values()) == 45
    assert {after[key].state for key in killed if key not in completed} <= {FAIL}
    subprocess.run(command, cwd=other, check=True, capture_output=True)
    reports = [json.loads((folder / f"tuning/{NAME}.json").read_text(encoding="utf-8")) for folder in (workspace, other)]
    assert reports[0] | {"seconds": 0} == reports[1] | {"seconds": 0}


# --- writing back


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_writing_back_changes_the_values_and_no_other_byte(newline: str, root: Path, tmp_path: Path) -> None:
    text = (root / "params.yaml").read_text(encoding="utf-8").replace("max_depth: null", "max_depth:   null  # unbounded")
    path = tmp_path / "params.yaml"
    path.write_bytes(text.replace("\n", newline).encode())
    assert write_values(path, "random_forest", {"max_depth": 7, "max_features": 0.123, "min_samples_leaf": 11}) == [
        "models.random_forest",
        "models.blend.random_forest",
        "models.best.random_forest",
        "models.best.blend.random_forest",
    ]
    start, end = text.index("\nmodels:"), text.index("\nevaluate:")
    section = (
        text[start:end].replace("max_depth:   null  #", "max_depth:   7  #").replace("max_features: sqrt", "max_features: 0.123")
    )
    section = section.replace("min_samples_leaf: 3\n", "min_samples_leaf: 11\n")
    expected = text[:start] + section + text[end:]
    assert path.read_bytes() == expected.replace("\n", newline).encode()
    assert write_values(path, "random_forest", {"max_depth": None, "max_features": "sqrt", "min_samples_leaf": 3})
    assert path.read_bytes() == text.replace("\n", newline).encode()


def test_values_that_params_would_refuse_are_not_written(root: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(root / "params.yaml", tmp_path))
    with pytest.raises(ParamsError, match=r"expected float <= 1\.0"):
        write_values(path, "xgboost", {"subsample": 1.5})
    assert path.read_bytes() == (root / "params.yaml").read_bytes()
    assert [found.name for found in tmp_path.iterdir()] == ["params.yaml"]


scalars = st.none() | st.integers(-1000, 1000) | st.floats(-1e6, 1e6) | st.sampled_from(["sqrt", "a: b", "it's # none", "", "ü"])


@given(
    st.recursive(scalars, lambda inner: st.dictionaries(st.sampled_from("abcdef"), inner, min_size=1, max_size=4), max_leaves=12),
    st.booleans(),
    st.data(),
)
def test_any_scalar_of_any_mapping_can_be_replaced(inner: Any, flow: bool, data: st.DataObject) -> None:
    content = {"top": inner, "last": 1}
    text = "# first\n" + yaml.safe_dump(content, default_flow_style=flow, sort_keys=False, allow_unicode=True).replace(
        "null", "~"
    )
    path, holder, node = ["top"], content, inner
    while isinstance(node, dict):
        path.append(data.draw(st.sampled_from(sorted(node))))
        holder, node = node, node[path[-1]]
    value = data.draw(st.none() | st.integers() | st.sampled_from([0.5, 0.25, "sqrt"]))
    changed = with_scalars(text, {tuple(path): value})
    holder[path[-1]] = value
    assert yaml.safe_load(changed) == content
    assert changed.startswith("# first\n")


def test_a_value_that_is_left_empty_can_be_filled() -> None:
    assert with_scalars("a:\n  b: # none\n  c:\n", {("a", "b"): 1, ("a", "c"): 0.5}) == "a:\n  b: 1 # none\n  c: 0.5\n"
