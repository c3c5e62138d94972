"""What may be loaded: what is pickled has a manifest with its SHA-256 beside it, tracked in Git or signed.

Unpickling runs code, and the MD5 in dvc.lock is no defence against somebody who wants to be found equal. So nothing is unpickled
unless its SHA-256 stands in ``<file>.manifest.json`` (`load`). A service asks for more: that manifest must be the one of the
commit that is checked out in the working directory or, where there is no Git (an image), carry an Ed25519 signature in
``<file>.manifest.json.sig`` (`read_verified`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from mlops_project.errors import PipelineError
from mlops_project.files import atomic_path
from mlops_project.strict import Strict, convert

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MANIFEST_BYTES = 64 * 1024
SIGNATURE_BYTES = 64
MISSING = "the pipeline writes it beside what it vouches for: `dvc repro`, or `git checkout` of the commit"
ABSENT = "run `dvc repro` to make it, or `dvc pull` to fetch it"
# Of the environment: PEM text, or with _FILE behind it the file that holds it.
PUBLIC_KEY = "MLOPS_MANIFEST_KEY"
SIGNING_KEY = "MLOPS_SIGNING_KEY"


class Entry(Strict, frozen=True):
    """One file: its name in the manifest's folder, and its content."""

    name: str
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    bytes: Annotated[int, Meta(ge=0)]


class Manifest(Strict, frozen=True):
    """The file that it is named after, and what belongs to it. As a list: DVC takes it for a metric and would show a mapping."""

    files: list[Entry]


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of a file stands: beside it."""
    path = Path(path)
    return path.with_name(f"{path.name}.manifest.json")


def signature_path(path: str | Path) -> Path:
    """Where the signature of a file's manifest stands: the 64 bytes as Ed25519 has them, so that openssl reads them, too."""
    manifest = manifest_path(path)
    return manifest.with_name(f"{manifest.name}.sig")


def write_manifest(path: str | Path, made_with: Iterable[str | Path] = ()) -> None:
    """Write the manifest of a file, with further files of its folder that belong to it (the model of a policy)."""
    files = []
    for file in (Path(path), *map(Path, made_with)):
        content = _read(file, sys.maxsize - 1, ABSENT)
        files.append(Entry(name=file.name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)))
    with atomic_path(manifest_path(path)) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(Manifest(files=files)), indent=2) + b"\n")


def dump(estimator: Any, path: str | Path) -> None:
    """Write an estimator with joblib, and its manifest, by which `load` and a service know it again."""
    import joblib

    with atomic_path(path) as temporary:
        joblib.dump(estimator, temporary, compress=("zlib", 3))
    write_manifest(path)


def load(path: str | Path, kind: type, expected: str, *, trust_file: bool = False) -> Any:
    """Read an object that `dump` wrote, if the manifest beside it names its SHA-256.

    The file is read once, and what is unpickled are the very bytes that were hashed. The manifest need not be committed, nor
    signed: a stage reads what the one before it has just written.

    Parameters
    ----------
    path : str or Path
    kind : type
        What the object must be.
    expected : str
        What messages call it.
    trust_file : bool
        Do without a manifest. Unpickling runs code: only for files whose maker you know.

    Raises
    ------
    PipelineError
        If file or manifest are absent or do not fit each other, or the file is damaged or holds something else.
    """
    path = Path(path)
    if trust_file or not path.exists():
        return unpickle(_read(path, sys.maxsize - 1, ABSENT), path, kind, expected)
    remedy = (
        f"{MISSING}; if you know who made {path.name}, `mlops-manifest write {path}` vouches for it,"
        " --trust-file (trust_file=True) does without"
    )
    content, *_ = _vouched(path, _read(manifest_path(path), MANIFEST_BYTES, remedy))
    return unpickle(content, path, kind, expected)


def unpickle(content: bytes, path: str | Path, kind: type, expected: str) -> Any:
    """Return the object in bytes that were vouched for; parameters and errors as `load`. Nothing else here unpickles."""
    import joblib

    try:
        loaded = joblib.load(io.BytesIO(content))
    except Exception as error:  # a damaged pickle raises almost anything
        raise PipelineError(f"{path}: cannot be loaded ({type(error).__name__}); run `dvc repro` to write it anew") from error
    if not isinstance(loaded, kind):
        raise PipelineError(f"{path}: found a {type(loaded).__name__}, expected {expected}")
    return loaded


