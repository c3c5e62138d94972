"""What a revision holds: params, metrics, receipt, code and row predictions; a Git revision, an experiment or the workspace."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from mlops_project.config import METRICS, PARAMS_FILE, PREDICTIONS
from mlops_project.errors import DataError, PipelineError
from mlops_project.files import read_table, read_yaml
from mlops_project.review.verdict import Predictions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

WORKSPACE = "workspace"
LOCK = "dvc.lock"
STATES = {"A": "added", "M": "changed", "D": "removed", "T": "changed"}


class MissingOutputError(DataError):
    """An output of a revision is neither in the workspace nor in the DVC cache nor in a remote."""


class Change(NamedTuple):
    """A file that differs, and the stages whose receipt lists it as a dep."""

    file: str
    state: str
    stages: list[str]


@dataclass(frozen=True)
class Revision:
    """A revision of the repository in the working directory.

    ``commit`` is None for the workspace. ``tree``, if given, is a folder in which the pipeline of this revision has been
    run: outputs are read there.
    """

    name: str
    commit: str | None
    tree: Path | None = field(default=None)

    @property
    def label(self) -> str:
        return self.name if self.commit is None or self.commit.startswith(self.name) else f"{self.name} ({self.commit[:7]})"

    def read(self, path: str | Path) -> str | None:
        """Content of a file that Git tracks, or, in the workspace, of any; None if it is not there."""
        if self.commit is None:
            try:
                return Path(path).read_text(encoding="utf-8")
            except FileNotFoundError:
                return None
        found = subprocess.run(["git", "show", f"{self.commit}:./{path}"], capture_output=True, check=False)
        return found.stdout.decode("utf-8") if found.returncode == 0 else None

    def params(self) -> dict[str, Any]:
        """Content of params.yaml, unchecked: another revision may know other keys."""
        return self._yaml(PARAMS_FILE)

    def lock(self) -> dict[str, dict[str, Any]]:
        """Stages of dvc.lock by name."""
        return self._yaml(LOCK).get("stages", {})

    def metrics(self) -> dict[str, Any]:
        """Content of the JSON files in metrics/ by the files' names without ending.

        Raises
        ------
        PipelineError
            If one is no JSON.
        """
        found = {}
        for path in self._metric_files():
            text = self.read(path)
            try:
                found[Path(path).stem] = json.loads(text or "")
            except ValueError as error:
                raise PipelineError(f"{path} of {self.label}: found no JSON ({error}); `dvc repro --force` writes it") from None
        return found

    def predictions(self) -> Predictions:
        """Row predictions, fetched from a DVC remote if they are not here.

        Raises
        ------
        MissingOutputError
            If they are nowhere.
        """
        split = self.metrics().get("prepare", {}).get("split", {})
        return Predictions(self._table("held_out"), self._table("out_of_fold"), split.get("development"))

    def output(self, path: str | Path) -> bytes:
        """Content of a file that DVC tracks, fetched from a DVC remote if it is not here; raises as `predictions`."""
        content = io.BytesIO()
        _fetch(self, Path(path), content)
        return content.getvalue()

    def _yaml(self, path: str | Path) -> dict[str, Any]:
        if self.commit is None:
            return read_yaml(path)
        if (text := self.read(path)) is None:
            raise PipelineError(f"{path}: not found in {self.label}; expected a revision of this pipeline")
        return parse_yaml(text, f"{path} of {self.label}")

    def _metric_files(self) -> list[str]:
        if self.commit is None:
            return [path.as_posix() for path in sorted(METRICS.glob("*.json"))]
        listed = git("ls-tree", "--name-only", self.commit, f"{METRICS}/")
        return [name for name in listed.splitlines() if name.endswith(".json")]

    def _table(self, name: str) -> pd.DataFrame:
        """Row predictions, without columns that no comparison reads."""
        # Revisions from before data.tables have CSV.
        path = PREDICTIONS / f"{name}.{self.params()['data'].get('tables', 'csv')}"
        local = self.tree / path if self.tree is not None else path
        if self.tree is not None or (self.commit is None and local.exists()):
            table = read_table(local)
        else:
            with tempfile.NamedTemporaryFile(suffix=path.suffix) as copy:
                _fetch(self, path, copy)
                copy.flush()
                table = read_table(copy.name)
        return table[[column for column in ("repeat", "fold", "y_true", "y_proba") if column in table]]


def resolve(name: str) -> Revision:
    """Return the revision that a user names: ``workspace``, anything that Git knows, or a DVC experiment.

    Raises
    ------
    PipelineError
        If it is none of these.
    """
    if name == WORKSPACE:
        return Revision(name, None)
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return Revision(name, found.stdout.strip())
    from dvc.repo import Repo
    from dvc.scm import RevError, resolve_rev

    with Repo(".") as repo:
        try:
            return Revision(name, resolve_rev(repo.scm, name))
        except RevError:
            raise PipelineError(
                f"{name}: found neither a Git revision nor a DVC experiment of this name; `git log`, `dvc exp list` show them"
            ) from None


def _fetch(revision: Revision, path: Path, target: IO[bytes]) -> None:
    """Copy an output through DVC: from the cache, or else the default remote, or any other."""
    from dvc.api import DVCFileSystem
    from dvc.repo import Repo

    with Repo(".") as repo:
        remotes = list(repo.config["remote"])
        default = repo.config["core"].get("remote")
    tried = []
    for remote in sorted(remotes, key=lambda name: name != default) or [None]:
        try:
            with DVCFileSystem(url=".", rev=revision.commit, remote=remote).open(path.as_posix()) as stream:
                target.seek(0)
                target.truncate()
                shutil.copyfileobj(stream, target)
                return
        except Exception as error:  # noqa: BLE001 - remotes raise what they like, and the next may have it
            tried.append(f"{remote}: {' '.join(str(error).split())[:120]}")
    raise MissingOutputError(
        f"{path} of {revision.label}: neither in the DVC cache nor in a remote ({'; '.join(tried)}); `dvc push` where it was"
        " made, or `mlops-compare --reproduce` to run that pipeline again"
    )


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Read YAML as DVC does; PipelineError if it is none or no mapping."""
    from dvc.utils.serialize import YAMLFileCorruptedError
    from dvc.utils.serialize import parse_yaml as parse

    try:
        content = parse(text, source)
    except YAMLFileCorruptedError as error:
        raise PipelineError(f"{source}: found no YAML: {' '.join(str(error.__cause__ or error).split())}") from None
    if not isinstance(content, dict):
        raise PipelineError(f"{source}: found {type(content).__name__}, expected keys with values")
    return content


