"""Real DVC remotes: an S3 server (SeaweedFS) and an SSH server (OpenSSH), each started here on a port of 127.0.0.1."""

import re
import shutil
from collections.abc import Iterator

import pytest
from dvc_servers import BIN, Project, Remote, s3, ssh, unavailable

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=[s3, ssh], ids=["s3", "ssh"])
def remote(request, tmp_path_factory) -> Iterator[Remote]:
    if not (BIN / "dvc").exists():
        unavailable("no DVC in .venv/remotes; `make test-integration` makes it")
    with request.param(tmp_path_factory.mktemp(request.param.__name__)) as started:
        yield started


@pytest.fixture(scope="module")
def project(remote, tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("a project"), tmp_path_factory.mktemp("home"), remote)
    project.dvc("push", check=False)
    return project


def test_what_was_pushed_comes_back_without_the_cache(project):
    before = project.contents()
    assert "team.csv" in before
    project.drop()
    assert project.contents() == {}
    project.dvc("pull", "--allow-missing")
    assert project.contents() == before


def test_garbage_goes_and_the_embedded_remote_stays(project):
    before = project.contents()
    (project.path / "garbage.csv").write_text("never committed\n", encoding="utf-8")
    project.dvc("add", "-q", "garbage.csv")
    project.dvc("push", "-q", "garbage.csv")
    (project.path / "garbage.csv").unlink()
    (project.path / "garbage.csv.dvc").unlink()
    project.run("git", "checkout", "-q", "--", ".gitignore")
    collected = project.run("sh", "scripts/collect_garbage.sh", FORCE="1").stdout
    assert "Removed 1 objects from remote" in collected
    assert project.run("git", "status", "--porcelain").stdout == ""
    project.drop()
    project.dvc("pull", "--allow-missing")
    assert project.contents() == before


def test_changes_in_the_embedded_remote_stop_the_collection(project):
    stray = project.path / ".dvc/store/files/md5/stray"
    stray.write_text("being released", encoding="utf-8")
    done = project.run("sh", "scripts/collect_garbage.sh", check=False, FORCE="1")
    assert done.returncode == 1
    assert ".dvc/store has changes that are not in Git" in done.stderr
    assert stray.exists()
    stray.unlink()


def test_a_wrong_key_is_refused_in_one_clear_line(project, remote):
    # The key is a file for SSH, a variable for S3.
    project.run("sh", "scripts/team_remote.sh", **remote.wrong)
    shutil.rmtree(project.path / ".dvc/cache")
    done = project.dvc("pull", check=False, **remote.wrong)
    assert done.returncode != 0
    reasons = [line for line in done.stderr.splitlines() if re.search(remote.refusal, line)]
    assert len(reasons) == 1, done.stderr
    assert "Traceback" not in done.stderr
    project.run("sh", "scripts/team_remote.sh")
    project.dvc("pull", "--allow-missing")


def test_the_embedded_remote_works_beside_it(project):
    assert project.dvc("config", "core.remote").stdout.strip() == "team"
    raw = project.path / "data/raw/german_credit_modified.csv"
    content = raw.read_bytes()
    project.drop()
    # Pinned to it: no option is needed, whatever the default is.
    project.dvc("pull", "data/raw/german_credit_modified.csv.dvc", AWS_ACCESS_KEY_ID="none")
    assert raw.read_bytes() == content
    project.drop()
    project.dvc("pull", "--remote", "embedded", "data/raw/german_credit_modified.csv.dvc")
    assert raw.read_bytes() == content
    project.dvc("pull", "--allow-missing")
