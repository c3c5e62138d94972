"""API keys: who is let in, what the file and the logs hold, and the command."""

import contextlib
import json
import multiprocessing
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.errors import PipelineError
from mlops_project.serving import keys
from mlops_project.serving.keys import Forbidden, KeyStore, Unauthorized, create, presented, revoke, rotate, seconds_of


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "keys/api-keys.json"


def test_a_key_is_let_in_by_its_scope_and_admin_includes_predict(file):
    predict, token = create(file, "app", "predict")
    _, admin = create(file, "ops", "admin")
    store = KeyStore(file)
    assert store.check(token, "predict").id == predict.id
    assert store.check(admin, "predict").name == store.check(admin, "admin").name == "ops"
    with pytest.raises(Forbidden, match="scope predict, expected admin") as refused:
        store.check(token, "admin")
    status, headers, body = refused.value.answer()
    assert status == json.loads(body)["status"] == 403
    assert dict(headers)[b"www-authenticate"].startswith(b"Bearer")


def test_unknown_wrong_ended_and_revoked_keys_are_refused_alike(file, monkeypatch):
    _, token = create(file, "app", "predict", seconds=60)
    gone, revoked = create(file, "gone", "admin")
    revoke(file, gone.id)
    store = KeyStore(file)
    swapped = token[:-1] + ("A" if token[-1] != "A" else "B")
    unknown = "mlops_" + "0" * 12 + token[18:]
    messages = set()
    for bad in (swapped, unknown, revoked, "", "mlops_", token + "A", token.upper(), f"{token}\n", "ü" * 99, "\ud800"):
        with pytest.raises(Unauthorized) as refused:
            store.check(bad, "predict")
        messages.add(str(refused.value))
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Unauthorized) as refused:
        store.check(token, "predict")
    assert messages | {str(refused.value)} == {"the key is not valid"}


@given(st.text(max_size=80) | st.from_regex(keys.TOKEN, fullmatch=True))
def test_no_text_but_the_key_is_let_in(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "property/keys.json"
    if not file.exists():
        create(file, "app", "predict")
    with pytest.raises(Unauthorized):
        KeyStore(file).check(text, "predict")


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"host"]), st.binary(max_size=60)), max_size=4))
def test_any_headers_give_one_key_or_a_refusal(headers):
    carrying = [(name, value) for name, value in headers if name != b"host"]
    with contextlib.suppress(Unauthorized):
        token = presented(headers)
        ((name, value),) = carrying
        assert token.encode("latin-1") in value
        assert name == b"x-api-key" or value.lower().startswith(b"bearer ")


def test_the_key_comes_in_either_header_but_only_once():
    assert presented([(b"authorization", b"bearer abc")]) == presented([(b"x-api-key", b"abc")]) == "abc"
    for headers in ([], [(b"authorization", b"Basic abc")], [(b"x-api-key", b"a"), (b"x-api-key", b"a")]):
        with pytest.raises(Unauthorized):
            presented(headers)


def test_a_running_store_sees_a_revoked_and_a_new_key_at_once(file):
    first, token = create(file, "app", "predict")
    store = KeyStore(file)
    store.check(token, "predict")
    revoke(file, "app")
    with pytest.raises(Unauthorized):
        store.check(token, "predict")
    assert len(store) == 0
    _, again = create(file, "app", "predict")
    assert store.check(again, "predict").id != first.id


def test_rotation_with_grace_lets_both_keys_in_until_it_ends(file, monkeypatch):
    _, old = create(file, "app", "predict")
    _, new = rotate(file, "app", grace=3600)
    store = KeyStore(file)
    assert {store.check(old, "predict").name, store.check(new, "predict").name} == {"app"}
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    store.check(new, "predict")
    with pytest.raises(Unauthorized):
        store.check(old, "predict")


def test_rotation_without_grace_ends_the_old_key_at_once(file):
    key, old = create(file, "app", "predict", seconds=1000)
    turned, new = rotate(file, key.id)
    store = KeyStore(file)
    assert store.check(new, "predict").ends - turned.created == pytest.approx(1000)
    with pytest.raises(Unauthorized):
        store.check(old, "predict")


def test_a_revoked_key_stays_out_when_the_clock_goes_back(file, monkeypatch):
    _, token = create(file, "app", "predict")
    revoke(file, "app")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(Unauthorized):
        KeyStore(file).check(token, "predict")


def test_the_file_holds_no_secret_and_only_its_owner_reads_it(file):
    _, token = create(file, "app", "predict")
    assert token.split("_", 2)[2] not in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    rotate(file, "app")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_everybody_can_write_is_refused(file):
    create(file, "app", "predict")
    file.chmod(0o666)
    with pytest.raises(PipelineError, match="chmod 600"):
        KeyStore(file)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "no file of API keys"),
        ("[]", "no file of API keys"),
        ('{"format": 2, "keys": []}', "found format 2"),
        ("\xff", "no file"),
    ],
)
def test_a_damaged_or_newer_file_is_refused_in_one_line(file, content, found):
    file.parent.mkdir()
    file.write_text(content, encoding="latin-1")
    with pytest.raises(PipelineError, match=found) as refused:
        KeyStore(file)
    assert "\n" not in str(refused.value)


def test_nobody_is_let_in_once_the_file_is_gone(file):
    _, token = create(file, "app", "predict")
    store = KeyStore(file)
    file.unlink()
    with pytest.raises(PipelineError, match="not found"):
        store.check(token, "predict")


def _create(file: Path, name: str) -> None:
    create(file, name, "predict")


def test_concurrent_commands_lose_no_key(file):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_create, args=(file, f"app {i}")) for i in range(12)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {key.name for key in keys.read(file)} == {f"app {i}" for i in range(12)}


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b[31m", "=1+1", "x" * 65, "ä"])
def test_a_name_that_could_forge_a_log_line_is_refused(file, name):
    with pytest.raises(PipelineError, match="--name"):
        create(file, name, "predict")


def test_a_name_in_use_is_refused(file):
    create(file, "app", "predict")
    with pytest.raises(PipelineError, match="called 'app' already"):
        create(file, "app", "admin")


def test_the_command_shows_a_key_once_and_logs_none(workdir, monkeypatch):
    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", "import sys; from mlops_project.serving.keys import main; sys.exit(main())", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"MLOPS_KEYS_FILE": "k.json"}
        )
        assert done.returncode == code, done.stderr
        return done

    first = run("create", "--name", "app", "--scope", "predict").stdout.strip()
    second = run("rotate", "app", "--grace", "24h").stdout.strip()
    assert keys.TOKEN.fullmatch(first)
    assert keys.TOKEN.fullmatch(second)
    listed = run("list").stdout
    assert [line.split()[1] for line in listed.splitlines()[1:]] == ["predict", "predict"]
    mistaken = run("revoke", second, code=1)
    assert "found a whole key" in mistaken.stderr
    run("revoke", "app")
    assert len(re.findall("revoked", run("list").stdout)) == 2
    kept = [path.read_text(encoding="utf-8") for path in workdir.rglob("*") if path.is_file()]
    for token in (first, second):
        assert not any(token.split("_", 2)[2] in text for text in [*kept, listed, mistaken.stdout, mistaken.stderr])


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("24h", 86400), ("90d", 7776000)])
def test_spans_are_read(text, seconds):
    assert seconds_of(text) == seconds


@given(st.text(max_size=8))
def test_any_other_span_is_refused(text):
    if not keys.SPAN.fullmatch(text):
        with pytest.raises(Exception, match="expected a number"):
            seconds_of(text)
