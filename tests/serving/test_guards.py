"""Guards before a real server: raw bytes over a socket, as an attacker sends them."""

import asyncio
import gzip
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mlops_project.serving.guards import KEY_NAMES, Guards, SafeFormatter, loggable
from mlops_project.serving.keys import TOKEN, create
from mlops_project.serving.protocol import Protocol

KEY = "mlops_0123456789ab_" + "s3cr3t-_" * 5 + "abc"
SEEN: list[int] = []


async def echo(request):
    body = await request.body()
    SEEN.append(len(body))
    return Response(body)


async def slow(request):
    await request.body()
    await asyncio.sleep(30)


async def page(request):
    return PlainTextResponse("page", headers={"content-security-policy": "default-src 'self'", "cache-control": "max-age=60"})


async def injected(request):
    return PlainTextResponse("x", headers={"x-request-id": request.query_params["id"]})


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class Server:
    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, *parts: bytes, pause: float = 0.0) -> Answer:
        """Send parts with pauses between them and read until the server closes."""
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for i, part in enumerate(parts):
                if i:
                    time.sleep(pause)
                try:
                    connection.sendall(part)
                except OSError:  # the server has answered and closed
                    break
            answer = b""
            try:
                while chunk := connection.recv(65536):
                    answer += chunk
            except OSError:
                pass
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(first.split()[1]) if first else 0, headers, body, time.monotonic() - started)

    def post(self, body: bytes, *headers: str, path: str = "/echo") -> Answer:
        lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
        return self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def get(self, target: str, *headers: str) -> Answer:
        lines = [f"GET {target} HTTP/1.1", "Host: x", "Connection: close", *headers]
        return self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")


class Hasty(Protocol):
    head_seconds = 0.3


@pytest.fixture(scope="module", params=[Hasty, "h11"], ids=["httptools", "h11"])
def server(request) -> Iterator[Server]:
    routes = [
        Route("/echo", echo, methods=["POST", "GET"]),
        Route("/slow", slow, methods=["POST", "GET"]),
        Route("/page", page),
        Route("/injected", injected),
    ]
    app = Guards(Starlette(routes=routes), max_body_bytes=1000, body_seconds=0.3, request_seconds=0.6)
    config = uvicorn.Config(app, http=request.param, lifespan="off", ws="none", log_config=None, server_header=False)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        running = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listening])))
        thread.start()
        yield Server(listening.getsockname()[1])
        running.should_exit = True
        thread.join()


def is_problem(answer: Answer, status: int) -> bool:
    content = json.loads(answer.body)
    return answer.status == content["status"] == status and answer.headers["content-type"] == "application/problem+json"


def test_a_body_up_to_the_limit_passes_and_a_larger_one_is_refused_unread(server):
    assert server.post(b"x" * 1000, "Content-Length: 1000").body == b"x" * 1000
    SEEN.clear()
    assert is_problem(server.post(b"", "Content-Length: 1001"), 413)
    assert is_problem(server.post(b"", f"Content-Length: {10**17}"), 413)
    assert not SEEN


