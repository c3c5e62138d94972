"""Errors as problem details (RFC 9457), for plain ASGI."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def problem(status: int, title: str, detail: str, **extra: Any) -> Answer:
    """Return status, headers and body of a problem; ``extra`` are further members, such as ``errors``."""
    # ASCII only: whatever text a caller sent can be repeated, lone surrogates included.
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail} | extra).encode()
    return status, [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))], body


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """A request that gets a problem for an answer; parameters as `problem`, ``headers`` are further ones."""

    def __init__(self, status: int, title: str, detail: str, headers: Headers | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.status, self.title, self.headers, self.extra = status, title, headers or [], extra

    def answer(self) -> Answer:
        """Return the problem that the caller gets."""
        status, headers, body = problem(self.status, self.title, str(self), **self.extra)
        return status, [*headers, *self.headers], body


async def respond(send: Send, answer: Answer) -> None:
    """Send a whole answer."""
    status, headers, body = answer
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
