"""Makes a model ready to answer, in a process of its own: verify, load, compile, compare, try, and only then point to it.

``python -m mlops_project.serving.loading`` prints its outcome as one line of JSON. Supervisor and POST /v1/admin/reload start it;
workers see the new pointer and exchange their model between two requests. Whatever goes wrong here, they go on with the old one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import sys
import time
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlops_project.errors import PipelineError
from mlops_project.manifest import read_verified
from mlops_project.serving.lineage import lineage
from mlops_project.serving.models import Served, load_served
from mlops_project.serving.state import POINTER, Files, Outcome, Pointer, count, file_sha256, locked, read_pointer, sha256_of

if TYPE_CHECKING:
    from mlops_project.modeling.model import RiskModel

logger = logging.getLogger(__name__)

KEPT_PLANS = 3
LIBRARIES = ("mlops-project", "numpy", "scikit-learn", "pandas")


def load(files: Files) -> Outcome:
    """Make the model in its file the one that answers, unless it is already or does not pass."""
    begun = time.perf_counter()
    state = Path(files.state)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(state):
        try:
            pointer, cached = _prepare(files, state)
        except PipelineError as error:
            count(state, "refused")
            return Outcome("refused", None, str(error), seconds=time.perf_counter() - begun)
        seconds = round(time.perf_counter() - begun, 3)
        with contextlib.suppress(PipelineError):
            now = read_pointer(state / POINTER)
            if msgspec.structs.replace(pointer, loaded=now.loaded) == now:
                return Outcome("unchanged", pointer.model_version, "verified before, and in use", pointer.difference, seconds)
        pointer.write(state)
        count(state, "loaded")
        how = "verified before" if cached else f"compared with its plan over {pointer.rows} rows"
        return Outcome("loaded", pointer.model_version, how, pointer.difference, seconds)


def _prepare(files: Files, state: Path) -> tuple[Pointer, bool]:
    """Return a pointer to a plan that passed, and whether it did so before."""
    content, version = read_verified(files.model, allow_uncommitted=files.uncommitted)
    # Its manifest names the model that it was derived for: while a pipeline runs, the two need not belong together.
    policy, policy_hash = read_verified(files.policy, model=version, allow_uncommitted=files.uncommitted)
    key = sha256_of(f"{version}\n{policy_hash}\n{_code()}".encode())[:32]
    known = state / f"{key}.json"
    if known.exists():
        with contextlib.suppress(PipelineError):
            pointer = read_pointer(known)
            if not pointer.plan or file_sha256(state / pointer.plan) == pointer.plan_sha256:
                os.utime(known)
                # Committed since, or judged since: not a matter of the plan.
                return msgspec.structs.replace(pointer, model=files.model, policy=files.policy, lineage=lineage(content)), True
    pointer = _make(files, state, key, content, policy, version)
    known.write_bytes(msgspec.json.encode(pointer))
    _remove_old(state, key)
    return pointer, False


def _make(files: Files, state: Path, key: str, content: bytes, decision: bytes, version: str) -> Pointer:
    from mlops_project.modeling.compiling import NotCompilable, compile_model, parity, reference_rows, tolerance
    from mlops_project.modeling.policy import Policy
    from mlops_project.serving.fallback import load_pipeline

    policy = Policy.from_json(decision.decode("utf-8", "replace"), files.policy)
    pipeline = load_pipeline(content, policy, version)
    model: RiskModel = pipeline.model
    rows = reference_rows(model.contract)
    records: list[Any] = rows.to_dict("records")
    plan, difference = "", 0.0
    try:
        scorer = compile_model(model, policy, version)
    except NotCompilable as error:
        logger.warning("%s", error)
        scorer = pipeline
    else:
        difference, allowed = parity(model, scorer, rows), tolerance(scorer)
        if not difference <= allowed:
            raise PipelineError(
                f"{files.model}: the compiled model differs from the pipeline by {difference:.3g}, allowed is {allowed:g}"
            )
        plan = f"{key}.npz"
        scorer.save(state / plan)
    pointer = Pointer(
        plan, file_sha256(state / plan) if plan else "", files.model, version, files.policy, sha256_of(decision), difference,
        len(rows), lineage(content), time.time(),
    )  # fmt: skip
    smoke_test(load_served(state, pointer) if plan else Served.of(pipeline, pointer), records)
    return pointer


def smoke_test(served: Served, records: list[dict[str, Any]]) -> None:
    """Ask the plan as the service will. Raises PipelineError if an answer is none."""
    from mlops_project.serving.applicants import JSON, Applicants
    from mlops_project.serving.predict import Answer, Prediction, score, write

    found = Applicants(len(records), records, None, ())
    top = 3 if served.scorer.can_explain else 0
    answer = msgspec.json.decode(write(score(served, found, top), JSON, "0" * 32, served.scorer.model_version), type=Answer)

    def good(row: Prediction) -> bool:
        return 0 <= row.p_good <= 1 and 0 <= row.probability_of_default <= 1 and abs(row.score) < float("inf")

    if len(answer.predictions) != len(records) or not all(map(good, answer.predictions)):
        raise PipelineError(f"{served.pointer.model}: answers of the smoke test are no probabilities")


def _code() -> str:
    """Return what a plan depends on besides model and policy: libraries, and the code that compiles and scores."""
    digest = hashlib.sha256(" ".join(package_version(name) for name in LIBRARIES).encode())
    package = Path(__file__).parents[1]
    for file in sorted([*package.glob("*.py"), *package.glob("modeling/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _remove_old(state: Path, keep: str) -> None:
    known = sorted(state.glob("?" * 32 + ".json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in known[KEPT_PLANS:]:
        if old.stem != keep:
            old.with_suffix(".npz").unlink(missing_ok=True)
            old.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Load, print the outcome as JSON, return 0 unless it is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "policy", "state"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--uncommitted", action="store_true")
    outcome = load(Files(**vars(parser.parse_args(argv))))
    print(msgspec.json.encode(outcome).decode(), flush=True)
    return int(outcome.outcome == "refused")


if __name__ == "__main__":
    sys.exit(main())
