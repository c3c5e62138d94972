"""review.yaml as typed objects. Every key is described in review.yaml itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from mlops_project.config import Share  # noqa: TC001 - read by msgspec
from mlops_project.errors import ParamsError
from mlops_project.review.revisions import parse_yaml
from mlops_project.strict import Strict, convert

REVIEW_FILE = Path("review.yaml")
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
MetricPath = Annotated[str, Meta(pattern=r"^[^.]+(\.[^.]+)+$")]


class VerdictSettings(Strict, frozen=True):
    metric: Literal["roc_auc", "brier", "log_loss"]
    confidence: Share
    smallest_difference: Amount


class Rule(Strict, frozen=True):
    metric: MetricPath
    better: Literal["higher", "lower"]
    tolerance: Amount | None
    limit: Number | None


class LeakAlarm(Strict, frozen=True):
    metric: MetricPath
    ceiling: Number


class FairnessRule(Strict, frozen=True):
    tolerance: Amount | None
    floor: Amount | None


class GateSettings(Strict, frozen=True):
    refuse_worse: bool
    rules: list[Rule]
    leak_alarm: LeakAlarm | None
    fairness: FairnessRule


class ReviewSettings(Strict, frozen=True):
    verdict: VerdictSettings
    gate: GateSettings


def parse_review(text: str | None, source: str) -> ReviewSettings:
    """Check the text of a review.yaml; None is a file that is not there.

    Raises
    ------
    ParamsError
        If it is absent, no YAML, or a key is unknown, misspelt, missing or wrongly typed.
    """
    if text is None:
        raise ParamsError(f"{source}: not found; expected the rules of a review, such as this repository's {REVIEW_FILE}")
    return convert(parse_yaml(text, source), ReviewSettings, source, ParamsError)
