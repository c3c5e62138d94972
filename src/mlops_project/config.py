"""params.yaml as typed objects, and where things lie. Every key is described in params.yaml itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from msgspec import Meta

from mlops_project.errors import ParamsError
from mlops_project.files import read_yaml
from mlops_project.strict import Strict, convert

if TYPE_CHECKING:
    from collections.abc import Iterable

# All paths are relative to the working directory: DVC runs every stage beside dvc.yaml.
PARAMS_FILE = Path("params.yaml")
PROCESSED = Path("data/processed")
FEATURES = Path("data/features")
PREDICTIONS = Path("data/predictions")
MODELS = Path("models")
METRICS = Path("metrics")
PLOTS = METRICS / "plots"

Positive = Annotated[float, Meta(gt=0, le=1e15)]  # msgspec takes no infinite bound; .inf would give a cost of NaN
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]
UpToOne = Annotated[float, Meta(gt=0, le=1)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class DataParams(Strict, frozen=True):
    raw: str
    contract: str


class PrepareParams(Strict, frozen=True):
    duplicate_min_cells: Annotated[int, Meta(ge=0)]
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


class TrainParams(Strict, frozen=True):
    model: ModelName
    candidates: list[Candidate]
    selection_metric: Literal[
        "roc_auc", "average_precision", "ks", "brier", "log_loss", "accuracy", "balanced_accuracy", "f1", "precision",
        "recall", "geometric_mean",
    ]  # fmt: skip
    imbalance: Literal["none", "SMOTE", "BorderlineSMOTE", "SMOTENC", "ADASYN", "class_weight"]
    smote_neighbors: Count
    calibration: Literal["none", "sigmoid", "isotonic"]
    calibration_folds: Annotated[int, Meta(ge=2)]
    n_splits: Annotated[int, Meta(ge=2)]
    n_repeats: Count
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
    reasons: Annotated[int, Meta(ge=0)]
    seed: Seed


class Params(Strict, frozen=True):
    data: DataParams
    prepare: PrepareParams
    featurize: FeaturizeParams
    train: TrainParams
    models: ModelParams
    evaluate: EvaluateParams


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
    for problem in _model_problems(params):
        raise ParamsError(f"{source}: {problem}")
    return params


def _model_problems(params: Params) -> Iterable[str]:
    train, models = params.train, params.models
    if twice := [name for name in train.candidates if train.candidates.count(name) > 1]:
        yield f"train.candidates: found {twice[0]!r} twice, expected each model once"
    if len(train.candidates) < 2:
        yield f"train.candidates: found {train.candidates}, expected two models or more to choose from"
    if absent := [name for name in train.candidates if getattr(models.best, name) is None]:
        yield f"models.best: the section {absent[0]!r} of a model in train.candidates is missing; copy it from models.{absent[0]}"
    for key, blend in (("models.blend", models.blend), ("models.best.blend", models.best.blend)):
        if blend is not None and len(blend.members) < 2:
            yield f"{key}: found {blend.members}, expected the sections of two models or more"
