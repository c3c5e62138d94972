"""POST /v1/predict: applicants in, predictions out, logged in between.

Plain ASGI and msgspec: validation by FastAPI would cost more than all else together.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import time
from collections.abc import Sequence  # noqa: TC003 - msgspec reads annotations
from itertools import starmap
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

import msgspec
import numpy as np
from msgspec.structs import asdict, astuple

from mlops_project.modeling.compiled import SETS
from mlops_project.modeling.reasons import Reason  # noqa: TC001 - msgspec reads annotations
from mlops_project.modeling.scale import log_odds
from mlops_project.serving import applicants as bodies
from mlops_project.serving.applicants import CSV, JSON, PARQUET, TYPES
from mlops_project.serving.problems import Refusal
from mlops_project.serving.records import Record, new_request_id, pack, results

if TYPE_CHECKING:
    from mlops_project.serving.applicants import Applicants
    from mlops_project.serving.models import Served
    from mlops_project.serving.problems import Headers, Receive, Scope, Send
    from mlops_project.serving.service import Service

MOST_REASONS = 20
# Larger bodies are worked on in a thread, so that small requests need not wait for them. These take up to 4 ms, less than
# a thread keeps Python's lock from the others at a time.
INLINE_BYTES = 131_072


class Prediction(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What the model says of one applicant."""

    p_good: float
    probability_of_default: float
    score: float
    decision: Literal["approve", "refuse"]
    conformal_set: list[Literal["good", "bad"]]
    treated_as_missing: list[str]
    missing: list[str]
    reasons: list[Reason] | None = None


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the model says of all applicants of a request, in their order."""

    request_id: str
    model_version: str
    predictions: list[Prediction]


class Predictions(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What the model says of n applicants, by columns of n cells."""

    p_good: list[float]
    probability_of_default: list[float]
    score: list[float]
    decision: list[str]
    conformal_set: list[list[str]]
    treated_as_missing: list[Sequence[str]]
    missing: list[Sequence[str]]
    reasons: list[list[Reason]] | None = None


class AnswerByColumn(msgspec.Struct, frozen=True, gc=False):
    """The answer to a request that came by columns."""

    request_id: str
    model_version: str
    predictions: Predictions


_encode = msgspec.json.Encoder().encode


def score(served: Served, found: Applicants, top: int) -> Predictions:
    """Score applicants, with up to ``top`` reasons each. One is worked on in plain numbers: arrays cost more than they do."""
    scorer = served.scorer
    if found.records is not None:
        parsed = scorer.parse(found.records)
    else:
        parsed = scorer.parse_columns(found.columns or {}, plain=found.plain)
    treated, missing = parsed.gaps()
    p_good, reasons = served.explain(parsed, top) if top else (scorer.p_good(parsed.values, parsed.places), None)
    if found.n == 1 and scorer.policy is not None:
        p: float = p_good.item()
        policy: Any = scorer.policy
        good, bad = policy.conformal_sets(p)
        return Predictions(
            [p],
            [1 - policy.correct(p)],
            [float(scorer.scale.points(log_odds(p)))],
            ["approve" if policy.approved(p) else "refuse"],
            [SETS[good + 2 * bad]],
            treated,
            missing,
            reasons,
        )
    return Predictions(
        p_good.tolist(),
        scorer.default_probability(p_good).tolist(),
        scorer.score(p_good).tolist(),
        scorer.decide(p_good),
        scorer.conformal_sets(p_good),
        treated,
        missing,
        reasons,
    )


class Predict:
    """The endpoint.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        service = self.service
        headers: Headers = scope["headers"]
        more = await service.admit(headers, "predict")
        top = reasons_asked(scope["query_string"]) if scope["query_string"] else 0
        kind, answer_kind = media_types(headers)
        body = await read_body(receive)
        served = service.models.current
        if served is None:
            raise Refusal(503, "Service Unavailable", "no model is loaded yet", [(b"retry-after", b"1")])
        if len(body) > INLINE_BYTES or kind == PARQUET or (top and not served.scorer.can_explain):
            request_id, record, answer, scored = await asyncio.to_thread(
                predict, served, body, kind, answer_kind, top, service.settings.max_rows
            )
        else:
            request_id, record, answer, scored = predict(served, body, kind, answer_kind, top, service.settings.max_rows)
        await service.keep(record)
        service.metrics.predicted(scored)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", answer_kind.encode()),
                    (b"content-length", b"%d" % len(answer)),
                    (b"x-request-id", request_id.encode()),
                    (b"x-model-version", served.pointer.model_version.encode()),
                    *more,
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer})


def predict(
    served: Served, body: bytes, kind: str, answer_kind: str, top: int, max_rows: int
) -> tuple[str, Record, bytes, Predictions]:
    """Return request id, record for the log, the answer's body and what it says."""
    found = bodies.read(body, kind, served.names, max_rows)
    scored = score(served, found, top)
    request_id, version = new_request_id(), served.scorer.model_version
    record = Record(
        request_id,
        time.time(),
        version,
        _inputs(found, body, kind),
        results(scored.p_good, scored.probability_of_default, scored.score, scored.decision),
        found.n,
        found.references,
    )
    return request_id, record, write(scored, answer_kind, request_id, version, by_column=found.by_column), scored


