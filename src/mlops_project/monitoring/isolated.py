"""A copy of the repository in which a pipeline runs, and the lock that lets one retraining at a time have it.

The copy is a clone that shares Git's objects and DVC's cache with the original, under ``.dvc/tmp``: nobody else looks there, and
what a killed run left behind is found and removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_project.errors import PipelineError
from mlops_project.review.reexecution import copy_local_config, run_dvc
from mlops_project.review.revisions import git

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = Path(".dvc/tmp/retraining")
LOCK = Path(".dvc/tmp/retraining.lock")
# Of commits and tags where Git knows nobody, as in a container.
NOBODY = ("-c", "user.name=mlops-retrain", "-c", "user.email=mlops-retrain@localhost")


@contextlib.contextmanager
def locked(what: str) -> Iterator[None]:
    """Let one process at a time change the champion of this repository.

    Raises
    ------
    PipelineError
        If another has the lock; it names who. A killed process has it no more.
    """
    if not Path(".dvc").is_dir():
        raise PipelineError(f"{Path.cwd()}: holds no .dvc; run from the folder that holds dvc.yaml")
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(f"another retraining is at work here: {_holder(stream.read())}; wait for it, or end it") from None
        stream.truncate()
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        stream.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now, "what": what}))
        stream.flush()
        shutil.rmtree(PLACE, ignore_errors=True)
        yield
        stream.truncate(0)


def _holder(text: str) -> str:
    try:
        found = json.loads(text)
        return f"process {found['process']} on {found['host']} ({found['what']}, since {found['since']})"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


@contextlib.contextmanager
def copy_of(commit: str) -> Iterator[Path]:
    """Yield the folder of dvc.yaml in a clone of a commit; it is removed afterwards. Under the lock."""
    top, prefix = Path(git("rev-parse", "--show-toplevel").strip()), git("rev-parse", "--show-prefix").strip()
    PLACE.mkdir(parents=True, exist_ok=True)
    cache = run_dvc(Path.cwd(), "cache", "dir").stdout.strip()
    with tempfile.TemporaryDirectory(dir=PLACE, ignore_cleanup_errors=True) as folder:
        clone = Path(folder).resolve() / "tree"
        git("clone", "--quiet", "--shared", "--no-checkout", str(top), str(clone))
        git("-C", str(clone), "checkout", "--quiet", "--detach", commit)
        tree = clone / prefix
        copy_local_config(Path(".dvc"), tree / ".dvc")
        dvc(tree, "cache", "dir", "--local", cache)
        yield tree


def dvc(tree: Path, *arguments: str) -> str:
    """Run DVC in a copy and return what it prints; PipelineError with its message if it fails."""
    done = run_dvc(tree, *arguments)
    if done.returncode != 0:
        # A stage's own error comes first, then what DVC makes of it.
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.lower().startswith("error")] or lines or done.stdout.splitlines()[-1:]
        raise PipelineError(f"dvc {arguments[0]}: {' '.join(errors[0].split())[:500] if errors else 'failed'}")
    return done.stdout


def git_in(tree: Path, *arguments: str, when: str | None = None) -> str:
    """Run Git in a copy or here, as nobody where it knows no name, at a date if one is given, and return what it prints."""
    known = os.environ.get("GIT_COMMITTER_EMAIL") or _config("user.email")
    command = ["git", *(() if known else NOBODY), "-C", str(tree), *arguments]
    environment = os.environ | ({"GIT_COMMITTER_DATE": when} if when else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PipelineError(f"git {arguments[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


def _config(key: str) -> str:
    try:
        return git("config", key).strip()
    except PipelineError:
        return ""
