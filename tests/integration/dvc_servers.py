"""Servers that tests start on ports of 127.0.0.1: S3 (SeaweedFS) and SSH (OpenSSH); and a project that has one as its remote."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Made by `make test-integration`: DVC with the clients, and the S3 server.
BIN = ROOT / ".venv/remotes/bin"


class Remote(NamedTuple):
    address: dict[str, str]
    """Variables for `make remote`."""
    stored: Path
    """Folder of the server's data, for messages."""
    wrong: dict[str, str]
    """Variables with a key that the server does not know."""
    refusal: str
    """What DVC says then."""


def unavailable(reason: str) -> None:
    """Skip on a person's machine, fail in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """No key, agent, profile or setting of the person who runs the tests."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "DVC_", "GIT_", "SSH_", "CI"))}
    return (
        clean
        | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
        }
        | variables
    )


@contextlib.contextmanager
def server(command: list[str], log: Path, folder: Path) -> Iterator[subprocess.Popen]:
    with log.open("wb") as file, subprocess.Popen(command, cwd=folder, stdout=file, stderr=file) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait(check, process: subprocess.Popen, log: Path) -> None:
    """Wait up to a minute until `check` is true of a running server."""
    end = time.monotonic() + 60
    while not check():
        assert process.poll() is None, f"the server stopped:\n{log.read_text(encoding='utf-8')[-2000:]}"
        assert time.monotonic() < end, f"the server does not answer:\n{log.read_text(encoding='utf-8')[-2000:]}"
        time.sleep(0.2)


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Remote]:
    if not (BIN / "weed").exists():
        unavailable("no SeaweedFS in .venv/remotes; `make test-integration` installs it")
    keys = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test"}
    credentials = [{"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}]
    configuration = {"identities": [{"name": "team", "credentials": credentials, "actions": ["Admin"]}]}
    (folder / "s3.json").write_text(json.dumps(configuration), encoding="utf-8")
    (folder / "data").mkdir()
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = free_ports(2 * len(names))
    command = [str(BIN / "weed"), "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += ["-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64"]
    for name, port, grpc in zip(names, ports[::2], ports[1::2], strict=True):
        command += [f"-{name}={port}", f"-{name}.grpc={grpc}"]
    endpoint = f"http://127.0.0.1:{ports[names.index('s3.port') * 2]}"
    create = (
        "import botocore.session, sys\n"
        "client = botocore.session.get_session().create_client('s3', endpoint_url=sys.argv[1])\n"
        "client.create_bucket(Bucket='team')"
    )

    def bucket() -> bool:
        made = [str(BIN / "python"), "-c", create, endpoint]
        return subprocess.run(made, env=environment(folder, **keys), capture_output=True, check=False).returncode == 0

    with server(command, folder / "log", folder) as process:
        wait(bucket, process, folder / "log")
        address = {"DVC_REMOTE_URL": "s3://team/credit risk", "DVC_REMOTE_ENDPOINT": endpoint} | keys
        yield Remote(address, folder / "data", address | {"AWS_SECRET_ACCESS_KEY": "another"}, "Forbidden")


@contextlib.contextmanager
def ssh(folder: Path) -> Iterator[Remote]:
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if not sshd:
        unavailable("no sshd on this machine (Debian: apt install openssh-server)")
    for name in ("host", "team", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], cwd=folder, check=True)
    (port,) = free_ports(1)
    (folder / "sshd_config").write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey "{folder}/host"
AuthorizedKeysFile "{folder}/team.pub"
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
""",
        encoding="utf-8",
    )
    if os.getuid() == 0:
        # Where sshd of root separates its privileges; made at boot by its service.
        Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "data").mkdir()

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    with server([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], folder / "log", folder) as process:
        wait(answers, process, folder / "log")
        user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        address = {"DVC_REMOTE_URL": f"ssh://{user}@127.0.0.1:{port}{folder}/data"}
        keys = {name: (folder / name).read_text(encoding="utf-8") for name in ("team", "stranger")}
        yield Remote(
            address | {"DVC_REMOTE_SSH_KEY": keys["team"]},
            folder / "data",
            address | {"DVC_REMOTE_SSH_KEY": keys["stranger"]},
            "Permission denied",
        )


class Project:
    """A committed copy of the working tree with its data, whose default remote is `remote`."""

    def __init__(self, path: Path, home: Path, remote: Remote) -> None:
        self.path = path
        self.environment = environment(home, **remote.address)
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
        ).stdout.decode()
        for name in filter(None, files.split("\0")):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
        (path / "team.csv").write_text("made by the team\n", encoding="utf-8")
        self.run("git", "init", "-q", "-b", "main")
        self.dvc("add", "-q", "team.csv")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", "base")
        # Outputs that the embedded remote does not hold yet are no matter here.
        self.dvc("pull", "-q", "--remote", "embedded", "--allow-missing", check=False)
        self.run("sh", "scripts/team_remote.sh")

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.path, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=300
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        return self.run("python", "-m", "dvc", *arguments, check=check, **variables)

    def drop(self) -> None:
        """Forget all that DVC keeps here: cache and checked-out files."""
        shutil.rmtree(self.path / ".dvc/cache", ignore_errors=True)
        for name in self.contents():
            (self.path / name).unlink()

    def contents(self) -> dict[str, bytes]:
        """Bytes of every file that DVC tracks and that is there: DVC has Git ignore them."""
        ignored = self.run("git", "ls-files", "-z", "--others", "--ignored", "--exclude-standard").stdout.split("\0")
        paths = [path for path in ignored if path.startswith(("data/", "models/", "team.csv"))]
        return {path: (self.path / path).read_bytes() for path in paths}
