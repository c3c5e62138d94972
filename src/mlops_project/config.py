"""params.yaml as typed objects, and where things lie. Every key is described in params.yaml itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from mlops_project.errors import ParamsError
from mlops_project.files import read_yaml
from mlops_project.runtime import setup_logging  # noqa: F401 - callers look for it here
from mlops_project.strict import Strict, convert

if TYPE_CHECKING:
    from collections.abc import Iterable

    # Read from params.yaml when they are asked for, see `__getattr__`.
    RANDOM_SEED: int
    BEST_MODEL_PARAMS: dict[str, Any]


# All paths are relative to the working directory: DVC runs every stage beside dvc.yaml.
PARAMS_FILE = Path("params.yaml")
RAW = Path("data/raw")
PROCESSED = Path("data/processed")
FEATURES = Path("data/features")
PREDICTIONS = Path("data/predictions")
MODELS = Path("models")
BEST_MODEL = MODELS / "best_model.joblib"
MODEL_RESULTS = MODELS / "model_results.json"
REGISTRY = MODELS / "registry.jsonl"
METRICS = Path("metrics")
PLOTS = METRICS / "plots"
TUNING = Path("tuning")

Positive = Annotated[float, Meta(gt=0, le=1e15)]  # msgspec takes no infinite bound; .inf would give a cost of NaN
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]
UpToOne = Annotated[float, Meta(gt=0, le=1)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class DataParams(Strict, frozen=True):
    raw: str
    contract: str
    tables: Literal["csv", "parquet"]


class PrepareParams(Strict, frozen=True):
    duplicate_min_cells: Annotated[int, Meta(ge=0)]
    duplicate_strict_after: Annotated[int, Meta(ge=1)] | None
    split: Literal["hash", "stratified", "by_time", "by_group"]
    group_column: str | None
    date_column: str | None
    test_size: Share
    split_seed: Seed


class Ratio(Strict, frozen=True):
    name: str
    numerator: str
    denominator: str


class FeaturizeParams(Strict, frozen=True):
    ratios: list[Ratio]
    log: list[str]
    numeric_imputation: Literal["median", "mean"]
    missing_indicators: bool
    outliers: Literal["none", "iqr", "percentiles"]
    iqr_factor: Positive
    lower_percentile: Annotated[float, Meta(ge=0, lt=50)]
    upper_percentile: Annotated[float, Meta(gt=50, le=100)]
    scale: Literal["standard", "robust", "none"]
    ordinals: Literal["rank", "one_hot"]
    without_protected: bool


# Literals cannot be joined: each longer list repeats the shorter one.
SingleModel = Literal[
    "scorecard", "logistic_regression", "decision_tree", "xgboost_monotone", "svm", "random_forest", "xgboost"
]  # fmt: skip
Candidate = Literal[
    "scorecard", "logistic_regression", "decision_tree", "xgboost_monotone", "svm", "random_forest", "xgboost", "blend"
]  # fmt: skip
ModelName = Literal[
    "scorecard", "logistic_regression", "decision_tree", "xgboost_monotone", "svm", "random_forest", "xgboost", "blend", "best"
]  # fmt: skip
SINGLE_MODELS: tuple[str, ...] = get_args(SingleModel)
# What can be fitted by name; `best` picks one of them.
AVAILABLE_MODELS: tuple[str, ...] = get_args(Candidate)
# The answers to class imbalance that make synthetic rows.
SAMPLERS = ("SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN")


Metric = Literal[
    "roc_auc", "average_precision", "ks", "brier", "log_loss", "accuracy", "balanced_accuracy", "f1", "precision", "recall",
    "geometric_mean",
]  # fmt: skip


class TrainParams(Strict, frozen=True):
    model: ModelName
    candidates: list[Candidate]
    selection_metric: Metric
    imbalance: Literal["none", "SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN", "class_weight"]
    smote_neighbors: Count
    calibration: Literal["none", "sigmoid", "isotonic"]
    calibration_folds: Annotated[int, Meta(ge=2)]
    n_splits: Annotated[int, Meta(ge=2)]
    n_repeats: Count
    one_split_above: Count
    quadratic_above: Count
    seed: Seed
    base_score: Annotated[float, Meta(ge=-1e6, le=1e6)]
    base_odds: Positive
    points_to_double: Positive


class ScorecardParams(Strict, frozen=True):
    max_bins: Annotated[int, Meta(ge=2)]
    min_bin_share: Share
    smoothing: Annotated[float, Meta(ge=0)]
    C: Positive
    center: Annotated[float, Meta(ge=0)]
    bins: dict[str, list[Any]]


class LogisticRegressionParams(Strict, frozen=True):
    C: Positive
    max_iter: Count


class DecisionTreeParams(Strict, frozen=True):
    max_depth: Count | None
    min_samples_leaf: Count
    ccp_alpha: Annotated[float, Meta(ge=0)]


class RandomForestParams(Strict, frozen=True):
    n_estimators: Count
    max_depth: Count | None
    min_samples_leaf: Count
    max_features: UpToOne | Literal["sqrt", "log2"]


class SvmParams(Strict, frozen=True):
    C: Positive
    gamma: Positive | Literal["scale", "auto"]
    calibration_folds: Annotated[int, Meta(ge=2)]


class XgboostParams(Strict, frozen=True):
    n_estimators: Count
    max_depth: Count
    learning_rate: UpToOne
    subsample: UpToOne
    colsample_bytree: UpToOne
    min_child_weight: Annotated[float, Meta(ge=0)]
    reg_lambda: Annotated[float, Meta(ge=0)]


class BlendParams(Strict, frozen=True, omit_defaults=True):
    """The members of the blend: the models whose sections are there."""

    scorecard: ScorecardParams | None = None
    logistic_regression: LogisticRegressionParams | None = None
    decision_tree: DecisionTreeParams | None = None
    xgboost_monotone: XgboostParams | None = None
    svm: SvmParams | None = None
    random_forest: RandomForestParams | None = None
    xgboost: XgboostParams | None = None

    @property
    def members(self) -> list[str]:
        return [name for name in SINGLE_MODELS if getattr(self, name) is not None]


class BestParams(BlendParams, frozen=True, omit_defaults=True):
    """Settings of the candidates, `blend` with its own members."""

    blend: BlendParams | None = None


class ModelParams(Strict, frozen=True):
    scorecard: ScorecardParams
    logistic_regression: LogisticRegressionParams
    decision_tree: DecisionTreeParams
    xgboost_monotone: XgboostParams
    svm: SvmParams
    random_forest: RandomForestParams
    xgboost: XgboostParams
    blend: BlendParams
    best: BestParams


class EvaluateParams(Strict, frozen=True):
    cost_bad_approved: Positive
    cost_good_refused: Positive
    threshold: Share | Literal["costs", "tuned"]
    prior_default_rate: Share | None
    strategy_thresholds: Annotated[list[Share], Meta(min_length=1)]
    conformal_level: Share
    fairness_min_rows: Count
    bootstrap_samples: Annotated[int, Meta(ge=100)]
    confidence: Share
    importance_repeats: Count
    exact_rows: Annotated[int, Meta(ge=100)]
    reasons: Annotated[int, Meta(ge=0)]
    seed: Seed


Number = int | Annotated[float, Meta(ge=-1e15, le=1e15)]


class Range(Strict, frozen=True):
    """Values of a setting from ``low`` to ``high``, both included; drawn evenly, or evenly on a log scale."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None


