"""A repository that only tags are made in."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def repository(workdir: Path) -> Callable[..., str]:
    """Be in a new repository with one commit; the function commits once more and returns the commit."""

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    (workdir / ".dvc").mkdir()
    (workdir / "dvc.yaml").write_text("artifacts:\n  risk:\n    path: models/best_model.joblib\n", encoding="utf-8")

    def commit() -> str:
        git("add", "dvc.yaml")
        git("commit", "-q", "--allow-empty", "-m", "x")
        return git("rev-parse", "HEAD")

    commit()
    return commit
