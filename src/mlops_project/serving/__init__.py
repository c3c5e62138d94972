"""The HTTP service (needs the extra ``serving``). No stage and no other room imports this one."""

from __future__ import annotations

import os
from pathlib import Path

from mlops_project.errors import PipelineError


def environment(name: str, default: str | None = None) -> str | None:
    """Value of the variable ``name``, or the content of the file that ``name_FILE`` names, as mounted secrets are given.

    Raises
    ------
    PipelineError
        If both are set, or the file cannot be read. The message never holds the value.
    """
    value, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if value is not None and file is not None:
        raise PipelineError(f"{name}: found it and {name}_FILE in the environment, expected one of them")
    if file is None:
        return default if value is None else value
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{name}_FILE: {file} cannot be read ({type(error).__name__}), expected a text file") from None
