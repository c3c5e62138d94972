"""The application: routes, who may call them, and what every answer passes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from mlops_project.errors import PipelineError
from mlops_project.serving import pages, schema
from mlops_project.serving.applicants import decode_json, invalid
from mlops_project.serving.guards import Guards
from mlops_project.serving.keys import KeyRefused
from mlops_project.serving.limits import LimiterDown
from mlops_project.serving.metrics import CONTENT_TYPE, Counted
from mlops_project.serving.predict import Disconnected, Predict
from mlops_project.serving.problems import Refusal, problem, respond
from mlops_project.serving.service import Refused, Service
from mlops_project.serving.state import Outcome, load_in_child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mlops_project.serving.problems import Answer, App, Headers, Receive, Scope, Send
    from mlops_project.serving.settings import Settings

logger = logging.getLogger(__name__)

TITLES = {404: "Not Found", 405: "Method Not Allowed"}


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of an applicant whom the service answered about."""

    request_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    outcome: Literal["good", "bad"]
    position: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    """Of the applicant in that request, from 0."""


class Unknown(msgspec.Struct, frozen=True):
    """A prediction that the log does not hold."""

    request_id: str
    position: int


class Labelled(msgspec.Struct, frozen=True):
    """What was done with outcomes."""

    recorded: int
    unknown: list[Unknown]


class Feature(msgspec.Struct, frozen=True):
    """A column that the model reads."""

    name: str
    kind: str
    english: str
    domain: str


class ModelInfo(msgspec.Struct, frozen=True):
    """What answers, and where it comes from."""

    model_version: str
    name: str
    compiled: bool
    commit: str | None
    data: dict[str, str] | None
    """MD5 of the raw table and its contract."""
    training_data_hash: str
    params: dict[str, Any]
    metrics: dict[str, Any] | None
    features: list[Feature]
    threshold: float
    policy: dict[str, Any]
    library_versions: dict[str, str]
    difference: float
    """Largest difference between model and plan over the reference rows."""
    reference_rows: int
    loaded: float


def make_app(settings: Settings, service: Service | None = None) -> App:
    """Return the ASGI application of a worker."""
    service = service or Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="Credit risk",
        version="1",
        description="Scores applicants by the model of the pipeline. Errors are problem details (RFC 9457).",
        openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    predict = Predict(service)
    app.router.routes.append(Route("/v1/predict", predict, methods=["POST"], include_in_schema=False))
    _add_routes(app, service)
    pages.add(app, lambda: document(app, service))
    for kind in (KeyRefused, LimiterDown, Refusal, Refused):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(PipelineError, _unavailable)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Disconnected, lambda *_: Response(status_code=499))
    app.add_exception_handler(Exception, _fault)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        """Spare the one request that is made in thousands what FastAPI has around its routes: it costs as much as scoring."""
        if scope["type"] == "http" and scope["path"] == "/v1/predict" and scope["method"] == "POST":
            await answered(predict, scope, receive, send)
        else:
            await app(scope, receive, send)

    guarded = Guards(
        front, max_body_bytes=settings.max_body, body_seconds=settings.body_seconds, request_seconds=settings.request_seconds
    )
    return Counted(guarded, service.metrics, time.perf_counter)


