"""Push revisions to an MLflow tracking server: one run per commit, found again by its tags."""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from subprocess import run
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
from mlflow.entities import Metric, Param, RunTag

from mlops_project.config import BEST_MODEL, PLOTS, PROCESSED
from mlops_project.errors import PipelineError
from mlops_project.files import read_table
from mlops_project.manifest import manifest_path, write_manifest
from mlops_project.modeling.model import load_model
from mlops_project.review.revisions import LOCK, Revision, flat, git, resolve
from mlops_project.tracking.connection import NoAnswerError, connected
from mlops_project.tracking.models import log_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COMMIT_TAG, LOCK_TAG, EXPERIMENT_TAG = "git_commit", "dvc_lock_sha256", "dvc_experiment"
CHAMPION = "champion"
CODE = Path("src/mlops_project")
SUFFIXES = {"mean": "test_mean", "std": "test_std", "train_mean": "train_mean", "train_std": "train_std"}
# Limits of the tracking server (mlflow.utils.validation).
BATCH, LONGEST_VALUE, LONGEST_KEY = 100, 6000, 250


@dataclass(frozen=True)
class Target:
    """Where to push: address of the server, names of experiment and registered model."""

    uri: str
    experiment: str
    model: str


class Pushed(NamedTuple):
    """A revision, its run, and whether that is new; or why the revision could not be pushed."""

    revision: Revision
    run_id: str | None = None
    new: bool = False
    error: PipelineError | None = None


def sync(revisions: Iterable[Revision], target: Target, *, champion: bool = False, trust_file: bool = False) -> Iterator[Pushed]:
    """Push revisions, each after the other. One that lacks an output, or that the server refuses, does not stop the others.

    What a revision holds is read in full before its run is begun. A run that an interruption left half-written is completed.

    Parameters
    ----------
    revisions : iterable of Revision
        Committed ones; see `named` and `experiments`.
    target : Target
    champion : bool
        Register the model of each and move the alias ``champion`` to it.
    trust_file : bool
        Take the model of a revision that has no manifest of it: unpickling runs code.

    Raises
    ------
    NoAnswerError
        If the server cannot be reached: what was pushed before is complete, and the next call goes on from there.
    """
    for revision in revisions:
        try:
            with connected(target.uri, target.experiment):
                run_id, new = _push(revision, target, trust_file=trust_file)
                if champion:
                    _crown(run_id, target.model, revision)
        except NoAnswerError:
            raise
        except PipelineError as error:
            yield Pushed(revision, error=error)
        else:
            yield Pushed(revision, run_id, new)


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


def _push(revision: Revision, target: Target, *, trust_file: bool) -> tuple[str, bool]:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(target.experiment)
    found = client.search_runs([experiment.experiment_id], f"tags.{COMMIT_TAG} = '{revision.commit}'")
    if found and found[0].info.status == "FINISHED":
        return found[0].info.run_id, False
    tags = _tags(revision)
    params, metrics = run_params(revision.params()), run_metrics(revision.metrics())
    time = int(git("show", "-s", "--format=%ct", _commit(revision))) * 1000
    with tempfile.TemporaryDirectory() as folder:
        model_file = _model_file(revision, Path(folder), trust_file=trust_file)
        model = load_model(model_file)
        rows = read_table(
            io.BytesIO(revision.output(PROCESSED / f"Xtest.{revision.params()['data'].get('tables', 'csv')}")),
            model.feature_names_in_,
        )
        plots, code = _files(revision, PLOTS, Path(folder)), _files(revision, CODE, Path(folder))
        name = tags.get(EXPERIMENT_TAG, _commit(revision)[:7])
        run_id = (found[0] if found else client.create_run(experiment.experiment_id, tags=tags, run_name=name)).info.run_id
        # At the time of the commit: pushed once more, it is the same entry.
        entries = [Metric(key, value, time, 0) for key, value in metrics.items()]
        with mlflow.start_run(run_id=run_id):
            client.log_batch(run_id, metrics=entries, tags=[RunTag(key, value) for key, value in tags.items()])
            for start in range(0, len(params), BATCH):
                client.log_batch(run_id, params=[Param(*item) for item in list(params.items())[start : start + BATCH]])
            client.log_artifacts(run_id, str(plots), "plots")
            if _logged_model(run_id) is None:
                log_model(model, model_file, rows, code)
    return run_id, True


def _model_file(revision: Revision, folder: Path, *, trust_file: bool) -> Path:
    """Write the model, with the manifest that the commit has: a DVC remote may hold anything under the MD5 of the lock."""
    file = folder / BEST_MODEL.name
    file.write_bytes(revision.output(BEST_MODEL))
    place = manifest_path(BEST_MODEL)
    if (text := revision.read(place)) is not None:
        manifest_path(file).write_text(text, encoding="utf-8", newline="\n")
    elif trust_file:
        write_manifest(file)
    else:
        raise PipelineError(f"{place}: not found in {revision.label}; if you know who made its model, pass --trust-file")
    return file


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


def _files(revision: Revision, path: Path, folder: Path) -> Path:
    """Write a folder of Git as it was: plots, and the package, since a pickle is read by the code that made it."""
    archive = run(["git", "archive", "--format=tar", _commit(revision), str(path)], capture_output=True, check=False)
    if archive.returncode != 0:
        raise PipelineError(f"{path}: not found in {revision.label}; expected a revision of this pipeline")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder / path


def _logged_model(run_id: str) -> Any:
    """The run's model; one whose upload was interrupted is removed."""
    client = mlflow.MlflowClient()
    ready = None
    for model in client.search_logged_models([client.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'"):
        if model.status == "READY":
            ready = model
        else:
            client.delete_logged_model(model.model_id)
    return ready


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
