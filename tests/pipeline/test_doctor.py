"""`make doctor`: each thing that bites is made to happen in a clone, found, and mended where that is offered."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

STORED = ".dvc/store/files/md5"


@pytest.fixture
def doctor(clone):
    """Return a function that runs the doctor and returns exit code and lines; the clone is as it was committed before."""
    clone.git("symbolic-ref", "HEAD", "refs/heads/main")
    clone.git("reset", "-q", "--hard")
    clone.git("clean", "-q", "-fd")
    (clone.path / ".dvc/config.local").unlink(missing_ok=True)

    def run(*arguments, **env):
        # In a clone, the environment's package is the one of the repository that runs the tests.
        done = clone.run(
            sys.executable, "scripts/doctor.py", *arguments, check=False, env={"PYTHONPATH": f"{clone.path}/src"} | env
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


def test_all_is_well_in_a_fresh_clone(doctor):
    code, found = doctor()
    assert (code, found.count("✗")) == (0, 0), found
    for name in ("environment", "branch", "experiments", "locks", "data", "files"):
        assert f"✓ {name}: " in found


def test_a_package_from_elsewhere_is_found(doctor, root):
    code, found = doctor("--only", "environment", PYTHONPATH=f"{root}/src")
    assert code == 1
    assert f"✗ environment: the package is imported from {root}/src/mlops_project/__init__.py, expected" in found
    assert "fix: unset PYTHONPATH" in found


@pytest.mark.parametrize(
    ("name", "prints", "message"), [("dvc", "3.0", "dvc is"), ("python", "3 9 1", "python is version 3.9.1")]
)
def test_another_dvc_or_python_on_the_path_is_found(doctor, tmp_path, name, prints, message):
    (tmp_path / name).write_text(f"#!/bin/sh\necho {prints}\n", encoding="utf-8")
    (tmp_path / name).chmod(0o755)
    code, found = doctor("--only", "environment", TYPED_PATH=f"{tmp_path}:{Path(sys.executable).parent}")
    assert code == 1
    assert message in found
    assert str(tmp_path) in found
    assert "fix: . .venv/bin/activate" in found
    code, found = doctor("--only", "environment", TYPED_PATH=str(tmp_path / "empty"))
    assert "✓ environment: no dvc on PATH" in found


def test_requirements_that_are_not_installed_are_found(clone, doctor):
    text = (clone.path / "requirements/core.txt").read_text(encoding="utf-8")
    (clone.path / "requirements/core.txt").write_text(
        f"{text}\nmsgspec==0.0.1\nabsent==1.0 ; python_version < '3'\n", encoding="utf-8"
    )
    code, found = doctor("--only", "environment")
    assert code == 1
    assert "pinned 0.0.1" in found
    assert "absent" not in found
    assert "fix: rm -f .venv/core.done && make init" in found


def test_a_killed_experiment_is_found_and_mended(clone, doctor):
    reference, rwlock = clone.path / ".git/refs/exps/exec/EXEC_BASELINE", clone.path / ".dvc/tmp/rwlock"
    rwlock.unlink(missing_ok=True)
    process = clone.start(sys.executable, "-m", "dvc", "exp", "run", "--set-param", "train.model=svm", env={})
    deadline = time.monotonic() + 60
    while not (rwlock.exists() and "best_model" in rwlock.read_text(encoding="utf-8")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, found = doctor()
    assert code == 1
    assert "✗ branch: HEAD is detached" in found
    assert "✗ experiments: references of a killed experiment: refs/exps/exec/EXEC_BASELINE" in found
    assert "✗ locks: locks of killed processes: .dvc/tmp/rwlock" in found
    before = clone.git("diff", "HEAD", "--", "params.yaml", "src")
    assert "svm" in before
    code, found = doctor("--fix")
    assert "✓ branch: on branch main" in found
    assert "✓ experiments" in found
    assert clone.git("diff", "HEAD", "--", "params.yaml", "src") == before, "values stay for people to decide"
    assert not reference.exists()
    clone.git("reset", "-q", "--hard")
    assert doctor("--fix")[0] == 0


def test_a_detached_head_without_a_branch_is_left_to_people(clone, doctor):
    clone.git("checkout", "-q", "--detach")
    clone.git("commit", "-q", "--allow-empty", "-m", "nowhere")
    commit = clone.git("rev-parse", "HEAD")
    code, found = doctor("--only", "branch", "--fix")
    assert code == 1
    assert "(no branch there)\n    fix: git switch BRANCH" in found
    assert clone.git("rev-parse", "HEAD") == commit


def test_experiments_that_no_branch_leads_to_are_found_and_kept(clone, doctor):
    lost = clone.git("commit-tree", "-m", "amended away", "HEAD^{tree}").strip()
    reference = f"refs/exps/{lost[:2]}/{lost[2:]}/old-idea"
    clone.git("update-ref", reference, lost)
    code, found = doctor("--only", "experiments", "--fix")
    assert code == 1
    assert f"experiments of {lost[:7]}, which is on no branch: old-idea" in found
    assert f"dvc exp remove --rev {lost}" in found
    clone.git("update-ref", "-d", reference)


def test_locks_of_dead_processes_are_found_and_removed(clone, doctor):
    with contextlib.suppress(FileNotFoundError):
        (clone.path / ".git/index.lock").unlink()
    (clone.path / ".git/index.lock").touch()
    dead = {"pid": 4_000_000_000 % 2**22 + 1, "cmd": "dvc repro"}
    (clone.path / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {"x": dead}}), encoding="utf-8")
    code, found = doctor("--only", "locks")
    assert code == 1
    assert ".git/index.lock" in found
    assert ".dvc/tmp/rwlock" in found
    assert doctor("--only", "locks", "--fix")[0] == 0
    assert not (clone.path / ".git/index.lock").exists()


def test_locks_of_living_processes_are_left(clone, doctor):
    (clone.path / ".git/index.lock").touch()
    process = clone.start(sys.executable, "-c", "import time; time.sleep(60)", "dvc", env={})
    time.sleep(0.3)
    try:
        code, found = doctor("--only", "locks", "--fix")
        assert (code, "at work" in found) == (0, True)
        assert (clone.path / ".git/index.lock").exists()
    finally:
        process.kill()
        process.wait()
        (clone.path / ".git/index.lock").unlink()


def test_missing_data_is_found_where_it_is(clone, doctor):
    path, raw = clone.path / "data/processed/Xtest.csv", clone.path / "data/raw/german_credit_original.csv"
    path.unlink()
    code, found = doctor("--only", "data")
    assert code == 1
    assert "✗ data: in the cache, not in the workspace: data/processed/Xtest.csv" in found
    assert doctor("--only", "data", "--fix")[0] == 0
    assert path.exists()

    cache, team = clone.path / ".dvc/cache", clone.path / ".dvc/tmp/team"
    clone.dvc("remote", "add", "--local", "team", str(team))
    clone.dvc("push", "--quiet", "--remote", "team")
    shutil.copytree(cache, clone.path / ".dvc/tmp/kept")
    shutil.move(clone.path / STORED, clone.path / ".dvc/stored")
    try:
        path.unlink()
        shutil.rmtree(cache)
        code, found = doctor("--only", "data")
        assert code == 1
        assert "the remote team has it: data/processed/Xtest.csv\n    fix (or --fix): dvc pull -r team" in found
        doctor("--only", "data", "--fix")
        assert path.exists()

        for file in (path, raw):
            file.unlink()
        for folder in (cache, team):
            shutil.rmtree(folder)
        code, found = doctor("--only", "data")
        assert code == 1
        assert "✗ data: missing, in no remote: data/raw/german_credit_original.csv\n    fix: whoever added it" in found
        assert "✗ data: missing, in no remote: data/processed/Xtest.csv\n    fix: make pipeline" in found
    finally:
        shutil.move(clone.path / ".dvc/stored", clone.path / STORED)
        shutil.rmtree(cache, ignore_errors=True)
        shutil.move(clone.path / ".dvc/tmp/kept", cache)
        clone.dvc("checkout", "--quiet")


def test_remotes_that_do_not_answer_are_found(clone, doctor):
    for name, url in (("team", str(clone.path / "no such")), ("web", "http://127.0.0.1:9/x"), ("cloud", "s3://nobody/x")):
        clone.dvc("remote", "add", "--local", name, url)
    try:
        code, found = doctor("--only", "data")
        assert code == 1
        assert "✓ data: remote embedded" in found
        assert "✗ data: remote team at" in found
        assert "✗ data: remote web" in found
        assert "✗ data: remote cloud" in found
        clone.dvc("remote", "default", "--local", "team")
        assert "remote team (default)" in doctor("--only", "data")[1]
    finally:
        (clone.path / ".dvc/config.local").unlink()
    clone.edit(".dvc/config", "remote = embedded", "")
    assert "no default remote" in doctor("--only", "data")[1]
    assert doctor("--only", "data", "--fix")[0] == 0


def test_untracked_files_are_found(clone, doctor):
    (clone.path / "src/mlops_project/new.py").write_text("", encoding="utf-8")
    (clone.path / STORED / "ab").mkdir(exist_ok=True)
    (clone.path / STORED / "ab/cd").write_text("pushed", encoding="utf-8")
    code, found = doctor("--only", "files")
    assert code == 1
    assert "not in experiments that run elsewhere: src/mlops_project/new.py" in found
    assert "1 files were pushed into the embedded remote" in found
    assert "✗ files: untracked" not in doctor("--only", "files", "--fix")[1]
    assert "A  src/mlops_project/new.py" in clone.git("status", "--porcelain")