def out_of_date() -> list[str]:
    """Stages of the workspace that `dvc repro` would run."""
    from dvc.repo import Repo

    with Repo(".") as repo:
        return list(repo.status())


def git(*arguments: str) -> str:
    """Run Git here and return what it prints; PipelineError with its message if it fails."""
    found = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise PipelineError(f"git {arguments[0]}: {' '.join(found.stderr.split())}")
    return found.stdout


def changed_files(base: Revision, head: Revision) -> list[Change]:
    """Files of Git that differ, without what stages write and the report compares by content (params, receipt, raw data)."""
    sides = [side.commit for side in (base, head) if side.commit is not None]
    if not sides:
        return []
    # Git compares with the workspace as the head; untracked files are part of it.
    reverse = ["-R"] if base.commit is None else []
    listed = git("diff", "--no-renames", "--name-status", "--relative", "-z", *reverse, *sides).split("\0")[:-1]
    states = dict(zip(listed[1::2], listed[0::2], strict=True))
    if None in (base.commit, head.commit):
        new = git("ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]
        states |= dict.fromkeys(new, "D" if base.commit is None else "A")
    users: dict[str, set[str]] = {}
    made: set[str] = set()
    for revision in (base, head):
        for stage, entry in revision.lock().items():
            made |= {out["path"] for out in entry.get("outs", [])}
            for dep in entry.get("deps", []):
                users.setdefault(dep["path"], set()).add(stage)
    order = list(head.lock())
    compared = {*made, LOCK, str(PARAMS_FILE), *(f"{side.params()['data']['raw']}.dvc" for side in (base, head))}
    return [
        Change(file, STATES.get(state[0], state), sorted(users.get(file, ()), key=lambda stage: (stage not in order, stage)))
        for file, state in sorted(states.items())
        if file not in compared and not file.startswith(f"{METRICS}/")
    ]


def stages_to_rerun(lock: Mapping[str, dict[str, Any]], first: set[str]) -> list[str]:
    """Stages that a change of ``first`` reaches, through outputs that others read, in the order of the receipt."""
    reached = set(first)
    while True:
        made = {out["path"] for stage in reached for out in lock.get(stage, {}).get("outs", [])}
        more = {stage for stage, entry in lock.items() if any(dep["path"] in made for dep in entry.get("deps", []))}
        if more <= reached:
            return [stage for stage in lock if stage in reached]
        reached |= more


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key."""
    if not isinstance(content, dict):
        return {prefix: content}
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