def test_a_body_without_length_is_counted_as_it_comes(server):
    def chunked(size: int) -> bytes:
        return b"".join(b"%x\r\n%s\r\n" % (100, b"y" * 100) for _ in range(size // 100)) + b"0\r\n\r\n"

    assert server.post(chunked(1000), "Transfer-Encoding: chunked").body == b"y" * 1000
    SEEN.clear()
    assert is_problem(server.post(chunked(1100), "Transfer-Encoding: chunked"), 413)
    assert not SEEN


def test_an_endless_body_is_cut_off(server):
    chunk = b"%x\r\n%s\r\n" % (500, b"z" * 500)
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.send(head, *[chunk] * 50, pause=0.001)
    assert answer.status in (413, 0)  # 0: the answer got lost because more bytes came after the end
    assert answer.seconds < 2


@pytest.mark.parametrize(
    "lengths",
    [["Content-Length: 1", "Content-Length: 1000000"], ["Content-Length: -5"], ["Content-Length: 1e3"], ["Content-Length: 0x10"]],
)
def test_a_length_that_lies_or_is_none_is_refused(server, lengths):
    assert server.post(b"x", *lengths).status == 400


def test_length_and_chunks_together_are_refused(server):
    answer = server.post(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked")
    assert answer.status == 400


def test_a_slow_body_ends_in_408_within_its_time(server):
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    answer = server.send(head, b"x", pause=0.05)
    assert is_problem(answer, 408)
    assert 0.25 < answer.seconds < 1.5
    dripping = server.send(head, *[b"x"] * 8, pause=0.06)
    assert dripping.status == 408
    assert dripping.headers["connection"] == "close"


def test_a_slow_answer_ends_in_503_within_its_time(server):
    answer = server.get("/slow")
    assert is_problem(answer, 503)
    assert 0.5 < answer.seconds < 2


def test_a_slow_answer_to_a_body_gets_the_whole_time(server):
    answer = server.post(b"xx", "Content-Length: 2", path="/slow")
    assert is_problem(answer, 503)
    assert 0.5 < answer.seconds < 2


@pytest.fixture
def fast_server(server, request) -> Server:
    """The server with our own protocol; h11 has limits of its own."""
    if "h11" in request.node.name:
        pytest.skip("not our protocol")
    return server


@pytest.mark.parametrize("begin", [b"", b"GET /echo", b"GET /echo HTTP/1.1\r\nHost: x\r\nX-"])
def test_a_slow_head_ends_in_408_within_its_time(fast_server, begin):
    answer = fast_server.send(begin, *[b"a"] * 3, pause=0.2) if begin else fast_server.send(b"")
    assert answer.status in (408, 0)  # 0: the answer got lost because more bytes came after the end
    assert answer.seconds < 2
    assert is_problem(fast_server.send(begin), 408)


def test_a_slow_head_after_a_request_on_the_same_connection_ends_too(fast_server):
    answer = fast_server.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\nGET /pa")
    assert answer.status == 200
    assert b"HTTP/1.1 408" in answer.body


@pytest.mark.parametrize("head", [b"GET /?" + b"x" * 200_000, b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000])
def test_an_endless_head_is_refused(fast_server, head):
    answer = fast_server.send(head, *[b"y" * 40_000] * 20, pause=0.001)
    assert answer.status in (431, 0)
    assert answer.seconds < 2


def test_a_head_that_is_too_large_gets_its_answer(fast_server):
    assert is_problem(fast_server.send(b"GET /?", b"x" * (Protocol.head_bytes + 1), pause=0.05), 431)


def test_what_is_no_http_gets_a_hardened_problem(fast_server):
    answer = fast_server.send(b"\x16\x03\x01\x02\x00\x01\x00")
    assert is_problem(answer, 400)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_large_body_behind_a_small_head_is_not_counted_as_head(fast_server):
    assert fast_server.post(b"x" * 1000, "Content-Length: 1000", f"X-Long: {'y' * 30_000}").status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "identity, gzip"])
def test_a_compressed_body_is_refused_before_it_is_read(server, encoding):
    bomb = gzip.compress(b"0" * 900_000)[:900]
    SEEN.clear()
    answer = server.post(bomb, f"Content-Length: {len(bomb)}", f"Content-Encoding: {encoding}")
    assert is_problem(answer, 415)
    assert answer.headers["accept-encoding"] == "identity"
    assert not SEEN


@pytest.mark.parametrize(
    "target",
    [
        f"/echo?x={KEY}",
        f"/echo/{KEY}",
        f"/echo?{KEY}",
        f"/echo?x=%6dlops{KEY[5:]}",
        f"/echo?x=%256dlops{KEY[5:]}",
        f"/%6dlops{KEY[5:]}",
        "/echo?api_key=abc",
        "/echo?a=1&X-API-Key=abc",
        "/echo?access_token=abc",
        "/echo?%74oken=",
    ],
)
def test_a_key_in_the_url_is_refused_and_not_repeated(server, target):
    answer = server.get(target)
    assert is_problem(answer, 400)
    assert b"rotate" in answer.body
    assert KEY.encode() not in answer.body


def test_ordinary_queries_pass(server):
    assert server.get("/echo?reasons=3&monkey=1&keyword=x").status == 200


def test_answers_are_hardened_and_cors_is_off(server):
    headers = server.get("/echo", "Origin: https://evil.example").headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert not [name for name in headers if name.startswith("access-control")]
    assert "strict-transport-security" not in headers
    assert "server" not in headers


def test_refusals_are_hardened_too(server):
    assert server.get("/echo?token=1").headers["x-frame-options"] == "DENY"


def test_behind_tls_browsers_are_told_to_stay_there(server):
    # The proxy says so; uvicorn believes it from 127.0.0.1.
    assert server.get("/echo", "X-Forwarded-Proto: https").headers["strict-transport-security"].startswith("max-age=")


def test_a_page_may_set_its_own_policy(server):
    headers = server.get("/page").headers
    assert headers["content-security-policy"] == "default-src 'self'"
    assert headers["cache-control"] == "max-age=60"
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("injection", ["a%0d%0aSet-Cookie:%20x=1", "a%0aX: y".replace(" ", "%20"), "a%00"])
def test_a_header_cannot_be_injected_into_an_answer(server, injection):
    answer = server.get(f"/injected?id={injection}")
    assert answer.status == 500
    assert "set-cookie" not in answer.headers
    assert b"Set-Cookie" not in answer.body


def test_a_connection_serves_on_after_an_ordinary_answer(server):
    one = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert server.send(one, last).body.endswith(b"page")


@given(st.text(max_size=100), st.integers(min_value=0, max_value=99))
def test_whatever_is_logged_is_one_line_of_printable_ascii_without_keys(text, place):
    shown = SafeFormatter("%(levelname)s %(message)s").format(
        logging.makeLogRecord({"msg": text[:place] + " " + KEY + " " + text[place:], "levelname": "INFO"})
    )
    assert shown.startswith("INFO")
    assert re.fullmatch(r"[ -~]*", shown)
    assert not TOKEN.search(shown)
    assert "s3cr3t" not in shown


def test_a_traceback_cannot_forge_a_line():
    try:
        int("x\n2026-01-01 - ERROR - forged")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, error.__traceback__)})
    assert len(SafeFormatter("%(message)s").format(record).splitlines()) == 1


def test_long_text_is_shortened():
    assert len(loggable("x" * 10_000)) == 501


def test_a_real_key_has_the_form_that_is_looked_for(tmp_path):
    _, token = create(tmp_path / "keys.json", "app", "predict")
    assert TOKEN.fullmatch(token)
    assert TOKEN.fullmatch(KEY)
    assert not KEY_NAMES.fullmatch("reasons")