async def answered(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Run a plain ASGI application; what it raises becomes the answer that FastAPI's handlers give elsewhere."""
    try:
        await app(scope, receive, send)
    except (KeyRefused, LimiterDown, Refusal, Refused) as error:
        await respond(send, error.answer())
    except Disconnected:
        return
    except PipelineError as error:
        await respond(send, unavailable(scope, error))
    except Exception as error:
        await respond(send, fault(error))
        raise


def document(app: FastAPI, service: Service) -> dict[str, Any]:
    """Return the OpenAPI document by the model in use."""
    app.openapi_schema = None
    return schema.openapi(
        app.openapi(), service.models.current, [ModelInfo, Labelled, Label, Outcome], secured=service.keys is not None
    )


def _json(value: Any, status: int = 200, headers: Headers | None = None) -> Response:
    response = Response(msgspec.json.encode(value), status, media_type="application/json")
    response.raw_headers += headers or []
    return response


def _of(name: str, description: str) -> dict[int | str, dict[str, Any]]:
    reference = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    return {200: {"description": description, "content": {"application/json": reference}}}


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", tags=["model"], summary="The model that answers, and where it comes from",
             response_class=Response, responses=_of("ModelInfo", "Lineage"))  # fmt: skip
    async def model(request: Request) -> Response:
        quota = await service.admit(request.scope["headers"], "predict")
        return _json(model_info(service), headers=quota)

    labels = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Label"}}
    body = {"required": True, "content": {"application/json": {"schema": labels}}}

    @app.post("/v1/outcomes", tags=["predict"], summary="Tell what became of applicants", openapi_extra={"requestBody": body},
              description="A later outcome replaces an earlier one. Predictions that the log does not hold are named.",
              response_class=Response, responses=_of("Labelled", "What was recorded"))  # fmt: skip
    async def outcomes(request: Request) -> Response:
        quota = await service.admit(request.scope["headers"], "predict")
        found = await read_labels(request)
        if service.log is None:
            raise Refusal(503, "Service Unavailable", "there is no prediction log here")
        unknown = await service.log.outcomes([(label.request_id, label.position, label.outcome) for label in found])
        return _json(Labelled(len(found) - len(unknown), [Unknown(*pair) for pair in unknown]), headers=quota)

    @app.post("/v1/admin/reload", tags=["model"], summary="Load the model file anew",
              description="Answers when the model has passed all checks, or has not: then the old one goes on (409). All workers"
              " answer with a new one within half a second.",
              response_class=Response, responses=_of("Outcome", "Loaded, or the same as before")
              | {409: {"description": "Refused; the old model goes on"}})  # fmt: skip
    async def reload(request: Request) -> Response:
        quota = await service.admit(request.scope["headers"], "admin")
        outcome = await load_in_child(service.settings.files)
        if outcome.outcome == "refused":
            logger.error("reload: %s", outcome.detail)
            raise Refusal(409, "Conflict", outcome.detail, quota)
        await asyncio.to_thread(service.models.look)
        return _json(outcome, headers=quota)

    @app.get("/healthz", tags=["state"], summary="Whether this process answers", response_class=Response)
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz", tags=["state"], summary="Whether it can predict", response_class=Response)
    async def readyz() -> Response:
        if service.models.current is None:
            raise Refusal(503, "Service Unavailable", "no model is loaded")
        return _json({"status": "ready", "model_version": service.models.current.pointer.model_version})

    @app.get("/metrics", tags=["state"], summary="Figures for Prometheus", response_class=Response,
             responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
    async def metrics() -> Response:
        return Response(await service.metrics.scrape(), headers={"content-type": CONTENT_TYPE})


async def read_labels(request: Request) -> list[Label]:
    """Read outcomes. Raises Refusal."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "Unsupported Media Type", f"found the content type {kind[:100]!r}, expected application/json")
    content = decode_json(await request.body())
    for label in content if isinstance(content, list) else ():
        # To JSON 1.0 is a whole number.
        if isinstance(label, dict) and isinstance(at := label.get("position"), float) and at.is_integer():
            label["position"] = int(at)
    try:
        return msgspec.convert(content, Annotated[list[Label], msgspec.Meta(min_length=1, max_length=10_000)])
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        row = re.match(r"\[(\d+)\]", path)
        field = re.search(r"\.(\w+)", path)
        raise invalid([(int(row[1]) if row else None, field[1] if field else None, message)]) from None


def model_info(service: Service) -> ModelInfo:
    """Describe the model in use. Raises Refusal if there is none."""
    served = service.models.current
    if served is None or served.scorer.policy is None:
        raise Refusal(503, "Service Unavailable", "no model is loaded")
    scorer, pointer, header, policy = served.scorer, served.pointer, served.scorer.header, served.scorer.policy
    columns = scorer.contract.columns
    return ModelInfo(
        model_version=pointer.model_version,
        name=header["name"],
        compiled=bool(pointer.plan),
        commit=pointer.lineage["commit"],
        data=pointer.lineage["data"],
        training_data_hash=header["training_data_hash"],
        params=header["params"],
        metrics=pointer.lineage["metrics"],
        features=[Feature(name, columns[name].kind, columns[name].english, columns[name].domain) for name in scorer.columns],
        threshold=policy.threshold,
        policy=header["policy"],
        library_versions=header["library_versions"],
        difference=pointer.difference,
        reference_rows=pointer.rows,
        loaded=pointer.loaded,
    )


def _raw(answer: Answer) -> Response:
    status, headers, body = answer
    response = Response(body, status)
    response.raw_headers = headers
    return response


async def _answer(_: Request, error: Any) -> Response:
    return _raw(error.answer())


def unavailable(scope: Scope, error: Exception) -> Answer:
    """Return the answer to a fault outside the code. Its message names files and servers: that is for the log."""
    logger.error("%s: %s", scope["path"], error)
    return problem(503, "Service Unavailable", "the service cannot answer now; its log says why")


def fault(error: Exception) -> Answer:
    """Return the answer to a fault of the code."""
    return problem(500, "Internal Server Error", f"a fault of the service ({type(error).__name__}); its log says more")


async def _unavailable(request: Request, error: Exception) -> Response:
    return _raw(unavailable(request.scope, error))


async def _http(_: Request, error: Any) -> Response:
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    status, mine, body = problem(error.status_code, TITLES.get(error.status_code, "Error"), str(error.detail))
    return _raw((status, [*mine, *headers], body))


async def _fault(_: Request, error: Exception) -> Response:
    return _raw(fault(error))
