"""The two commands of the README on a fresh clone with nothing but Python, Git and make."""

import shutil
import subprocess

import pytest

BARE = {"PATH": "/usr/bin:/bin"}


def make(clone, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", *arguments], cwd=clone.path, env=BARE, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.mark.integration
def test_two_commands_on_a_fresh_machine(clone):
    # The fixture pulled; a fresh clone has no cache and no data.
    for name in ("cache", "tmp"):
        shutil.rmtree(clone.path / ".dvc" / name)
    clone.git("clean", "-fdxq")
    assert not (clone.path / "data/raw/german_credit_modified.csv").exists()

    first = make(clone, "pipeline")
    assert first.returncode == 0, first.stderr
    assert "setting up .venv" in first.stderr
    assert "roc_auc" in first.stdout
    assert "Nothing had to run" in first.stdout
    assert clone.git("status", "--porcelain") == ""

    second = make(clone, "pipeline")
    assert second.returncode == 0, second.stderr
    assert second.stderr == "", "the second run sets nothing up"
    assert "reused" in second.stdout

    (clone.path / "data/raw/german_credit_modified.csv").unlink()
    shutil.rmtree(clone.path / ".dvc/cache")
    forced = make(clone, "pipeline", "FORCE=1")
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout.count("  ran") == 4
    # On another kind of processor a coefficient may differ in its last bit, and with it the model's hash in dvc.lock.
    assert clone.git("status", "--porcelain", "--", ":!dvc.lock") == "", "running it all afresh gives the committed numbers"

    size = sum(path.lstat().st_size for path in (clone.path / ".venv").rglob("*"))
    assert size < 850e6

    # `make test` sets up the rest; the tests themselves run already, so one quick file stands for all.
    tested = make(clone, "test", "PYTEST_ADDOPTS=tests/unit/test_metrics.py")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert " passed" in tested.stdout
