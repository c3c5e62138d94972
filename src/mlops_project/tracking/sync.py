"""Push revisions to an MLflow tracking server: one run per commit, found again by its tags."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from subprocess import run
from typing import TYPE_CHECKING, Any

from mlops_project.config import MODELS, PLOTS, PROCESSED
from mlops_project.errors import PipelineError
from mlops_project.files import read_table
from mlops_project.modeling.model import RiskModel, load_model
from mlops_project.review.revisions import LOCK, Revision, flat, git, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

# Read when MLflow is imported or asked; who sets them decides. Its own patience with a silent server is minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

try:
    import mlflow
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType
except ModuleNotFoundError as missing:
    raise PipelineError(
        f"{missing.name} is not installed; `uv pip install -e '.[mlflow]'` installs the extra mlops-project[mlflow]"
    ) from missing

COMMIT_TAG, LOCK_TAG, EXPERIMENT_TAG = "git_commit", "dvc_lock_sha256", "dvc_experiment"
CHAMPION = "champion"
CODE = "src/mlops_project"
SUFFIXES = {"mean": "test_mean", "std": "test_std", "train_mean": "train_mean", "train_std": "train_std"}
# What loading the package inside a logged model imports, besides the model's own libraries.
PACKAGE_LIBRARIES = ("mlflow", "msgspec", "pyyaml", "threadpoolctl")
EXAMPLE_ROWS = 5
# Limits of the tracking server (mlflow.utils.validation).
BATCH, LONGEST_VALUE, LONGEST_KEY = 100, 6000, 250


@dataclass(frozen=True)
class Target:
    """Where to push: address of the server, names of experiment and registered model."""

    uri: str
    experiment: str
    model: str


def sync(revisions: Iterable[Revision], target: Target, *, champion: bool = False) -> Iterator[tuple[Revision, str, bool]]:
    """Push revisions, each after the other, and yield revision, run id and whether the run is new.

    What a revision holds is read in full before its run is begun. A run that an interruption left half-written is completed.

    Parameters
    ----------
    revisions : iterable of Revision
        Committed ones; see `named` and `experiments`.
    target : Target
    champion : bool
        Register the model of each and move the alias ``champion`` to it.

    Raises
    ------
    PipelineError
        If the server cannot be reached or refuses: what was pushed before is complete, and the next call goes on from there.
    DataError
        If an output of a revision is nowhere, or its model cannot be read by this code.
    """
    mlflow.set_tracking_uri(target.uri)
    mlflow.set_registry_uri(target.uri)
    try:
        mlflow.set_experiment(target.experiment)
        for revision in revisions:
            run_id, new = _push(revision, target)
            if champion:
                _crown(run_id, target.model, revision)
            yield revision, run_id, new
    except MlflowException as error:
        # The causes are nested in the text; the first sentence says which request failed, the last why.
        text = " ".join(str(error).split())
        raise PipelineError(
            f"{target.uri}: the MLflow server does not answer or refuses ({_shortened(text)}); what was pushed before stays, run"
            " the command again when it is back (--tracking-uri or MLFLOW_TRACKING_URI name another)"
        ) from error


def named(names: Iterable[str]) -> list[Revision]:
    """Return the committed revisions that a user names. Raises as `resolve`."""
    return [_committed(resolve(name)) for name in names]


def experiments() -> list[Revision]:
    """Return all DVC experiments of this repository, on whatever commit they stand."""
    return [Revision(name, commit) for commit, name in _experiment_names().items()]


def _committed(revision: Revision) -> Revision:
    if revision.commit is None:
        raise PipelineError(f"{revision.name}: found the workspace, expected a commit or an experiment; commit it first")
    return revision


def _experiment_names() -> dict[str, str]:
    listed = git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    # refs/exps/ab/cdef…/name; what lies elsewhere is DVC's own.
    found = (re.fullmatch(r"([0-9a-f]+) refs/exps/[0-9a-f]{2}/[0-9a-f]{38,62}/(.+)", line) for line in listed)
    return {match[1]: match[2] for match in found if match}


def _push(revision: Revision, target: Target) -> tuple[str, bool]:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(target.experiment)
    found = client.search_runs([experiment.experiment_id], f"tags.{COMMIT_TAG} = '{revision.commit}'")
    if found and found[0].info.status == "FINISHED":
        return found[0].info.run_id, False
    tags = _tags(revision)
    params, metrics = run_params(revision.params()), run_metrics(revision.metrics())
    plots = {
        Path(path): revision.read(path) or ""
        for path in git("ls-tree", "-r", "--name-only", _commit(revision), f"{PLOTS}/").split()
    }
    time = int(git("show", "-s", "--format=%ct", _commit(revision))) * 1000
    with tempfile.TemporaryDirectory() as folder:
        model_file = Path(folder, "best_model.joblib")
        model_file.write_bytes(revision.output(MODELS / "best_model.joblib"))
        model = load_model(model_file)
        example = _example(revision, model)
        code = _code(revision, Path(folder))
        name = tags.get(EXPERIMENT_TAG, _commit(revision)[:7])
        run_id = (found[0] if found else client.create_run(experiment.experiment_id, tags=tags, run_name=name)).info.run_id
        # At the time of the commit: pushed once more, it is the same entry.
        entries = [Metric(key, value, time, 0) for key, value in metrics.items()]
        with mlflow.start_run(run_id=run_id):
            client.log_batch(run_id, metrics=entries, tags=[RunTag(key, value) for key, value in tags.items()])
            for start in range(0, len(params), BATCH):
                client.log_batch(run_id, params=[Param(*item) for item in list(params.items())[start : start + BATCH]])
            for path, text in plots.items():
                client.log_text(run_id, text, f"plots/{path.relative_to(PLOTS)}")
            if _logged_model(run_id) is None:
                _log_model(model, model_file, example, code)
    return run_id, True


def run_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Return params.yaml as MLflow takes it: dotted key → text, lists as JSON."""
    return {
        _key(key): (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:LONGEST_VALUE]
        for key, value in flat(params).items()
    }


