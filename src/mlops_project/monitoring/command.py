"""`mlops-drift`: compare a window of applicants with the rows that the model was trained on."""

from __future__ import annotations

import argparse
import gc

gc.disable()  # while importing, and until the end: it would collect nothing

import contextlib
import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_project.config import BEST_MODEL, METRICS, PREDICTIONS, PROCESSED
from mlops_project.runtime import guarded, setup_logging

if TYPE_CHECKING:
    from datetime import datetime

    from mlops_project.monitoring.windows import Rows
    from mlops_project.schema import Contract

CLEANING = METRICS / "prepare.json"
DRIFT = 3


def _moment(text: str) -> datetime:
    from mlops_project.monitoring.windows import moment

    try:
        return moment(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a date such as 2026-01-31 or a span such as 7d") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of predictions such as 1000")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """`mlops-drift [WINDOW]`."""
    parser = argparse.ArgumentParser(
        description="Compare a window of applicants with the rows that the model was trained on: each feature, the score,\n"
        "missing and forbidden cells, and all features together. Thresholds hold for all tests together and for this window's\n"
        "size (params.yaml, monitoring). The window comes out of the prediction log, an export of it, or a table with the\n"
        "contract's columns.",
        epilog="examples:\n"
        "  mlops-drift --log-url sqlite:///var/predictions.db --since 7d\n"
        "  mlops-drift --last 5000 --json drift.json --html drift.html\n"
        "  mlops-drift data/processed/Xtest.csv --prometheus /var/lib/node_exporter/mlops_drift.prom\n\n"
        "exit code: 0 no drift, 3 drift, 1 it could not be compared",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("window", metavar="WINDOW", nargs="?", help="CSV or Parquet file; without it the prediction log is read")
    parser.add_argument(
        "--log-url",
        metavar="URL",
        help="of the prediction log: sqlite:///path or postgresql://… (MLOPS_LOG_URL or MLOPS_LOG_URL_FILE; default:"
        " sqlite:///var/predictions.db)",
    )
    parser.add_argument("--last", type=_count, metavar="N", help="of log or export: the newest N predictions")
    parser.add_argument("--since", type=_moment, metavar="TIME", help="of log or export: from then on; a date, or a span (7d)")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="of log or export: before then")
    parser.add_argument(
        "--model-version", metavar="VERSION", help="of log or export: what this model answered (its first digits will do)"
    )
    parser.add_argument("--reference", metavar="FILE", help=f"rows to compare with (default: {PROCESSED}/Xtraintest.csv)")
    parser.add_argument(
        "--scores", metavar="FILE", help=f"out-of-fold predictions of the reference (default: {PREDICTIONS}/out_of_fold.csv)"
    )
    parser.add_argument("--model", metavar="FILE", default=str(BEST_MODEL), help="scores a table (default: %(default)s)")
    parser.add_argument("--no-scores", action="store_true", help="leave the score out")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON, - for standard output in place of the table")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page with plots")
    parser.add_argument("--prometheus", metavar="FILE", help="write the statistics in Prometheus's text format")
    parser.add_argument(
        "--record", action="store_true", help="keep the report in the log, where /metrics of the service finds it"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show details and, on errors, the traceback")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('mlops-project')}")
    args = parser.parse_args(argv)
    if args.window and args.log_url and not args.record:
        parser.error("--log-url: goes without WINDOW, or with --record")
    setup_logging(logging.DEBUG if args.verbose else logging.WARNING)
    return guarded(lambda: _compare(args), verbose=args.verbose, failed=1)


def _compare(args: argparse.Namespace) -> int:
    from mlops_project.config import load_params, table_path
    from mlops_project.files import atomic_path, write_json
    from mlops_project.monitoring.drift import drift, provenance
    from mlops_project.monitoring.render import as_prometheus, as_text
    from mlops_project.monitoring.windows import read_reference
    from mlops_project.schema import load_contract

    params = load_params()
    contract = load_contract(params.data.contract)
    default = args.reference is None
    path = table_path(PROCESSED, "Xtraintest", params.data) if default else Path(args.reference)
    scores = None if args.no_scores else args.scores or (table_path(PREDICTIONS, "out_of_fold", params.data) if default else None)
    reference = read_reference(path, contract, scores, CLEANING if default else None)
    window = _window(args, contract)
    reference.facts.update(provenance(path))
    notes = []
    if reference.facts["recorded"] is False:
        notes.append(f"{path} is not what dvc.lock records; `dvc checkout` restores it")
    if scores is not None:
        window, note = _scored(window, Path(args.model), contract)
        notes += [note] if note else []
    report = drift(reference, window, contract, params.monitoring) | {"notes": notes}
    if args.json == "-":
        from mlops_project.files import rounded

        print(json.dumps(rounded(report), indent=2, ensure_ascii=False))
    else:
        print(as_text(report), end="")
        if args.json:
            write_json(report, args.json)
    texts: dict[str, Any] = {args.prometheus: as_prometheus}
    if args.html:
        from mlops_project.monitoring.page import as_html

        texts[args.html] = as_html
    for file, write in texts.items():
        if file:
            with atomic_path(file) as temporary:
                temporary.write_text(write(report), encoding="utf-8", newline="\n")
    if args.record:
        _record(args, report)
    return DRIFT if report["drift"] else 0


def _window(args: argparse.Namespace, contract: Contract) -> Rows:
    from mlops_project.monitoring.windows import read_log, read_window

    cut = {"since": args.since, "until": args.until, "model_version": args.model_version, "last": args.last}
    if args.window:
        return read_window(args.window, contract, **cut)
    return read_log(_log_url(args), contract, **cut)


def _log_url(args: argparse.Namespace) -> str:
    from mlops_project.serving import environment
    from mlops_project.serving.stores import DEFAULT_URL

    return args.log_url or environment("MLOPS_LOG_URL") or DEFAULT_URL


def _record(args: argparse.Namespace, report: dict[str, Any]) -> None:
    from mlops_project.files import rounded
    from mlops_project.serving.stores import open_store

    with contextlib.closing(open_store(_log_url(args), create=False)) as store:
        store.put_report("drift", json.dumps(rounded(report), ensure_ascii=False).encode())


def _scored(window: Rows, path: Path, contract: Contract) -> tuple[Rows, str]:
    """Let the model score a table; of predictions say whether the scores are this model's."""
    if not path.is_file():
        return window, f"{path}: not found, so the score {'is not compared' if window.p_good is None else 'may be of another'}"
    if window.table is not None:
        from mlops_project.monitoring.scoring import p_good

        return window._replace(p_good=p_good(path, window.values, window.table, contract)), ""
    ours = window.facts["model_versions"].get(hashlib.sha256(path.read_bytes()).hexdigest(), 0)
    others = len(window.values) - ours
    return window, (
        f"{others} of {len(window.values)} predictions are of other models than {path}: the score may have moved by that alone"
        " (--model-version)"
        if others
        else ""
    )
