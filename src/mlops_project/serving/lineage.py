"""Where a model comes from: commit, data and figures, as far as `dvc.lock` and Git vouch for them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from mlops_project.errors import PipelineError
from mlops_project.files import read_yaml

LOCK, FIGURES = "dvc.lock", "metrics/evaluate.json"


def lineage(content: bytes) -> dict[str, Any]:
    """Return ``commit``, ``data`` (MD5 by path) and ``metrics`` of a model file's content; None where nothing vouches for it.

    The commit is ``MLOPS_COMMIT``, which images carry, or Git's, if the `dvc.lock` that it holds records this very file.
    Figures are those of the evaluate stage if it judged this very file.
    """
    out: dict[str, Any] = {"commit": os.environ.get("MLOPS_COMMIT"), "data": None, "metrics": None}
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    try:
        stages = read_yaml(LOCK)["stages"].values()
        if not any(entry.get("md5") == md5 for stage in stages for entry in stage.get("outs", ())):
            return out
        outs = {entry["path"] for stage in stages for entry in stage.get("outs", ())}
        deps = [entry for stage in stages for entry in stage.get("deps", ())]
        # What no stage made and is no code: the raw table and its contract.
        out["data"] = {e["path"]: e["md5"] for e in deps if e["path"] not in outs and not e["path"].endswith(".py")}
        judged = any(entry.get("md5") == md5 for stage in stages for entry in stage.get("deps", ()) if _makes(stage, FIGURES))
        figures = Path(FIGURES)
        if judged and any(e["path"] == FIGURES and e["md5"] == _md5(figures) for s in stages for e in s.get("outs", ())):
            out["metrics"] = json.loads(figures.read_text(encoding="utf-8"))
        if out["commit"] is None and md5 in _git("show", f"HEAD:./{LOCK}"):
            out["commit"] = _git("rev-parse", "HEAD").strip() or None
    except (PipelineError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return out
    return out


def _makes(stage: dict[str, Any], path: str) -> bool:
    return any(entry["path"] == path for entry in stage.get("outs", ()))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _md5(path: Path) -> str | None:
    try:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError:
        return None
