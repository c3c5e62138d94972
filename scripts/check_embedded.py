"""Refuse to put into Git, by the embedded remote, what does not belong there: a team's own raw data, or much of anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

# A clone brings every version that was ever embedded, and GitHub takes no file beyond 100 MB.
LIMIT_MB = 50


def main() -> int:
    sources = {path: yaml.safe_load(path.read_text(encoding="utf-8"))["outs"] for path in sorted(Path("data/raw").rglob("*.dvc"))}
    lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8")) if Path("dvc.lock").exists() else {}
    stages: dict[str, Any] = (lock or {}).get("stages", {})
    foreign = [str(path) for path, outs in sources.items() if any(out.get("remote") != "embedded" for out in outs)]
    if foreign:
        print(
            f"error: {', '.join(foreign)}: not pinned to the embedded remote, which is in Git; nobody could take them"
            " back from there, nor the tables that are made of them. Expected: a team remote (`make remote DVC_REMOTE_URL=…`,"
            " then `make push`; docs/growing-data.md). Is it public and small? Then write `remote: embedded` below its path",
            file=sys.stderr,
        )
        return 1
    outs = [out for group in (*sources.values(), *(stage.get("outs", []) for stage in stages.values())) for out in group]
    megabytes = sum(out.get("size", 0) for out in outs) / 1e6
    if megabytes > LIMIT_MB:
        largest = max(outs, key=lambda out: out.get("size", 0))
        print(
            f"error: data and models are {megabytes:.0f} MB (of it {largest['path']} {largest['size'] / 1e6:.0f}), the embedded"
            f" remote, in Git, takes up to {LIMIT_MB}. Expected: a team remote (`make remote DVC_REMOTE_URL=…`; `make push`)",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
