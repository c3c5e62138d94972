"""params.yaml: the same values as DVC reads, and nothing that is misspelt, missing, of another type or out of range."""

import copy
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from dvc.api import params_show
from dvc.repo import Repo
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import to_builtins

from mlops_project import config
from mlops_project.config import Params, check_params, load_params
from mlops_project.errors import ParamsError, PipelineError
from mlops_project.files import read_yaml


@pytest.fixture(scope="session")
def content(root: Path) -> dict[str, Any]:
    return read_yaml(root / "params.yaml")


LISTS = ("featurize.ratios", "featurize.log", "train.candidates", "evaluate.strategy_thresholds")
MODELS = "scorecard, logistic_regression, decision_tree, xgboost_monotone, svm, random_forest, xgboost, blend, best"
SWITCHES = ("featurize.missing_indicators", "featurize.without_protected", "retraining.require_approval")


def leaves(content: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        if isinstance(value, dict):
            if (*path, key) != ("tune", "space"):  # what stands there is free; see test_tuning.py
                yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(content: dict[str, Any], path: str, change: Callable[[dict[str, Any], str], None]) -> dict[str, Any]:
    """Copy the parameters and apply ``change`` to the section that holds ``path``."""
    content = copy.deepcopy(content)
    *sections, key = path.split(".")
    section = content
    for name in sections:
        section = section[name]
    change(section, key)
    return content


def put(value: object) -> Callable[[dict[str, Any], str], None]:
    def change(section: dict[str, Any], key: str) -> None:
        section[key] = value

    return change


def refusal(content: dict[str, Any]) -> str:
    with pytest.raises(ParamsError) as caught:
        check_params(content, "params.yaml")
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert "\n" not in message
    return message


# --- what is read


def test_the_parameters_of_this_repository(params: Params, content: dict[str, Any]) -> None:
    assert isinstance(params, Params)
    assert to_builtins(params) == content


def test_whole_numbers_may_stand_for_floats_and_become_them(content: dict[str, Any]) -> None:
    for path in (
        "models.svm.C",
        "models.random_forest.max_features",
        "models.xgboost.learning_rate",
        "evaluate.cost_bad_approved",
    ):
        params = check_params(changed(content, path, put(1)))
        value = params
        for name in path.split("."):
            value = getattr(value, name)
        assert (type(value), value) == (float, 1.0), path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("prepare.duplicate_min_cells", 0),
        ("prepare.duplicate_strict_after", None),
        ("train.n_splits", 2),
        ("train.seed", 0),
        ("train.seed", 2**32 - 1),
        ("models.decision_tree.max_depth", None),
        ("models.random_forest.max_features", "log2"),
        ("models.svm.gamma", "auto"),
        ("models.svm.gamma", 1e-5),
        ("models.xgboost.subsample", 1.0),
        ("models.xgboost.min_child_weight", 0),
        ("evaluate.threshold", "tuned"),
        ("monitoring.simulations", 400),
        ("monitoring.min_rows", 10),
        ("quality.outcome_days", 0),
        ("quality.permutations", 400),
        ("evaluate.threshold", 0.2),
        ("evaluate.prior_default_rate", 0.02),
        ("evaluate.strategy_thresholds", [0.1]),
        ("evaluate.fairness_min_rows", 1),
        ("evaluate.bootstrap_samples", 100),
        ("evaluate.reasons", 0),
        ("featurize.lower_percentile", 0),
        ("featurize.upper_percentile", 100),
        ("featurize.log", ["hoehe"]),
        ("featurize.ratios", [{"name": "a", "numerator": "b", "denominator": "c"}]),
    ],
)
def test_the_ends_of_each_range_are_allowed(path: str, value: object, content: dict[str, Any]) -> None:
    found = to_builtins(check_params(changed(content, path, put(value))))
    for name in path.split("."):
        found = found[name]
    assert found == value


# --- what is refused


def test_every_key_that_is_missing_is_refused_with_those_expected(content: dict[str, Any]) -> None:
    paths = [*map(".".join, leaves(content)), "prepare", "models", "models.svm"]
    assert len(paths) > 45
    for path in paths:
        message = refusal(changed(content, path, lambda section, key: section.pop(key)))
        assert f"the key {path!r} is missing; expected there: " in message
        assert path.rpartition(".")[2] in message.partition("expected there")[2]


