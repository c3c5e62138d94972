"""The hyper-parameter search stands beside the pipeline: DVC knows neither its settings nor its files."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def state(clone) -> tuple[dict, str]:
    return json.loads(clone.dvc("status", "--json").stdout), clone.git("status", "--short")


def test_settings_and_files_of_the_search_do_not_change_the_status(clone):
    before = state(clone)
    (clone.path / "tuning").mkdir()
    (clone.path / "tuning/svm.journal").write_text("{}\n", encoding="utf-8")
    assert state(clone) == before
    clone.edit("params.yaml", "n_trials: 40", "n_trials: 7")
    clone.edit("params.yaml", "max_bins: {low: 3", "max_bins: {low: 4")
    clone.edit("src/mlops_project/tuning.py", "CONFIDENCE = 0.95", "CONFIDENCE = 0.9")
    assert state(clone)[0] == before[0]


@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock"])
def test_no_stage_names_it(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "tuning" not in text
    assert "tune" not in text


def test_nothing_but_the_command_imports_it():
    for path in (ROOT / "src").rglob("*.py"):
        names = {
            node.module for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
        }
        assert "mlops_project.tuning" not in names or path.name == "cli.py"
