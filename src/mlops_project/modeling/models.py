"""The models that ``train.model`` can name, each built from its own section of params.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.base import ClassifierMixin

    from mlops_project.config import (
        DecisionTreeParams,
        LogisticRegressionParams,
        ModelParams,
        RandomForestParams,
        ScorecardParams,
        SvmParams,
        TrainParams,
        XgboostParams,
    )
    from mlops_project.preprocessing import Columns


class Member(NamedTuple):
    """An unfitted classifier.

    Attributes
    ----------
    key : str
        Name and settings: members with the same key are the same and are fitted once.
    view : str
        What it reads: ``values`` (numbers with gaps, one column per attribute) or ``encoded`` (imputed, scaled, one-hot).
    classifier : classifier
    inner_folds : int
        Folds that it makes of its training rows; each class needs as many rows.
    quadratic : bool
        Whether its time grows with the square of the rows.
    """

    key: str
    view: str
    classifier: ClassifierMixin
    inner_folds: int = 1
    quadratic: bool = False


# A model is what votes, with equal weight: one member, or several in a blend.
Model = tuple[Member, ...]

# Each builder imports its own library: the import is most of what a stage costs. One thread each: at a few thousand
# rows more threads only cost, and XGBoost spins when the machine is busy.


def _scorecard(params: ScorecardParams, train: TrainParams, columns: Columns) -> ClassifierMixin:
    from mlops_project.modeling.scorecard import Scorecard, bins_by_code

    return Scorecard(
        columns.names,
        columns.kinds,
        columns.directions,
        max_bins=params.max_bins,
        min_bin_share=params.min_bin_share,
        smoothing=params.smoothing,
        overrides=bins_by_code(params.bins, columns.contract, columns.names),
        C=params.C,
        center=params.center,
    )


def _logistic_regression(params: LogisticRegressionParams, train: TrainParams, columns: Columns) -> ClassifierMixin:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=params.C, max_iter=params.max_iter, random_state=train.seed)


def _decision_tree(params: DecisionTreeParams, train: TrainParams, columns: Columns) -> ClassifierMixin:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(
        max_depth=params.max_depth,
        min_samples_leaf=params.min_samples_leaf,
        ccp_alpha=params.ccp_alpha,
        random_state=train.seed,
    )


def _random_forest(params: RandomForestParams, train: TrainParams, columns: Columns) -> ClassifierMixin:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=params.n_estimators,
        max_depth=params.max_depth,
        min_samples_leaf=params.min_samples_leaf,
        max_features=params.max_features,
        n_jobs=1,
        random_state=train.seed,
    )


def _svm(params: SvmParams, train: TrainParams, columns: Columns) -> ClassifierMixin:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    machine = SVC(C=params.C, gamma=params.gamma)
    if train.calibration != "none":
        return machine
    # SVC gives no probabilities of its own (its `probability` option is deprecated): calibrate its decision function.
    folds = StratifiedKFold(params.calibration_folds, shuffle=True, random_state=train.seed)
    return CalibratedClassifierCV(machine, cv=folds, ensemble=False)


def _xgboost(params: XgboostParams, train: TrainParams, columns: Columns) -> ClassifierMixin:
    from xgboost import XGBClassifier

    return XGBClassifier(
        n_estimators=params.n_estimators,
        max_depth=params.max_depth,
        learning_rate=params.learning_rate,
        subsample=params.subsample,
        colsample_bytree=params.colsample_bytree,
        min_child_weight=params.min_child_weight,
        reg_lambda=params.reg_lambda,
        n_jobs=1,
        random_state=train.seed,
    )


def _xgboost_monotone(params: XgboostParams, train: TrainParams, columns: Columns) -> ClassifierMixin:
    signs = {"increasing": 1, "decreasing": -1, None: 0}
    constraints = tuple(signs[direction] for direction in columns.directions)
    return _xgboost(params, train, columns).set_params(monotone_constraints=constraints)


# Name → (view, builder).
BUILDERS: dict[str, tuple[str, Callable[[Any, TrainParams, Columns], ClassifierMixin]]] = {
    "scorecard": ("values", _scorecard),
    "logistic_regression": ("encoded", _logistic_regression),
    "decision_tree": ("encoded", _decision_tree),
    "xgboost_monotone": ("values", _xgboost_monotone),
    "svm": ("encoded", _svm),
    "random_forest": ("encoded", _random_forest),
    "xgboost": ("encoded", _xgboost),
}


DISPLAY_NAMES = {
    "scorecard": "Scorecard",
    "logistic_regression": "Logistic regression",
    "decision_tree": "Decision tree",
    "xgboost_monotone": "Monotone XGBoost",
    "svm": "Support vector machine",
    "random_forest": "Random forest",
    "xgboost": "XGBoost",
    "blend": "Blend",
}


def build_model(name: str, settings: Any, train: TrainParams, columns: Columns) -> Model:
    """Build an unfitted model from its section of ``models``, or of ``models.best``.

    Parameters
    ----------
    name : str
        Any value of ``train.model`` but ``best``.
    settings : Strict
        ``models.<name>``; of a blend, the sections of its members.
    train : TrainParams
    columns : Columns
        The values view, see `mlops_project.preprocessing.value_columns`.

    Raises
    ------
    ParamsError
        If ``models.scorecard.bins`` names a column or code that is not there.
    """
    if name == "blend":
        return tuple(member for part in settings.members for member in build_model(part, getattr(settings, part), train, columns))
    view, builder = BUILDERS[name]
    inner_folds = settings.calibration_folds if name == "svm" and train.calibration == "none" else 1
    return (Member(f"{name} {settings!r}", view, builder(settings, train, columns), inner_folds, quadratic=name == "svm"),)


def build_models(models: ModelParams, train: TrainParams, columns: Columns) -> dict[str, Model]:
    """Build what ``train.model`` names: one model, or all of ``train.candidates`` if it is ``best``. Raises as `build_model`."""
    if train.model == "best":
        return {name: build_model(name, getattr(models.best, name), train, columns) for name in train.candidates}
    return {train.model: build_model(train.model, getattr(models, train.model), train, columns)}