def test_every_misspelt_key_is_refused_with_the_one_meant(content: dict[str, Any]) -> None:
    for path in [*map(".".join, leaves(content)), "evaluate", "models.xgboost"]:
        name = path.rpartition(".")[2]
        message = refusal(changed(content, path, lambda section, key: section.update({f"{key}_": section.pop(key)})))
        assert f"unknown key {path + '_'!r}; " in message
        # A key of one letter has no near name; the allowed ones are listed all the same.
        assert f"did you mean {name!r}? " in message or len(name) == 1
        assert re.search(rf"allowed: .*\b{name}\b", message)


def test_every_value_of_another_type_is_refused_with_its_place(content: dict[str, Any]) -> None:
    for path in map(".".join, leaves(content)):
        for value in ({"x": 1}, [[1]], True if path not in SWITCHES else "true"):
            message = refusal(changed(content, path, put(value)))
            place = f"{path}.0" if value == [[1]] and path in LISTS else path
            assert message.startswith(f"params.yaml: {place}: found "), message
            assert "expected" in message or "allowed" in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "train.model",
            "lightgbm",
            f"allowed: {MODELS}",
        ),
        ("train.imbalance", "smote", "allowed: none, SMOTE, BorderlineSMOTE, SMOTENC, ADASYN, class_weight"),
        ("train.n_splits", 1, "expected int >= 2"),
        ("train.candidates", ["svm", "svm"], "train.candidates: found 'svm' twice, expected each model once"),
        ("train.candidates", ["svm"], "train.candidates: found ['svm'], expected two models or more"),
        ("train.candidates", ["svm", "best"], "allowed: scorecard"),
        ("train.selection_metric", "auc", "allowed: roc_auc, average_precision, ks, brier, log_loss"),
        ("train.calibration", "platt", "allowed: none, sigmoid, isotonic"),
        ("train.calibration_folds", 1, "expected int >= 2"),
        ("train.base_odds", 0, "expected float > 0.0"),
        ("train.points_to_double", -20, "expected float > 0.0"),
        ("models.scorecard.min_bin_share", 0, "expected float > 0.0"),
        ("models.scorecard.center", -0.1, "expected float >= 0.0"),
        ("models.scorecard.bins", {"age": 3}, "expected array"),
        ("models.blend", {}, "models.blend: found [], expected the sections of two models or more"),
        ("train.n_splits", 5.0, "expected int, got float"),
        ("train.n_splits", "5", "expected int, got str"),
        ("train.n_splits", None, "expected int, got null"),
        ("train.n_repeats", 0, "expected int >= 1"),
        ("train.smote_neighbors", 0, "expected int >= 1"),
        ("train.seed", -1, "expected int >= 0"),
        ("train.seed", 2**32, "expected int <= 4294967295"),
        ("data.raw", 7, "expected str, got int"),
        ("prepare.split", "random", "allowed: hash, stratified, by_time, by_group"),
        ("prepare.test_size", 0.0, "expected float > 0.0"),
        ("prepare.test_size", 1.0, "expected float < 1.0"),
        ("prepare.test_size", math.nan, "expected float > 0.0"),
        ("prepare.duplicate_min_cells", -1, "expected int >= 0"),
        ("prepare.duplicate_strict_after", 0, "expected int >= 1"),
        ("featurize.scale", "minmax", "allowed: standard, robust, none"),
        ("featurize.outliers", False, "allowed: none, iqr, percentiles"),
        ("featurize.ordinals", "onehot", "allowed: rank, one_hot"),
        ("featurize.iqr_factor", 0.0, "expected float > 0.0"),
        ("featurize.lower_percentile", 50.0, "expected float < 50.0"),
        ("featurize.upper_percentile", 50.0, "expected float > 50.0"),
        ("featurize.upper_percentile", 100.5, "expected float <= 100.0"),
        (
            "featurize.ratios",
            [{"name": "a", "numerator": "b"}],
            "'featurize.ratios.0.denominator' is missing; expected there: name,",
        ),
        (
            "featurize.ratios",
            [{"nam": "a"}],
            "unknown key 'featurize.ratios.0.nam'; did you mean 'name'? allowed: name, numerator,",
        ),
        ("featurize.ratios", ["a/b"], "featurize.ratios.0: found 'a/b', expected the keys name, numerator, denominator"),
        ("featurize.log", "hoehe", "featurize.log: found 'hoehe'; expected array, got str"),
        ("featurize.log", ["hoehe", 1], "featurize.log.1: found 1; expected str, got int"),
        ("models.logistic_regression.C", 0.0, "expected float > 0.0"),
        ("models.logistic_regression.C", math.inf, "expected float <= 1"),
        ("models.decision_tree.max_depth", 0, "expected int >= 1"),
        ("models.decision_tree.ccp_alpha", -0.1, "expected float >= 0.0"),
        ("models.random_forest.max_features", 1.5, "expected float <= 1.0; allowed: sqrt, log2"),
        ("models.random_forest.max_features", "sqr", "allowed: sqrt, log2"),
        ("models.svm.gamma", -1.0, "expected float > 0.0; allowed: scale, auto"),
        ("models.svm.gamma", "skale", "found 'skale'; allowed: scale, auto"),
        ("models.svm.calibration_folds", 1, "expected int >= 2"),
        ("models.xgboost.learning_rate", 1.5, "expected float <= 1.0"),
        ("models.xgboost.subsample", 0.0, "expected float > 0.0"),
        ("models.xgboost.reg_lambda", -1.0, "expected float >= 0.0"),
        ("models.svm", None, "expected object, got null"),
        (
            "models",
            [],
            f"expected the keys {MODELS}",
        ),
        ("evaluate.threshold", 1.0, "expected float < 1.0"),
        ("evaluate.threshold", "auto", "allowed: costs, tuned"),
        ("monitoring.false_alarm_rate", 0, "expected float > 0.0"),
        ("monitoring.false_alarm_rate", 0.001, "monitoring.simulations: found 2000, expected 20000 or more"),
        ("monitoring.simulations", 399, "monitoring.simulations: found 399, expected 400 or more"),
        ("monitoring.bins", 1, "expected int >= 2"),
        ("quality.outcome_days", -1, "expected float >= 0"),
        ("quality.window_days", 0, "expected float > 0"),
        ("quality.min_outcomes", 19, "expected int >= 20"),
        ("quality.false_alarm_rate", 0.001, "quality.permutations: found 2000, expected 20000 or more"),
        ("quality.data_tolerance", 1.0, "expected float < 1.0"),
        ("monitoring.min_rows", 9, "expected int >= 10"),
        ("monitoring.classifier_rows", 99, "expected int >= 100"),
        (
            "monitoring.classifier_folds",
            26,
            "found 26, expected half of monitoring.min_rows (50) at most",
        ),
        ("evaluate.threshold", 0.0, "expected float > 0.0; allowed: costs, tuned"),
        ("evaluate.threshold", None, "got null; allowed: costs, tuned"),
        ("evaluate.prior_default_rate", 0.0, "expected float > 0.0"),
        ("evaluate.prior_default_rate", 1.0, "expected float < 1.0"),
        ("evaluate.prior_default_rate", "3 %", "expected float | null, got str"),
        ("evaluate.strategy_thresholds", [], "expected array of length >= 1"),
        ("evaluate.strategy_thresholds", [0.1, 1.0], "evaluate.strategy_thresholds.1: found 1.0; expected float < 1.0"),
        ("evaluate.conformal_level", 1.0, "expected float < 1.0"),
        ("evaluate.fairness_min_rows", 0, "expected int >= 1"),
        ("evaluate.cost_good_refused", -1.0, "expected float > 0.0"),
        ("evaluate.cost_bad_approved", 0.0, "expected float > 0.0"),
        ("evaluate.bootstrap_samples", 99, "expected int >= 100"),
        ("evaluate.confidence", 1.0, "expected float < 1.0"),
        ("evaluate.importance_repeats", 0, "expected int >= 1"),
        ("evaluate.reasons", -1, "expected int >= 0"),
        ("retraining.max_bad_cells", 1.5, "expected float <= 1.0"),
        ("retraining.min_outcomes", 0, "expected int >= 1"),
        ("retraining.reject_inference", "parcelling", "allowed: none, fuzzy"),
        ("retraining.remote", "", "expected str of length >= 1"),
        ("retraining.serve", "", "expected str of length >= 1"),
    ],
)
def test_values_out_of_range_are_refused(path: str, value: object, message: str, content: dict[str, Any]) -> None:
    found = refusal(changed(content, path, put(value)))
    assert path in found
    assert message in found


