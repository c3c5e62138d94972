"""`mlops-monitor`: keep the log's reports of quality, drift and incoming data up to date, and show what Prometheus knows."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_project.config import METRICS, MODELS, PREDICTIONS
from mlops_project.runtime import guarded, setup_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlops_project.serving.stores import Store

# As mlops-drift: something was found.
FOUND = 3
POLICY = MODELS / "policy.json"
CLEANING = METRICS / "prepare.json"
PAGE = Path("reports/monitor.html")


def main(argv: list[str] | None = None) -> int:
    """`mlops-monitor run`, `mlops-monitor data`, `mlops-monitor report`."""
    parser = argparse.ArgumentParser(
        description="Put the latest figures into the prediction log, from where the service's /metrics shows them to Prometheus.",
        epilog="examples:\n"
        "  mlops-monitor run                     rolling quality, as far as outcomes are known\n"
        "  mlops-monitor run --drift --since 7d  and drift of the last seven days\n"
        "  mlops-monitor data new.csv            counts of mlops-validate, and whether they jumped\n"
        "  mlops-monitor report --hours 168      the dashboard's views of a week as a page\n\n"
        "exit code: 0 nothing to tell, 3 quality is worse, drift, or a jump; 1 it could not be looked at",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--log-url", metavar="URL", help="of the prediction log (MLOPS_LOG_URL or MLOPS_LOG_URL_FILE; see mlops-serve)"
    )
    shared.add_argument("--json", metavar="FILE", help="write the report as JSON too")
    shared.add_argument("-v", "--verbose", action="store_true", help="show details and, on errors, the traceback")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[shared], help="quality of what was decided, and drift if asked")
    run.add_argument("--drift", action="store_true", help="run mlops-drift on the log too")
    run.add_argument("--since", metavar="TIME", default="7d", help="with --drift: its window (default: %(default)s)")
    run.add_argument("--scores", type=Path, metavar="FILE", help=f"default: {PREDICTIONS}/out_of_fold.csv")
    run.add_argument("--policy", type=Path, default=POLICY, metavar="FILE", help="default: %(default)s")
    data = commands.add_parser("data", parents=[shared], help="counts of an incoming file beside those of the raw table")
    data.add_argument("file", help="CSV or Parquet file, - for CSV on standard input")
    data.add_argument("--no-target", dest="target", action="store_false", help="the file needs no outcome column")
    data.add_argument("--no-record", dest="record", action="store_false", help="keep nothing in a log: for CI")
    data.add_argument("--counts", type=Path, default=CLEANING, metavar="FILE", help="of the raw table (default: %(default)s)")
    report = commands.add_parser("report", help="write the dashboard's four views as one HTML page")
    report.add_argument("--prometheus", default="http://localhost:9090", metavar="URL", help="default: %(default)s")
    report.add_argument("--hours", type=_hours, default=24.0, metavar="N", help="of the past (default: %(default)g)")
    report.add_argument(
        "-o", "--output", type=Path, default=Path("reports/monitor.html"), metavar="FILE", help="default: %(default)s"
    )
    report.add_argument("-v", "--verbose", action="store_true", help="show details and, on errors, the traceback")
    args = parser.parse_args(argv)
    setup_logging(logging.DEBUG if args.verbose else logging.WARNING)
    work: dict[str, Callable[[argparse.Namespace], int]] = {"run": _run, "data": _data, "report": _report}
    return guarded(lambda: work[args.command](args), verbose=args.verbose, failed=1)


@contextlib.contextmanager
def _store(args: argparse.Namespace) -> Iterator[Store]:
    with contextlib.closing(_open(args)) as store:
        yield store


def _open(args: argparse.Namespace) -> Store:
    from mlops_project.serving import environment
    from mlops_project.serving.stores import DEFAULT_URL, open_store

    return open_store(args.log_url or environment("MLOPS_LOG_URL") or DEFAULT_URL, create=False)


def _run(args: argparse.Namespace) -> int:
    from mlops_project.config import load_params, table_path
    from mlops_project.errors import DataError
    from mlops_project.files import read_table, write_json
    from mlops_project.modeling.policy import Policy
    from mlops_project.monitoring.quality import DAY, quality, read_window, reference_of

    params = load_params()
    try:
        policy = Policy.from_json(args.policy.read_text(encoding="utf-8"), str(args.policy))
    except OSError as error:
        raise DataError(f"{args.policy}: cannot be read ({error.strerror}); `dvc repro` writes it") from None
    file = args.scores or table_path(PREDICTIONS, "out_of_fold", params.data)
    scores = read_table(file)
    if not {"repeat", "y_true", "y_proba"} <= {*scores}:
        raise DataError(f"{file}: lacks repeat, y_true or y_proba; expected what the train stage writes")
    now = time.time()
    until = now - params.quality.outcome_days * DAY
    with _store(args) as store:
        window = read_window(store.judged(until - params.quality.window_days * DAY, until))
        waiting = store.number_since(until)
        report = quality(window, reference_of(scores, policy), params.quality, params.evaluate, now)
        report["rows"]["waiting"] = waiting
        store.put_report("quality", _encoded(report))
    if args.json:
        write_json(report, args.json)
    print(_as_text(report), end="")
    codes = {FOUND if report["concept_drift"] else 0, _drift(args) if args.drift else 0}
    # What could not be compared is told before what was found.
    return next((code for code in codes if code not in (0, FOUND)), max(codes))


def _drift(args: argparse.Namespace) -> int:
    from mlops_project.monitoring import command

    return command.main([*(["--log-url", args.log_url] if args.log_url else []), "--since", args.since, "--record"])


def _data(args: argparse.Namespace) -> int:
    from mlops_project.config import load_params
    from mlops_project.dataset import DataLoader
    from mlops_project.files import write_json
    from mlops_project.monitoring.incoming import incoming
    from mlops_project.schema import load_contract
    from mlops_project.validation import validate_table

    params = load_params()
    contract = load_contract(params.data.contract)
    found = validate_table(DataLoader(contract).load(args.file, target=args.target), contract)
    report = {"file": Path(args.file).name, **incoming(found, args.counts, params.quality)}
    if args.record:
        with _store(args) as store:
            store.put_report("data", _encoded(report))
    if args.json:
        write_json(report, args.json)
    print(f"{args.file}: {report['rows']} rows, {report['bad_cells']} bad cells")
    for name, kinds in report["columns"].items():
        for kind, part in kinds.items():
            if part["jump"]:
                print(f"{name}: {part['share']:.1%} {kind.replace('_', ' ')}, {part['reference']:.1%} in the raw table")
    print("a share jumped" if report["jump"] else "no share jumped")
    return FOUND if report["jump"] else 0


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= 24 * 366:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of hours, up to {24 * 366}")
    return hours


def _report(args: argparse.Namespace) -> int:
    from mlops_project.files import atomic_path
    from mlops_project.monitoring.overview import Prometheus, as_html

    page = as_html(Prometheus(args.prometheus), time.time(), args.hours)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.output) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    print(f"{args.output}: written")
    return 0


def _encoded(report: dict[str, Any]) -> bytes:
    from mlops_project.files import rounded

    return json.dumps(rounded(report), ensure_ascii=False).encode()


def _as_text(report: dict[str, Any]) -> str:
    rows = report["rows"]
    start, end = (report["window"][key][:10] for key in ("from", "to"))
    lines = [
        f"{start} to {end}: {rows['approved']} approved, outcomes of {rows['with_outcome']}; {rows['waiting']} later ones wait"
    ]
    lines += [f"note: {note}" for note in report["notes"]]
    if report["figures"]["roc_auc"]["value"] is not None:
        lines.append(f"{'among approved':<16}{'value':>8}{'interval':>18}{'reference':>11}{'p':>9}")
    for name, figure in report["figures"].items():
        if figure["value"] is not None:
            interval = f"{figure['low']:.3f} to {figure['high']:.3f}"
            p_value = "" if figure["p_value"] is None else f"{figure['p_value']:.2g}{'*' if figure['worse'] else ' '}"
            lines.append(f"{name:<16}{figure['value']:>8.3f}{interval:>18}{figure['reference']:>11.3f}{p_value:>9}")
    if not report["judged"]:
        lines.append("not judged")
    else:
        lines.append(f"{'worse' if report['concept_drift'] else 'not worse'} than the reference")
    return "\n".join(lines) + "\n"
