"""API keys: who may call. The file holds hashes only; a key is shown once, when it is made."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mlops_project.errors import PipelineError
from mlops_project.files import atomic_path
from mlops_project.runtime import guarded, setup_logging
from mlops_project.serving.problems import Answer, Headers, problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_FILE = "var/api-keys.json"
FORMAT = 1
SCOPES = ("predict", "admin")
# The second group is 256 random bits in base64url.
TOKEN = re.compile(r"mlops_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
# Names stand in logs and tables.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}", re.ASCII)
SPAN = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class KeyRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A caller without a key that is good enough. Says nothing about the key that was sent."""

    status, title, challenge = 401, "Unauthorized", b"Bearer"

    def answer(self) -> Answer:
        """Return the problem that the caller gets."""
        status, headers, body = problem(self.status, self.title, str(self))
        return status, [*headers, (b"www-authenticate", self.challenge)], body


class Unauthorized(KeyRefused):
    """No key, or one that is not valid."""


class Forbidden(KeyRefused):
    """A valid key whose scope is too small."""

    status, title, challenge = 403, "Forbidden", b'Bearer error="insufficient_scope"'


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as it is stored; times are seconds since 1970."""

    id: str
    name: str
    scope: Literal["predict", "admin"]
    hash: str
    """SHA-256 of the whole key. A slow hash protects secrets that can be guessed; 256 random bits cannot, and the slowness
    would be paid in every request. Empty once the key is revoked: it cannot come back, whatever the clock says."""
    created: float
    ends: float | None = None
    """From when on it is refused; None is never."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    keys: list[Key]


def presented(headers: Headers) -> str:
    """Return the key in the headers of a request: ``Authorization: Bearer …`` or ``X-API-Key: …``.

    Parameters
    ----------
    headers : list of (name, value)
        As ASGI gives them: bytes, names in lower case.

    Raises
    ------
    Unauthorized
        If there is none, or more than one: proxies and services would not agree on which counts.
    """
    found = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthorized("found another scheme than Bearer in the header Authorization")
            found.append(rest)
        elif name == b"x-api-key":
            found.append(value)
    if len(found) != 1:
        found_text = "more than one key" if found else "no key"
        raise Unauthorized(f"found {found_text}, expected one in the header Authorization (Bearer) or X-API-Key")
    return found[0].strip().decode("latin-1")


