"""Attacks on a running `mlops-serve`, over sockets: each is refused by a problem detail, and the service goes on."""

import contextlib
import gzip
import http.client
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlops_project.files import APPLICANT_ID
from mlops_project.serving import keys
from mlops_project.serving.predictions import export, inputs_of
from mlops_project.serving.stores import open_store
from running import VARIANTS, Running, put, train

pytestmark = pytest.mark.integration

MAX_BODY, BODY_SECONDS, HEAD_SECONDS = 100_000, 2, 10


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Target:
    """The service under attack, its keys, and a good request."""

    def __init__(self, running: Running, good: dict[str, Any], tokens: dict[str, str]) -> None:
        self.running, self.good, self.tokens = running, good, tokens

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens['caller']}"}

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Send a well-formed request; by default as JSON, with a valid key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=30)
        with contextlib.closing(connection):
            sent = self.bearer | {"content-type": "application/json"} if headers is None else headers
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def predict(self, body: Any, headers: dict[str, str] | None = None, path: str = "/v1/predict") -> Answer:
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.running.port), timeout=30) as one:
            yield one

    def head(self, *lines: str, path: str = "/v1/predict", kind: str = "application/json") -> bytes:
        """Return the head of a request with further header lines."""
        first = [f"POST {path} HTTP/1.1", "host: test", f"authorization: {self.bearer['authorization']}", f"content-type: {kind}"]
        return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")

    def raw(self, content: bytes) -> Answer:
        """Send bytes as they are."""
        with self.connected() as one:
            one.sendall(content)
            return received(one)


def received(one: socket.socket) -> Answer:
    """Read one answer by its Content-Length."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in content:
            if not (part := one.recv(65536)):
                break
            content += part
        head, _, body = content.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", "0")):
            if not (part := one.recv(65536)):
                break
            body += part
        return Answer(int(lines[0].split()[1]), headers, body)
    pytest.fail(f"the connection was reset after {content!r}")


def refused(answer: Answer, status: int, detail: str = "") -> Answer:
    """Assert that an answer is a problem detail of this status whose text matches."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    content = answer.json
    assert (content["type"], content["status"]) == ("about:blank", status)
    assert content["title"]
    assert re.search(detail, content["detail"]), content["detail"]
    assert "Traceback" not in content["detail"]
    return answer


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name in ("first", "second"):
        found[name] = tmp_path_factory.mktemp(name)
        train(found[name], **VARIANTS[name])
    return found


@pytest.fixture(scope="module")
def target(models, contract, tmp_path_factory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("service")
    put(models["first"], folder)
    store = folder / "keys.json"
    tokens = {name: keys.create(store, name, scope)[1] for name, scope in [("caller", "predict"), ("admin", "admin")]}
    tokens["revoked"] = keys.create(store, "revoked", "predict")[1]
    keys.revoke(store, "revoked")
    columns = contract.columns
    good = {name: columns[name].code_list[0] if columns[name].codes else columns[name].range[0] for name in contract.features}
    arguments = ["--keys-file", "keys.json", "--max-body", str(MAX_BODY), "--body-seconds", str(BODY_SECONDS)]
    with Running(folder, *arguments, "--max-rows", "1000") as running:
        yield Target(running, good, tokens)


@pytest.fixture(autouse=True)
def goes_on(target) -> Iterator[None]:
    """Whatever the attack was: no worker died of it, and the next good request is answered."""
    before = set(target.running.workers())
    yield
    for _ in range(4):  # both workers, most likely
        answer = target.predict(target.good)
        assert answer.status == 200
        assert 0 < answer.json["predictions"][0]["p_good"] < 1
    assert set(target.running.workers()) == before


# --- Who may call


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/predict"), ("GET", "/v1/model"), ("POST", "/v1/outcomes"), ("POST", "/v1/admin/reload")]
)
def test_no_key(target, method, path):
    answer = refused(target.ask(method, path, b"{}", {"content-type": "application/json"}), 401, "no key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_wrong_keys(target):
    token = target.tokens["caller"]
    flipped = "A" if token[-1] != "A" else "B"
    unknown = f"mlops_{'0' * 12}_{token[-43:]}"
    wrong = [token[:-1] + flipped, token[:-1], token + "A", unknown, token.upper(), "", "mlops", "null", "é", "' OR 1=1 --"]
    for sent in wrong:
        found = {"content-type": "application/json", "authorization": f"Bearer {sent}"}
        refused(target.predict(target.good, found), 401, "not valid|no key")
        refused(target.predict(target.good, {"content-type": "application/json", "x-api-key": sent}), 401)
    basic = {"content-type": "application/json", "authorization": f"Basic {token}"}
    refused(target.predict(target.good, basic), 401, "another scheme")
    # Proxy and service might not agree on which one counts.
    twice = target.bearer | {"x-api-key": target.tokens["admin"], "content-type": "application/json"}
    refused(target.predict(target.good, twice), 401, "more than one key")


def test_revoked_key_is_answered_as_a_wrong_one(target):
    kind = {"content-type": "application/json"}
    revoked = target.predict(target.good, kind | {"authorization": f"Bearer {target.tokens['revoked']}"})
    wrong = target.predict(target.good, kind | {"authorization": f"Bearer mlops_{'0' * 12}_{'A' * 43}"})
    refused(revoked, 401, "not valid")
    assert revoked.body == wrong.body


def test_a_key_that_is_revoked_now_is_refused_from_the_next_request_on(target):
    store = target.running.folder / "keys.json"
    key, token = keys.create(store, "soon gone", "predict")
    sent = {"content-type": "application/json", "x-api-key": token}
    assert target.predict(target.good, sent).status == 200
    keys.revoke(store, key.id)
    for _ in range(8):
        refused(target.predict(target.good, sent), 401)


def test_scope_too_small(target):
    answer = refused(target.ask("POST", "/v1/admin/reload"), 403, "scope predict, expected admin")
    assert "insufficient_scope" in answer.headers["www-authenticate"]


def test_key_in_url(target):
    token = target.tokens["caller"]
    encoded = "".join(f"%{ord(sign):02x}" for sign in token)
    for path in (
        f"/v1/predict?key={token}",
        f"/v1/predict?reasons={token}",
        f"/v1/predict?x={encoded}",
        f"/{token}",
        "/v1/predict?api_key=x",
        "/v1/predict?access_token=x",
        "/v1/predict?%6bey=x",
        f"/v1/predict?{encoded.replace('%', '%25')}",
    ):
        answer = refused(target.predict(target.good, path=path), 400, "a key in the URL")
        assert token not in answer.body.decode()


# --- Size and time


def test_oversized_body_with_an_honest_content_length_is_refused_before_it_is_sent(target):
    with target.connected() as one:
        one.sendall(target.head(f"content-length: {10**12}"))
        answer = refused(received(one), 413, "larger than")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "1, 1", "٣", "9" * 30, "18446744073709551617", "+5", "5 5"])
def test_content_length_that_is_no_number(target, length):
    answer = target.raw(target.head()[:-2] + b"content-length: " + length.encode() + b"\r\n\r\n{}")
    refused(answer, answer.status)
    assert answer.status in (400, 413)


def test_content_length_that_says_too_much_waits_no_longer_than_allowed(target):
    begun = time.monotonic()
    with target.connected() as one:
        one.sendall(target.head("content-length: 5000") + b"{}")
        refused(received(one), 408, "body did not arrive")
    assert BODY_SECONDS * 0.9 < time.monotonic() - begun < BODY_SECONDS + 5


def test_what_follows_a_body_that_is_longer_than_it_says_is_no_request(target):
    body = json.dumps(target.good).encode()
    with target.connected() as one:
        one.sendall(target.head(f"content-length: {len(body)}") + body + b"x" * 5000)
        content = b""
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(65536):
                content += part
    # Both may come in one piece: then the connection is refused before the first is answered.
    assert re.findall(rb"HTTP/1\.1 (\d+)", content) in ([b"400"], [b"200"], [b"200", b"400"])


def test_content_length_twice_or_beside_chunks_is_refused(target):
    """What smuggles a second request through a proxy."""
    for lines in (
        ["content-length: 2", "content-length: 3"],
        ["content-length: 2", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked", "content-length: 2"],
        ["transfer-encoding: gzip, chunked", "content-length: 2"],
    ):
        refused(target.raw(target.head(*lines) + b"0\r\n\r\n"), 400)


def test_chunks_without_end_are_cut_off(target):
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    with target.connected() as one:
        one.sendall(target.head("transfer-encoding: chunked"))
        with contextlib.suppress(OSError):
            for _ in range(1000):
                one.sendall(chunk)
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    if one.recv(1, socket.MSG_PEEK):
                        break
                one.setblocking(True)
                one.settimeout(30)
        one.setblocking(True)
        one.settimeout(30)
        refused(received(one), 413)


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"1\r\nab\r\n"])
def test_chunks_that_are_none(target, chunk):
    refused(target.raw(target.head("transfer-encoding: chunked") + chunk), 400)


