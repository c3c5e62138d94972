"""Hyper-parameter search, judged by nested cross-validation. It stands beside the pipeline: no stage imports it.

In every outer fold a search of its own runs on the training rows, and what it finds is compared with the current values on
the rows that it has not seen. So the gain is that of searching, not that of having picked the luckiest of many tries. One
more search, on all development rows, gives the values to use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import yaml
from msgspec.structs import asdict, replace

from mlops_project.config import SINGLE_MODELS, Range, load_params, search_space
from mlops_project.errors import ParamsError, PipelineError
from mlops_project.files import atomic_path, rounded
from mlops_project.modeling.fitting import Fitter
from mlops_project.modeling.folds import make_folds
from mlops_project.modeling.metrics import cross_validated_metrics
from mlops_project.modeling.models import build_model
from mlops_project.modeling.selection import LOWER_IS_BETTER, corrected_t_test, interval
from mlops_project.modeling.train import check_inner_folds
from mlops_project.parallel import Here, pool
from mlops_project.preprocessing import value_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import optuna
    import pandas as pd
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from sklearn.pipeline import Pipeline

    from mlops_project.config import Params, TrainParams
    from mlops_project.modeling.folds import Fold
    from mlops_project.modeling.models import Model
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95
# Of a value that a search draws: what is tried is what is written, and nobody reads more.
SIGNIFICANT_DIGITS = 3


class Tuning(NamedTuple):
    """``report`` is what `tune` found, ready for JSON; ``trials`` has one row per trial: search, values, score, seconds."""

    report: dict[str, Any]
    trials: list[dict[str, Any]]


class Rows(NamedTuple):
    """Development rows, with outcomes 1 good and 0 bad; weights and groups as `Fitter` takes them."""

    X: pd.DataFrame
    y: np.ndarray
    weight: np.ndarray | None
    groups: np.ndarray | None

    def take(self, chosen: np.ndarray) -> Rows:
        parts = (None if part is None else part[chosen] for part in (self.weight, self.groups))
        return Rows(self.X.iloc[chosen], self.y[chosen], *parts)


class Judge:
    """Scores models on folds of some rows. What models share is done once per fold, and no fitted model is kept."""

    def __init__(self, rows: Rows, folds: list[Fold], preprocessor: Pipeline, params: TrainParams, metric: str) -> None:
        self.rows = rows
        self.folds = folds
        self.preprocessor = preprocessor
        self.params = params
        self.metric = metric

    def __call__(self, model: Model) -> float:
        """Return the mean of the metric over the folds."""
        return float(np.mean([self._score(model, fold, fitter) for fold, fitter in zip(self.folds, self._fitters, strict=True)]))

    @cached_property
    def _fitters(self) -> list[Fitter]:
        X, y, weight, groups = self.rows
        return [Fitter(self.preprocessor, X, y, fold.train, self.params, weight, groups) for fold in self.folds]

    def _score(self, model: Model, fold: Fold, fitter: Fitter) -> float:
        p_good = fitter.p_good(model)[fold.test]
        fitter.forget()
        weight = None if self.rows.weight is None else self.rows.weight[fold.test]
        return cross_validated_metrics(self.rows.y[fold.test], p_good, weight)[self.metric]


def tune(
    X: pd.DataFrame,
    y: pd.Series,
    preprocessor: Pipeline,
    contract: Contract,
    params: Params,
    folder: Path,
    *,
    name: str | None = None,
    n_trials: int | None = None,
) -> Tuning:
    """Search the hyper-parameters of one model, and measure what the search gains over the values in ``params``.

    Trials are kept in ``folder``: a search that was interrupted goes on where it was, to the same end, and one that is done
    is only read. Other data, settings or spaces start afresh.

    Parameters
    ----------
    X : DataFrame of shape (n rows, …)
        Development rows with the contract's columns; the index is the applicant id.
    y : Series of int, shape (n rows,)
        1 good, 0 bad.
    preprocessor : Pipeline
        A recipe: cloned unfitted for every fold.
    contract : Contract
        Its weight column, if it has one, weighs rows in fits and metrics.
    params : Params
    folder : Path
        Holds ``<name>.journal``.
    name : str, optional
        A single model; ``train.model`` by default.
    n_trials : int, optional
        Trials per search; ``tune.n_trials`` by default.

    Raises
    ------
    ParamsError
        If the model has no hyper-parameters of its own, or none to search in ``tune.space``.
    DataError
        If there are too few rows of a class, or groups, for the folds or the model.
    PipelineError
        If Optuna is not installed, or another search of this model is at work.
    """
    from threadpoolctl import threadpool_limits

    name, n_trials = name or params.train.model, n_trials or params.tune.n_trials
    if name not in SINGLE_MODELS:
        raise ParamsError(
            f"{name} has no hyper-parameters of its own; tune its members, one of {', '.join(SINGLE_MODELS)}: make tune MODEL=…"
        )
    space = search_space(params, name)
    if not space:
        raise ParamsError(f"params.yaml: tune.space.{name}: found no setting, expected one or more to search")
    grouped = params.prepare.group_column if params.prepare.split == "by_group" else None
    rows = Rows(
        X,
        y.to_numpy(dtype=int),
        contract.parse(contract.weight, X[contract.weight]).values if contract.weight else None,
        None if grouped is None else X[grouped].astype(str).to_numpy(),
    )
    with _journal(folder, name) as storage, threadpool_limits(limits=1):
        return _Tuner(rows, preprocessor, contract, params, name, space, n_trials, storage).run()


class _Tuner:
    def __init__(
        self,
        rows: Rows,
        preprocessor: Pipeline,
        contract: Contract,
        params: Params,
        name: str,
        space: dict[str, Range | list[Any]],
        n_trials: int,
        storage: BaseStorage,
    ) -> None:
        self.rows, self.preprocessor, self.params, self.name, self.space = rows, preprocessor, params, name, space
        self.n_trials, self.storage = n_trials, storage
        self.columns = value_columns(preprocessor)
        self.train = replace(params.train, model=name)
        self.metric = params.tune.metric or params.train.selection_metric
        self.sign = -1 if self.metric in LOWER_IS_BETTER else 1
        self.section = getattr(params.models, name)
        self.current = {key: getattr(self.section, key) for key in space}
        self.fingerprint = _fingerprint(rows, contract, params, name, self.metric)

    def run(self) -> Tuning:
        from tqdm import tqdm

        outer = self._folds(self.rows, self.params.tune.outer_repeats)
        inner = [self._inner(self.rows.take(fold.train)) for fold in outer] + [self._inner(self.rows)]
        # One judge per search, then one per comparison.
        self.judges = [*inner, *(Judge(self.rows, [fold], self.preprocessor, self.train, self.metric) for fold in outer)]
        self.workers = pool(self.judges)
        labels = [*(f"fold {number}" for number in range(1, len(outer) + 1)), "all rows"]
        studies = self._studies(labels)
        done = sum(min(len(_completed(study)), self.n_trials) for study in studies)
        total = self.n_trials * len(studies)
        if done == total:
            logger.info("nothing left to search: all %d trials are there", total)
        elif done:
            logger.info("going on after %d of %d trials", done, total)
        picks, folds = [], []
        # Searches know nothing of each other: a cluster has them all at once, one process one after the other.
        together = [range(len(studies))] if self.workers.size > 1 else [range(n, n + 1) for n in range(len(studies))]
        with tqdm(total=total, initial=done, unit="trial", disable=not sys.stderr.isatty()) as bar:
            for numbers in together:
                bar.set_description(f"{self.name}, {labels[numbers[0]] if len(numbers) == 1 else 'all searches'}")
                self._search(studies, numbers, bar)
                for number in numbers:
                    picks.append(self._pick(studies[number], number))
                    if number < len(outer):
                        folds.append(self._compare(studies[number], len(studies) + number, picks[-1]["values"]))
                    if bar.disable and done < total:
                        logger.info("%s, %s: best %s %.4f", self.name, labels[number], self.metric, picks[-1]["best"])
        gain = self._gain(folds, outer)
        report = {
            "model": self.name,
            "metric": self.metric,
            "n_trials": self.n_trials,
            "rows": len(self.rows.y),
            "current": self.current,
            "values": picks[-1]["values"],
            "search": rounded({key: picks[-1][key] for key in ("current", "best")}),
            "folds": folds,
            "gain": rounded(gain),
            "better": gain["low"] > 0 and picks[-1]["values"] != self.current,
            "verdict": _verdict(gain, changed=picks[-1]["values"] != self.current),
        }
        trials = [row for label, study in zip(labels, studies, strict=True) for row in self._table(label, study)]
        report["seconds"] = round(sum(row["seconds"] for row in trials), 1)
        return Tuning(report, trials)

    def _folds(self, rows: Rows, repeats: int) -> list[Fold]:
        folds = make_folds(rows.y, replace(self.train, n_repeats=repeats), rows.groups)
        check_inner_folds({self.name: self._model(self.current)}, rows.y, folds)
        return folds

    def _inner(self, rows: Rows) -> Judge:
        return Judge(rows, self._folds(rows, self.params.tune.inner_repeats), self.preprocessor, self.train, self.metric)

    def _model(self, values: Mapping[str, Any]) -> Model:
        return build_model(self.name, replace(self.section, **values), self.train, self.columns)

    def _studies(self, labels: list[str]) -> list[optuna.Study]:
        import optuna

        known = optuna.get_all_study_summaries(self.storage)
        if known and not any(study.study_name.startswith(self.fingerprint) for study in known):
            others = sum(study.n_trials for study in known)
            logger.info("starting afresh: the %d trials that are there are of other data, settings or spaces", others)
        studies = [
            optuna.create_study(
                storage=self.storage,
                study_name=f"{self.fingerprint} {label}",
                direction="minimize" if self.sign < 0 else "maximize",
                load_if_exists=True,
            )
            for label in labels
        ]
        for study in studies:  # nobody else is at work: see _journal
            for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return studies

    def _search(self, studies: list[optuna.Study], numbers: range, bar: Any) -> None:
        """Complete the searches ``numbers``, one trial of each at a time."""
        import optuna

        distributions = {key: _distribution(bounds) for key, bounds in self.space.items()}
        have = {number: len(_completed(studies[number])) for number in numbers}
        for done in range(min(have.values()), self.n_trials):
            trials = {}
            for number in numbers:
                if have[number] > done:
                    continue
                # A seed per trial: what comes next depends on the completed trials only, not on where a run was cut off.
                seed = int(np.random.SeedSequence([self.params.tune.seed, number, done]).generate_state(1)[0])
                studies[number].sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=False)
                trials[number] = studies[number].ask(distributions)
            scores = self._scores([(number, self._model(self._values(trial))) for number, trial in trials.items()])
            for (number, trial), score in zip(trials.items(), scores, strict=True):
                studies[number].tell(trial, score)
                bar.update()

    def _scores(self, asked: list[tuple[int, Model]]) -> list[float]:
        """Return what judges, by their numbers, say of models."""
        if isinstance(self.workers, Here):  # whose judges keep what models share
            return [self.judges[number](model) for number, model in asked]
        tasks = [(number, fold, model) for number, model in asked for fold in range(len(self.judges[number].folds))]
        scores = iter(list(self.workers.map(_score, tasks)))
        return [float(np.mean([next(scores) for _ in self.judges[number].folds])) for number, _ in asked]

    def _values(self, trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> dict[str, Any]:
        return {key: _shortened(trial.params[key], bounds) for key, bounds in self.space.items()}

    def _pick(self, study: optuna.Study, number: int) -> dict[str, Any]:
        """Take the best trial, or the current values if none is better."""
        current = _kept(study, f"current {self._key(self.current)}", lambda: self._judged(number, self.current))
        trials = _completed(study)[: self.n_trials]
        scores = [self.sign * (trial.value or 0.0) for trial in trials]
        if max(scores) > self.sign * current:
            best = trials[scores.index(max(scores))]
            return {"values": self._values(best), "current": current, "best": best.value}
        return {"values": self.current, "current": current, "best": current}

    def _compare(self, study: optuna.Study, number: int, values: dict[str, Any]) -> dict[str, Any]:
        """Fit current and found values to all rows that the search had, and score the rows that it had not."""
        scores = {
            which: _kept(study, f"outer {self._key(chosen)}", lambda chosen=chosen: self._judged(number, chosen))
            for which, chosen in (("current", self.current), ("tuned", values))
        }
        return {"values": values} | rounded(scores)

    def _judged(self, number: int, values: dict[str, Any]) -> float:
        return self._scores([(number, self._model(values))])[0]

    def _key(self, values: dict[str, Any]) -> str:
        return json.dumps(values, sort_keys=True)

    def _gain(self, folds: list[dict[str, Any]], outer: list[Fold]) -> dict[str, float]:
        differences = [self.sign * (fold["tuned"] - fold["current"]) for fold in folds]
        found = corrected_t_test(differences, float(np.mean([len(fold.test) / len(fold.train) for fold in outer])))
        low, high = interval(found, len(folds), CONFIDENCE)
        return found._asdict() | {"low": low, "high": high, "confidence": CONFIDENCE}

    def _table(self, label: str, study: optuna.Study) -> Iterator[dict[str, Any]]:
        for number, trial in enumerate(_completed(study)[: self.n_trials], 1):
            seconds = trial.duration.total_seconds() if trial.duration else 0.0
            yield {"search": label, "trial": number, self.metric: trial.value, "seconds": seconds} | self._values(trial)


def _score(judges: list[Judge], task: tuple[int, int, Model]) -> float:
    """Score a model in one fold of a judge, with nothing kept: workers may have threads, and may die."""
    number, fold, model = task
    judge = judges[number]
    return Judge(judge.rows, [judge.folds[fold]], judge.preprocessor, judge.params, judge.metric)(model)


def _completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    import optuna

    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def _kept(study: optuna.Study, key: str, score: Any) -> float:
    """Return a score that the study keeps under ``key``, or compute and keep it."""
    if key not in study.user_attrs:
        study.set_user_attr(key, score())
    return study.user_attrs[key]


def _distribution(bounds: Range | list[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(bounds, list):
        return CategoricalDistribution(bounds)
    if isinstance(bounds.low, int):
        return IntDistribution(bounds.low, int(bounds.high), log=bounds.log, step=int(bounds.step or 1))
    return FloatDistribution(bounds.low, bounds.high, log=bounds.log, step=bounds.step)


def _shortened(value: Any, bounds: Range | list[Any]) -> Any:
    if isinstance(bounds, list) or isinstance(value, int) or bounds.step is not None:
        return value
    return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), bounds.low), bounds.high)


def _verdict(gain: dict[str, float], *, changed: bool) -> str:
    if gain["standard_error"] == gain["mean"] == 0:
        gained = "no search found better values than the current ones"
    elif gain["low"] > 0:
        gained = "searching gains"
    elif gain["high"] < 0:
        gained = "searching loses"
    else:
        gained = "the gain is noise: its interval includes 0"
    return gained if changed else f"{gained}; on all development rows no trial did better than the current values"


def _fingerprint(rows: Rows, contract: Contract, params: Params, name: str, metric: str) -> str:
    """Hash all that a trial depends on. The number of trials and of outer folds is not in it: more of them go on."""
    import pandas as pd

    digest = hashlib.sha256(pd.util.hash_pandas_object(rows.X).to_numpy().tobytes() + rows.y.tobytes())
    space = getattr(params.tune.space, name)
    train = asdict(params.train)
    used = ("imbalance", "smote_neighbors", "calibration", "calibration_folds", "n_splits", "seed")
    settings = {
        "columns": list(rows.X),
        "contract": repr(contract),
        "featurize": msgspec.to_builtins(params.featurize),
        "groups": rows.groups is not None and params.prepare.group_column,
        "train": {key: train[key] for key in used},
        "model": name,
        "fixed": {key: value for key, value in asdict(getattr(params.models, name)).items() if key not in space},
        "space": space,
        "metric": metric,
        "seed": params.tune.seed,
        "inner_repeats": params.tune.inner_repeats,
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _journal(folder: Path, name: str) -> Iterator[BaseStorage]:
    """Open the trials of a model for this process alone, and mend what a killed one left."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise PipelineError("optuna is not installed: use `make tune`, or install the extra mlops-project[tuning]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / f"{name}.journal"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = open(path, "a+b")  # noqa: SIM115 - closed below
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written ({error.strerror or error})") from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(f"{path}: another search of {name} is at work; wait for it or tune another model") from None
        # Optuna's own lock outlives a killed process, and the next one would wait for it without end; and to half a line it
        # would append, and fail.
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        held.seek(0)
        held.truncate(held.read().rfind(b"\n") + 1)
        yield JournalStorage(JournalFileBackend(str(path)))


