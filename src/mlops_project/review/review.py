"""A whole review: read both revisions, run what is missing or doubted again, compare, and hold the head to the rules."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_project.review.comparison import compare
from mlops_project.review.gate import broken_rules
from mlops_project.review.reexecution import check_receipt, clone_of, reproduce
from mlops_project.review.revisions import MissingOutputError, Revision, out_of_date, resolve
from mlops_project.review.settings import REVIEW_FILE, parse_review

if TYPE_CHECKING:
    from mlops_project.review.settings import ReviewSettings
    from mlops_project.review.verdict import Predictions

logger = logging.getLogger(__name__)


class Review(NamedTuple):
    """``report``: see `comparison.compare`, and ``gate`` with ``passed``, ``broken``, ``notes``; of the base and the head.

    If the head's numbers are nowhere and cannot be made, there is nothing to compare: no verdict in the report, no predictions.
    """

    report: dict[str, Any]
    predictions: tuple[Predictions, Predictions] | None


def review(base_name: str, head_name: str, *, gate: bool = False, reproduce_missing: bool = False) -> Review:
    """Compare two revisions of the repository in the working directory.

    Parameters
    ----------
    base_name, head_name : str
        See `revisions.resolve`.
    gate : bool
        Run the head's pipeline in a temporary clone, compare what it makes with what was committed, and apply review.yaml.
    reproduce_missing : bool
        Run a pipeline again if its predictions are nowhere; the gate always does.

    Raises
    ------
    PipelineError
        If a revision, review.yaml, metrics or predictions cannot be read.
    """
    base, head = resolve(base_name), resolve(head_name)
    settings, notes = _settings(base, head)
    sides: dict[str, Any] = {
        side: {"name": revision.name, "commit": revision.commit, "label": revision.label}
        for side, revision in (("base", base), ("head", head))
    }
    broken: list[str] = []
    with contextlib.ExitStack() as stack:
        if gate:
            logger.info("running the pipeline of %s in a temporary clone", head.label)
            receipt = check_receipt(head, stack.enter_context(clone_of(head)))
            head, broken, notes = receipt.revision, receipt.problems, [*notes, *receipt.notes]
        elif head.commit is None and (stale := out_of_date()):
            notes.append(f"the workspace's numbers are of another state: {', '.join(stale)} must run first; `dvc repro`")
        predictions: list[Predictions] = []
        for revision in (base, head):
            if predictions and head.commit is not None and head.commit == base.commit:
                predictions *= 2
                break
            try:
                predictions.append(revision.predictions())
            except MissingOutputError:
                if broken:
                    return Review(sides | {"gate": {"passed": False, "broken": broken, "notes": notes}}, None)
                if not (gate or reproduce_missing):
                    raise
                logger.info("running the pipeline of %s in a temporary clone", revision.label)
                predictions.append(reproduce(revision, stack.enter_context(clone_of(revision))).predictions())
    both = predictions[0], predictions[1]
    report = sides | compare(base, head, settings.verdict, both) | {"notes": notes}
    if gate:
        broken += broken_rules(report, settings.gate)
        report["gate"] = {"passed": not broken, "broken": broken, "notes": notes}
    return Review(report, both)


def _settings(base: Revision, head: Revision) -> tuple[ReviewSettings, list[str]]:
    """Rules of the base, which a change cannot soften for itself; those of the head where the base has none."""
    before, after = base.read(REVIEW_FILE), head.read(REVIEW_FILE)
    if before is not None:
        note = [f"{REVIEW_FILE} differs; that of the base counts"] if after != before else []
        return parse_review(before, f"{REVIEW_FILE} of {base.label}"), note
    return parse_review(after, f"{REVIEW_FILE} of {head.label}"), [f"{base.label} has no {REVIEW_FILE}; that of the head counts"]
