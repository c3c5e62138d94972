"""The OpenAPI document: what FastAPI knows of its routes, and what the data contract says of an applicant.

Names and types are constraints; codes, ranges and units are annotations (``x-…``), since a value that the contract does not
allow is accepted and treated as missing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from mlops_project.serving.applicants import ARROW, CSV, JSON, PARQUET
from mlops_project.serving.predict import MOST_REASONS, Answer

if TYPE_CHECKING:
    from mlops_project.schema import Column
    from mlops_project.serving.models import Served

CELL = ["string", "number", "boolean", "null"]
PROBLEM_TYPE = "application/problem+json"
PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. Where the body is at fault, `errors` names row (from 0), field and fault.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {"row": {"type": "integer"}, "field": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
PROBLEMS = {
    400: "The request cannot be read",
    401: "No valid key",
    403: "The key's scope is too small",
    408: "The body came too slowly",
    413: "The body is too large, or holds too many applicants",
    415: "The body's type is none that can be read",
    422: "The body is read, and does not hold what is expected",
    429: "Too many requests",
    500: "A fault of the service",
    501: "Arrow and Parquet are not installed here",
    503: "No model, or the prediction log cannot be written: nothing was answered",
}
SECURITY: list[dict[str, list[str]]] = [{"key": []}, {"header": []}]
SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key (mlops-keys create)"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in a header of its own"},
}


def openapi(base: dict[str, Any], served: Served | None, shapes: list[Any], *, secured: bool) -> dict[str, Any]:
    """Return the document.

    Parameters
    ----------
    base : dict
        FastAPI's own document.
    served : Served, optional
        Its contract says what an applicant is.
    shapes : list of type
        What other routes take and give.
    secured : bool
        Whether keys are asked for.
    """
    components = base.setdefault("components", {}).setdefault("schemas", {})
    # FastAPI's own description of errors, which are problems here.
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    _, found = msgspec.json.schema_components([Answer, *shapes], ref_template="#/components/schemas/{name}")
    components |= found | {"Problem": PROBLEM, "Applicant": applicant(served)}
    base["paths"]["/v1/predict"] = {"post": _predict(_csv(served))}
    for path, operations in base["paths"].items():
        for operation in operations.values():
            codes = [code for code in PROBLEMS if _may(code, path, operation)]
            operation["responses"].pop("422", None)
            operation["responses"] |= {str(code): _problem(PROBLEMS[code]) for code in codes}
            if secured and _keyed(path):
                operation["security"] = SECURITY
            operation["responses"] = dict(sorted(operation["responses"].items()))
    if secured:
        base["components"]["securitySchemes"] = SCHEMES
    return base


def _keyed(path: str) -> bool:
    return path.startswith("/v1/")


def _may(code: int, path: str, operation: dict[str, Any]) -> bool:
    if code in (401, 403, 429):
        return _keyed(path)
    if code in (408, 413, 415, 422):
        return "requestBody" in operation
    if code == 501:
        return path == "/v1/predict"
    return code in (400, 500) or _keyed(path) or path == "/readyz"


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _csv(served: Served | None) -> dict[str, Any]:
    """Return the schema of a CSV body: header and rows in the order of the contract; other orders and delimiters will do, too."""
    schema: dict[str, Any] = {"type": "string", "description": "UTF-8; comma, semicolon, tab or |; columns in any order"}
    if served is not None:
        names, cell = served.names.features, r'[^",;|\t\r\n]*'
        header = ",".join(re.escape(name) for name in names)
        schema["pattern"] = rf"^{header}(\r?\n{cell}(,{cell}){{{len(names) - 1}}})+\r?\n?$"
    return schema


def _predict(csv: dict[str, Any]) -> dict[str, Any]:
    one, many = {"$ref": "#/components/schemas/Applicant"}, {"type": "array", "minItems": 1}
    binary = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    table = {ARROW: binary, PARQUET: binary}
    return {
        "tags": ["predict"],
        "operationId": "predict",
        "summary": "Score one applicant, or many",
        "description": (
            "One object, an array of objects, or a table in CSV, Arrow or Parquet with the contract's columns. Cells are read as"
            " the pipeline reads the raw table: what the contract does not allow is treated as missing, and the answer says so."
            " JSON may also be one object of all columns, each an array with a cell per applicant; then `predictions` is one"
            " of arrays, too. (A schema cannot say that arrays are of one length, so only the words here describe it.)"
            " The answer is sent only after it was written to the prediction log. A table is answered with a table of the same"
            " type, unless only JSON is accepted."
        ),
        "parameters": [
            {
                "name": "reasons",
                "in": "query",
                "description": "How many reasons to give per applicant: the columns that lower the score most, in words.",
                "schema": {"type": "integer", "minimum": 0, "maximum": MOST_REASONS, "default": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"anyOf": [one, {**many, "items": one}]}}, CSV: {"schema": csv}, **table},
        },
        "responses": {
            "200": {
                "description": "One prediction per applicant, in their order",
                "headers": {
                    "X-Request-Id": {"description": "As in the prediction log", "schema": {"type": "string"}},
                    "X-Model-Version": {"description": "SHA-256 of the model file", "schema": {"type": "string"}},
                },
                "content": {
                    JSON: {"schema": {"$ref": "#/components/schemas/Answer"}},
                    CSV: {"schema": {"type": "string"}},
                    **table,
                },
            }
        },
    }


def applicant(served: Served | None) -> dict[str, Any]:
    """Return the schema of one applicant."""
    schema: dict[str, Any] = {"type": "object", "title": "Applicant", "additionalProperties": False}
    if served is None:
        return schema | {"additionalProperties": True}
    contract, names = served.scorer.contract, served.names
    properties = {name: _cell(contract.columns[name]) for name in names.features}
    ignored = {"type": CELL, "description": "accepted and ignored: the model does not read it", "x-ignored": True}
    properties |= dict.fromkeys(sorted(names.ignored), ignored)
    reference = (
        "your own name of the applicant, by which `mlops-predictions` finds the logged records; the model does not read it"
    )
    properties[names.reference] = {"type": CELL, "description": reference, "x-reference": True}
    example = {name: _example(contract.columns[name]) for name in names.features}
    return schema | {
        "description": "One row of the data contract. A column that is left out, empty or null is missing.",
        "properties": properties,
        "examples": [example],
    }


def _cell(column: Column) -> dict[str, Any]:
    cell: dict[str, Any] = {"type": CELL, "title": column.english.replace("_", " ")}
    cell |= {"description": column.meaning, "x-kind": column.kind, "x-domain": column.domain}
    if column.unit:
        cell["x-unit"] = column.unit
    if column.codes is not None:
        words = list(column.codes.values()) if isinstance(column.codes, dict) else column.code_list
        cell["x-codes"] = [{"code": code, "meaning": str(word)} for code, word in zip(column.code_list, words, strict=True)]
    if column.range is not None:
        cell["x-range"] = column.range
    return {key: value for key, value in cell.items() if value != ""}


def _example(column: Column) -> Any:
    if column.codes is not None:
        return column.code_list[len(column.code_list) // 2]
    low, high = column.range or (0.0, 1.0)
    middle = round((3 * low + high) / 4)
    return middle if low <= middle <= high else low
