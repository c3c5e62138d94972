"""Plain YAML content into typed objects: unknown, missing or wrongly typed keys are refused with the allowed ones."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

if TYPE_CHECKING:
    from mlops_project.errors import PipelineError

T = TypeVar("T")


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of typed settings: frozen, and closed to keys that it does not declare."""


def convert(content: dict[str, Any], kind: type[T], source: str, error: type[PipelineError], within: str = "") -> T:
    """Convert a mapping into ``kind`` (a subclass of `Strict`); ``within`` is the key that holds it.

    Raises
    ------
    PipelineError
        The given ``error`` class, naming ``source``, the key, what was found and what is allowed.
    """
    _check_keys(content, kind, source, within, error)
    try:
        return msgspec.convert(content, kind, strict=True)
    except msgspec.ValidationError as problem:
        message, location = [*re.split(r" - at (?:`key` in )?`\$", str(problem)), ""][:2]
        path = re.findall(r"[^.\[\]`]+", location)
        found, hint, expected = _at(content, path), _allowed(kind, path), message.lower().replace("`", "")
        if hint and expected.startswith("expected"):  # "sqrt, log2" alone would hide that a number may stand there too
            hint = f"{expected}; {hint}"
        where = ".".join([*filter(None, [within]), *path]) or "top level"
        raise error(f"{source}: {where}: found {found!r}; {hint or expected}") from None


def _struct_of(hint: Any) -> type | None:
    return next((t for t in (hint, *get_args(hint)) if isinstance(t, type) and issubclass(t, msgspec.Struct)), None)


def _check_keys(  # noqa: C901 - one branch per way to nest
    content: Any, kind: Any, source: str, path: str, error: type[PipelineError]
) -> None:
    if not isinstance(content, dict):
        raise error(f"{source}: {path or 'top level'}: found {content!r}, expected the keys {', '.join(kind.__struct_fields__)}")
    hints = get_type_hints(kind)
    for key in content:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise error(f"{source}: unknown key {f'{path}.{key}'.lstrip('.')!r}; {guess}allowed: {', '.join(hints)}")
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    for key, hint in hints.items():
        if key not in content:
            if key in required:
                raise error(f"{source}: the key {f'{path}.{key}'.lstrip('.')!r} is missing; expected there: {', '.join(hints)}")
            continue
        origin, nested = get_origin(hint), _struct_of(hint)
        if nested is None or content[key] is None:
            continue
        here = f"{path}.{key}".lstrip(".")
        if origin is dict and isinstance(content[key], dict):
            for name, item in content[key].items():  # msgspec would not say in which item it found fault
                convert(item, nested, source, error, f"{here}.{name}")
        elif origin in (list, tuple) and isinstance(content[key], list):
            for position, item in enumerate(content[key]):
                _check_keys(item, nested, source, f"{here}.{position}", error)
        elif origin is not dict and origin is not list:
            _check_keys(content[key], nested, source, here, error)


def _at(content: Any, path: list[str]) -> Any:
    for key in path:
        if isinstance(content, list) and key.isdigit():
            content = content[int(key)]
        elif isinstance(content, dict):
            content = next((value for name, value in content.items() if str(name) == key), content)
    return content


def _allowed(kind: Any, path: list[str]) -> str:
    for key in path:
        if get_origin(kind) is list and key.isdigit():
            (kind,) = get_args(kind)
            continue
        if (struct := _struct_of(kind)) is None:
            return ""
        kind = get_type_hints(struct).get(key, kind)
    choices = [value for option in (kind, *get_args(kind)) if get_origin(option) is Literal for value in get_args(option)]
    return f"allowed: {', '.join(map(str, choices))}" if choices else ""
