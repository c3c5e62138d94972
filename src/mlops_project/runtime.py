"""What every stage and command shares: logging, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_project.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_FILE = Path("logs/mlops_pipeline.log")
LAST_ERROR = Path("logs/last_error.json")
LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

logger = logging.getLogger("mlops_project")


def setup_logging(log_level: int = logging.INFO) -> None:
    """Log readable lines to stderr and full ones to ``logs/mlops_pipeline.log``. Called by commands, never at import.

    A log file that cannot be written is reported and does not stop the work.
    """
    logger.setLevel(logging.DEBUG)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(log_level)
    console.setFormatter(logging.Formatter("%(message)s" if log_level > logging.DEBUG else LOG_FORMAT))
    logger.addHandler(console)
    try:
        LOG_FILE.parent.mkdir(exist_ok=True)
        log_file = logging.FileHandler(LOG_FILE, encoding="utf-8")
    except OSError as error:
        logger.warning("%s: no log file (%s)", LOG_FILE, error.strerror)
        return
    log_file.setFormatter(logging.Formatter(LOG_FORMAT))
    logger.addHandler(log_file)


def guarded(work: Callable[[], int | None], *, verbose: bool = False, hint: str = "", failed: int | None = None) -> int:
    """Run ``work`` and return an exit code; expected errors become one line on stderr, the rest goes to the log file.

    ``failed`` is the exit code of expected errors where the command gives their usual one another meaning.
    """
    try:
        code = work() or 0
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
        return code
    except PipelineError as error:
        logger.debug("traceback", exc_info=True) if not verbose else logger.exception("failed")
        print(f"error: {error}{hint}", file=sys.stderr)
        return error.exit_code if failed is None else failed
    except BrokenPipeError:  # the reader has gone (`| head`)
        _discard_output()
        return 141
    except KeyboardInterrupt:
        print("interrupted; nothing half-written", file=sys.stderr)
        return 130
    except (OSError, MemoryError) as error:
        # Not of this code, but of the machine: standard output on a full disk, a folder without permission.
        logger.debug("traceback", exc_info=True) if not verbose else logger.exception("failed")
        _discard_output()
        told = "out of memory; try fewer rows or a machine with more memory"
        if isinstance(error, OSError):
            told = f"{error.filename or 'standard output'}: {error.strerror or error}; check path, permissions and free space"
        print(f"error: {told}{hint}", file=sys.stderr)
        return 1 if failed is None else failed
    except Exception as error:  # noqa: BLE001 - the last line of defence
        # A bug, not bad input: the traceback is what a report needs, so it is kept in the log file.
        logger.debug("traceback", exc_info=True) if not verbose else logger.exception("failed")
        print(
            f"error: unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            f" (a bug; traceback in {LOG_FILE} or with --verbose){hint}",
            file=sys.stderr,
        )
        return 70


def _discard_output() -> None:
    """Let what is still in the buffer not raise again when Python exits."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def recorded(work: Callable[[], None]) -> None:
    """Run ``work``; if it fails, leave class and message of its error in ``logs/last_error.json``, else no such file.

    DVC exits with 255 whatever a stage died of; an orchestrator reads here whether trying again can help.
    """
    # Removed first, so that a killed stage does not pass for one that failed as the last one did.
    with contextlib.suppress(OSError):
        LAST_ERROR.unlink()
    try:
        work()
    except Exception as error:
        # As with the log file: a folder that cannot be written does not change what happens.
        with contextlib.suppress(OSError):
            LAST_ERROR.write_text(json.dumps({"class": type(error).__name__, "message": str(error)}), encoding="utf-8")
        raise


def run_stage(main: Callable[[], None], description: str | None) -> None:
    """Run a stage script: ``python src/<stage>.py [--verbose]`` in the folder that holds params.yaml."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Usually run by `dvc repro`, which also records what was made from what.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show details and, on errors, the traceback")
    verbose = parser.parse_args().verbose
    setup_logging(logging.DEBUG if verbose else logging.INFO)
    hint = ""
    if "DVC_STAGE" in os.environ:
        hint = " | dvc removed this stage's old outputs before it ran: `make restore` brings the last good state back"
    # What was imported stays until the end: the garbage collector need not look at it.
    gc.freeze()
    gc.enable()
    code = guarded(lambda: recorded(main), verbose=verbose, hint=hint)
    gc.freeze()
    sys.exit(code)
