"""Run the pipeline of a revision again in a temporary clone, and say where what it makes is not what was committed."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlops_project.config import METRICS, PROCESSED
from mlops_project.errors import PipelineError
from mlops_project.review.revisions import LOCK, MissingOutputError, Revision, flat, git

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlops_project.review.verdict import Predictions

# Six digits are written; on another processor the last may be rounded the other way.
SAME_METRIC = 2e-6
SAME_PREDICTION = 1e-5
EMBEDDED = "embedded"


class Receipt(NamedTuple):
    """What was found wrong with a receipt, in words, what is only worth knowing, and the re-executed revision if it ran."""

    problems: list[str]
    notes: list[str]
    revision: Revision


@contextlib.contextmanager
def clone_of(revision: Revision) -> Iterator[Path]:
    """Yield the working folder of a temporary clone of a revision, with an empty DVC cache; it is removed afterwards.

    The workspace is cloned with its uncommitted and untracked files. Git objects are shared with the original.
    """
    top, prefix = Path(git("rev-parse", "--show-toplevel").strip()), git("rev-parse", "--show-prefix").strip()
    with tempfile.TemporaryDirectory(prefix="mlops-compare-") as folder:
        tree = Path(folder) / "tree"
        git("clone", "--quiet", "--shared", "--no-checkout", str(top), str(tree))
        git("-C", str(tree), "checkout", "--quiet", "--detach", revision.commit or git("rev-parse", "HEAD").strip())
        if revision.commit is None:
            listed = git("-C", str(top), "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
            for name in filter(None, listed):
                if (top / name).is_file():
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(top / name, tree / name)
                else:
                    (tree / name).unlink(missing_ok=True)
        copy_local_config(Path(".dvc"), tree / prefix / ".dvc")
        yield tree / prefix


def copy_local_config(source: Path, target: Path) -> None:
    """Copy remotes and credentials that are not in Git; paths that are relative there stay the same places."""
    from configobj import ConfigObj

    if not (source / "config.local").exists():
        return
    config = ConfigObj(str(source / "config.local"))
    config.get("cache", {}).pop("dir", None)
    for section in config.values():
        url = section.get("url", "") if isinstance(section, dict) else ""
        if url and "://" not in url and not Path(url).is_absolute():
            section["url"] = str((source / url).resolve())
    config.filename = str(target / "config.local")
    config.write()


def run_dvc(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DVC in a clone, with this Python first on PATH: the stages say only ``python``."""
    # Without what a surrounding Git hook or stage has set.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=tree, env=kept | {"PATH": path}, capture_output=True, text=True, check=False)


def reproduce(revision: Revision, tree: Path) -> Revision:
    """Run the pipeline in a clone of the revision, for predictions that are nowhere; raises PipelineError if that fails."""
    raw = revision.params()["data"]["raw"]
    if problem := _pull(tree, raw) or _run(tree):
        raise PipelineError(f"{revision.label}: its predictions are nowhere, and reproducing them failed: {problem}")
    return Revision(revision.name, revision.commit, tree)


def check_receipt(revision: Revision, tree: Path) -> Receipt:
    """Check in a clone that the committed numbers are those of code, params and data: by running it all again.

    Returns
    -------
    Receipt
        Problems: raw data in no remote; ``dvc status`` not clean; outputs that the receipt has with two hashes; metrics,
        split or predictions that running the pipeline does not give. Outputs that are nowhere are no problem.
    """
    if problem := _pull(tree, revision.params()["data"]["raw"]):
        return Receipt([problem], [], revision)
    committed, metrics = revision.lock(), _read_all(tree)
    # What is known to be out of date need not run.
    if problems := [*_status(tree, committed), *_two_hashes(committed)]:
        return Receipt(problems, [], revision)
    if problem := _run(tree):
        return Receipt([problem], [], revision)
    again = Revision(revision.name, revision.commit, tree)
    problems = _metric_differences(metrics, _read_all(tree))
    notes = []
    try:
        problems += _prediction_differences(revision.predictions(), again.predictions())
    except MissingOutputError:
        notes.append("outputs that are in no remote were reproduced; `dvc push` spares the next one that")
    before, after = _hashes(committed), _hashes(_lock_of(tree))
    for path in sorted(path for path in after if before.get(path) != after[path]):
        if path.startswith(f"{PROCESSED}/"):
            problems.append(
                f"{path}: {LOCK} says {before.get(path)}, running the pipeline gives {after[path]}; never edit {LOCK}"
            )
        elif not path.startswith(f"{METRICS}/"):
            notes.append(f"{path}: another hash than in {LOCK}, with the same metrics (made on another processor?)")
    return Receipt(list(dict.fromkeys(problems)), notes, again)


def _pull(tree: Path, raw: str) -> str:
    """Fetch the raw table into a clone; in words why that is not possible, or nothing."""
    if not (tree / f"{raw}.dvc").exists():
        return "" if (tree / raw).exists() else f"{raw}: not in Git and not tracked by DVC; `dvc add {raw}` and commit"
    default = run_dvc(tree, "config", "core.remote").stdout.strip()
    # The default may be a team's; what was released is in the repository itself.
    names = [name for name in dict.fromkeys([default, EMBEDDED]) if name]
    for name in names:
        if run_dvc(tree, "pull", "--quiet", "--remote", name, f"{raw}.dvc").returncode == 0 and (tree / raw).exists():
            return ""
    return f"{raw}: not in the remote ({' or '.join(names) or 'none is set'}), so nobody else can run this; `dvc push {raw}.dvc`"


