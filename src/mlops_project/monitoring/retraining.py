"""The retraining loop: new labelled rows, a challenger in an isolated copy, a paired comparison, a promotion or a refusal.

Nothing outside the copy changes before `promotion.promote` makes its one step; killed before, a run leaves only what the next one
removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from mlops_project.config import BEST_MODEL, METRICS, MODELS, PREDICTIONS, PROCESSED, load_params, table_path
from mlops_project.errors import PipelineError
from mlops_project.files import read_table
from mlops_project.modeling.model import load_model
from mlops_project.modeling.policy import Policy
from mlops_project.monitoring import promotion
from mlops_project.monitoring.batches import append, check_batch, labelled, logged_applicants, read_batch, refused
from mlops_project.monitoring.isolated import copy_of, dvc, git_in, locked
from mlops_project.monitoring.judging import Rows, Side, decide
from mlops_project.monitoring.report import message, text
from mlops_project.review.revisions import git
from mlops_project.review.settings import REVIEW_FILE, parse_review
from mlops_project.schema import load_contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlops_project.config import Params, RetrainingParams
    from mlops_project.modeling.model import RiskModel
    from mlops_project.monitoring.audit import AuditLog
    from mlops_project.monitoring.batches import Batch
    from mlops_project.monitoring.promotion import Target
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

FIGURES = Path("scripts/figures.py")
POLICY = MODELS / "policy.json"
LOG = "log"
SHADOWS = Path("var/shadow")
# What the audit log calls a decision: a promotion is one only when it has come to pass.
EVENTS = {"promoted": "accepted", "awaiting approval": "awaiting_approval", "rejected": "rejected"}


class Request(NamedTuple):
    """What a run is asked for.

    ``files`` of new rows, or ``from_log``: the outcomes of the log at ``log_url``, of approvals ``outcome_days`` old or older;
    ``concept_drift``: it is confirmed, so the new rows decide; ``approval``: stop before the promotion; ``shadow``: also score
    what the log holds, and stop; ``refused``: a file of refused applicants for reject inference.
    """

    files: tuple[str, ...] = ()
    log_url: str | None = None
    from_log: bool = False
    outcome_days: float = 0.0
    concept_drift: bool = False
    approval: bool = False
    shadow: bool = False
    refused: str | None = None


class Outcome(NamedTuple):
    """What became of a run: its id, the decision, the report as lines, and the champion from now on."""

    run: str
    decision: Literal["promoted", "awaiting approval", "rejected"]
    lines: list[str]
    champion: promotion.Champion


def read_reports(files: Sequence[str], log_url: str) -> dict[str, bool]:
    """``drift`` and ``concept_drift`` of JSON reports of the monitoring; true if any says so.

    Parameters
    ----------
    files : list of str
        Paths; ``log`` stands for the latest reports that the prediction log keeps.
    log_url : str

    Raises
    ------
    PipelineError
        If a report is no JSON object, or has neither field as true or false; or if the log keeps none.
    """
    texts: dict[str, bytes] = {}
    for file in files:
        if file == LOG:
            texts |= _kept_reports(log_url)
            continue
        try:
            texts[file] = Path(file).read_bytes()
        except OSError as error:
            raise PipelineError(f"{file}: cannot be read ({error.strerror}); expected a report of mlops-drift") from None
    found = {"drift": False, "concept_drift": False}
    for name, report in texts.items():
        try:
            content = json.loads(report)
        except ValueError as error:
            raise PipelineError(f"{name}: cannot be read as JSON: {error}; expected a report of mlops-drift") from None
        said = {key: content[key] for key in found if key in content} if isinstance(content, dict) else {}
        if not said or any(not isinstance(value, bool) for value in said.values()):
            raise PipelineError(f"{name}: expected an object with drift or concept_drift, true or false")
        found = {key: found[key] or said.get(key, False) for key in found}
    return found


def _kept_reports(log_url: str) -> dict[str, bytes]:
    from mlops_project.serving.stores import open_store

    with contextlib.closing(open_store(log_url, create=False)) as store:
        kept = store.reports()
    found = {f"report {name!r} of the log": kept[name].content for name in ("drift", "quality") if name in kept}
    if not found:
        raise PipelineError("prediction log: keeps no report of drift or quality; `mlops-monitor run --drift` records them")
    return found


def run(request: Request, settings: RetrainingParams, target: Target, audit: AuditLog) -> Outcome:
    """Retrain and decide.

    Parameters
    ----------
    request : Request
    settings : RetrainingParams
    target : Target
    audit : AuditLog

    Raises
    ------
    PipelineError
        If it cannot be done: busy, new rows that are no use, a pipeline that fails, no remote. The champion stays.
    """
    request = request._replace(
        files=tuple(file if file == "-" else str(Path(file).resolve()) for file in request.files),
        refused=None if request.refused is None else str(Path(request.refused).resolve()),
    )
    with locked("mlops-retrain run"):
        promotion.settle(audit)
        promotion.check_target(target)
        champion = promotion.champion(promotion.artifact())
        begun = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        facts: dict[str, Any] = {
            "champion": {"commit": champion.commit, "version": champion.version},
            "request": request._asdict(),
        }
        facts["request"]["log_url"] = None  # it may hold a password
        audit.append("begun", begun, facts)
        run_id = begun
        try:
            log = _log(request, settings)
            with copy_of(champion.commit) as tree:
                found = _challenge(tree, request, settings, log, facts)
                run_id = found.run
                audit.append(EVENTS[found.decision], found.run, facts)
                if found.decision == "promoted":
                    champion = promotion.promote(tree, facts["challenger"]["commit"], found.run, audit, target)
                elif found.decision == "awaiting approval":
                    promotion.offer(tree, found.run, target.remote)
        except PipelineError as error:
            audit.append("failed", run_id, facts | {"error": type(error).__name__, "reasons": [str(error)]})
            raise
        return found._replace(champion=champion)


def approve(run_id: str, target: Target, audit: AuditLog) -> promotion.Champion:
    """Promote a challenger that waits for it.

    Raises
    ------
    PipelineError
        If there is none of this id, it was not found better, or the champion has changed since.
    """
    with locked("mlops-retrain approve"):
        promotion.settle(audit)
        promotion.check_target(target)
        commit = candidate(run_id, target.remote)
        champion = promotion.champion(promotion.artifact())
        if (parent := git("rev-parse", f"{commit}^").strip()) != champion.commit:
            raise PipelineError(
                f"{run_id}: was compared with {parent[:10]}, but champion is {champion.label} now; run `mlops-retrain` again"
            )
        audit.append("approved", run_id, {"commit": commit})
        with copy_of(commit) as tree:
            return promotion.promote(tree, commit, run_id.removeprefix(promotion.BRANCH), audit, target)


def rollback(target: Target, audit: AuditLog) -> promotion.Champion:
    """Make the champion before the present one champion again; errors as `promotion.rollback`."""
    with locked("mlops-retrain rollback"):
        promotion.settle(audit)
        # Data and model of the past are where they were pushed to then.
        promotion.check_target(target)
        return promotion.rollback(time.strftime("%Y%m%d-%H%M%S", time.gmtime()), audit, target)


def place(target: Target, audit: AuditLog) -> promotion.Champion:
    """Put the present champion where a service reads it, and tell the service."""
    with locked("mlops-retrain place"):
        promotion.settle(audit)
        promotion.check_target(target._replace(remote=None))
        found = promotion.champion(promotion.artifact())
        promotion.deliver(found.commit, target)
        return found


def candidate(run_id: str, remote: str | None = None) -> str:
    """Commit of the challenger of a run. Raises PipelineError if there is none, or it is none that was found better."""
    branch = f"{promotion.BRANCH}{run_id.removeprefix(promotion.BRANCH)}"
    names = [f"refs/heads/{branch}", *([f"refs/remotes/{remote}/{branch}"] if remote else [])]
    for name in names:
        with contextlib.suppress(PipelineError):
            commit = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
            decision = git("log", "-1", "--format=%(trailers:key=Decision,valueonly)", commit).strip()
            if decision == "promote":
                return commit
    waiting = git("for-each-ref", "--format=%(refname:lstrip=3)", f"refs/heads/{promotion.BRANCH}").split()
    raise PipelineError(
        f"{run_id}: there is no branch {branch} with a challenger that was found better; found: {', '.join(waiting) or 'none'}"
    )


def _log(request: Request, settings: RetrainingParams) -> pd.DataFrame | None:
    """The prediction log, where the run needs it."""
    if not (request.from_log or request.shadow or (settings.reject_inference == "fuzzy" and request.refused is None)):
        return None
    from mlops_project.serving.stores import open_store

    with contextlib.closing(open_store(str(request.log_url), create=False)) as store:
        return logged_applicants(store, load_contract(load_params().data.contract))


def _challenge(
    tree: Path, request: Request, settings: RetrainingParams, log: pd.DataFrame | None, facts: dict[str, Any]
) -> Outcome:
    """Make the challenger in the copy, compare, and commit it there; ``facts`` gets what the audit log is to know."""
    champion_commit = facts["champion"]["commit"]
    with contextlib.chdir(tree):
        params = load_params()
        contract = load_contract(params.data.contract)
        rules = parse_review(Path(REVIEW_FILE).read_text(encoding="utf-8") if REVIEW_FILE.exists() else None, str(REVIEW_FILE))
        batch = _batch(request, settings, contract, log)
        logger.info("new rows: %d with an outcome, of %d", len(batch.rows), batch.report["rows"])
        dvc(tree, "pull", "--quiet")
        before, trained_on, held_out, champion_model = _side(contract)
        known = _outcomes("ytest", contract)
        facts["champion"] |= _hashes(params)

        raw = Path(params.data.raw)
        appended, new_ids = append(raw, batch, contract, params.prepare)
        if Path(f"{raw}.dvc").exists():
            dvc(tree, "add", "--quiet", str(raw))
        digest = hashlib.sha256(f"{champion_commit} {_md5(raw)} {request.concept_drift}".encode()).hexdigest()[:8]
        run_id = f"{time.strftime('%Y%m%d', time.gmtime())}-{digest}"
        facts["data"] = batch.report | {"appended": appended, "md5": _md5(raw)}
        logger.info("%d applicants are new; running the pipeline in %s", len(new_ids), tree)
        dvc(tree, "repro")
        after, development, judged, model = _side(contract)
        facts["challenger"] = _hashes(params)

        X = judged[~judged.index.isin(trained_on.index)]
        outcomes = _outcomes("ytest", contract).loc[X.index]
        outcomes.update(known)
        rows = Rows(X, outcomes.to_numpy(dtype=int), ~X.index.isin(held_out.index))
        sides = [side._replace(p_good=one.predict_proba(X)[:, 1]) for side, one in ((before, champion_model), (after, model))]
        decision = decide(
            rows, sides[0], sides[1], contract, rules, params.evaluate, concept_drift=request.concept_drift,
            min_outcomes=settings.min_outcomes, approved_only=request.from_log,
        )  # fmt: skip
        facts["report"] = decision.report | {"new_applicants": len(new_ids), "source": "log" if request.from_log else "file"}
        if settings.reject_inference == "fuzzy":
            facts["report"]["reject_inference"] = _reject_inference(
                request, log, rows, sides, development, champion_model, contract, params
            )
        waiting = request.approval or request.shadow
        word: Literal["promoted", "awaiting approval", "rejected"] = "rejected"
        if decision.promote:
            word = "awaiting approval" if waiting else "promoted"
        facts |= {"decision": "promote" if decision.promote else "reject", "reasons": decision.reasons}
        if decision.promote:
            if FIGURES.exists():  # the README and the model card tell the figures of the model
                subprocess.run([sys.executable, str(FIGURES)], check=False, capture_output=True)
            git("switch", "--quiet", "--force-create", f"{promotion.BRANCH}{run_id}")
            git("add", "--all")
            git_in(tree, "commit", "--quiet", "--no-verify", "--message", message(run_id, facts))
            facts["challenger"]["commit"] = git("rev-parse", "HEAD").strip()
        if request.shadow and log is not None:
            facts["report"]["shadow"] = _shadow(log, (champion_model, model), (before.policy, after.policy), contract)
    if request.shadow and log is not None:
        _write_shadow(run_id, facts["report"]["shadow"].pop("rows"))
    return Outcome(run_id, word, text(facts), promotion.Champion(champion_commit, None, 0))


def _batch(request: Request, settings: RetrainingParams, contract: Contract, log: pd.DataFrame | None) -> Batch:
    if request.from_log and log is not None:
        return check_batch(labelled(log, contract, request.outcome_days), contract, settings.max_bad_cells, "prediction log")
    return read_batch(request.files, contract, settings.max_bad_cells)


def _side(contract: Contract) -> tuple[Side, pd.DataFrame, pd.DataFrame, RiskModel]:
    """What the pipeline of the working directory has made: a side without scores, development and held-out rows, the model."""
    # Its manifest came with the commit, or has just been written here.
    model = load_model(BEST_MODEL)
    policy = Policy.from_json(POLICY.read_text(encoding="utf-8"), str(POLICY))
    metrics = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in METRICS.glob("*.json")}
    data = load_params().data
    tables = (table_path(PROCESSED, f"X{name}", data) for name in ("traintest", "test"))
    development, held_out = (read_table(table, contract.text_columns) for table in tables)
    out_of_fold = read_table(table_path(PREDICTIONS, "out_of_fold", data))
    return Side(np.empty(0), out_of_fold, policy, metrics), development, held_out, model


def _outcomes(name: str, contract: Contract) -> pd.Series:
    return read_table(table_path(PROCESSED, name, load_params().data))[contract.target.name]


def _hashes(params: Params) -> dict[str, Any]:
    return {
        "data": {"path": params.data.raw, "md5": _md5(Path(params.data.raw))},
        "model": hashlib.sha256(BEST_MODEL.read_bytes()).hexdigest(),
    }


def _md5(path: Path) -> str:
    """Hash by which DVC knows a file, or a folder: that of the list of its files."""
    if path.is_dir():
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        listing = json.dumps([{"md5": _md5(file), "relpath": name} for name, file in files])
        return f"{hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()}.dir"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _reject_inference(
    request: Request,
    log: pd.DataFrame | None,
    rows: Rows,
    sides: Sequence[Side],
    development: pd.DataFrame,
    champion: RiskModel,
    contract: Contract,
    params: Params,
) -> dict[str, Any]:
    """ROC-AUC and Brier score on the held-out rows, without and with the refused."""
    from mlops_project.dataset import DataLoader
    from mlops_project.modeling.metrics import ranking_metrics
    from mlops_project.monitoring.rejects import fuzzy_augmentation
    from mlops_project.preprocessing import load_preprocessor

    if request.refused is not None:
        table = DataLoader(contract).load(request.refused, target=False)
    else:
        table = refused(log, contract) if log is not None else pd.DataFrame()
    if table.empty:
        return {"refused": 0}
    y = _outcomes("ytraintest", contract).loc[development.index]
    preprocessor = load_preprocessor(MODELS / "preprocessor.joblib")
    fitted, used = fuzzy_augmentation(development, y, table, champion, preprocessor, contract, params, rows.X.index)
    found: dict[str, Any] = {"refused": used}
    for name, p_good in (("without", sides[1].p_good), ("with", fitted.predict_proba(rows.X)[:, 1])):
        values = ranking_metrics(rows.y, p_good)
        found[name] = {metric: float(values[metric][0]) for metric in ("roc_auc", "brier")}
    return found


def _shadow(
    log: pd.DataFrame, models: tuple[RiskModel, RiskModel], policies: tuple[Policy, Policy], contract: Contract
) -> dict[str, Any]:
    """What the challenger would have answered to those in the log, beside what the champion would."""
    if log.empty:
        return {"scored": 0, "rows": log}
    values = contract.parse_features(log).values
    cells = pd.DataFrame({name: contract.labels(name, values[:, i]) for i, name in enumerate(contract.features)})
    rows = log[["request_id", "position"]].copy()
    for name, model, policy in zip(("champion", "challenger"), models, policies, strict=True):
        rows[name] = model.predict_proba(cells)[:, 1].round(10)
        rows[f"{name}_approves"] = policy.approved(rows[name].to_numpy()).astype(int)
    return {
        "scored": len(rows),
        "mean_difference": float((rows["challenger"] - rows["champion"]).mean()),
        "mean_absolute_difference": float((rows["challenger"] - rows["champion"]).abs().mean()),
        "decisions_changed": int((rows["challenger_approves"] != rows["champion_approves"]).sum()),
        "approval_rate": {name: float(rows[f"{name}_approves"].mean()) for name in ("champion", "challenger")},
        "rows": rows,
    }


def _write_shadow(run_id: str, rows: pd.DataFrame) -> None:
    from mlops_project.files import write_table

    write_table(rows, SHADOWS / f"{run_id}.csv", index=False)