def read_verified(
    path: str | Path, *, public_key: str | None = None, allow_uncommitted: bool = False, model: str | None = None
) -> tuple[bytes, str]:
    """Read a file once, and return its content only if its manifest vouches for it.

    Parameters
    ----------
    path : path
    public_key : str, optional
        PEM of an Ed25519 key (default: ``MLOPS_MANIFEST_KEY`` or the file that ``MLOPS_MANIFEST_KEY_FILE`` names). With one the
        manifest must be signed by it, in Git or not.
    allow_uncommitted : bool
        Without a key: whether a manifest will do that neither is that of Git's HEAD nor signed.
    model : str, optional
        SHA-256 of a model that the manifest must name as well: that of a policy names the model that it was derived for.

    Returns
    -------
    content : bytes
    sha256 : str
        Of exactly these bytes, in hexadecimal.

    Raises
    ------
    PipelineError
        If file or manifest are absent, do not fit each other, or nothing vouches for the manifest.
    """
    path = Path(path)
    place = manifest_path(path)
    text = _read(place, MANIFEST_BYTES, MISSING)
    # Before the manifest is parsed: what nobody vouches for is not looked into.
    key = public_key if public_key is not None else setting(PUBLIC_KEY)
    if key is not None:
        _check_signature(path, text, key)
    elif not allow_uncommitted:
        _check_committed(place, text)
    content, sha256, named = _vouched(path, text)
    if model is not None and model not in named:
        raise PipelineError(f"{path}: belongs to another model than {model}; run `dvc repro`, and ship together what it wrote")
    return content, sha256


def verify(path: str | Path, *, public_key: str | None = None, allow_uncommitted: bool = False) -> str:
    """Return the SHA-256 of a file whose manifest vouches for it; parameters and errors as `read_verified`."""
    return read_verified(path, public_key=public_key, allow_uncommitted=allow_uncommitted)[1]


def write_keys(path: str | Path) -> None:
    """Write a new Ed25519 key, readable by its owner only, and beside it its public half, ``<path>.pub``; both PEM.

    Raises
    ------
    PipelineError
        If there is a file of this name: a key is never replaced.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            stream.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from None
    with atomic_path(f"{path}.pub") as temporary:
        temporary.write_text(_public_pem(key), encoding="utf-8", newline="\n")


def sign(path: str | Path, key: str, *, allow_uncommitted: bool = False) -> Path:
    """Sign the manifest of a file that it vouches for by a secret key (PEM); return the signature's path.

    Raises
    ------
    PipelineError
        As `read_verified` without a public key, or if the key is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        secret = load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError):  # TypeError: it has a password
        secret = None
    if not isinstance(secret, Ed25519PrivateKey):
        raise PipelineError("signing key: expected an Ed25519 key in PEM without a password; `mlops-manifest keygen` makes one")
    place = manifest_path(path)
    text = _read(place, MANIFEST_BYTES, MISSING)
    if not allow_uncommitted:
        _check_committed(place, text)
    # A signature on a manifest that the file does not match would be of no use.
    _vouched(Path(path), text)
    with atomic_path(signature_path(path)) as temporary:
        temporary.write_bytes(secret.sign(text))
    return signature_path(path)


