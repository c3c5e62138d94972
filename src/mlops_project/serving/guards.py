"""What every request passes before the application sees it, and every answer on its way out; for plain ASGI."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from mlops_project.serving.keys import TOKEN
from mlops_project.serving.problems import Answer, App, Headers, Receive, Scope, Send, problem, respond

if TYPE_CHECKING:
    from collections.abc import MutableMapping

# An answer of the API is data: nothing in it is loaded or run, whatever a browser takes it for.
API_POLICY = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# For the pages of the service, which set it themselves: own files only, nothing inline.
PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    b" frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
SECURITY_HEADERS: Headers = [
    (b"content-security-policy", API_POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
# Told by the proxy that ends TLS (X-Forwarded-Proto); over plain HTTP browsers ignore it.
HSTS = (b"strict-transport-security", b"max-age=31536000")
KEY_NAMES = re.compile(
    r"(?:x[-_]?)?(?:api[-_]?)?(?:key|token|secret|password|authorization)|(?:access|bearer|auth)[-_]?token", re.ASCII
)
# Anything a header value must not hold (RFC 9110, section 5.5); the HTTP library sends what it is given.
FORBIDDEN_IN_HEADERS = re.compile(rb"[\x00\r\n]")
DIGITS = re.compile(rb"[0-9]{1,18}")


class Guards:
    """Refuse what is too large, too slow, compressed or shows its key, and harden every answer.

    Parameters
    ----------
    app : ASGI application
    max_body_bytes : int
        Of a request, counted as it comes in: what Content-Length says is believed only where it refuses.
    body_seconds : float
        Within these the body must be there (408).
    request_seconds : float
        Within these the answer must be sent (503), body included.
    """

    def __init__(
        self, app: App, *, max_body_bytes: int = 8 * 1024 * 1024, body_seconds: float = 10.0, request_seconds: float = 30.0
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_seconds = min(body_seconds, request_seconds)
        self._request_seconds = request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._max_body_bytes, scope.get("scheme") == "https")
        refusal, has_body = self._look_at(scope)
        if refusal is not None:
            await exchange.refuse(refusal)
            return
        exchange.complete = not has_body
        exchange.watch(self._body_seconds, self._request_seconds)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.expired:
                raise
            exchange.task.uncancel()
            # Once an answer has begun it can only be cut off, which the server does when it is not finished.
            if not exchange.started:
                await exchange.refuse(_too_slow(exchange.complete))
        except BodyRefused:
            pass
        except Exception:
            # The application has said 500 about a body that was refused here.
            if not exchange.refused:
                raise
        finally:
            exchange.timer.cancel()

    def _look_at(self, scope: Scope) -> tuple[Answer | None, bool]:
        """Return a refusal, if there is one, and whether a body follows."""
        path = scope.get("raw_path", b"")
        # The service's own paths need no second look.
        if (scope["query_string"] or b"mlops_" in path or b"%" in path) and _shows_key(scope):
            detail = "a key in the URL ends up in logs and histories: send it in the header Authorization, and rotate this one"
            return problem(400, "Bad Request", detail), False
        length: bytes | None = None
        chunked = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                if length is not None or not DIGITS.fullmatch(value):
                    return problem(400, "Bad Request", "expected one Content-Length, a number of bytes"), False
                length = value
            elif name == b"transfer-encoding":
                chunked = True
            elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                status, headers, body = problem(415, "Unsupported Media Type", "compressed bodies are not accepted")
                return (status, [*headers, (b"accept-encoding", b"identity")], body), False
        if length is not None and chunked:
            return problem(400, "Bad Request", "found Content-Length and Transfer-Encoding, expected one of them"), False
        if length is not None and int(length) > self._max_body_bytes:
            return _too_large(self._max_body_bytes), False
        return None, chunked or (length is not None and int(length) > 0)


class BodyRefused(Exception):  # noqa: N818 - the caller has the answer already
    """Raised by ``receive`` so that the application stops reading; what it sends then is dropped."""


class _Exchange:
    """One request and its answer."""

    __slots__ = (
        "_https", "_max_body_bytes", "_read", "_receive", "_rest", "_send",
        "complete", "expired", "refused", "started", "task", "timer",
    )  # fmt: skip

    def __init__(self, receive: Receive, send: Send, max_body_bytes: int, https: bool) -> None:
        self._receive, self._send = receive, send
        self._max_body_bytes, self._https = max_body_bytes, https
        self._read = 0
        self._rest = 0.0
        self.complete = self.expired = self.refused = self.started = False
        self.task: asyncio.Task[Any]
        self.timer: asyncio.TimerHandle

    def watch(self, body_seconds: float, request_seconds: float) -> None:
        """Cancel the task when its time is over: one timer costs less than `asyncio.timeout` and its change."""
        loop = asyncio.get_running_loop()  # asked once: each time Python looks whether the process has forked
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a request is served outside a task")
        self.task = task
        self._rest = request_seconds - body_seconds
        self.timer = loop.call_later(body_seconds, self._over)

    def _over(self) -> None:
        if self.complete and self._rest > 0:
            self.timer = asyncio.get_running_loop().call_later(self._rest, self._over)
            self._rest = 0.0
        else:
            self.expired = True
            self.task.cancel()

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._max_body_bytes:
                if not self.started:
                    await self.refuse(_too_large(self._max_body_bytes))
                raise BodyRefused
            if not message.get("more_body", False):
                self.complete = True
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", ()))
            if FORBIDDEN_IN_HEADERS.search(b"".join([name + value for name, value in headers])):
                raise ValueError("a header of the answer holds a line break or NUL")
            names = {name.lower() for name, _ in headers}
            headers += [header for header in SECURITY_HEADERS if header[0] not in names]
            if self._https:
                headers.append(HSTS)
            message["headers"] = headers
        await self._send(message)

    async def refuse(self, answer: Answer) -> None:
        """Answer in the application's place; the rest of the body is not read, so the connection ends."""
        status, headers, body = answer
        await respond(self.send, (status, [*headers, (b"connection", b"close")], body))
        self.refused = True


def _too_large(limit: int) -> Answer:
    return problem(413, "Content Too Large", f"the body is larger than {limit} bytes")


def _too_slow(complete: bool) -> Answer:
    if complete:
        return problem(503, "Service Unavailable", "the answer took too long")
    return problem(408, "Request Timeout", "the body did not arrive in time")


def _shows_key(scope: Scope) -> bool:
    query = scope["query_string"].decode("latin-1")
    # Twice: a key that is encoded twice is still a key in a log.
    if TOKEN.search(unquote(unquote(f"{scope.get('raw_path', b'').decode('latin-1')}?{query}"))):
        return True
    return any(KEY_NAMES.fullmatch(name.lower()) for name, _ in parse_qsl(query, keep_blank_values=True))


def loggable(text: str, limit: int = 500) -> str:
    """Return text that a caller sent as printable ASCII on one line, shortened, without secrets of keys."""
    text = TOKEN.sub(r"mlops_\1_***", text)
    shown = text[:limit].encode("unicode_escape").decode("ascii")
    return shown if len(text) <= limit else f"{shown}…"


class SafeFormatter(logging.Formatter):
    """One line per record whatever is in it, tracebacks included: nobody can write a line of his own into the log."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return loggable(super().format(record), limit=20_000)
