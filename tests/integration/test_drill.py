"""The drill: from drift to a new model, and that it fails where there is no drift."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prometheus_installed")]


def drill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/drill.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS)


def held(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Of each step of the summary whether it held."""
    rows = [line.split("|")[2:4] for line in done.stdout.splitlines() if line.startswith("| ")]
    return {what.strip(): word.strip() for what, word in rows[2:]}


def test_drift_becomes_an_alert_and_a_model_that_is_served_and_noise_does_not(tmp_path):
    done = drill("--keep", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    steps = held(done)
    assert set(steps.values()) == {"yes"}
    for what in ("1. no alert", "2. alert Drift at the webhook", "2. alert QualityWorse at the webhook", "3. it answers",
                 "4. outcomes that are coins are rejected", "4. the champion stays", "no request failed"):  # fmt: skip
        assert what in steps
    # What it leaves is a repository with two champions.
    tags = subprocess.run(["git", "-C", str(tmp_path / "1/origin.git"), "tag"], capture_output=True, text=True, check=True).stdout
    assert "#champion#2\n" in tags
    assert "#champion#3" not in tags


def test_without_drift_the_drill_fails_where_drift_is_to_be_found():
    done = drill("--without-drift")
    assert done.returncode == 1, done.stdout + done.stderr
    assert [what for what, word in held(done).items() if word != "yes"] == ["2. mlops-drift"]
    assert "the drill failed: 2. mlops-drift: exit code 0" in done.stderr
