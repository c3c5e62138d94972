"""What one request leaves in the prediction log: a record, its results, and how both are written.

A row per applicant would cost more than scoring it. Results, and inputs that came as columns, are MessagePack, which is written
in a seventh of JSON's time and is half as long; other inputs stay the JSON that was sent.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

# Characters from which on a logged whole number is read as a float.
LONG = 300

# To be unique, not secret: the kernel's random numbers take longer than scoring a few applicants.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


class Record(msgspec.Struct, frozen=True, gc=False):
    """One answered request."""

    request_id: str
    """Made by the service (`new_request_id`), never by the caller: it must be unique."""
    time: float
    """Seconds since 1970."""
    model_version: str
    inputs: bytes
    """An object, a list of n objects, or an object of columns, each a list of n cells (see `decoded`)."""
    results: bytes
    """See `results` and `read_results`."""
    rows: int = 1
    """Number n of applicants."""
    applicants: Sequence[str | None] = ()
    """The caller's references to the applicants, by position, if there are any: so they are found for deletion."""


class Logged(NamedTuple):
    """A record as it is read."""

    record: Record
    outcomes: dict[int, tuple[str, float]]
    """Outcome and when it was posted, by position."""


class Judged(NamedTuple):
    """A record without its inputs."""

    model_version: str
    results: bytes
    outcomes: dict[int, str]
    """By position."""


class Report(NamedTuple):
    """The latest report of its name: what commands beside the service found, for `/metrics`."""

    time: float
    """When it was put there, seconds since 1970."""
    content: bytes


class Outcome(NamedTuple):
    """What became of an applicant."""

    request_id: str
    position: int
    outcome: str


def new_request_id() -> str:
    """Return 32 hexadecimal digits: milliseconds first, so that the log's index grows at its end, then 80 random bits."""
    return f"{time.time_ns() // 1_000_000:012x}{_random.getrandbits(80):020x}"


class Results(msgspec.Struct, frozen=True, gc=False):
    """What was answered about n applicants, by columns of n; None where one was deleted since."""

    p_good: list[float | None]
    probability_of_default: list[float | None]
    score: list[float | None]
    decision: list[str | None]


pack = msgspec.msgpack.Encoder().encode
_from_json, _from_msgpack = msgspec.json.Decoder(Results).decode, msgspec.msgpack.Decoder(Results).decode


def results(p_good: list[float], probability_of_default: list[float], score: list[float], decision: list[str]) -> bytes:
    """Return the results of a record."""
    return pack(Results(p_good, probability_of_default, score, decision))  # type: ignore[arg-type] # here none is deleted


def read_results(content: bytes) -> Results:
    """Read what `results` wrote; up to schema 2 it was JSON."""
    return _from_msgpack(content) if is_msgpack(content) else _from_json(content)


def is_msgpack(content: bytes) -> bool:
    """Whether lists and objects are MessagePack, which begins with what is no character of JSON."""
    return content[:1] >= b"\x80"


def decoded(content: bytes) -> Any:
    """Decode inputs of a record. A number that is too large for JSON becomes infinite, since it was logged as it was sent."""
    if is_msgpack(content):
        return msgspec.msgpack.decode(content)
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        # Python turns no text of more than 4,300 digits into a whole number.
        return json.loads(content, parse_int=lambda text: int(text) if len(text) < LONG else float(text))
