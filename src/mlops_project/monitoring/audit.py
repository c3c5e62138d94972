"""The audit log: every decision on the model, one JSON object per line, appended and never changed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_project.errors import PipelineError
from mlops_project.files import rounded

if TYPE_CHECKING:
    from collections.abc import Mapping

AUDIT_LOG = Path("var/retraining.jsonl")


class AuditLog:
    """Appends records to a file, each synced to the disk before the call returns.

    Parameters
    ----------
    path : str or Path
    trigger : str
        Who or what the records are by.
    """

    def __init__(self, path: str | Path = AUDIT_LOG, trigger: str = "") -> None:
        self.path = Path(path)
        self.trigger = trigger

    def append(self, event: str, run: str, content: Mapping[str, Any]) -> None:
        """Append a record: ``time`` (UTC), ``event``, ``run``, ``trigger`` and the content.

        Raises
        ------
        PipelineError
            If the file cannot be written.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"time": now, "event": event, "run": run, "trigger": self.trigger} | rounded(dict(content))
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A line that lost its end with the power stays by itself.
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "ab") as stream:
                stream.write((("\n" if torn else "") + line).encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise PipelineError(f"{self.path}: the audit log cannot be written ({error.strerror})") from None

    def read(self) -> list[dict[str, Any]]:
        """All records, the oldest first; what is no record is left out."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PipelineError(f"{self.path}: the audit log cannot be read ({error.strerror})") from None
        found = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "event" in record:
                found.append(record)
        return found

    def unfinished(self) -> dict[str, Any] | None:
        """The promotion that a killed process began and nobody ended, if there is one."""
        ends = ("promoting", "promoted", "rolled_back", "abandoned")
        last = next((record for record in reversed(self.read()) if record["event"] in ends), None)
        return last if last is not None and last["event"] == "promoting" else None