class Space(Strict, frozen=True):
    """Per model the settings to search: setting → a mapping of `Range`, or a list of choices; see `search_space`."""

    scorecard: dict[str, Any]
    logistic_regression: dict[str, Any]
    decision_tree: dict[str, Any]
    xgboost_monotone: dict[str, Any]
    svm: dict[str, Any]
    random_forest: dict[str, Any]
    xgboost: dict[str, Any]


class TuneParams(Strict, frozen=True):
    n_trials: Count
    metric: Metric | None
    outer_repeats: Count
    inner_repeats: Count
    seed: Seed
    space: Space


class MonitoringParams(Strict, frozen=True):
    false_alarm_rate: Share
    simulations: Annotated[int, Meta(ge=100, le=100_000)]
    bins: Annotated[int, Meta(ge=2, le=100)]
    min_rows: Annotated[int, Meta(ge=10)]
    classifier_rows: Annotated[int, Meta(ge=100, le=5_000)]
    classifier_folds: Annotated[int, Meta(ge=2)]
    seed: Seed


class QualityParams(Strict, frozen=True):
    outcome_days: Annotated[float, Meta(ge=0, le=36_500)]
    window_days: Annotated[float, Meta(gt=0, le=36_500)]
    min_outcomes: Annotated[int, Meta(ge=20)]
    false_alarm_rate: Share
    permutations: Annotated[int, Meta(ge=100, le=100_000)]
    data_tolerance: Annotated[float, Meta(ge=0, lt=1)]
    seed: Seed


