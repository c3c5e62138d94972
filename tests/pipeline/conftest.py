"""Real DVC in temporary clones of the working tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("prepare", "featurize", "train", "evaluate")
PARAMS_LINES = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
# By the clone's own code, whatever is installed.
REPORT = (sys.executable, "-c", "import sys; sys.path.insert(0, 'src'); from mlops_project.cli import report; sys.exit(report())")
ENV = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_"))},
    # The stages' `python` must be the one that runs the tests.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org",
}


class Clone:
    """A clone of the working tree, uncommitted changes included, with its own DVC cache and its data pulled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
        ).stdout.decode()
        for name in filter(None, files.split("\0")):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
        self.git("init", "-q", "-b", "main")
        self.commit("base")
        # A working tree under change has outputs that the committed remote does not hold yet; its cache has them.
        if (ROOT / ".dvc/cache").exists():
            self.dvc("remote", "add", "--quiet", "--local", "workspace", str(ROOT / ".dvc/cache"))
            self.dvc("fetch", "--quiet", "--remote", "workspace", check=False)
        self.dvc("pull", "--quiet", "--allow-missing")

    def run(self, *command: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.path, env=ENV | options.pop("env", {}), check=False, capture_output=True, text=True, **options
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *command: str, env: dict[str, str]) -> subprocess.Popen:
        """Start a command that a test kills, with a process group of its own; what it prints is dropped."""
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=self.path, env=ENV | env, stdout=nowhere, stderr=nowhere, start_new_session=True)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout

    def dvc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)

    def repro(self, *arguments: str) -> dict[str, str]:
        """Reproduce, and say of each stage whether it was skipped, restored or ran."""
        return outcomes(self.dvc("repro", *arguments).stdout)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.path / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")


def outcomes(printed: str) -> dict[str, str]:
    patterns = {
        "skipped": r"Stage '(\w+)' didn't change, skipping",
        "restored": r"Stage '(\w+)' is cached - skipping run",
        "ran": r"Running stage '(\w+)'",
    }
    return {stage: outcome for outcome, pattern in patterns.items() for stage in re.findall(pattern, printed)}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    # A space in the path: everything must work there too.
    return Clone(tmp_path_factory.mktemp("a clone"))


@pytest.fixture(scope="module")
def reports(clone: Clone) -> dict[str, Path]:
    """The page of the committed state, and that of another model with a prior; the clone is left in the latter state."""
    clone.repro("--pull")
    clone.run(*REPORT, "--output", "default.html")
    clone.edit("params.yaml", "  model: scorecard", "  model: best")
    candidates = "  candidates: [logistic_regression, decision_tree, random_forest, xgboost]"
    clone.edit("params.yaml", next(line for line in PARAMS_LINES if line.startswith("  candidates:")), candidates)
    clone.edit("params.yaml", "  n_repeats: 3", "  n_repeats: 1")
    clone.edit("params.yaml", "  prior_default_rate: null", "  prior_default_rate: 0.05")
    clone.repro()
    clone.run(*REPORT, "--output", "other.html")
    return {name: clone.path / f"{name}.html" for name in ("default", "other")}