def test_too_many_applicants(target):
    refused(target.predict([{}] * 1001), 413, "1001 applicants")


def test_slow_body(target):
    """A byte now and then keeps nothing open."""
    begun = time.monotonic()
    with target.connected() as one:
        one.sendall(target.head("content-length: 1000"))
        one.settimeout(0.2)
        for _ in range(100):
            one.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                if one.recv(1, socket.MSG_PEEK):
                    break
        one.settimeout(30)
        refused(received(one), 408, "body did not arrive")
    assert time.monotonic() - begun < BODY_SECONDS + 5


def test_slow_head(target):
    begun = time.monotonic()
    silent = socket.create_connection(("127.0.0.1", target.running.port), timeout=30)
    with target.connected() as one, contextlib.closing(silent):
        one.settimeout(0.5)
        one.sendall(b"POST /v1/predict HTTP/1.1\r\n")
        for i in range(100):
            one.sendall(f"x-{i}: y\r\n".encode())
            with contextlib.suppress(TimeoutError):
                if one.recv(1, socket.MSG_PEEK):
                    break
        one.settimeout(30)
        refused(received(one), 408, "head did not arrive")
        refused(received(silent), 408, "head did not arrive")
    assert HEAD_SECONDS * 0.9 < time.monotonic() - begun < HEAD_SECONDS + 10


def test_many_idle_and_half_open_connections_keep_nobody_out(target):
    with contextlib.ExitStack() as stack:
        for i in range(300):
            one = stack.enter_context(target.connected())
            one.sendall(target.head("content-length: 1000")[: i + 1])
        assert target.predict(target.good).status == 200


def test_endless_head(target):
    with target.connected() as one:
        one.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 400_000)
        refused(received(one), 431, "head is larger")


def test_what_is_no_http(target):
    for content in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"A" * 200 + b"\r\n\r\n",
    ):
        refused(target.raw(content), 400)


# --- Bodies


@pytest.mark.parametrize("kind", ["application/json", "text/csv"])
def test_deep_nesting(target, kind):
    for body in (
        b"[" * 90_000,
        b'{"a":' * 15_000,
        b"[" * 40_000 + b"]" * 40_000,
        b'{"alter":' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    ):
        answer = target.predict(body, target.bearer | {"content-type": kind})
        refused(answer, 400 if kind == "application/json" else 422)


def test_nesting_where_a_cell_belongs(target):
    name = next(iter(target.good))
    for cell in ([1], {"a": 1}, [[[]]]):
        answer = refused(target.predict([target.good, target.good | {name: cell}]), 422, f"row 1, field {name}")
        assert answer.json["errors"][0]["field"] == name


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "nan", "+1", "01", "0x1", "1_0", ".5", "1."])
def test_numbers_that_json_does_not_know(target, number):
    name = next(iter(target.good))
    refused(target.predict(f'{{"{name}": {number}}}'.encode()), 400, "cannot be read as JSON")


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "9" * 1000, "-" + "9" * 10_000, "1" + "0" * 90_000, "9007199254740993", "1e-400"]
)
def test_huge_numbers_are_treated_as_the_contract_says_and_cost_nothing(target, contract, number):
    name = next(name for name in contract.features if not contract.columns[name].codes)
    begun = time.monotonic()
    answer = target.predict(json.dumps(target.good | {name: 12345}).replace("12345", number).encode())
    assert answer.status == 200, answer
    assert answer.json["predictions"][0]["treated_as_missing"] == [name]
    assert time.monotonic() - begun < 5


def test_infinite_text_is_treated_as_missing(target, contract):
    name = next(name for name in contract.features if not contract.columns[name].codes)
    for cell in ("NaN", "Infinity", "-inf", "1e400", "9" * 10_000, "١٢"):
        (row,) = target.predict(target.good | {name: cell}).json["predictions"]
        assert name in row["treated_as_missing"] + row["missing"]


