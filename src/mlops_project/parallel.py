"""Independent tasks: one after the other in this process or, if ``MLOPS_DASK`` says so, side by side on a Dask cluster.

Where work runs is no setting of the work: it stands in the environment, never in params.yaml, and results do not depend on
it. Unset: a plain loop here. ``local`` or ``local:4``: processes of this machine, one per processor or four. ``tcp://…`` or
``tls://…``: the workers of a scheduler.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_project.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client
    from joblib import Parallel

logger = logging.getLogger(__name__)

VARIABLE = "MLOPS_DASK"
OFFER = f"unset {VARIABLE} to run here"
CONNECT_SECONDS = 5
# A cluster that grows on demand starts a container first.
WORKER_SECONDS = 30
# How often the input is sent; a task is tried on as many workers as distributed.scheduler.allowed-failures says, and one more.
ATTEMPTS = 4
# Other versions of these may end in other last digits, or cannot read what this process sends.
LIBRARIES = (
    "numpy", "scipy", "pandas", "scikit-learn", "imbalanced-learn", "xgboost", "xgboost-cpu", "joblib", "dask", "distributed",
)  # fmt: skip


def asked() -> str:
    """Return what ``MLOPS_DASK`` says, empty if the work shall run here."""
    return os.environ.get(VARIABLE, "").strip()


def pool(shared: Any) -> Here | Cluster:
    """Return what maps functions over tasks that share some input: this process, or the cluster that ``MLOPS_DASK`` names.

    Parameters
    ----------
    shared : object
        What all tasks read, such as the rows. A cluster gets it once, not with every task.

    Raises
    ------
    PipelineError
        If there is no such cluster, or it has no workers.
    """
    return Cluster(shared, connect(asked())) if asked() else Here(shared)


class Here:
    """Runs tasks in this process, one after the other."""

    size = 1

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def map(self, function: Callable[[Any, Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        """Yield ``function(shared, task)`` for each task, in their order."""
        return (function(self.shared, task) for task in tasks)


class Cluster:
    """Runs tasks on the workers of a Dask cluster; ``size`` is how many run side by side.

    Tasks must be pure: those of a worker that dies run again on another. One BLAS thread and no pool inside a task, as the
    stages have it, so that results are the same to the last bit.
    """

    def __init__(self, shared: Any, client: Client) -> None:
        self.shared, self.client = shared, client
        self.size = sum(client.nthreads().values())
        self._parallel: Parallel | None = None

    def map(self, function: Callable[[Any, Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        """Yield ``function(shared, task)`` for each task, in their order.

        ``function`` stands at the top of a module, so that workers can import it.

        Raises
        ------
        PipelineError
            If workers run other code or other libraries than this process, keep dying, or the scheduler goes away. What
            ``function`` raises comes through.
        """
        from distributed import CancelledError, KilledWorker
        from joblib import delayed

        done = 0
        for attempt in range(ATTEMPTS):
            if attempt:  # what all its holders took along when they died is sent again, to those that took their place
                time.sleep(attempt)
            try:
                parallel = self._parallel or self._send()
                for result in parallel([delayed(run_task)(function, identity(), self.shared, task) for task in tasks[done:]]):
                    done += 1
                    yield result
                return
            except KilledWorker as error:
                raise PipelineError(
                    f"{VARIABLE}={asked()}: several workers died of the same task; look for memory in their logs, give them"
                    f" more, or {OFFER}"
                ) from error
            except ModuleNotFoundError as error:
                raise PipelineError(
                    f"{VARIABLE}={asked()}: a worker has no {error.name}; start workers in this project's environment, or {OFFER}"
                ) from error
            except (CancelledError, OSError) as error:
                self._parallel, lost = None, error
                if self.client.status != "running":  # nor will it ever again: it has tried to reconnect
                    break
        told = str(lost).split("\n", 1)[0]
        raise PipelineError(f"{VARIABLE}={asked()}: the cluster went away ({told}); start it again, or {OFFER}") from lost

    def _send(self) -> Parallel:
        from joblib import Parallel, parallel_config

        with parallel_config(backend="dask", client=self.client, scatter=[self.shared]):
            self._parallel = Parallel(n_jobs=-1, batch_size=1, pre_dispatch="all", return_as="generator")
        return self._parallel


@functools.cache
def connect(where: str) -> Client:
    """Return a client of the cluster that a value of ``MLOPS_DASK`` names, once per process. Raises as `pool`."""
    local = re.fullmatch(r"local(?::([1-9]\d*))?", where)
    if not local and not re.match(r"(tcp|tls)://[^:/]+:\d+$", where):
        raise PipelineError(f"{VARIABLE}={where}: expected local, local:4, tcp://HOST:PORT or tls://HOST:PORT; or {OFFER}")
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise PipelineError(
            f"{VARIABLE}={where}: Dask is not installed; install the extra mlops-project[dask], or {OFFER}"
        ) from error
    if local:
        cluster = LocalCluster(n_workers=int(local[1] or processors()), threads_per_worker=1, dashboard_address=None)
        client = Client(cluster, set_as_default=False)
    else:
        try:
            client = Client(where, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise PipelineError(
                f"{VARIABLE}={where}: no scheduler answered within {CONNECT_SECONDS} seconds; start one (docs/cluster.md), or"
                f" {OFFER}"
            ) from error
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise PipelineError(
            f"{VARIABLE}={where}: the scheduler has no worker after {WORKER_SECONDS} seconds; start one"
            f" (`dask worker {where} --nthreads 1`), or {OFFER}"
        ) from error
    try:  # it unpickles what it hands on
        found = client.run_on_scheduler(identity)
    except Exception as error:
        told = " ".join(str(error).split())
        raise PipelineError(
            f"{VARIABLE}={where}: the scheduler cannot run this project's code ({told}); start it in this project's"
            f" environment, or {OFFER}"
        ) from error
    check_identity(f"the scheduler {where}", found, identity())
    logger.info("%s=%s, workers: %d", VARIABLE, where, len(client.nthreads()))
    return client


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def identity() -> dict[str, str]:
    """Return what two processes must have in common to compute the same: this package's code, Python, libraries."""
    package, code = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {"code of mlops_project": code.hexdigest()[:12], "Python": platform.python_version()} | {
        name: found for name in LIBRARIES if (found := _version(name))
    }


def check_identity(who: str, found: dict[str, str], expected: dict[str, str]) -> None:
    """Raise PipelineError, with what differs, unless another process has the `identity` that this work expects."""
    if differing := [name for name in expected | found if expected.get(name) != found.get(name)]:
        told = ", ".join(f"{name} {found.get(name, 'absent')} instead of {expected.get(name, 'absent')}" for name in differing)
        raise PipelineError(f"{who} has {told}; start it anew in the environment of this process, or {OFFER}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def run_task(function: Callable[[Any, Any], Any], expected: dict[str, str], shared: Any, task: Any) -> Any:
    """Run a task on a worker."""
    from joblib import parallel_config
    from threadpoolctl import threadpool_limits

    check_identity("a Dask worker", identity(), expected)
    # For good: threads of one worker that restored it would restore it for each other.
    threadpool_limits(limits=1)
    # joblib would hand the pool down: a forest would send its trees to the cluster, and add them up as they come.
    with parallel_config(backend="sequential"):
        return function(shared, task)
