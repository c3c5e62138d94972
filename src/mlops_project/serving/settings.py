"""Settings of the service: flags of `mlops-serve`, or variables of the environment."""

from __future__ import annotations

import argparse
import ipaddress
import os
from typing import TYPE_CHECKING, Any

import msgspec

from mlops_project.errors import ParamsError
from mlops_project.serving import environment
from mlops_project.serving.keys import KeyStore, seconds_of
from mlops_project.serving.state import Files

if TYPE_CHECKING:
    from collections.abc import Callable


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told."""

    files: Files = Files()
    keys: str | None = "var/api-keys.json"
    """File of the keys; None: whoever reaches the service may call it."""
    log: str | None = "sqlite:///var/predictions.db"
    durable: bool = True
    retention: float | None = None
    rate_limit: str | None = "6000/minute"
    rate_storage: str = "memory://"
    rate_fail_closed: bool = False
    max_body: int = 16 * 1024 * 1024
    max_rows: int = 100_000
    body_seconds: float = 10.0
    request_seconds: float = 30.0
    grace: float = 30.0


class Option:
    """A setting: a flag, and a variable of the environment (or a file that ``…_FILE`` names)."""

    def __init__(self, flag: str, kind: Callable[[str], Any], default: Any, text: str, *, secret: bool = False) -> None:
        self.flag, self.kind, self.default, self.text, self.secret = flag, kind, default, text, secret
        self.variable = "MLOPS_" + flag.removeprefix("--").replace("-", "_").upper()

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Add it to a parser; a secret has no flag, since arguments are seen by all."""
        if not self.secret:
            shown = "none" if self.default is None else self.default
            parser.add_argument(self.flag, type=self.kind, metavar="…", help=f"{self.text} ({self.variable}; default: {shown})")

    def value(self, given: Any) -> Any:
        """Return what holds: flag, else environment, else default. Raises ParamsError."""
        if given is not None:
            return given
        found = environment(self.variable)
        if found is None or found == "":
            return self.default
        try:
            return self.kind(found)
        except (ValueError, argparse.ArgumentTypeError) as error:
            shown = "what was found" if self.secret else repr(found)
            raise ParamsError(f"{self.variable}: {shown} cannot be used ({error})") from None


def _number(low: float, high: float, kind: type = int) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from {low:g} to {high:g}")
        return value

    return number


def _policy(text: str) -> str:
    if text not in ("open", "closed"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected open or closed")
    return text


FILES = Files()
DEFAULTS = Settings()
OPTIONS = (
    Option("--host", str, "127.0.0.1", "address to listen at"),
    Option("--port", _number(0, 65535), 8000, "port, 0: any free one"),
    Option("--workers", _number(1, 256), None, "worker processes; default: one per processor"),
    Option("--model", str, FILES.model, "model file"),
    Option("--policy", str, FILES.policy, "decision policy"),
    Option("--state", str, FILES.state, "folder of compiled plans"),
    Option("--keys-file", str, DEFAULTS.keys, "API keys (mlops-keys)"),
    Option(
        "--log-url", str, DEFAULTS.log, "prediction log: sqlite:///PATH or postgresql://…; a password belongs in the variable"
    ),
    Option("--retention", seconds_of, None, "delete predictions after this, such as 365d; default: never"),
    Option("--rate-limit", str, DEFAULTS.rate_limit, "requests per key, such as 6000/minute; off: none"),
    Option("--rate-storage", str, DEFAULTS.rate_storage, "memory:// (each worker counts) or redis://… (all share)"),
    Option("--rate-when-down", _policy, "open", "open or closed: what holds while Redis is down"),
    Option("--max-body", _number(1024, 1 << 30), DEFAULTS.max_body, "largest body in bytes"),
    Option("--max-rows", _number(1, 10_000_000), DEFAULTS.max_rows, "most applicants per request"),
    Option("--body-seconds", _number(0.1, 3600, float), DEFAULTS.body_seconds, "time for a body to arrive"),
    Option("--request-seconds", _number(0.1, 3600, float), DEFAULTS.request_seconds, "time for an answer"),
    Option("--grace", _number(0, 3600, float), DEFAULTS.grace, "seconds for requests to finish at the end"),
)


def read_settings(argv: list[str] | None) -> tuple[Settings, str, int, int]:
    """Return settings, host, port and number of workers from flags and environment.

    Raises
    ------
    ParamsError
        If something does not fit: no keys, or ``--insecure`` where others can reach it.
    """
    parser = argparse.ArgumentParser(
        description="Serve the model over HTTP. GET / is a page for people, /docs the documentation.",
        epilog="Each setting is a flag, a variable MLOPS_…, or the content of the file that MLOPS_…_FILE names; flags go first.\n"
        "examples:\n"
        "  mlops-keys create --name me --scope predict && mlops-serve\n"
        "  mlops-serve --insecure\n"
        "  MLOPS_LOG_URL_FILE=/run/secrets/log_url mlops-serve --host 0.0.0.0 --workers 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in OPTIONS:
        option.add(parser)
    parser.add_argument("--insecure", action="store_true", help="ask for no keys; only on this machine (127.0.0.1, ::1)")
    parser.add_argument(
        "--uncommitted", action="store_true", help="load files whose manifest neither Git's HEAD nor a signature vouches for"
    )
    args = vars(parser.parse_args(argv))
    found = {option.flag[2:].replace("-", "_"): option.value(args.get(option.flag[2:].replace("-", "_"))) for option in OPTIONS}
    host: str = found["host"]
    settings = Settings(
        files=Files(found["model"], found["policy"], found["state"], args["uncommitted"]),
        keys=None if args["insecure"] else found["keys_file"],
        log=None if found["log_url"] == "off" else found["log_url"],
        retention=found["retention"],
        rate_limit=None if found["rate_limit"] == "off" else found["rate_limit"],
        rate_storage=found["rate_storage"],
        rate_fail_closed=found["rate_when_down"] == "closed",
        max_body=found["max_body"],
        max_rows=found["max_rows"],
        body_seconds=found["body_seconds"],
        request_seconds=found["request_seconds"],
        grace=found["grace"],
    )
    if args["insecure"] and not _is_loopback(host):
        raise ParamsError(f"--insecure: found --host {host}, expected 127.0.0.1 or ::1; others can reach it, so make keys")
    if settings.keys is not None and not len(KeyStore(settings.keys)):
        raise ParamsError(
            f"{settings.keys}: holds no valid key; `mlops-keys create --name NAME --scope predict --file {settings.keys}`"
            " makes one"
        )
    if settings.rate_limit is not None:
        from mlops_project.serving.limits import RateLimiter

        RateLimiter(settings.rate_limit, settings.rate_storage)  # says what is wrong with them
    return settings, host, found["port"], found["workers"] or len(os.sched_getaffinity(0))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
