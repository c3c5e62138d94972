"""The models that ``train.model`` can name, each built from its own section of params.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.base import ClassifierMixin

    from mlops_project.config import (
        DecisionTreeParams,
        LogisticRegressionParams,
        ModelParams,
        RandomForestParams,
        SvmParams,
        XgboostParams,
    )

# Each builder imports its own library: the import is most of what a stage costs. One thread each: at a few thousand
# rows more threads only cost, and XGBoost spins when the machine is busy.


def _logistic_regression(params: LogisticRegressionParams, seed: int) -> ClassifierMixin:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=params.C, max_iter=params.max_iter, random_state=seed)


def _decision_tree(params: DecisionTreeParams, seed: int) -> ClassifierMixin:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(
        max_depth=params.max_depth, min_samples_leaf=params.min_samples_leaf, ccp_alpha=params.ccp_alpha, random_state=seed
    )


def _random_forest(params: RandomForestParams, seed: int) -> ClassifierMixin:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=params.n_estimators,
        max_depth=params.max_depth,
        min_samples_leaf=params.min_samples_leaf,
        max_features=params.max_features,
        n_jobs=1,
        random_state=seed,
    )


def _svm(params: SvmParams, seed: int) -> ClassifierMixin:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    # SVC gives no probabilities of its own (its `probability` option is deprecated): calibrate its decision function.
    folds = StratifiedKFold(params.calibration_folds, shuffle=True, random_state=seed)
    return CalibratedClassifierCV(SVC(C=params.C, gamma=params.gamma), cv=folds, ensemble=False)


def _xgboost(params: XgboostParams, seed: int) -> ClassifierMixin:
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
        random_state=seed,
    )


BUILDERS: dict[str, Callable[[Any, int], ClassifierMixin]] = {
    "logistic_regression": _logistic_regression,
    "decision_tree": _decision_tree,
    "random_forest": _random_forest,
    "svm": _svm,
    "xgboost": _xgboost,
}


def build_model(name: str, params: ModelParams, seed: int) -> ClassifierMixin:
    """Build an unfitted classifier with probabilities from ``models.<name>``."""
    return BUILDERS[name](getattr(params, name), seed)
