"""What people see: the page at / and the documentation at /docs. All files come from this service; nothing is inline."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import Request, Response

from mlops_project.serving.guards import PAGE_POLICY
from mlops_project.serving.problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

HERE = Path(__file__).parent / "static"
# Swagger UI comes with this package, of which nothing is run.
SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
FILES = ("page.css", "page.js", "docs.js", "docs.css", *SWAGGER)


@cache
def _content(name: str) -> tuple[bytes, str]:
    """Return a file and its tag."""
    folder = HERE
    if name in SWAGGER:
        found = find_spec("fastapi_offline")
        if found is None or not found.submodule_search_locations:
            raise Refusal(404, "Not Found", "fastapi-offline is not installed; /openapi.json is the same document")
        folder = Path(found.submodule_search_locations[0]) / "static"
    content = (folder / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _file(request: Request, name: str) -> Response:
    content, tag = _content(name)
    headers = {"etag": tag, "cache-control": "no-cache", "content-type": TYPES[Path(name).suffix]}
    if name.endswith(".html"):
        headers["content-security-policy"] = PAGE_POLICY.decode()
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)


def add(app: FastAPI, document: Callable[[], dict[str, Any]]) -> None:
    """Add the pages and what they load to an application; ``document`` gives the OpenAPI document."""

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _file(request, "page.html")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _file(request, "docs.html")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(msgspec.json.encode(document()), media_type="application/json")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        # By its name among those that there are: no path leads anywhere else.
        if name not in FILES:
            raise Refusal(404, "Not Found", "no such file")
        return _file(request, name)