def test_a_section_that_is_unknown_is_refused(content: dict[str, Any]) -> None:
    assert "unknown key 'lunch'; allowed: data, prepare, " in refusal(content | {"lunch": {}})
    assert "unknown key 'trian'; did you mean 'train'?" in refusal(content | {"trian": {}})


@pytest.mark.parametrize(("split", "key"), [("by_group", "group_column"), ("by_time", "date_column")])
def test_a_split_needs_its_column(split: str, key: str, content: dict[str, Any]) -> None:
    chosen = changed(content, "prepare.split", put(split))
    assert f"prepare.split is {split!r}, so prepare.{key} must name a column of the contract; found null" in refusal(chosen)
    assert check_params(changed(chosen, f"prepare.{key}", put("x"))).prepare.split == split


def test_a_candidate_without_settings_is_refused(content: dict[str, Any]) -> None:
    found = refusal(changed(content, "models.best.svm", lambda section, key: section.pop(key)))
    assert "models.best: the section 'svm' of a model in train.candidates is missing; copy it from models.svm" in found
    fewer = [name for name in content["train"]["candidates"] if name != "svm"]
    check_params(
        changed(changed(content, "train.candidates", put(fewer)), "models.best.svm", lambda section, key: section.pop(key))
    )


def test_a_prior_needs_true_probabilities(content: dict[str, Any]) -> None:
    balanced = changed(changed(content, "evaluate.prior_default_rate", put(0.05)), "train.imbalance", put("SMOTE"))
    assert "evaluate.prior_default_rate: found 0.05, but train.imbalance is 'SMOTE'" in refusal(balanced)
    check_params(changed(balanced, "train.calibration", put("sigmoid")))
    check_params(changed(balanced, "train.imbalance", put("none")))


