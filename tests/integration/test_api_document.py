"""The service does what its OpenAPI document says, by all checks of Schemathesis, which has an environment of its own."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from mlops_project.serving import keys
from running import Running, put, train

pytestmark = pytest.mark.integration

TOOL = Path(__file__).parents[2] / ".venv/api/bin/st"
EXAMPLES, SEED = 50, 1


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    if not TOOL.exists():
        # Skip on a person's machine, fail in CI.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "no Schemathesis in .venv/api; `make test-integration` installs it"
        )
    folder = tmp_path_factory.mktemp("model")
    train(folder)
    return folder


@pytest.mark.parametrize("scope", ["admin", "predict", None])
def test_schemathesis_finds_nothing(model, tmp_path, scope):
    """With a key of each scope, and where no keys are asked for."""
    put(model, tmp_path)
    headers = ["-H", f"Authorization: Bearer {keys.create(tmp_path / 'keys.json', 'tests', scope)[1]}"] if scope else []
    arguments = ["--keys-file", "keys.json"] if scope else ["--insecure"]
    # A key that may not do all is refused by right: then only what is accepted cannot be judged.
    checks = ["--exclude-checks", "positive_data_acceptance"] if scope == "predict" else []
    with Running(tmp_path, *arguments, "--rate-limit", "off") as running:
        command = [
            str(TOOL), "run", f"http://127.0.0.1:{running.port}/openapi.json", *headers, "--checks", "all", *checks,
            "--max-examples", str(EXAMPLES), "--seed", str(SEED), "--continue-on-failure",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False, env=os.environ | {"NO_COLOR": "1"}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        selected = re.search(r"(\d+) selected / (\d+) total", done.stdout)
        assert selected
        assert selected[1] == selected[2] == "7"
        assert len(running.workers()) == 2
    assert "Traceback" not in running.log()
