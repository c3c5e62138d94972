"""Reproduce the pipeline, say what was reused and what ran, and print the metrics as a table (`make pipeline`)."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

METRICS = Path("metrics")
EVENTS = (
    (re.compile(r"Pulling data for stage: '(\w+)'"), "reused: fetched from the DVC remote, nothing that it reads has changed"),
    (re.compile(r"Stage '(\w+)' didn't change, skipping"), "reused: nothing that it reads has changed"),
    (re.compile(r"Stage '(\w+)' is cached - skipping run"), "reused: restored from the cache of earlier runs"),
    (re.compile(r"Running stage '(\w+)'"), "ran"),
)
DECISION = ("approval_rate", "bad_rate_approved", "accuracy", "balanced_accuracy", "f1", "recall", "recall_bad", "expected_cost")
RANKING = ("roc_auc", "gini", "ks", "average_precision", "brier", "log_loss", "ece")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force", action="store_true", help="run every stage, changed or not")
    force = parser.parse_args().force
    # -m dvc: a console script would carry the path of the environment, which moves with the folder.
    dvc = [sys.executable, "-m", "dvc"]
    if force and (absent := [str(path) for path in Path("data").rglob("*.dvc") if not path.with_suffix("").exists()]):
        # With --force DVC pulls nothing.
        subprocess.run([*dvc, "pull", "--quiet", *absent], check=False)
    command = [*dvc, "repro", "--force" if force else "--pull"]
    stages: dict[str, str] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            for pattern, event in EVENTS:
                if found := pattern.search(line):
                    stages[found.group(1)] = event
    if process.returncode != 0:
        print(
            "error: the pipeline stopped; the reason stands above. `make restore` brings the last committed state back.",
            file=sys.stderr,
        )
        return process.returncode
    print()
    for line in metrics_table():
        print(line)
    print("\nStages")
    for stage, event in stages.items():
        print(f"  {stage:<12}{event}")
    if "ran" not in stages.values():
        print("Nothing had to run. Run it all afresh: make pipeline FORCE=1")
    else:
        print("Compare with the last commit: .venv/bin/dvc metrics diff. Run it all afresh: make pipeline FORCE=1")
    return 0


def metrics_table() -> list[str]:
    """Lines that show metrics/evaluate.json and metrics/train.json beside each other."""
    held_out: dict[str, Any] = json.loads((METRICS / "evaluate.json").read_text(encoding="utf-8"))
    folds: dict[str, Any] = json.loads((METRICS / "train.json").read_text(encoding="utf-8"))
    lines = [f"{'':<20}{'held out':>9}  {'interval':<16}{'cross-validated':>16}"]
    lines += [_line(name, held_out) + _folds(folds.get(name)) for name in RANKING]
    lines.append(f"Refused from P(default) = {held_out['threshold']:.3f} on, {held_out['rows']} held-out applicants:")
    lines += [_line(name, held_out) for name in DECISION]
    return lines


def _line(name: str, held_out: dict[str, Any]) -> str:
    interval = held_out["interval"][name]
    return f"  {name:<18}{held_out[name]:>9.3f}  {interval['low']:.3f} to {interval['high']:.3f}"


def _folds(summary: dict[str, float] | None) -> str:
    return f"  {summary['mean']:>10.3f} ± {summary['std']:.3f}" if summary else ""


if __name__ == "__main__":
    sys.exit(main())
