"""`mlops-serve`: settings, and the supervisor of the workers.

The supervisor listens, answers nothing itself, and keeps a number of worker processes on its socket: one that dies is replaced at
once. It watches the model's files and has a new model checked in a process of its own (`loading`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlops_project.errors import PipelineError
from mlops_project.manifest import manifest_path, signature_path
from mlops_project.runtime import guarded
from mlops_project.serving.guards import SafeFormatter
from mlops_project.serving.settings import Settings, read_settings
from mlops_project.serving.state import EVENTS, Outcome, count, load_in_child

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("mlops_project.serving")

BACKLOG = 2048
# How often the model's files are looked at; they must stay as they are from one look to the next.
LOOK_EVERY = 1.0
# A worker that dies so soon after its start is not replaced at once: it would only burn the processor.
SHORT_LIFE, LONGEST_PAUSE = 2.0, 10.0
READY_SECONDS = 60.0


class Supervisor:
    """Keeps workers running on one socket.

    Parameters
    ----------
    settings : Settings
    listening : socket
    workers : int
    """

    def __init__(self, settings: Settings, listening: socket.socket, workers: int) -> None:
        self.settings, self.listening, self.workers = settings, listening, workers
        self.ending = asyncio.Event()
        self._processes: set[asyncio.subprocess.Process] = set()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit code.

        Raises
        ------
        PipelineError
            If the model does not pass, or no worker becomes ready.
        """
        begun = time.perf_counter()
        state = Path(self.settings.files.state)
        clean(state)
        seen = self._look()
        outcome = await load_in_child(self.settings.files)
        if outcome.outcome == "refused":
            raise PipelineError(outcome.detail)
        logger.info("model %s: %s", (outcome.model_version or "")[:12], outcome.detail)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ending.set)
        ready: list[asyncio.Future[None]] = [loop.create_future() for _ in range(self.workers)]
        keepers = [asyncio.create_task(self._keep(future)) for future in ready]
        try:
            await self._until_ready(ready)
            host, port = self.listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info(
                "ready at http://%s:%d with %d workers after %.1f s", shown, port, self.workers, time.perf_counter() - begun
            )
            watch = asyncio.create_task(self._watch(seen))
            await self.ending.wait()
            watch.cancel()
        finally:
            self.ending.set()
            logger.info("ending: requests that are being answered are finished first")
            self.listening.close()
            self._signal(signal.SIGTERM)
            _, left = await asyncio.wait(keepers, timeout=self.settings.grace + 2)
            if left:
                self._signal(signal.SIGKILL)
                await asyncio.wait(left)
        return 0

    async def _until_ready(self, ready: Sequence[asyncio.Future[None]]) -> None:
        ending = asyncio.create_task(self.ending.wait())
        every = asyncio.gather(*ready)
        try:
            first: list[asyncio.Future[Any]] = [ending, every]
            await asyncio.wait(first, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not self.ending.is_set() and not every.done():
                raise PipelineError(f"no worker became ready within {READY_SECONDS:g} s; its lines above say why")
        finally:
            ending.cancel()
            every.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await every

    async def _keep(self, ready: asyncio.Future[None]) -> None:
        """Keep one worker running."""
        pause = 0.0
        while not self.ending.is_set():
            begun = time.monotonic()
            process = await self._start(ready)
            self._processes.add(process)
            if self.ending.is_set():  # told to end while it was started
                process.terminate()
            code = await process.wait()
            self._processes.discard(process)
            for file in (Path(self.settings.files.state) / "metrics").glob(f"gauge_live*_{process.pid}.db"):
                file.unlink(missing_ok=True)  # what it held is no more; what it counted stays
            if self.ending.is_set():
                return
            pause = min(max(0.2, 2 * pause), LONGEST_PAUSE) if time.monotonic() - begun < SHORT_LIFE else 0.0
            logger.error("worker %d died (%s); another one starts", process.pid, _how(code))
            count(Path(self.settings.files.state), "restarts")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), pause) if pause else None

    async def _start(self, ready: asyncio.Future[None]) -> asyncio.subprocess.Process:
        read, write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mlops_project.serving.worker", str(self.listening.fileno()), str(write),
                stdin=asyncio.subprocess.PIPE, pass_fds=(self.listening.fileno(), write),
            )  # fmt: skip
        finally:
            os.close(write)
        loop = asyncio.get_running_loop()

        def told() -> None:
            loop.remove_reader(read)
            if os.read(read, 1) and not ready.done():
                ready.set_result(None)
            os.close(read)

        loop.add_reader(read, told)
        if process.stdin is not None:
            with contextlib.suppress(ConnectionError):  # it died at once; whoever waits for it sees that
                process.stdin.write(msgspec.json.encode(self.settings) + b"\n")
                await process.stdin.drain()
        return process

    def _signal(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _look(self) -> list[tuple[int, int, int] | None]:
        files = self.settings.files
        found = [(path, manifest_path(path), signature_path(path)) for path in (files.model, files.policy)]
        return [_state(path) for paths in found for path in paths]

    async def _watch(self, seen: list[tuple[int, int, int] | None]) -> None:
        """Have the model checked whenever its files have changed, and have settled."""
        before = seen
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now = self._look()
            if now != seen and now == before:
                seen = now
                told(await load_in_child(self.settings.files))
            before = now


def clean(state: Path) -> None:
    """Make the folder of plans, and remove what the last run counted: counts begin at 0 with the service."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(state / "metrics", ignore_errors=True)
        (state / EVENTS).unlink(missing_ok=True)
    except OSError as error:
        raise PipelineError(f"--state {state}: cannot be written ({error.strerror})") from None


def told(outcome: Outcome) -> None:
    """Log what became of a new model."""
    if outcome.outcome == "refused":
        logger.error("new model refused, the old one goes on: %s", outcome.detail)
    elif outcome.outcome == "loaded":
        logger.info("new model %s: %s (%.1f s)", (outcome.model_version or "")[:12], outcome.detail, outcome.seconds)


def _state(path: str | Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises PipelineError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise PipelineError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from None
    listening.setblocking(False)
    return listening


def setup_logging() -> None:
    """Log one line per event to standard error, whatever callers put into it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
    for name in ("mlops_project", "uvicorn"):
        found = logging.getLogger(name)
        found.handlers[:] = [handler]
        found.propagate = False
    logging.getLogger("mlops_project").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def main(argv: list[str] | None = None) -> int:
    """`mlops-serve`: serve the model over HTTP."""
    setup_logging()
    # Workers take these over: at these sizes more threads only cost.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    def serve() -> int:
        settings, host, port, workers = read_settings(argv)
        listening = listen(host, port)
        return asyncio.run(_run(settings, listening, workers))

    return guarded(serve)


async def _run(settings: Settings, listening: socket.socket, workers: int) -> int:
    return await Supervisor(settings, listening, workers).run()


if __name__ == "__main__":
    sys.exit(main())