def test_duplicate_keys(target):
    name = next(iter(target.good))
    for body in (
        f'{{"{name}": 1, "{name}": 2}}',
        f'[{{"{name}": 1, "\\u{ord(name[0]):04x}{name[1:]}": 2}}]',
        f'{{"a:b": 1, "{name}": 1, "{name}": 1}}',
    ):
        refused(target.predict(body.encode()), 400, "stands twice")


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/x-python-pickle",
        "application/json, text/csv",
        "x" * 5000,
    ],
)
def test_wrong_content_type(target, kind):
    answer = target.predict(target.good, target.bearer | ({"content-type": kind} if kind else {}))
    refused(answer, 415, "content type")
    assert len(answer.body) < 1000


def test_text_that_is_no_utf8(target):
    for kind in ("application/json", "text/csv"):
        for body in (b"\xff\xfe{\x00}\x00", b'{"a": "\xc3\x28"}', b"\xed\xa0\x80"):
            refused(target.predict(body, target.bearer | {"content-type": kind}), 400, "UTF-8")
    refused(target.predict(b'{"applicant_id": "\\ud800"}'), 400, "surrogate")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "gzip, gzip"])
def test_compressed_bomb_is_not_unpacked(target, encoding):
    bomb = gzip.compress(b"[" + b"{}," * 20_000_000 + b"{}]")[:MAX_BODY]
    answer = target.predict(bomb, target.bearer | {"content-type": "application/json", "content-encoding": encoding})
    refused(answer, 415, "compressed")
    refused(target.predict(bomb), 400)


def test_csv_that_is_none(target):
    names = ",".join(target.good)
    kind = target.bearer | {"content-type": "text/csv"}
    cells = ",".join(map(str, target.good.values()))
    for body, status in (
        (f'{names}\n"{cells}', 422),
        (f"{names},{names}\n", 422),
        (f"{names}\n{cells},1\n", 422),
        (names, 422),
        ("", 400),
        ("\n\n", 400),
        (f"{names}\n{'x' * 90_000}{',' * (len(target.good) - 1)}\n", 200),
        (f"{names}\n{cells}\n".replace(",", "\x00"), 422),
        ('"' + "x" * 99_000, 422),
        ("x" * 99_000, 422),
        (";" * 99_000, 422),
    ):
        answer = target.predict(body.encode(), kind)
        if status == 200:
            assert answer.status == 200, answer
        else:
            refused(answer, status)


# --- Injection


def test_header_injection(target):
    """What a caller sends comes back in no header, whatever line breaks are in it."""
    poison = "x%0d%0aset-cookie:%20evil=1%0d%0a%0d%0a<script>"
    for path in (f"/v1/predict?reasons={poison}", f"/v1/predict?{poison}=1", f"/{poison}", f"/v1/{poison}", f"/static/{poison}"):
        for method in ("GET", "POST"):
            answer = target.ask(method, path, b"{}" if method == "POST" else None)
            assert "set-cookie" not in answer.headers
            refused(answer, answer.status)
            assert answer.status in (404, 405, 422)
    for lines in ("x: a\rset-cookie: evil=1", "x: a\nset-cookie: evil=1", "x : a", "x: a\x00b", " folded: 1", "x\x01: 1"):
        answer = target.raw(target.head(*lines.split("\n"), "content-length: 2") + b"{}")
        assert "set-cookie" not in answer.headers
        assert answer.status in (200, 400)
    # Names that go back only as values of JSON.
    answer = refused(target.predict({"a\r\nset-cookie: evil=1": 1}), 422)
    assert "set-cookie" not in answer.headers


def test_a_forged_host_and_forwarding_headers_change_nothing(target):
    forged = {
        "host": "evil.example",
        "x-forwarded-host": "evil.example",
        "x-forwarded-for": "1.2.3.4\t",
        "x-original-url": "/v1/admin/reload",
        "x-http-method-override": "DELETE",
        "x-request-id": "f" * 32,
        "content-type": "application/json",
    }
    answer = target.predict(target.good, target.bearer | forged)
    assert answer.status == 200
    assert b"evil" not in answer.body
    assert answer.json["request_id"] != "f" * 32
    assert "evil" not in str(answer.headers)


