"""Pins say which versions, not where they come from."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = sorted([*ROOT.glob("requirements/*.txt"), *ROOT.glob("deploy/*/requirements.txt")])


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pins_hold_no_address(path):
    found = re.findall(
        r".*(?:://|--(?:extra-)?index-url|--find-links|--trusted-host|^-[if]\b).*", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found == []


def test_mlflow_is_pinned():
    assert ROOT / "requirements/mlflow.txt" in PINS