def test_composite_models_hold_copies_of_the_settings(content: dict[str, Any]) -> None:
    """DVC sees only what stands in the section of the chosen model, and a copy that differs would be a trap."""
    models = content["models"]
    for name, section in {**models["best"], **models["blend"], **models["best"]["blend"]}.items():
        assert section == models[name], name
    assert set(content["train"]["candidates"]) == set(models["best"])


# --- the file, as DVC reads it


@pytest.fixture(scope="module")
def dvc_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dvc")
    Repo.init(str(path), no_scm=True).close()
    return path


def typed(value: Any) -> Any:
    """Write types beside values, so that 1, 1.0 and True differ and NaN equals NaN."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value).__name__, repr(value)


def assert_read_as_dvc_reads(path: Path, text: str) -> None:
    (path / "params.yaml").write_text(text, encoding="utf-8")
    assert typed(read_yaml(path / "params.yaml")) == typed(params_show("params.yaml", repo=str(path)))


def test_the_parameters_are_those_that_dvc_reads(root: Path, dvc_repo: Path) -> None:
    assert_read_as_dvc_reads(dvc_repo, (root / "params.yaml").read_text(encoding="utf-8"))


TRICKY = [
    "1e-05",
    "0.00001",
    "1e5",
    "1E5",
    "1e+5",
    "1.e5",
    "1.5e-3",
    "12e03",
    ".5",
    "-.5",
    "+.5",
    "5.",
    ".5e3",
    ".5e+3",
    "01.5",
    "1e400",
    ".inf",
    "-.Inf",
    ".NaN",
    "on",
    "off",
    "yes",
    "no",
    "On",
    "NO",
    "y",
    "n",
    "true",
    "True",
    "TRUE",
    "tRue",
    "false",
    "null",
    "Null",
    "~",
    "nUll",
    "None",
    "010",
    "0o7",
    "0o17",
    "0o8",
    "0x1F",
    "0x1g",
    "0b101",
    "0b2",
    "+1",
    "-0",
    "00",
    "08",
    "-010",
    "+0x1F",
    "-0b11",
    "1_000",
    "1_000.5",
    "1__0",
    "_1",
    "1_0e5",
    "12:30",
    "190:20:30",
    "1:2",
    "1e",
    "e5",
    "1.5.2",
    "1,000",
    "-",
    "+",
    ".",
    "1-",
    "-x",
    "0x",
    "4294967295",
    "18446744073709551616",
    "'1'",
    '"on"',
    "'1e-05'",
    '"null"',
    "''",
    '""',
    "~x",
]


def test_tricky_scalars_are_read_as_dvc_reads_them(dvc_repo: Path) -> None:
    text = "".join(f"k{i}: {scalar}\n" for i, scalar in enumerate(TRICKY) if scalar not in ("-", "0x"))
    text += "empty:\nblock: |\n  a\n  b\nlist: [on, 1e-3, ~, 010, '1']\nmap: {a: yes, 1: 1_0, on: off, 1.5: x}\n"
    assert_read_as_dvc_reads(dvc_repo, text)


def test_tricky_scalars_have_these_values(tmp_path: Path) -> None:
    expected = {
        "1e-05": 1e-5,
        "0.00001": 1e-5,
        "1e5": 1e5,
        ".5": 0.5,
        "+1": 1,
        "010": 10,
        "0o7": 7,
        "1_000": 1000,
        "on": "on",
        "yes": "yes",
        "no": "no",
        "off": "off",
        "null": None,
        "~": None,
        "12:30": "12:30",
        "true": True,
        "True": True,
        "'1'": "1",
        '"on"': "on",
        "'1e-05'": "1e-05",
    }
    for scalar, value in expected.items():
        (tmp_path / "p.yaml").write_text(f"key: {scalar}\n")
        assert typed(read_yaml(tmp_path / "p.yaml")) == {"key": typed(value)}, scalar


@settings(max_examples=8)
@given(st.lists(st.text("+-.0123456789_eExobft:naN", min_size=1, max_size=7), min_size=30, max_size=60))
def test_any_scalar_is_read_as_dvc_reads_it(dvc_repo: Path, scalars: list[str]) -> None:
    # What starts an entry or a key, and numbers without digits, on which DVC itself gives up.
    usable = [s for s in scalars if not re.search(r"^-$|:$|^[-+]?(0[box])?_*$|^[-+]?\._+$", s)]
    assert_read_as_dvc_reads(dvc_repo, "".join(f"k{i}: {scalar}\n" for i, scalar in enumerate(usable)) + "last: 1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {seed: 1}\ntrain: {seed: 2}\n", "the key 'train' stands twice"),
        ("train:\n  seed: 1\n  model: svm\n  seed: 1\n", "the key 'seed' stands twice"),
        ("a: [{b: 1, b: 2}]\n", "the key 'b' stands twice"),
        ("a: {1: x, 1.0: y}\n", "the key 1.0 stands twice"),
        ("a: {{ seed }}\n", "cannot be read as YAML"),
        ("a: [1\n", "cannot be read as YAML"),
        ("a:\t1\n\tb: 2\n", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
        ("", "found NoneType, expected keys with values"),
        ("- a\n", "found list, expected keys with values"),
        ("a: \xff\n", "cannot be read as YAML"),
    ],
)
def test_files_that_cannot_be_read_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(PipelineError) as caught:
        load_params(tmp_path / "params.yaml")
    assert f"{tmp_path / 'params.yaml'}: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PipelineError, match=rf"^params.yaml: not found in {re.escape(str(tmp_path))}; run from the folder that holds"
    ):
        load_params()
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(PipelineError, match=r"^params.yaml: cannot be read as YAML: .*directory"):
        load_params()


def test_the_source_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {}\n")
    with pytest.raises(ParamsError, match=rf"^{re.escape(str(tmp_path / 'mine.yaml'))}: the key 'data.raw' is missing"):
        load_params(tmp_path / "mine.yaml")


def test_names_of_the_guide_say_what_params_say(root, params, monkeypatch):
    monkeypatch.chdir(root)
    assert params.train.seed == config.RANDOM_SEED
    section = getattr(params.models, params.train.model)
    plain = {key: value for key, value in msgspec.to_builtins(section).items() if not isinstance(value, dict)}
    assert plain == config.BEST_MODEL_PARAMS
    assert config.flat_settings(params.models.blend)["svm.C"] == params.models.blend.svm.C
    assert set(config.AVAILABLE_MODELS) == set(params.train.candidates)
    with pytest.raises(AttributeError, match="has no attribute 'RANDOM_SEEDS'"):
        config.RANDOM_SEEDS  # noqa: B018


def test_paths_are_those_of_the_pipeline():
    assert config.get_data_path("Xtest.csv", "processed") == config.PROCESSED / "Xtest.csv"
    assert config.get_model_path("best_model.joblib") == config.BEST_MODEL
    with pytest.raises(ValueError, match="kind: found 'cooked', expected one of raw, processed"):
        config.get_data_path("x.csv", "cooked")


def test_all_missing_inputs_are_listed_at_once(tmp_path):
    (tmp_path / "there").touch()
    config.validate_inputs([tmp_path / "there", tmp_path])  # a folder of months is an input, too
    with pytest.raises(FileNotFoundError, match=r"missing in .*: a\.csv, b\.joblib; fetch with"):
        config.validate_inputs(["a.csv", tmp_path / "there", "b.joblib"])


def test_options_are_checked_as_params_are(params):
    assert config.with_training(params) == params
    assert config.with_training(params, "svm", "SMOTE").train.imbalance == "SMOTE"
    with pytest.raises(ParamsError, match=r"options: .*train\.model.*bogus"):
        config.with_training(params, "bogus")
    prior = msgspec.structs.replace(params, evaluate=msgspec.structs.replace(params.evaluate, prior_default_rate=0.05))
    with pytest.raises(ParamsError, match=r"options: evaluate\.prior_default_rate"):
        config.with_training(prior, imbalance="SMOTE")


def test_one_seed_for_python_and_numpy():
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        assert config.seed_everything(7) == 7
        first = random.random(), np.random.random()  # noqa: NPY002
        config.seed_everything(7)
        assert (random.random(), np.random.random()) == first  # noqa: NPY002
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