def _public_pem(key: Ed25519PrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def setting(name: str, file: str | None = None) -> str | None:
    """Content of ``file`` or, without one, of the environment variable or the file that ``<name>_FILE`` names, else None.

    Raises
    ------
    PipelineError
        If both variables are set, or the file cannot be read.
    """
    value = os.environ.get(name) if file is None else None
    file = file or os.environ.get(f"{name}_FILE")
    if value and file:
        raise PipelineError(f"{name}: found it and {name}_FILE in the environment, expected one of them")
    if not file:
        return value or None
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PipelineError(f"{name}: {file} cannot be read ({error})") from None


def _read(path: Path, limit: int, remedy: str) -> bytes:
    """Content of a plain file, up to one byte more than ``limit``."""
    try:
        # A pipe would keep the reader waiting.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise PipelineError(f"{path}: found no plain file; {remedy}")
            # No more than there is: a manifest may claim any size, and read() makes room for it.
            return stream.read(min(limit, found.st_size) + 1)
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; {remedy}") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from None


def _vouched(path: Path, text: bytes) -> tuple[bytes, str, set[str]]:
    """Content and SHA-256 of a file that fits this manifest, and all SHA-256 that the manifest names."""
    place = manifest_path(path)
    files = _parse(text, place).files
    # The first: a manifest is named after it.
    if not files or files[0].name != path.name:
        found = ", ".join(entry.name for entry in files) or "no file"
        raise PipelineError(f"{place}: found {found}, expected {path.name} first: this is another file's manifest")
    expected = files[0]
    content = _read(path, expected.bytes, ABSENT)
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        size = f"{len(content)} bytes" if len(content) <= expected.bytes else f"more than {expected.bytes} bytes"
        raise PipelineError(
            f"{path}: not loaded: found SHA-256 {found} ({size}), {place.name} expects {expected.sha256} ({expected.bytes}"
            " bytes); one of them is damaged, tampered with or of another commit: `git checkout` and `dvc checkout`"
        )
    return content, found, {entry.sha256 for entry in files}


def _parse(text: bytes, place: Path) -> Manifest:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise PipelineError(f"{place}: is no manifest; run `dvc repro` to write it anew")
    manifest = convert(content, Manifest, str(place), PipelineError)
    for name in (entry.name for entry in manifest.files):
        if PurePath(name).name != name or name in {"", ".."} or "\\" in name:
            raise PipelineError(f"{place}: found {name!r}, expected names of files in its own folder")
    return manifest


def _check_committed(place: Path, text: bytes) -> None:
    # The checkout that the process was started in, not one around the file: who can write in the file's folder could make one
    # there, whose HEAD agrees, and whose settings name commands that Git runs (to fetch what is missing). Links in the path do
    # not matter, since content is compared.
    here, absolute = Path.cwd(), Path(os.path.abspath(place))  # not resolve(), for that reason
    checkout = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
    if checkout is None or not absolute.is_relative_to(checkout):
        raise PipelineError(
            f"{place}: outside a Git checkout a manifest must be signed, and there is no key to check that with; start in the"
            f" checkout that holds it, set {PUBLIC_KEY} or {PUBLIC_KEY}_FILE, or pass --uncommitted to trust whoever can write in"
            " this folder"
        )
    # Not what a hook or an editor has set for another repository; cat-file runs no filters that the repository may define.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    committed = f"HEAD:./{absolute.relative_to(checkout).as_posix()}"
    command = ["git", "-C", str(checkout), "cat-file", "blob", committed]
    try:
        found = subprocess.run(command, capture_output=True, check=False, env=environment)
    except FileNotFoundError:
        raise PipelineError(f"{place}: its commit cannot be read: Git is not installed") from None
    if found.returncode != 0 or found.stdout != text:
        reason = " ".join(found.stderr.decode(errors="replace").split()) if found.returncode else "it differs from HEAD's"
        raise PipelineError(
            f"{place}: not covered by the commit ({reason}); commit it with dvc.lock, or pass --uncommitted to trust this folder"
        )


def _check_signature(path: Path, text: bytes, key: str) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(key.encode())
    except ValueError:
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise PipelineError(f"{PUBLIC_KEY}: expected the public half of an Ed25519 key in PEM; `mlops-manifest keygen` makes one")
    place = signature_path(path)
    signature = _read(place, SIGNATURE_BYTES, "sign the manifest: `mlops-manifest sign`")
    try:
        public.verify(signature, text)
    except InvalidSignature:
        raise PipelineError(
            f"{place}: not a signature of {manifest_path(path).name} by the key of {PUBLIC_KEY}; manifest or signature were"
            " tampered with, or signed by another key"
        ) from None
