"""One worker: a process that holds the plan of a model and answers. `server` starts it and hands it its socket.

``python -m mlops_project.serving.worker SOCKET READY`` takes two file descriptors and, as one line on standard input, the
settings as JSON: secrets do not stand in its arguments. When standard input ends the supervisor has gone, and so it goes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

from mlops_project.serving.protocol import Protocol

if TYPE_CHECKING:
    from mlops_project.serving.service import Service

KEEP_ALIVE_SECONDS = 75
STDIN = 0


class Worker(uvicorn.Server):
    """Tells the supervisor when it is ready, and ends with it."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: int) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept, unless there is no model that could answer."""
        await super().startup(sockets)
        if self._service.models.current is None:
            self.should_exit = True
            return
        asyncio.get_running_loop().add_reader(STDIN, self._supervisor_gone)
        # What is here now stays: the garbage collector need not look at it.
        gc.collect()
        gc.freeze()
        # What is made for a request dies with it; a thousand applicants should not be looked through ten times for cycles.
        gc.set_threshold(20_000, 10, 10)
        with contextlib.suppress(OSError):
            os.write(self._ready, b"1")
            os.close(self._ready)

    def _supervisor_gone(self) -> None:
        if not os.read(STDIN, 1):
            asyncio.get_running_loop().remove_reader(STDIN)
            self.should_exit = True


def config_of(app: Any, grace: float) -> uvicorn.Config:
    """Return how uvicorn serves here."""
    return uvicorn.Config(
        app, loop="uvloop", http=Protocol, ws="none", lifespan="on", access_log=False, log_config=None, server_header=False,
        proxy_headers=True, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=int(grace),
    )  # fmt: skip


def main() -> None:
    """Serve until told to end."""
    listening, ready = map(int, sys.argv[1:])
    # Read byte by byte: what stands behind the line must stay in the pipe.
    line = b"".join(iter(lambda: os.read(STDIN, 1), b"\n"))
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.fspath(Path(msgspec.json.decode(line)["files"]["state"]) / "metrics")
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    from prometheus_client import values

    # A worker never forks: asking for its number with each count costs more than counting.
    number = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: number)
    from mlops_project.serving.app import make_app
    from mlops_project.serving.server import setup_logging
    from mlops_project.serving.service import Service
    from mlops_project.serving.settings import Settings

    settings = msgspec.json.decode(line, type=Settings)
    setup_logging()
    service = Service(settings)
    Worker(config_of(make_app(settings, service), settings.grace), service, ready).run(sockets=[socket.socket(fileno=listening)])


if __name__ == "__main__":
    main()
