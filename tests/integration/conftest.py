"""What several tests with real servers need."""

import os

import pytest

from watching import absent


@pytest.fixture(scope="session")
def prometheus_installed() -> None:
    """Skip, or fail in CI, where Prometheus and Alertmanager are absent."""
    if missing := absent():
        reason = f"{', '.join(missing)} needed (Debian: apt install prometheus prometheus-alertmanager)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
