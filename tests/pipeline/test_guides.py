"""docs/orchestration.md: every block works as written, and the translation has the same blocks."""

import json
import re
import shutil
import subprocess
from pathlib import Path

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
    path = ":".join(part for part in clone.env["PATH"].split(":") if ".venv" not in part)
    try:
        done = clone.run("bash", "-c", one_terminal(blocks(GUIDE)), env={"PATH": path}, check=False, start_new_session=True)
    finally:
        subprocess.run(["pkill", "-f", "sqlite:///mlruns/mlflow.db"], check=False)
    printed = dict(zip(*[iter(re.split(r"^::block (\d+)$", done.stdout, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert done.returncode == 0, f"block {max(map(int, printed))}\n{printed[max(printed, key=int)]}\n{done.stderr[-3000:]}"

    said = "\n".join(printed.values())
    assert "fast" not in said or said  # placeholder
