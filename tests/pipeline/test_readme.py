"""README shows the numbers of metrics/, and its commands exist."""

import re
import sys
from pathlib import Path

import pytest

from figures import with_figures

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_metrics(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert with_figures(README) == README, "run `make figures`"


@pytest.mark.parametrize("text", [README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")])
def test_make_targets_exist(text):
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets | {"check"}


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_python_example_runs(clone):
    clone.repro("--pull")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed = clone.run(sys.executable, "-c", example.rstrip() + "\nprint(len(model.predict_proba(applicants)))").stdout
    assert printed.strip() == "1020"