class RetrainingParams(Strict, frozen=True):
    max_bad_cells: Annotated[float, Meta(ge=0, le=1)]
    min_outcomes: Count
    require_approval: bool
    reject_inference: Literal["none", "fuzzy"]
    remote: Annotated[str, Meta(min_length=1)]
    into: Annotated[str, Meta(min_length=1)] | None
    serve: Annotated[str, Meta(min_length=1)] | None


class Params(Strict, frozen=True):
    data: DataParams
    prepare: PrepareParams
    featurize: FeaturizeParams
    train: TrainParams
    models: ModelParams
    evaluate: EvaluateParams
    tune: TuneParams
    monitoring: MonitoringParams
    quality: QualityParams
    retraining: RetrainingParams


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises
    ------
    ParamsError
        If a key is unknown, misspelt, missing or wrongly typed, or two keys contradict each other.
    """
    return check_params(read_yaml(path), str(path))


def check_params(content: dict[str, Any], source: str = "params") -> Params:
    """Check a mapping with the layout of params.yaml. Raises as `load_params`."""
    params = convert(content, Params, source, ParamsError)
    prepare = params.prepare
    for split, key, column in (
        ("by_group", "group_column", prepare.group_column),
        ("by_time", "date_column", prepare.date_column),
    ):
        if prepare.split == split and column is None:
            raise ParamsError(
                f"{source}: prepare.split is {split!r}, so prepare.{key} must name a column of the contract; found null"
            )
    for problem in _contradictions(params):
        raise ParamsError(f"{source}: {problem}")
    for name in SINGLE_MODELS:
        search_space(params, name, source)
    return params


def with_training(params: Params, model: str | None = None, imbalance: str | None = None) -> Params:
    """Return params with another ``train.model`` and ``train.imbalance``; None leaves what params.yaml says.

    Raises
    ------
    ParamsError
        If there is no such model or answer to imbalance, or it contradicts another key.
    """
    given = {"model": model, "imbalance": imbalance}
    content = msgspec.to_builtins(params.train) | {key: value for key, value in given.items() if value is not None}
    changed = msgspec.structs.replace(params, train=convert(content, TrainParams, "options", ParamsError, "train"))
    for problem in _contradictions(changed):
        raise ParamsError(f"options: {problem}")
    return changed


def fold_groups(params: PrepareParams) -> str | None:
    """Return the column whose values no cross-validation fold divides."""
    return params.group_column if params.split == "by_group" else None


def get_data_path(name: str, kind: str = "raw") -> Path:
    """Return the path of a table, relative to the folder of dvc.yaml: ``kind`` is raw, processed, features or predictions.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    folders = {"raw": RAW, "processed": PROCESSED, "features": FEATURES, "predictions": PREDICTIONS}
    if kind not in folders:
        raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(folders)}")
    return folders[kind] / name


def table_path(folder: Path, name: str, data: DataParams) -> Path:
    """Return the path of a table between stages: its name ends in ``data.tables``, csv or parquet."""
    return folder / f"{name}.{data.tables}"


def get_model_path(name: str) -> Path:
    """Return the path of a file in ``models/``, relative to the folder of dvc.yaml."""
    return MODELS / name


def validate_inputs(paths: Iterable[str | Path] | None = None) -> None:
    """Check that files, or folders of them, are there: by default the raw table and the preprocessor.

    Raises
    ------
    FileNotFoundError
        With all that are missing.
    """
    if paths is None:
        paths = (load_params().data.raw, MODELS / "preprocessor.joblib")
    if missing := [str(path) for path in paths if not Path(path).exists()]:
        raise FileNotFoundError(f"missing in {Path.cwd()}: {', '.join(missing)}; fetch with `dvc pull` or make with `dvc repro`")


def seed_everything(seed: int | None = None) -> int:
    """Seed Python's and NumPy's global generators, for code of your own: the pipeline passes its seeds explicitly.

    Returns the seed, by default ``RANDOM_SEED``, for the ``random_state`` of estimators.
    """
    import random

    import numpy as np

    seed = load_params().train.seed if seed is None else seed
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - it is the global generator that is seeded
    return seed