def write_values(path: Path, name: str, values: Mapping[str, Any]) -> list[str]:
    """Put values of a model's settings into params.yaml: in ``models.<name>`` and in every copy for blend and best.

    All other bytes of the file stay. Returns the sections that were written, such as ``models.best.svm``.

    Raises
    ------
    ParamsError
        If the values are not allowed; the file is then as it was.
    """
    models = load_params(path).models
    holders = {"": models, "blend": models.blend, "best": models.best, "best.blend": models.best.blend}
    sections = [
        ["models", *filter(None, within.split(".")), name]
        for within, holder in holders.items()
        if holder is not None and getattr(holder, name) is not None
    ]
    with open(path, encoding="utf-8", newline="") as stream:
        text = stream.read()
    text = with_scalars(text, {(*section, key): value for section in sections for key, value in values.items()})
    with atomic_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        load_params(temporary)
    return [".".join(section) for section in sections]


def with_scalars(text: str, values: Mapping[tuple[str, ...], Any]) -> str:
    """Replace scalars in YAML text, by path of keys, and leave every other character as it is."""
    root, spans = yaml.compose(text, Loader=yaml.SafeLoader), set()
    for path, value in values.items():
        node: Any = root
        for key in path:
            node = next(child for name, child in node.value if name.value == key)
        new = value if isinstance(value, str) else json.dumps(value)  # names of choices need no quotes
        start, end = node.start_mark.index, node.end_mark.index
        spans.add((start, end, new if end > start else f" {new}"))
    for start, end, new in sorted(spans, reverse=True):
        text = text[:start] + new + text[end:]
    return text