def _run(tree: Path) -> str:
    done = run_dvc(tree, "repro", "--force")
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")] or done.stderr.splitlines()
    return f"the pipeline does not run: {errors[0] if errors else 'dvc repro failed'}"


def _status(tree: Path, lock: dict[str, dict[str, Any]]) -> list[str]:
    done = run_dvc(tree, "status", "--json")
    try:
        stages = json.loads(done.stdout)
    except ValueError:
        return [f"dvc status failed: {' '.join(done.stderr.split())[:300]}"]
    made, advice = set(_hashes(lock)), f"`dvc repro`, and commit {LOCK} and {METRICS}/"
    problems = []
    for stage, changes in stages.items():
        for change in changes:
            if not isinstance(change, dict):
                problems.append(f"{LOCK} is out of date: {change} of {stage}; {advice}")
                continue
            for path, state in (change.get("changed deps") or {}).items():
                if path in made and not (tree / path).exists():  # a clone has only the outputs that Git has
                    continue
                what = f"{path} ({', '.join(state)})" if isinstance(state, dict) else path
                problems.append(f"{LOCK} is out of date: {what} has changed since {stage} ran; {advice}")
            problems += [
                f"{path} is not what {LOCK} says of {stage}: edited by hand, or left behind; {advice}"
                for path in change.get("changed outs") or {}
                if (tree / path).exists() or path.startswith(f"{METRICS}/")
            ]
    return problems


def _two_hashes(lock: dict[str, dict[str, Any]]) -> list[str]:
    made = _hashes(lock)
    return [
        f"{LOCK} was edited: {stage} read {dep['path']} as {dep.get('md5')}, but it was made as {made[dep['path']]}; `dvc repro`"
        for stage, entry in lock.items()
        for dep in entry.get("deps", [])
        if dep["path"] in made and dep.get("md5") != made[dep["path"]]
    ]


def _hashes(lock: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {out["path"]: out.get("md5") for entry in lock.values() for out in entry.get("outs", [])}


def _lock_of(tree: Path) -> dict[str, dict[str, Any]]:
    from mlops_project.files import read_yaml

    return read_yaml(tree / LOCK)["stages"]


def _read_all(tree: Path) -> dict[str, dict[str, Any]]:
    """Cells of every file in metrics/: file → key → value."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((tree / METRICS).rglob("*.*")):
        name, text = path.relative_to(tree).as_posix(), path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            try:
                found[name] = flat(_keyed(json.loads(text)))
            except ValueError:
                found[name] = {"": text}
        else:
            rows = list(csv.reader(text.splitlines()))
            found[name] = {f"row {i}, column {j}": cell for i, row in enumerate(rows, 1) for j, cell in enumerate(row, 1)}
    return found


def _keyed(content: Any) -> Any:
    if isinstance(content, list):
        content = dict(enumerate(content))
    return {key: _keyed(value) for key, value in content.items()} if isinstance(content, dict) else content


def _metric_differences(committed: dict[str, dict[str, Any]], made: dict[str, dict[str, Any]]) -> list[str]:
    problems = []
    for name in sorted(committed.keys() | made.keys()):
        before, after = committed.get(name), made.get(name)
        if before is None or after is None:
            problems.append(f"{name}: {'not committed' if before is None else 'committed'}, running the pipeline gives "
                            f"{'one' if before is None else 'none'}; `dvc repro` and commit {METRICS}/")  # fmt: skip
            continue
        keys = [key for key in {**before, **after} if not _same(before.get(key), after.get(key))]
        if keys:
            told = "; ".join(f"{key} is {before.get(key)}, running the pipeline gives {after.get(key)}" for key in keys[:3])
            more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{name}: {told}{more} (edited by hand, or another version of the pipeline)")
    return problems


def _same(before: Any, after: Any) -> bool:
    if before == after:
        return True
    try:
        return math.isclose(float(before), float(after), rel_tol=0, abs_tol=SAME_METRIC)
    except (TypeError, ValueError):
        return False


def _prediction_differences(committed: Predictions, made: Predictions) -> Sequence[str]:
    problems = []
    for name in ("held_out", "out_of_fold"):
        before, after = getattr(committed, name), getattr(made, name)
        if not before.index.equals(after.index):
            problems.append(f"the {name} predictions in {LOCK} are of other applicants than running the pipeline gives")
        elif not np.allclose(
            before[["y_true", "y_proba"]], after[["y_true", "y_proba"]], rtol=0, atol=SAME_PREDICTION, equal_nan=True
        ):
            furthest = float((before["y_proba"] - after["y_proba"]).abs().max())
            problems.append(f"the {name} predictions in {LOCK} are up to {furthest:.4f} from what running the pipeline gives")
    return problems