def write(scored: Predictions, kind: str, request_id: str, version: str, *, by_column: bool = False) -> bytes:
    """Return the body of an answer."""
    if by_column and kind == JSON:
        return _encode(AnswerByColumn(request_id, version, scored))
    if kind == JSON:
        shown = astuple(scored) if scored.reasons is not None else astuple(scored)[:-1]
        predictions = list(starmap(Prediction, zip(*shown, strict=True)))
        return _encode(Answer(request_id, version, predictions))
    columns: dict[str, Any] = asdict(scored)
    for name in ("conformal_set", "treated_as_missing", "missing"):
        columns[name] = [" ".join(names) for names in columns[name]]
    reasons = columns.pop("reasons") or []
    for i in range(max(map(len, reasons), default=0)):
        columns[f"reason_{i + 1}"] = [row[i].text if i < len(row) else "" for row in reasons]
    if kind == CSV:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue().encode()
    pa = bodies.import_pyarrow()
    table = pa.table(columns).replace_schema_metadata({"request_id": request_id, "model_version": version})
    sink = pa.BufferOutputStream()
    if kind == PARQUET:
        from pyarrow import parquet

        parquet.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _inputs(found: Applicants, body: bytes, kind: str) -> bytes:
    """Return what is logged of a body: as it was sent, or the columns that were read of it, which is shorter."""
    if found.plain:
        with contextlib.suppress(OverflowError):  # beyond 64 bits
            return pack(found.columns)
    return body if kind == JSON else _encode({name: _plain(cells) for name, cells in (found.columns or {}).items()})


def _plain(cells: Any) -> Any:
    return cells.tolist() if isinstance(cells, np.ndarray) else cells


def reasons_asked(query: bytes) -> int:
    """Return the value of ``reasons`` in the query string.

    Raises
    ------
    Refusal
        422 if it is no whole number from 0 to 20, stands twice, or something else stands there.
    """
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    values = [value for name, value in pairs if name == "reasons"]
    expected = f"a whole number from 0 to {MOST_REASONS}"
    if other := [name for name, _ in pairs if name != "reasons"]:
        raise bodies.invalid([(None, other[0][:100], "unknown query parameter, expected reasons")])
    if len(values) != 1 or not (values[0].isascii() and values[0].isdecimal()) or len(values[0]) > 2:
        raise bodies.invalid([(None, "reasons", f"found {', '.join(values)[:100]!r}, expected {expected}")])
    top = int(values[0])
    if top > MOST_REASONS:
        raise bodies.invalid([(None, "reasons", f"found {top}, expected {expected}")])
    return top


def media_types(headers: Headers) -> tuple[str, str]:
    """Return media types of body and answer: JSON if the caller accepts only that, else as the body.

    Raises
    ------
    Refusal
        415 if the body's type is none that can be read, or if it is compressed.
    """
    kind, accept = "", ""
    for name, value in headers:
        if name == b"content-type":
            kind = _media_type(value.decode("latin-1"))
        elif name == b"accept":
            accept = value.decode("latin-1")
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise _unsupported("found a compressed body, expected none")
    if kind not in TYPES:
        raise _unsupported(f"found the content type {kind[:100]!r}, expected one of {', '.join(TYPES)} (UTF-8)")
    if kind == JSON or not accept or accept == "*/*":
        return kind, kind
    accepted = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return kind, JSON if JSON in accepted and kind not in accepted else kind


def _media_type(value: str) -> str:
    kind, _, parameters = value.partition(";")
    if parameters and "charset" in parameters.lower() and "utf-8" not in parameters.lower():
        return value
    return kind.strip().lower()


def _unsupported(detail: str) -> Refusal:
    return Refusal(415, "Unsupported Media Type", detail, [(b"accept", ", ".join(TYPES).encode())])


async def read_body(receive: Receive) -> bytes:
    """Return the whole body; its size and time are limited by the guards around the application."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return message.get("body", b"")
    parts = []
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


class Disconnected(Exception):  # noqa: N818
    """The caller has gone before the request was whole; nobody waits for an answer."""
