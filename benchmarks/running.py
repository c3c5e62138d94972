"""A running `mlops-serve` on models of its own: what the attacks, the fuzzing, the soak test and the API check share."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from common import CLEAN_FILE, ROOT, environment

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from mlops_project.modeling.model import RiskModel

# Scorecards whose probabilities differ: settings of models.scorecard.
VARIANTS: dict[str, dict[str, Any]] = {"first": {}, "second": {"C": 0.5, "max_bins": 4}, "third": {"smoothing": 300.0}}
START_SECONDS = 90


@cache
def dirty_rows() -> pd.DataFrame:
    """Return raw rows, all text, with what the world puts into them."""
    import pandas as pd

    from build_raw_data import make_dirty

    if not CLEAN_FILE.exists():
        raise SystemExit(f"{CLEAN_FILE.relative_to(ROOT)} is absent; `dvc pull {CLEAN_FILE.relative_to(ROOT)}.dvc` fetches it")
    return make_dirty(pd.read_csv(CLEAN_FILE), seed=7)


def train(folder: Path, **scorecard: Any) -> RiskModel:
    """Fit a scorecard with other settings than params.yaml's, and write it to a folder with policy and manifests."""
    import msgspec
    import numpy as np

    from mlops_project.config import load_params
    from mlops_project.dataset import DataCleaner
    from mlops_project.manifest import dump, write_manifest
    from mlops_project.modeling.policy import make_policy
    from mlops_project.modeling.train import fit
    from mlops_project.preprocessing import build_preprocessor
    from mlops_project.schema import load_contract

    contract, params = load_contract(ROOT / "data/schema.yaml"), load_params(ROOT / "params.yaml")
    found = DataCleaner(contract).clean(dirty_rows())
    settings = msgspec.structs.replace(params.models, scorecard=msgspec.structs.replace(params.models.scorecard, **scorecard))
    chosen = msgspec.structs.replace(params.train, model="scorecard")
    model = fit(found.table, found.target, build_preprocessor(contract, params.featurize), contract, chosen, settings)
    folder.mkdir(parents=True, exist_ok=True)
    dump(model, folder / "model.joblib")
    y, p_good = found.target.to_numpy(), model.predict_proba(found.table)[:, 1]
    policy = make_policy(y, p_good, np.ones(len(y)), params.evaluate, prior=0.1)
    (folder / "policy.json").write_text(policy.to_json(), encoding="utf-8")
    write_manifest(folder / "policy.json", [folder / "model.joblib"])
    return model


def put(source: Path, folder: Path) -> None:
    """Put a model in place as one does by hand: one file after the other."""
    for path in source.glob("*.j*"):
        shutil.copy(path, folder / f".{path.name}.new")
        os.replace(folder / f".{path.name}.new", folder / path.name)


class Running:
    """A service that runs in a folder of its own, which holds its model; it ends with the block.

    Parameters
    ----------
    folder : Path
    *arguments : str
        Of `mlops-serve`.
    workers : int
    """

    def __init__(self, folder: Path, *arguments: str, workers: int = 2) -> None:
        self.folder = folder
        with (folder / "service.log").open("ab") as stream:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlops_project.serving.server", "--port", "0", "--workers", str(workers),
                    "--uncommitted", "--model", "model.joblib", "--policy", "policy.json", *arguments,
                ],
                cwd=folder, stderr=stream, env=environment(ROOT),
            )  # fmt: skip
        try:
            self.port = int(self.wait_for(r"ready at http://127\.0\.0\.1:(\d+)")[1])
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def log(self) -> str:
        """Return all that it has logged."""
        return (self.folder / "service.log").read_text(encoding="utf-8", errors="surrogateescape")

    def wait_for(self, pattern: str, seconds: float = START_SECONDS, start: int = 0) -> re.Match[str]:
        """Wait for a line in the log behind position ``start``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            alive = self.process.poll() is None
            if found := re.search(pattern, self.log()[start:]):
                return found
            if not alive:
                break
            time.sleep(0.05)
        raise RuntimeError(f"{pattern!r} not in:\n{self.log()[start:]}")

    def workers(self) -> dict[int, Any]:
        """Return the running workers by their number."""
        import psutil

        children = psutil.Process(self.process.pid).children()
        return {child.pid: child for child in children if "mlops_project.serving.worker" in _command(child)}

    def end(self) -> int:
        """Tell it to end and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """End it at once; its workers end with it."""
        self.process.kill()
        self.process.wait()


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []
