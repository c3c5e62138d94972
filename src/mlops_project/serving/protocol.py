"""HTTP over a connection: uvicorn's fast protocol, with the limits on the head of a request that it lacks."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops_project.serving.guards import SECURITY_HEADERS
from mlops_project.serving.problems import Answer, problem

if TYPE_CHECKING:
    import asyncio
    from typing import Any


class Protocol(HttpToolsProtocol):
    """Refuse a request whose head is too slow (408), too large (431) or no HTTP (400); for ``uvicorn.Config(http=Protocol)``.

    uvicorn limits neither: a client that sends a header per minute keeps a connection for ever, one that sends headers without
    end fills the memory.
    """

    head_seconds = 10.0
    head_bytes = 32 * 1024
    """Beyond the piece, at most 256 KiB, in which the head begins: that may hold the end of another request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        self._timer: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._stop()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to heads."""
        if self._timer is not None:
            self._read += len(data)
        super().data_received(data)
        if self._timer is not None and self._read > self.head_bytes:
            self._refuse(problem(431, "Request Header Fields Too Large", f"the head is larger than {self.head_bytes} bytes"))

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(problem(400, "Bad Request", msg))

    def _await_head(self) -> None:
        self._stop()
        self._read = 0
        self._timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # the answer to the request before it is not finished
        else:
            self._refuse(problem(408, "Request Timeout", "the head did not arrive in time"))

    def _refuse(self, answer: Answer) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        status, headers, body = answer
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
        lines += [name + b": " + value for name, value in [*headers, *SECURITY_HEADERS, (b"connection", b"close")]]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()


class _Joined:
    """A transport that sends in one piece what is written in one turn of the loop: head and body, which uvicorn writes apart.

    Each piece costs a system call here and wakes the other side.
    """

    __slots__ = ("__dict__", "_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        # Looked up once: the next time it is in the instance.
        found = self.__dict__[name] = getattr(self._transport, name)
        return found

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