def test_log_injection(target):
    start = len(target.running.log())
    poison = "\r\n2026-01-01 00:00:00,000 INFO 1 forged line\x1b[31m\x00\u2028\u0085"
    target.predict({poison: 1})
    target.predict(target.good | {APPLICANT_ID: poison})
    target.predict(poison.encode())
    target.predict(target.good, target.bearer | {"content-type": "text/forged\tline"})
    for path in ("/%0d%0a2026-01-01%20forged%20line", "/v1/predict?%0aforged%20line=1", "/v1/predict?reasons=%0aforged%20line"):
        target.ask("GET", path)
        target.predict(target.good, path=path)
    target.raw(b"GET /\r\nforged line HTTP/1.1\r\n\r\n")
    target.raw(target.head("x: \x1b[31mforged line\x01"))
    (target.running.folder / "keys.json").touch()  # read anew: a chance to say something about it
    target.predict(target.good)
    written = target.running.log()[start:]
    for line in written.splitlines():
        assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) \d+ ", line), line
        assert not re.match(r"\S+ \S+ INFO 1 ", line)
    assert written.isprintable() or set(written) - {"\n"} <= set(map(chr, range(32, 127)))


def test_sql_in_strings_stays_text(target, contract):
    name = next(name for name in contract.features if contract.columns[name].codes)
    reference = contract.applicant_id or APPLICANT_ID
    poison = [
        "'; DROP TABLE requests; --",
        '" OR ""="',
        "') ; DELETE FROM requests; --",
        "\\'; --",
        "%s %(x)s ? :1 $1",
        "\x00'",
        "'" * 1000,
        "𝕏🏦\U0010ffff",
    ]
    sent = {}
    for text in poison:
        answer = target.predict(target.good | {name: text, reference: text})
        assert answer.status == 200, answer
        assert answer.json["predictions"][0]["treated_as_missing"] == [name]
        sent[answer.json["request_id"]] = text
        labels = [{"request_id": answer.json["request_id"], "outcome": "good'; DROP TABLE outcomes; --"}]
        refused(target.ask("POST", "/v1/outcomes", json.dumps(labels).encode()), 422)
        labels = [{"request_id": "'; DROP TABLE outcomes; --", "outcome": "good"}]
        refused(target.ask("POST", "/v1/outcomes", json.dumps(labels).encode()), 422)
        assert (
            target.ask(
                "POST", "/v1/outcomes", json.dumps([{"request_id": answer.json["request_id"], "outcome": "good"}]).encode()
            ).status
            == 200
        )
    header = ",".join([*target.good, reference])
    cells = ",".join([*map(str, target.good.values()), '"\'; DROP TABLE requests; --"'])
    assert target.predict(f"{header}\n{cells}\n".encode(), target.bearer | {"content-type": "text/csv"}).status == 200

    store = open_store(f"sqlite:///{target.running.folder}/var/predictions.db", create=False)
    with contextlib.closing(store):
        logged = {found.record.request_id: found for found in store.read()}
        for request_id, text in sent.items():
            found = logged[request_id]
            assert inputs_of(found)[0][name] == text
            assert found.record.applicants == (text,)
            assert found.outcomes[0][0] == "good"
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert export(store, target.running.folder / "all.csv") == sum(found.record.rows for found in logged.values())


@pytest.mark.parametrize(
    "path",
    [
        "/static/../keys.json",
        "/static/..%2fkeys.json",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/static/....//keys.json",
        "/static//etc/passwd",
        "/static/..%5c..%5ckeys.json",
        "/static/%252e%252e%252fkeys.json",
        "/static/page.css%00.html",
        "/../../etc/passwd",
        "//etc/passwd",
        "/v1/model/../../keys.json",
        "/v1/model/first",
        "/v1/model?name=../../keys.json",
        "/static/",
        "/var/predictions.db",
        "/.git/config",
        "/static/%c0%ae%c0%ae/keys.json",
        "/static/" + "a" * 5000,
        "/v1/predict/",
        "/docs/../keys.json",
        "/openapi.json/../keys.json",
    ],
)
def test_path_traversal(target, path):
    answer = target.ask("GET", path)
    assert b"root:" not in answer.body
    assert b"hash" not in answer.body or path.startswith("/v1/model?")
    if answer.status == 200:  # a query that nobody reads: the model's own lineage, and nothing else
        assert path == "/v1/model?name=../../keys.json"
        assert answer.json["name"] == "scorecard"
    elif answer.status == 307:
        assert answer.headers["location"].startswith("/") or f":{target.running.port}/" in answer.headers["location"]
    else:
        assert answer.status in (400, 404, 405)
        refused(answer, answer.status)


