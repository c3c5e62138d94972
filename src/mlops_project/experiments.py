"""Named experiments: what experiments.yaml may say, and how their scores compare. scripts/experiment_pipeline.py runs them."""

from __future__ import annotations

import copy
import difflib
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_project.config import PARAMS_FILE, check_params
from mlops_project.errors import ParamsError
from mlops_project.files import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import pandas as pd

EXPERIMENTS_FILE = Path("experiments.yaml")
SIGNIFICANT = 0.05
# Sections of params.yaml that no stage reads, and what reads them.
BESIDE = {"tune": "make tune", "monitoring": "mlops-drift", "quality": "mlops-monitor", "retraining": "mlops-retrain"}


class Experiment(NamedTuple):
    """``title`` as people write it, ``name`` as DVC and Git take it, ``config``: dotted key of params.yaml → value."""

    title: str
    name: str
    config: dict[str, Any]

    @property
    def set_params(self) -> list[str]:
        """``config`` in the grammar of ``dvc exp run --set-param``."""
        return [f"{key}={_hydra(value)}" for key, value in self.config.items()]


def load_experiments(path: str | Path = EXPERIMENTS_FILE, params_file: str | Path = PARAMS_FILE) -> list[Experiment]:
    """Read the named experiments, and check each one as params.yaml is checked.

    Raises
    ------
    ParamsError
        If a name stands twice or gives no name for DVC, a key is unknown, or params.yaml would refuse what an experiment sets.
        The message names the experiment.
    """
    content, params = read_yaml(path), read_yaml(params_file)
    check_params(params, str(params_file))
    experiments: dict[str, Experiment] = {}
    for title, config in content.items():
        where = f"{path}: {title!r}"
        name = slug(str(title))
        if not name:
            raise ParamsError(f"{where}: expected a name with letters or digits")
        if name in experiments:
            raise ParamsError(
                f"{where}: found the same DVC name {name!r} as {experiments[name].title!r}, expected different ones"
            )
        if not isinstance(config, dict) or not config:
            raise ParamsError(f"{where}: found {config!r}, expected keys of {params_file} with values, such as train.model: svm")
        changed = copy.deepcopy(params)
        for key, value in config.items():
            _put(changed, str(key), value, where)
        check_params(changed, where)
        experiments[name] = Experiment(str(title), name, {str(key): value for key, value in config.items()})
    return list(experiments.values())


def select(experiments: list[Experiment], wanted: list[str]) -> list[Experiment]:
    """Return the experiments with these titles or DVC names, in the order of the file; all without ``wanted``.

    Raises
    ------
    ParamsError
        If one is unknown.
    """
    known = {alias: one for one in experiments for alias in (one.title, one.name)}
    if unknown := [name for name in wanted if name not in known]:
        raise ParamsError(f"no experiment {unknown[0]!r}; expected some of: {', '.join(one.title for one in experiments)}")
    chosen = {known[name].name for name in wanted}
    return [one for one in experiments if one.name in chosen or not wanted]


def slug(title: str) -> str:
    """Turn a title into a name that Git takes as part of a reference: a to z, 0 to 9 and single dashes."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _put(params: dict[str, Any], key: str, value: Any, where: str) -> None:
    *path, last = key.split(".")
    section: Any = params
    for part in path:
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict) or last not in section:
        near = difflib.get_close_matches(key, list(_keys(params)), n=1)
        raise ParamsError(f"{where}: unknown key {key!r} of {PARAMS_FILE}{f'; did you mean {near[0]!r}?' if near else ''}")
    if path and (command := BESIDE.get(path[0])):
        raise ParamsError(f"{where}: found {key}, which no stage of the pipeline reads; it is for `{command}`")
    if isinstance(value, dict) or isinstance(section[last], dict):
        # --set-param merges a mapping into the present one, where people expect that it replaces it.
        raise ParamsError(f"{where}: {key}: expected a single setting with a number, a text, a list, true, false or null")
    section[last] = value


def _keys(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _hydra(value: Any) -> str:
    """Write a value in Hydra's grammar, in which unquoted text may end early or become something else."""
    if isinstance(value, str):
        # A backslash is itself unless it stands before a quote; DVC expands no ${…} in params.yaml, but OmegaConf would.
        return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value)).replace("${", r"\${") + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return json.dumps(value)


def fold_scores(out_of_fold: pd.DataFrame, metric: str, weight: pd.Series | None = None) -> np.ndarray:
    """Score each fold of the out-of-fold predictions.

    Parameters
    ----------
    out_of_fold : DataFrame
        As the train stage writes it: ``repeat``, ``fold``, ``y_true``, ``y_proba``; the index is the applicant id.
    metric : str
        One of `metrics.CROSS_VALIDATED`.
    weight : Series of float, optional
        Row weight per applicant id.

    Returns
    -------
    ndarray of float, shape (n folds,)
    """
    import numpy as np

    from mlops_project.modeling.metrics import cross_validated_metrics

    return np.array(
        [
            cross_validated_metrics(
                fold["y_true"].to_numpy(),
                fold["y_proba"].to_numpy(),
                None if weight is None else weight.loc[fold.index].to_numpy(dtype=float),
            )[metric]
            for _, fold in out_of_fold.groupby("fold")
        ]
    )


class Comparison(NamedTuple):
    """Scores over the folds against the baseline's over the same folds; without same folds only ``mean`` and ``std``.

    ``difference`` to the baseline, its 95 % interval ``low`` to ``high``, and ``p_value`` of no difference, all for one
    experiment alone; `verdicts` takes several together.
    """

    mean: float
    std: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def compare(scores: np.ndarray, out_of_fold: pd.DataFrame, baseline: tuple[np.ndarray, pd.DataFrame] | None) -> Comparison:
    """Compare the `fold_scores` of an experiment with those of the baseline, each given with its out-of-fold predictions.

    References
    ----------
    See `selection.corrected_t_test`.
    """
    from mlops_project.modeling.selection import corrected_t_test, interval

    mean, std = float(scores.mean()), float(scores.std())
    same = ["repeat", "fold", "y_true"]
    if baseline is None or not out_of_fold[same].equals(baseline[1][same]):
        return Comparison(mean, std)
    sizes = out_of_fold.groupby("fold").size()
    rows = len(out_of_fold) / out_of_fold["repeat"].nunique()
    found = corrected_t_test(scores - baseline[0], float((sizes / (rows - sizes)).mean()))
    return Comparison(mean, std, found.mean, *interval(found, len(scores)), found.p_value)


def verdicts(found: Mapping[str, Comparison], *, lower_is_better: bool) -> dict[str, tuple[float | None, str]]:
    """Return the p-value of each comparison, adjusted for their number, and a verdict in words.

    References
    ----------
    Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, 65-70.
    """
    judged: dict[str, tuple[float | None, str]] = dict.fromkeys(found, (None, "unpaired: other folds"))
    paired = sorted(((one.p_value, name) for name, one in found.items() if one.p_value is not None))
    adjusted = 0.0
    for position, (p_value, name) in enumerate(paired):
        adjusted = max(adjusted, min(1.0, p_value * (len(paired) - position)))
        better = ((found[name].difference or 0) > 0) != lower_is_better
        judged[name] = adjusted, "within noise" if adjusted >= SIGNIFICANT else "better" if better else "worse"
    return judged