def flat_settings(section: Strict) -> dict[str, Any]:
    """Return a section of params as one level: the keys of what is nested are joined by dots."""

    def leaves(content: dict[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
        for key, value in content.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(msgspec.to_builtins(section), ""))


def __getattr__(name: str) -> Any:
    # Not at import, which has no side effects and works in any folder.
    if name == "RANDOM_SEED":
        return load_params().train.seed
    if name == "BEST_MODEL_PARAMS":
        params = load_params()
        return flat_settings(getattr(params.models, params.train.model))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _contradictions(params: Params) -> Iterable[str]:
    train, models = params.train, params.models
    if params.evaluate.prior_default_rate is not None and train.imbalance != "none" and train.calibration == "none":
        yield (
            f"evaluate.prior_default_rate: found {params.evaluate.prior_default_rate:g}, but train.imbalance is"
            f" {train.imbalance!r}, whose probabilities are not those of the sample; set train.calibration too"
        )
    if twice := [name for name in train.candidates if train.candidates.count(name) > 1]:
        yield f"train.candidates: found {twice[0]!r} twice, expected each model once"
    if len(train.candidates) < 2:
        yield f"train.candidates: found {train.candidates}, expected two models or more to choose from"
    if absent := [name for name in train.candidates if getattr(models.best, name) is None]:
        yield f"models.best: the section {absent[0]!r} of a model in train.candidates is missing; copy it from models.{absent[0]}"
    watch = params.monitoring
    if watch.simulations < 20 / watch.false_alarm_rate:
        yield (
            f"monitoring.simulations: found {watch.simulations}, expected {20 / watch.false_alarm_rate:.0f} or more"
            f" to tell what happens at monitoring.false_alarm_rate {watch.false_alarm_rate:g}"
        )
    if watch.min_rows < 2 * watch.classifier_folds:
        yield (
            f"monitoring.classifier_folds: found {watch.classifier_folds}, expected half of monitoring.min_rows"
            f" ({watch.min_rows}) at most"
        )
    if params.quality.permutations < 20 / params.quality.false_alarm_rate:
        yield (
            f"quality.permutations: found {params.quality.permutations}, expected {20 / params.quality.false_alarm_rate:.0f} or"
            f" more to tell what happens at quality.false_alarm_rate {params.quality.false_alarm_rate:g}"
        )
    for key, blend in (("models.blend", models.blend), ("models.best.blend", models.best.blend)):
        if blend is not None and len(blend.members) < 2:
            yield f"{key}: found {blend.members}, expected the sections of two models or more"


def search_space(params: Params, name: str, source: str = "params") -> dict[str, Range | list[Any]]:
    """Return what ``tune.space`` says of a model; bounds and choices have the type of the setting in ``models.<name>``.

    Raises
    ------
    ParamsError
        If a setting is unknown, a bound or choice is none that ``models.<name>`` takes, or a range holds no two values.
    """
    section, here = getattr(params.models, name), f"tune.space.{name}"
    space: dict[str, Range | list[Any]] = {}

    def typed(key: str, value: Any) -> Any:
        content = asdict(section) | {key: value}
        try:
            return getattr(msgspec.convert(content, type(section)), key)
        except msgspec.ValidationError:  # once more, slower, for the message
            return convert(content, type(section), source, ParamsError, here)

    for key, given in getattr(params.tune.space, name).items():
        where = f"{source}: {here}.{key}: found {given!r}"
        if key not in section.__struct_fields__:
            raise ParamsError(f"{source}: unknown key {f'{here}.{key}'!r}; allowed: {', '.join(section.__struct_fields__)}")
        if isinstance(given, list):
            if any(isinstance(value, (dict, list)) for value in given):
                raise ParamsError(f"{where}; expected numbers or names as choices")
            choices = [typed(key, value) for value in given]
            if len(set(choices)) < max(2, len(choices)):
                raise ParamsError(f"{where}; expected two different choices or more")
            space[key] = choices
        elif isinstance(given, dict):
            bounds = convert(given, Range, source, ParamsError, f"{here}.{key}")
            bounds = msgspec.structs.replace(bounds, low=typed(key, bounds.low), high=typed(key, bounds.high))
            if problem := _range_problem(bounds):
                raise ParamsError(f"{where}; expected {problem}")
            space[key] = bounds
        else:
            raise ParamsError(f"{where}; expected {{low: …, high: …}} or a list of choices")
    return space


def _range_problem(bounds: Range) -> str | None:
    low, high, step = bounds.low, bounds.high, bounds.step
    if low >= high:
        return "low below high"
    if bounds.log and low <= 0:
        return "low above 0 for a log scale"
    if step is None:
        return None
    if bounds.log or step <= 0 or (isinstance(low, int) and not isinstance(step, int)):
        return "a step above 0, whole if the setting is, and none on a log scale"
    steps = (high - low) / step
    return None if abs(steps - round(steps)) < 1e-9 else "a step that leads from low to high"
