"""The model that a worker answers with: found by the pointer that `loading` writes, exchanged between two requests."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from mlops_project.errors import PipelineError
from mlops_project.modeling.compiled import CompiledScorer
from mlops_project.serving.applicants import Names
from mlops_project.serving.state import POINTER, Pointer, file_sha256, read_pointer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    from mlops_project.modeling.compiled import Parsed
    from mlops_project.modeling.reasons import Reason

logger = logging.getLogger(__name__)

# A stat of one small file; a new model answers within this time in every worker.
LOOK_EVERY = 0.25


class Served(NamedTuple):
    """A model in use. Whoever answers takes it once, so that all parts of an answer come from one model."""

    scorer: CompiledScorer
    names: Names
    pointer: Pointer

    @classmethod
    def of(cls, scorer: CompiledScorer, pointer: Pointer) -> Served:
        return cls(scorer, Names.of(scorer), pointer)

    def explain(self, parsed: Parsed, top: int) -> tuple[np.ndarray, list[list[Reason]]]:
        """Return P(good) and reasons; where the plan has none, the pipeline is asked, which is loaded when this is done first.

        Raises
        ------
        PipelineError
            If the model file is another one by now.
        """
        if self.scorer.can_explain:
            return self.scorer.explain(parsed.values, top, parsed.places)
        return self.scorer.p_good(parsed.values, parsed.places), _pipeline(self.pointer).reasons(parsed.values, top)


@functools.lru_cache(maxsize=1)
def _pipeline_of(model: str, policy: str, version: str, policy_sha256: str) -> CompiledScorer:
    from mlops_project.serving.fallback import load_verified

    return load_verified(model, policy, version, policy_sha256)


def _pipeline(pointer: Pointer) -> CompiledScorer:
    return _pipeline_of(pointer.model, pointer.policy, pointer.model_version, pointer.policy_sha256)


class Models:
    """Holds the model in use.

    Parameters
    ----------
    state : Path
        Folder of pointer and plans.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / POINTER
        self.current: Served | None = None
        self.on_change: Callable[[Served], None] = lambda _: None
        self._seen: tuple[int, int] | None = None

    def look(self) -> bool:
        """Load the model that the pointer names if it is another one; return whether it is.

        A plan that cannot be loaded leaves the model in use as it is.
        """
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        seen = found.st_ino, found.st_mtime_ns
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            served = load_served(self.path.parent)
        except PipelineError as error:
            logger.error("%s; the model in use goes on", error)  # noqa: TRY400 - the message says it all
            return False
        self.current = served
        self.on_change(served)
        return True

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                if self.look() and self.current:
                    logger.info("model %s answers now", self.current.scorer.model_version[:12])
            except Exception:  # whatever it is, the model in use goes on
                logger.exception("a new model could not be loaded; the model in use goes on")


def load_served(state: Path, pointer: Pointer | None = None) -> Served:
    """Load what the pointer names. Raises PipelineError if the plan is not the one that passed."""
    pointer = pointer or read_pointer(state / POINTER)
    if not pointer.plan:
        return Served.of(_pipeline(pointer), pointer)
    plan = state / pointer.plan
    if file_sha256(plan) != pointer.plan_sha256:
        raise PipelineError(f"{plan}: was changed since it passed; restart mlops-serve")
    return Served.of(CompiledScorer.load(plan, lean=True), pointer)
