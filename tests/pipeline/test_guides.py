"""docs/orchestration.md: every block works as written, and the translation has the same blocks."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs/orchestration.md"


def blocks(path):
    """The blocks of commands and Python, as (language, text)."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def one_terminal(guide):
    """All blocks as one script, as somebody types them one after the other, with a line that says where it is."""
    lines = ["set -euo pipefail"]
    for number, (language, text) in enumerate(guide):
        lines.append(f"echo '::block {number}'")
        lines.append(text if language == "bash" else f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK")
    return "\n".join(lines)


def test_the_translation_has_the_same_blocks():
    assert blocks(ROOT / "docs/es/orquestacion.md") == blocks(GUIDE)


@pytest.mark.integration
def test_every_block_of_the_guide_works_as_written_in_a_fresh_clone(clone):
    for name in ("cache", "tmp"):
        shutil.rmtree(clone.path / ".dvc" / name)
    clone.git("clean", "-fdxq")
    # A new terminal: nothing of the environment that runs the tests.
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != str(Path(sys.executable).parent))
    try:
        done = clone.run("bash", "-c", one_terminal(blocks(GUIDE)), env={"PATH": path}, check=False, timeout=900)
    finally:  # a block that fails leaves the server behind
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(clone.path):
                process.kill()
    printed = re.split(r"^::block \d+$", done.stdout, flags=re.MULTILINE)[1:]
    assert done.returncode == 0, f"block {len(printed) - 1}\n{printed[-1][-3000:]}\n{done.stderr[-3000:]}"
    assert len(printed) == len(blocks(GUIDE))

    assert done.stderr.count("were used to train this model: the figures below are optimistic") == 1
    assert done.stdout.count("[4/4] predict") == 2
    assert "✓ predict" in done.stdout
    registry = (clone.path / "models/registry.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["model"] for line in registry] == ["xgboost", "scorecard"]
    assert done.stdout.count("Run ID: ") == 6
    assert re.search(r"main: run \w+ written", done.stdout)
    assert re.search(r"main: run \w+ is there already", done.stdout)
    # The runs of other models are gone from the workspace: the last repro made the pipeline's own again.
    assert clone.git("status", "--porcelain") == ""
