"""The image, built for real without a registry, and the service in it; linters and schemas over what deploys it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# Made by `make test-integration`.
TOOLS = ROOT / ".venv/deploy"
TAG = "credit-risk-model@v1.2.3"
IMAGE = "localhost/credit-risk-model:v1.2.3"
BASE = "localhost/python:3.11-bookworm"
USER = 10001
TEMPORARY = "/tmp"  # noqa: S108 - in the container

pytestmark = pytest.mark.integration


def run(*command: object, cwd: Path = ROOT, code: int = 0, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLOPS_", "DVC_", "GIT_", "MAKE"))}
    found = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=clean | found | {"PATH": path} | environment, capture_output=True, text=True,
        check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


# --- linters and schemas


def test_linters_and_schemas_find_nothing():
    run("make", "-s", "check-deploy")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("Dockerfile", "USER 10001:10001\n", "", "CKV_DOCKER_3"),
        ("Dockerfile", "USER 10001:10001\n", "RUN sudo true\n", "DL3004"),
        ("compose.yaml", "services:", "servces:", "servces"),
        ("kubernetes/base/deployment.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "CKV_K8S_22"),
        ("kubernetes/base/deployment.yaml", "runAsNonRoot: true", "runAsNonRoot: yes please", "runAsNonRoot"),
        ("kubernetes/base/deployment.yaml", "livenessProbe:", "livelyProbe:", "livelyProbe"),
        ("kubernetes/base/service.yaml", "targetPort: http", "targetPort: [http]", "targetPort"),
        ("kubernetes/base/kustomization.yaml", "deployment.yaml", "absent.yaml", "absent.yaml"),
        ("kubernetes/dask/cluster.yaml", "replicas: 4", "replica: 4", "'replica' was unexpected"),
        ("kubernetes/dask/cluster.yaml", "containerPort: 8788", "containerPort: many", "'many' is not of type 'integer'"),
        ("kubernetes/dask/cluster.yaml", "kind: DaskCluster", "kind: DaskClutter", "DaskClutter: unknown"),
        ("kubernetes/dask/cluster.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "CKV_K8S_22"),
    ],
)
def test_linters_and_schemas_find_what_is_wrong(tmp_path, file, old, new, message):
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    path = tmp_path / "deploy" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    check = f"sh {ROOT}/scripts/ci/check_deploy.sh {TOOLS} && exit 9 || exit 3"
    assert message in run("sh", "-c", check, cwd=tmp_path, code=3)


def test_every_compose_service_is_hardened_pinned_healthy_and_has_the_secrets_that_are_made():
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert ":" in service["image"].split("/")[-1], name
        assert not service["image"].endswith(":latest"), name
        assert service["mem_limit"], name
        once = service.get("restart") == "no" or service.get("profiles") == ["jobs"]
        assert once or name == "api" or service["healthcheck"]["test"], "that of the API is in its image"
        assert once or name == "api" or service["user"] not in {"root", "0"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "PASSWORD" not in {*service.get("environment", {})}, "secrets are files"
        for needed, how in service.get("depends_on", {}).items():
            ended = compose["services"][needed].get("restart") == "no"
            assert how == {"condition": f"service_{'completed_successfully' if ended else 'healthy'}"}, needed
    assert {*compose["services"]["api"]["depends_on"]} == {"postgres", "redis"}
    assert compose["networks"]["backend"]["internal"]


def test_an_overlay_is_deployed_by_digest_with_its_own_settings():
    environment = {
        "RENDER": "1",
        "IMAGE": "ghcr.io/a/b/credit-risk-model",
        "PATH": f"{TOOLS}/bin{os.pathsep}{os.environ['PATH']}",
    }
    digest, names = f"sha256:{'0' * 64}", {"staging": ".staging", "production": ""}
    for overlay, replicas in (("staging", 1), ("production", 3)):
        text = run("bash", "scripts/ci/deploy.sh", OVERLAY=overlay, DIGEST=digest, **environment)
        found = {part["kind"]: part for part in yaml.safe_load_all(text)}
        pod = found["Deployment"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"] == f"ghcr.io/a/b/credit-risk-model@{digest}"
        assert found["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == replicas
        assert {part["metadata"]["namespace"] for part in found.values() if part["kind"] != "Namespace"} == {
            f"credit-risk-{overlay}"
        }
        assert "Secret" not in found, "it is referred to, never kept in Git"
        rule = found["Ingress"]["spec"]["rules"][0]
        assert rule["host"] == found["Ingress"]["spec"]["tls"][0]["hosts"][0] == f"credit-risk{names[overlay]}.example.org"
        assert "/metrics" not in {path["path"] for path in rule["http"]["paths"]}
    assert "is no digest" in run("bash", "scripts/ci/deploy.sh", OVERLAY="staging", DIGEST="latest", code=1, **environment)
    assert "no overlay" in run("bash", "scripts/ci/deploy.sh", OVERLAY="moon", DIGEST=digest, code=1, **environment)


# --- the image


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A committed, tagged copy of the working tree with its outputs, and secrets as they are made for Compose."""
    folder = tmp_path_factory.mktemp("image")
    path = folder / "project"
    for name in filter(None, run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        if (ROOT / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    run("git", "init", "-q", "-b", "main", cwd=path)
    run("git", "add", "-A", cwd=path)
    run("git", "commit", "-q", "-m", "base", cwd=path)
    run("python", "-m", "dvc", "repro", "-q", "--pull", cwd=path)
    run("git", "add", "-A", cwd=path)
    run("git", "commit", "-q", "--allow-empty", "-m", "outputs", cwd=path)
    run("git", "tag", "-a", TAG, "-m", TAG, cwd=path)
    run("git", "init", "-q", "--bare", folder / "origin.git")
    run("git", "remote", "add", "origin", folder / "origin.git", cwd=path)
    run("git", "push", "-q", "origin", "main", TAG, cwd=path)
    return path


@pytest.fixture(scope="module")
def secrets(project: Path) -> tuple[Path, str]:
    """What `deploy/make_secrets.sh` makes, and the API key, which it shows once."""
    printed = run("sh", "deploy/make_secrets.sh", cwd=project)
    return project / "deploy/secrets", next(word for word in printed.split() if word.startswith("mlops_"))


def test_secrets_are_made_once_and_readable_where_they_are_mounted(project, secrets):
    folder, _ = secrets
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "mlops_" not in run("sh", "deploy/make_secrets.sh", cwd=project)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "signing.pem").stat().st_mode) == 0o600
    compose = yaml.safe_load((project / "deploy/compose.yaml").read_text(encoding="utf-8"))
    for secret in compose["secrets"].values():
        assert stat.S_IMODE((project / "deploy" / secret["file"]).stat().st_mode) == 0o444
    assert "signing.pem" not in json.dumps(compose), "what signs is in no container"
    assert run("git", "status", "--porcelain", cwd=project) == ""


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> dict[str, str]:
    """What buildah needs without a daemon, in a container or not; its storage is this run's own."""
    absent = [name for name in ("buildah", "mmdebstrap", "unshare", "nsenter") if not shutil.which(name)]
    absent += ["root"] * (os.geteuid() != 0)
    if absent:
        reason = f"{', '.join(absent)} needed (Debian: apt install buildah mmdebstrap, as root)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    # Not below pytest's folder, whose old runs it cannot remove: layers are mounted.
    folder = tempfile.mkdtemp(prefix="images-")
    storage = Path(folder, "storage.conf")
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n')
    environment = {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot", "BUILDAH_FORMAT": "docker"}
    yield environment
    run("buildah", "rm", "--all", **environment)
    run("buildah", "rmi", "--all", "--force", **environment)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(project, secrets, engine) -> str:
    run("sh", "deploy/base_image.sh", BASE, cwd=project, **engine)
    # The certificate of a registry, and where it is, may be known to this machine only.
    shared = [file for file in ("/etc/ssl/certs", "/etc/pip.conf", "/opt/wheels") if Path(file).exists()]
    options = " ".join(f"--volume {file}:{file}:ro" for file in shared)
    key = {"MLOPS_SIGNING_KEY_FILE": str(secrets[0] / "signing.pem")}
    printed = run(
        "bash", "scripts/ci/image.sh", cwd=project, TAG=TAG, ENGINE="buildah", BASE=BASE, OPTIONS=options, **key, **engine
    )
    assert f"\n{IMAGE}\n" in printed
    return IMAGE


@pytest.fixture
def container(image, engine) -> Iterator[Path]:
    """The root folder of a new container."""
    name = run("buildah", "from", image, **engine).strip()
    yield Path(run("buildah", "mount", name, **engine).strip())
    run("buildah", "rm", name, **engine)


class Service:
    """The image's own command as its own user, in namespaces of its own: a root that is read-only, a network with no way out."""

    def __init__(self, root: Path, config: dict, secrets: Path | None, **environment: str) -> None:
        variables = dict(pair.split("=", 1) for pair in config["Env"])
        if secrets:
            variables |= {"MLOPS_KEYS_FILE": "/run/secrets/api_keys", "MLOPS_MANIFEST_KEY_FILE": "/run/secrets/manifest_key"}
        variables |= {"MLOPS_LOG_URL": "sqlite:////run/mlops/log.db", **environment}
        # One by one, as Compose does it: the folder is its owner's alone.
        (root / "run/secrets").mkdir(exist_ok=True)
        mounts = ""
        for name in ("api_keys", "manifest_key") if secrets else ():
            (root / "run/secrets" / name).touch()
            mounts += f"mount --bind {secrets}/{name} {root}/run/secrets/{name}\n"
        script = f"""
            set -eu
            ip link set lo up
            mount --bind {root} {root}
            mount -o remount,bind,ro {root}
            mount -t proc proc {root}/proc
            mount --rbind /dev {root}/dev
            mount -t tmpfs -o uid={USER},gid={USER},mode=0700,size=64m tmpfs {root}/run/mlops
            mount -t tmpfs -o mode=1777,size=64m tmpfs {root}{TEMPORARY}
            {mounts}
            cd {root}
            exec chroot {root} /usr/bin/setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs \\
                --bounding-set=-all --inh-caps=-all -- /usr/bin/env -i --chdir={config["WorkingDir"]} "$@"
        """
        command = [*(f"{name}={value}" for name, value in variables.items()), *config["Entrypoint"], *config["Cmd"]]
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", script, "sh", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.root = root

    def inside(self, *command: str, code: int | None = 0) -> str:
        """Run a command of this machine in the service's network."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.process.pid), "--net", *command], capture_output=True, text=True, check=False
        )
        assert code is None or done.returncode == code, done.stderr
        return done.stdout

    def get(self, path: str, data: str | None = None, key: str | None = None) -> dict:
        code = (
            "import sys, urllib.request as r; path, data, key = sys.argv[1:]\n"
            "q = r.Request('http://127.0.0.1:8000' + path, data.encode() or None, {'Content-Type': 'application/json'})\n"
            "key and q.add_header('Authorization', 'Bearer ' + key)\n"
            "print(r.urlopen(q, timeout=5).read().decode())"
        )
        return json.loads(self.inside(sys.executable, "-c", code, path, data or "", key or "") or "{}")

    def wait(self) -> None:
        probe = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stdout.read()
            done = subprocess.run(
                ["nsenter", "--target", str(self.process.pid), "--net", sys.executable, "-c", probe],
                capture_output=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return
            time.sleep(0.3)
        self.process.kill()
        pytest.fail(f"not ready:\n{self.process.stdout.read()}")


@contextmanager
def running(container: Path, config: dict, secrets: Path | None, **environment: str) -> Iterator[Service]:
    service = Service(container, config, secrets, **environment)
    try:
        yield service
    finally:
        service.process.terminate()
        service.process.wait(60)
        service.process.stdout.close()


@pytest.fixture(scope="module")
def config(image, engine) -> dict:
    return json.loads(run("buildah", "inspect", "--type", "image", image, **engine))["Docker"]["config"]


def test_the_image_says_how_it_is_run(config, project):
    assert config["User"] == f"{USER}:{USER}"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert {*config["ExposedPorts"]} == {"8000/tcp"}
    head = run("git", "rev-parse", "HEAD", cwd=project).strip()
    assert f"MLOPS_COMMIT={head}" in config["Env"]
    assert config["Labels"]["org.opencontainers.image.revision"] == head


def test_the_image_is_small_and_holds_no_more_than_it_needs(container):
    megabytes = int(run("du", "-sxm", container).split()[0])
    assert megabytes < 650, f"{megabytes} MB"
    packages = {path.name for path in (container / "opt/venv/lib/python3.11/site-packages").iterdir()}
    assert not packages & {"pip", "setuptools", "flit_core", "dvc", "imblearn", "pytest"}
    app = {str(path.relative_to(container / "app")) for path in (container / "app").rglob("*") if path.is_file()}
    files = {"best_model.joblib", "policy.json"}
    signed = {f"models/{file}{end}" for file in files for end in ("", ".manifest.json", ".manifest.json.sig")}
    assert app == {"dvc.lock", "metrics/evaluate.json", *signed}
    for path in (container / "app").rglob("*"):
        assert path.stat().st_uid in ({0} if path.name != "var" else {USER}), path


def test_the_service_runs_in_it_on_a_read_only_root(container, config, project, secrets):
    folder, key = secrets
    with running(container, config, folder) as service:
        service.wait()
        assert service.get("/healthz") == {"status": "ok"}
        version = service.get("/readyz")["model_version"]
        assert version == run("sha256sum", project / "models/best_model.joblib").split()[0]
        for page in ("/", "/docs"):
            code = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000{page}').read().decode())"
            assert "<html" in service.inside(sys.executable, "-c", code), "the files of the pages are in the image"
        # The health check, word for word.
        probe = config["Healthcheck"]["Test"][1:]
        service.inside("chroot", str(container), "/opt/venv/bin/python3", *probe[1:])
        answer = service.get("/v1/predict?reasons=2", "{}", key)
        assert answer["model_version"] == version
        assert 0 < answer["predictions"][0]["p_good"] < 1
        model = service.get("/v1/model", None, key)
        assert model["commit"] == run("git", "rev-parse", "HEAD", cwd=project).strip()
        assert model["data"], "the lineage is in the image"
        states = [
            path.read_text() for path in Path("/proc").glob("[0-9]*/status") if str(service.process.pid) in _ancestors(path)
        ]
        assert len(states) == 3, "a supervisor and two workers"
        for state in states:
            assert f"Uid:\t{USER}" in state
            assert "CapEff:\t0000000000000000" in state
            assert "NoNewPrivs:\t1" in state
        root = f"/proc/{service.process.pid}/root"
        with pytest.raises(OSError, match="Read-only"):
            Path(root, "app/x").write_text("x")
        service.process.terminate()
        assert service.process.wait(40) == 0, "SIGTERM ends it in order"


def _ancestors(status: Path) -> set[str]:
    found: set[str] = set()
    try:
        while True:
            pid = status.parent.name
            found.add(pid)
            parent = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("PPid:"))
            if parent == "0":
                return found
            status = Path(f"/proc/{parent}/status")
    except (OSError, StopIteration):
        return set()


@pytest.mark.parametrize("file", ["best_model.joblib", "policy.json", "best_model.joblib.manifest.json"])
def test_a_file_that_was_changed_in_the_image_is_refused(container, config, secrets, file):
    path = container / "app/models" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with running(container, config, secrets[0]) as service:
        printed, _ = service.process.communicate(timeout=60)
    assert service.process.returncode == 1
    assert "not loaded: found SHA-256" in printed or "not a signature of" in printed


def test_without_the_key_of_the_manifests_it_does_not_start(container, config, secrets):
    with running(container, config, None, MLOPS_KEYS_FILE="/app/keys") as service:
        printed, _ = service.process.communicate(timeout=60)
    assert service.process.returncode == 1
    assert "/app/keys: not found; `mlops-keys create" in printed
    (container / "app/keys").write_bytes((secrets[0] / "api_keys").read_bytes())
    with running(container, config, None, MLOPS_KEYS_FILE="/app/keys") as service:
        printed, _ = service.process.communicate(timeout=60)
    assert service.process.returncode == 1
    assert "outside a Git checkout a manifest must be signed" in printed