class KeyStore:
    """The keys in a file, as the service reads them.

    The file is looked at in every check, so that a revoked key is refused from the next request on.

    Raises
    ------
    PipelineError
        If the file is absent, damaged, of a newer format or can be written by everybody.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._reload()

    def __len__(self) -> int:
        """Number of keys that are valid now."""
        self._reload()
        return sum(_valid(key) for key in self._keys.values())

    def check(self, token: str, scope: str) -> Key:
        """Return the key that ``token`` is, if it has the scope; admin includes predict.

        Raises
        ------
        Unauthorized, Forbidden
            Unknown, wrong, ended and revoked keys are told from each other neither by text nor by time.
        PipelineError
            If the file cannot be read any more: then nobody is let in.
        """
        self._reload()
        match = TOKEN.fullmatch(token)
        key = self._keys.get(match[1]) if match else None
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        if not hmac.compare_digest(digest, key.hash if key else "") or key is None or not _valid(key):
            raise Unauthorized("the key is not valid")
        if key.scope not in (scope, "admin"):
            raise Forbidden(f"the key has the scope {key.scope}, expected {scope}")
        return key

    def _reload(self) -> None:
        try:
            state = os.stat(self.path)
            seen = (state.st_ino, state.st_mtime_ns, state.st_size)
            if seen != self._seen:
                self._keys = {key.id: key for key in read(self.path)}
                self._seen = seen
        except FileNotFoundError:
            raise PipelineError(
                f"{self.path}: not found; `mlops-keys create --name NAME --scope predict --file {self.path}` makes it"
            ) from None
        except OSError as error:
            raise PipelineError(f"{self.path}: cannot be read ({error.strerror})") from None


def _valid(key: Key) -> bool:
    return bool(key.hash) and (key.ends is None or time.time() < key.ends)


def read(path: Path) -> list[Key]:
    """Read the keys of a file.

    Raises
    ------
    PipelineError
        If it is damaged, of a newer format, or writable by everybody, who could then give themselves a key.
    OSError
        If it cannot be opened.
    """
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_mode & 0o002:
            raise PipelineError(f"{path}: everybody can write it; run `chmod 600 {path}`")
        content = stream.read()
    try:
        file = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: is no file of API keys ({error}); bring it back from a copy") from None
    if file.format != FORMAT:
        raise PipelineError(f"{path}: found format {file.format}, expected {FORMAT}; a newer version of this package wrote it")
    return file.keys


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """Yield the keys for a change and write them if the block succeeds; one process at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written ({error.strerror}); check the folder's permissions") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            keys = read(path)
        except FileNotFoundError:
            keys = []
        yield keys
        with atomic_path(path, mode=0o600) as temporary, temporary.open("wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(_File(FORMAT, keys)), indent=2) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())  # the key is shown next, and never again
    finally:
        os.close(lock)


def create(path: str | Path, name: str, scope: str, seconds: float | None = None) -> tuple[Key, str]:
    """Make a key that ends after ``seconds``; return it and its text, which is kept nowhere.

    Raises
    ------
    PipelineError
        If a valid key has the name, or the name or the scope is none.
    """
    if not NAME.fullmatch(name):
        raise PipelineError(f"--name: found {name!r}, expected up to 64 letters, digits, spaces or any of ._@-")
    if scope not in SCOPES:
        raise PipelineError(f"--scope: found {scope!r}, expected one of {', '.join(SCOPES)}")
    with _changing(Path(path)) as keys:
        if any(key.name == name and _valid(key) for key in keys):
            raise PipelineError(f"--name: a valid key is called {name!r} already; rotate it, or choose another name")
        key, token = _new(name, scope, seconds)
        keys.append(key)
    return key, token


def revoke(path: str | Path, which: str) -> list[Key]:
    """Revoke the key with this id, or all valid keys with this name; return them."""
    with _changing(Path(path)) as keys:
        chosen = _find(keys, which)
        now = time.time()
        for position, key in enumerate(keys):
            if key in chosen:
                keys[position] = msgspec.structs.replace(key, hash="", ends=now)
    return chosen


def rotate(path: str | Path, which: str, grace: float = 0.0) -> tuple[Key, str]:
    """Put a new key in the place of one with this id or name; the old one is valid for ``grace`` seconds more."""
    with _changing(Path(path)) as keys:
        old = max(_find(keys, which), key=lambda key: (key.ends is None, key.created))
        now = time.time()
        for position, key in enumerate(keys):
            if key == old:
                ends = now + grace if key.ends is None else min(key.ends, now + grace)
                keys[position] = msgspec.structs.replace(key, ends=ends, hash=key.hash if grace else "")
        new, token = _new(old.name, old.scope, None if old.ends is None else old.ends - old.created)
        keys.append(new)
    return new, token


def _new(name: str, scope: str, seconds: float | None) -> tuple[Key, str]:
    identity = secrets.token_hex(6)
    token = f"mlops_{identity}_{secrets.token_urlsafe(32)}"
    now = time.time()
    digest = hashlib.sha256(token.encode()).hexdigest()
    key = Key(identity, name, scope, digest, now, None if seconds is None else now + seconds)  # type: ignore[arg-type]
    return key, token


def _find(keys: list[Key], which: str) -> list[Key]:
    chosen = [key for key in keys if which in (key.id, key.name) and _valid(key)]
    if not chosen:
        # A whole key given by mistake must not be printed, nor kept in a log.
        shown = "a whole key" if which.startswith("mlops_") else repr(which)
        raise PipelineError(f"found {shown}, expected the id or name of a valid key; `mlops-keys list` shows them")
    return chosen


def seconds_of(text: str) -> float:
    """Seconds in a span such as 30m, 24h or 90d.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is none.
    """
    match = SPAN.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number and s, m, h or d, such as 24h or 90d")
    return float(int(match[1]) * SECONDS[match[2]])


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _print_table(keys: list[Key]) -> None:
    print(f"{'id':<14}{'scope':<9}{'created (UTC)':<18}{'ends (UTC)':<18}{'state':<9}name")
    for key in keys:
        state = "valid" if _valid(key) else "ended" if key.hash else "revoked"
        print(f"{key.id:<14}{key.scope:<9}{_when(key.created):<18}{_when(key.ends):<18}{state:<9}{key.name}")


def _show(key: Key, token: str) -> None:
    """Print the key alone to standard output, so that it can go into a file or a secret store without being seen."""
    print(f"key {key.id} ({key.name}, scope {key.scope}); shown once:", file=sys.stderr, flush=True)
    print(token)


def main(argv: list[str] | None = None) -> int:
    """`mlops-keys`: create, list, revoke and rotate the API keys of the service."""
    parser = argparse.ArgumentParser(
        description="API keys of the service. A running service sees a change with its next request.",
        epilog="examples:\n"
        "  mlops-keys create --name bank-app --scope predict > key.txt\n"
        "  mlops-keys rotate bank-app --grace 24h\n"
        "  mlops-keys revoke bank-app\n\n"
        "The key is printed once, to standard output; the file holds its hash.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    default = os.environ.get("MLOPS_KEYS_FILE", DEFAULT_FILE)
    shared.add_argument("--file", type=Path, default=default, help="file of the keys (MLOPS_KEYS_FILE; default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("create", parents=[shared], help="make a key and print it")
    make.add_argument("--name", required=True, help="whose it is")
    make.add_argument("--scope", required=True, choices=SCOPES, help="admin includes predict")
    make.add_argument("--expires", type=seconds_of, metavar="SPAN", help="ends after this, such as 90d (default: never)")
    commands.add_parser("list", parents=[shared], help="show all keys, without their secrets")
    commands.add_parser("revoke", parents=[shared], help="refuse a key from now on").add_argument("key", help="id or name")
    turn = commands.add_parser("rotate", parents=[shared], help="make a new key in the place of one")
    turn.add_argument("key", help="id or name")
    turn.add_argument("--grace", type=seconds_of, default=0.0, metavar="SPAN", help="the old one stays valid so long (24h)")
    args = parser.parse_args(argv)

    def list_() -> None:
        try:
            _print_table(read(args.file))
        except OSError as error:
            raise PipelineError(f"{args.file}: cannot be read ({error.strerror}); `mlops-keys create` makes it") from None

    def revoke_() -> None:
        for key in revoke(args.file, args.key):
            print(f"revoked {key.id} ({key.name})")

    work: dict[str, Callable[[], None]] = {
        "create": lambda: _show(*create(args.file, args.name, args.scope, args.expires)),
        "list": list_,
        "revoke": revoke_,
        "rotate": lambda: _show(*rotate(args.file, args.key, args.grace)),
    }
    setup_logging()
    return guarded(work[args.command])
