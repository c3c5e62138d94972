"""The folder in which a model is kept ready: what is served, what points to it, and who is asked to change that."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from mlops_project.errors import PipelineError
from mlops_project.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POINTER, LOCK, EVENTS = "current.json", "loading.lock", "events.json"


class Files(msgspec.Struct, frozen=True):
    """What is served, and where it is kept ready."""

    model: str = "models/best_model.joblib"
    policy: str = "models/policy.json"
    state: str = "var/serving"
    uncommitted: bool = False
    """Whether manifests will do that neither Git's HEAD nor a signature vouches for."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a load."""

    outcome: Literal["loaded", "unchanged", "refused"]
    model_version: str | None
    detail: str
    difference: float | None = None
    """Largest difference between model and plan over the reference rows."""
    seconds: float = 0.0


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `loading` found good, as it is written beside the plans."""

    plan: str
    """File in the same folder; empty: there is no compiled form, the pipeline itself must be asked."""
    plan_sha256: str
    model: str
    """Path of the model file."""
    model_version: str
    """SHA-256 of the model file."""
    policy: str
    """Path of the policy."""
    policy_sha256: str
    difference: float
    """Largest difference between model and plan over the reference rows."""
    rows: int
    """Number of reference rows."""
    lineage: dict[str, Any]
    loaded: float
    """When it passed, seconds since 1970."""

    def write(self, state: Path) -> None:
        """Put it in the place of the last one."""
        with atomic_path(state / POINTER, mode=0o600) as temporary:
            temporary.write_bytes(msgspec.json.encode(self))


def read_pointer(path: Path) -> Pointer:
    """Read what `Pointer.write` wrote. Raises PipelineError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pointer)
    except (OSError, msgspec.MsgspecError) as error:
        raise PipelineError(f"{path}: is no pointer to a model ({error}); restart mlops-serve") from None


def sha256_of(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. Raises PipelineError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from None


def read_events(state: Path) -> dict[str, int]:
    """Return how often what happened since the service started."""
    try:
        return msgspec.json.decode((state / EVENTS).read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return {}


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """One load at a time."""
    lock = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def count(state: Path, event: str) -> None:
    """Count an event for the metrics; under the lock, or by the supervisor alone."""
    events = read_events(state)
    events[event] = events.get(event, 0) + 1
    temporary = state / f"{EVENTS}.new"
    temporary.write_bytes(msgspec.json.encode(events))
    temporary.replace(state / EVENTS)


async def load_in_child(files: Files) -> Outcome:
    """Run `loading.load` in a process of its own and return what it says."""
    arguments = ["--model", files.model, "--policy", files.policy, "--state", files.state]
    arguments += ["--uncommitted"] if files.uncommitted else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mlops_project.serving.loading", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    try:
        return msgspec.json.decode(out.splitlines()[-1], type=Outcome)
    except (msgspec.MsgspecError, IndexError):
        return Outcome("refused", None, f"loading died with exit code {process.returncode}")