def test_no_request_names_the_model_file(target):
    """The file is a setting of the service; what a caller says of it is not looked at."""
    admin = {"content-type": "application/json", "authorization": f"Bearer {target.tokens['admin']}"}
    version = target.predict(target.good).json["model_version"]
    body = json.dumps({"model": "../../evil.joblib", "path": "/etc/passwd"}).encode()
    answer = target.ask("POST", "/v1/admin/reload?model=..%2F..%2Fevil.joblib", body, admin)
    assert answer.status == 200
    assert (answer.json["outcome"], answer.json["model_version"]) == ("unchanged", version)


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "PROPFIND", "OPTIONS"])
def test_other_methods(target, method):
    answer = target.raw(target.head().replace(b"POST", method.encode(), 1))
    refused(answer, answer.status)
    assert answer.status in (400, 404, 405)
    assert "access-control-allow-origin" not in answer.headers


def test_web_sockets_and_other_protocols_are_not_spoken(target):
    lines = [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version: 13",
    ]
    answer = target.raw(b"GET /v1/predict HTTP/1.1\r\nhost: x\r\n" + "\r\n".join([*lines, "", ""]).encode())
    assert answer.status in (400, 404, 405, 426)
    answer = target.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    refused(answer, 400)


# --- The model file


@pytest.mark.parametrize(
    "what", ["one byte", "another model", "a pickle that runs code", "truncated", "symbolic link", "manifest too"]
)
def test_tampered_model_is_refused_and_the_old_one_goes_on(target, models, what, tmp_path):
    folder = target.running.folder
    version = target.predict(target.good).json["model_version"]
    path, evidence = folder / "model.joblib", tmp_path / "executed"
    content = path.read_bytes()
    start = len(target.running.log())
    attack = {
        "one byte": content[:100] + bytes([content[100] ^ 1]) + content[101:],
        "another model": (models["second"] / "model.joblib").read_bytes(),
        "a pickle that runs code": f"cos\nsystem\n(S'touch {evidence}'\ntR.".encode(),
        "truncated": content[: len(content) // 2],
        "symbolic link": b"",
        "manifest too": content,
    }[what]
    admin = {"content-type": "application/json", "authorization": f"Bearer {target.tokens['admin']}"}
    try:
        if what == "symbolic link":
            path.unlink()
            path.symlink_to("/etc/passwd")
        elif what == "manifest too":
            manifest = folder / "model.joblib.manifest.json"
            manifest.write_text(manifest.read_text().replace('"bytes"', '"bytes": 1, "evil"'))
        else:
            path.write_bytes(attack)
        answer = refused(target.ask("POST", "/v1/admin/reload", b"", admin), 409, "model.joblib")
        assert "passwd" not in answer.json["detail"]
        target.running.wait_for("new model refused, the old one goes on", 30, start)
        for _ in range(4):
            assert target.predict(target.good).json["model_version"] == version
        assert target.ask("GET", "/readyz").status == 200
        assert not evidence.exists()
    finally:
        start = len(target.running.log())
        path.unlink()
        for name in ("model.joblib", "model.joblib.manifest.json"):
            shutil.copy(models["first"] / name, folder / name)
    answer = target.ask("POST", "/v1/admin/reload", b"", admin)
    assert (answer.status, answer.json["model_version"]) == (200, version)


# --- The last: what all of the above left behind


def test_no_key_is_in_any_log_or_file(target):
    """After all attacks: neither the service's log, nor the prediction log, nor plans, figures and the file of keys hold one."""
    secrets = [token.split("_", 2)[2].encode() for token in target.tokens.values()]
    secrets += [token.encode() for token in target.tokens.values()]
    files = [path for path in target.running.folder.rglob("*") if path.is_file()]
    assert {"service.log", "predictions.db", "keys.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path
    for process in [target.running.process.pid, *target.running.workers()]:
        shown = Path(f"/proc/{process}/cmdline").read_bytes() + Path(f"/proc/{process}/environ").read_bytes()
        assert not any(secret in shown for secret in secrets)
    assert "Traceback" not in target.running.log()