def run_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics of cross-validation as ``<metric>_test_mean`` etc., those of the evaluation as ``evaluate.<key>``.

    Parameters
    ----------
    metrics : mapping
        Content of metrics/train.json and metrics/evaluate.json under ``train`` and ``evaluate``; each may be absent.

    Returns
    -------
    dict of float
        What is no number (names, null) is left out; true and false are 1 and 0.
    """
    found = {
        f"{metric}_{suffix}": values[key]
        for metric, values in metrics.get("train", {}).items()
        for key, suffix in SUFFIXES.items()
        if isinstance(values, Mapping) and key in values
    }
    found |= flat(metrics.get("evaluate", {}), "evaluate")
    return {_key(key): float(value) for key, value in found.items() if isinstance(value, int | float)}


def _key(key: str) -> str:
    """MLflow's keys are ASCII letters, digits and a few signs."""
    return re.sub(r"[^A-Za-z0-9_.\- :]", "_", key)[:LONGEST_KEY]


def _tags(revision: Revision) -> dict[str, str]:
    lock = revision.read(LOCK)
    if lock is None:
        raise PipelineError(f"{LOCK}: not found in {revision.label}; expected a revision of this pipeline")
    tags = {
        COMMIT_TAG: _commit(revision),
        LOCK_TAG: sha256(lock.encode()).hexdigest(),
        "mlflow.source.git.commit": _commit(revision),
        "mlflow.note.content": git("show", "-s", "--format=%s", _commit(revision)).strip(),
    }
    name = _experiment_names().get(_commit(revision))
    return tags | {EXPERIMENT_TAG: name} if name else tags


def _example(revision: Revision, model: RiskModel) -> pd.DataFrame:
    """Rows of applicants as they come: text, absent where missing."""
    columns = model.feature_names_in_
    rows = read_table(io.BytesIO(revision.output(PROCESSED / "Xtest.csv")), columns)[columns].head(EXAMPLE_ROWS)
    rows = rows.astype(object).reset_index(drop=True)
    return rows.where(rows.notna(), None)


def _code(revision: Revision, folder: Path) -> Path:
    """The package as it was: a pickle is read by the code that made it."""
    archive = run(["git", "archive", "--format=tar", _commit(revision), CODE], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / CODE


def _log_model(model: RiskModel, file: Path, example: pd.DataFrame, code: Path) -> None:
    # A cell may be text or a number, and absent: what the contract does not allow is missing, not refused.
    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in model.feature_names_in_])
    libraries = model.library_versions | {name: version(name) for name in PACKAGE_LIBRARIES}
    mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"model": str(file)},
        code_paths=[str(code)],
        signature=ModelSignature(inputs, Schema([ColSpec(DataType.double)])),
        input_example=example,
        pip_requirements=[f"{name}=={number}" for name, number in libraries.items()],
    )


def _logged_model(run_id: str) -> Any:
    """The run's model, unless its upload was interrupted."""
    outputs = mlflow.get_run(run_id).outputs
    models = [mlflow.get_logged_model(output.model_id) for output in outputs.model_outputs] if outputs else []
    return next((model for model in models if model.status == "READY"), None)


def _crown(run_id: str, name: str, revision: Revision) -> None:
    """Register the run's model, once, and point the alias to it."""
    client, model = mlflow.MlflowClient(), _logged_model(run_id)
    if model is None:
        raise PipelineError(f"{revision.label}: run {run_id} is finished but has no model; delete the run and push again")
    made = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'") or [
        mlflow.register_model(model.model_uri, name, tags={COMMIT_TAG: _commit(revision)})
    ]
    client.set_registered_model_alias(name, CHAMPION, made[0].version)


def _commit(revision: Revision) -> str:
    return str(_committed(revision).commit)


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:90]} … {text[-100:]}"
