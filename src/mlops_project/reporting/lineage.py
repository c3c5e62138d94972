"""From what the report was made: Git's commit, and whether dvc.lock knows the files and params as they are."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from mlops_project.config import PARAMS_FILE
from mlops_project.files import read_yaml

LOCK = "dvc.lock"


class Lineage(NamedTuple):
    """From what the report was made. ``changed`` are files that Git, ``unrecorded`` such as dvc.lock do not know as they are."""

    commit: str | None
    date: str | None
    changed: list[str]
    unrecorded: list[str] | None


def lineage() -> Lineage:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout if done.returncode == 0 else None

    commit, date = (git("show", "-s", f"--format={what}", "HEAD") for what in ("%H", "%cs"))
    changed = [line[3:] for line in (git("status", "--porcelain") or "").splitlines()]
    return Lineage(commit and commit.strip(), date and date.strip(), changed, unrecorded())


def unrecorded() -> list[str] | None:
    """Files and params that are no longer what dvc.lock says; None without one. Folders are not looked into."""
    if not Path(LOCK).exists():
        return None
    stages = read_yaml(LOCK).get("stages", {}).values()
    entries = [entry for stage in stages for kind in ("deps", "outs") for entry in stage.get(kind, ())]
    recorded = {entry["path"]: entry["md5"] for entry in entries if not entry["md5"].endswith(".dir")}
    found = {path for path, md5 in recorded.items() if _md5(path) != md5}
    present = read_yaml(PARAMS_FILE)
    for stage in stages:
        for name, value in stage.get("params", {}).get(str(PARAMS_FILE), {}).items():
            now: Any = present
            for key in name.split("."):
                now = now.get(key) if isinstance(now, dict) else None
            if now != value:
                found.add(f"{PARAMS_FILE}: {name}")
    return sorted(found)


def _md5(path: str) -> str | None:
    try:
        with Path(path).open("rb") as stream:  # it may be larger than the memory
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError:
        return None
