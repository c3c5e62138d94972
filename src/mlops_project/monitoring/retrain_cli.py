"""`mlops-retrain`: the retraining loop, its approvals, the way back, and its log."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from mlops_project.monitoring.audit import AUDIT_LOG, AuditLog
from mlops_project.runtime import guarded, recorded, setup_logging

if TYPE_CHECKING:
    from mlops_project.config import RetrainingParams
    from mlops_project.monitoring.promotion import Target

COMMANDS = ("run", "approve", "rollback", "place", "log")
REJECTED = 3
EXAMPLES = """examples:
  mlops-retrain new.csv                                   retrain with new labelled rows, promote what is better
  mlops-retrain run new.csv --require-approval            stop before the promotion
  mlops-retrain run --from-log --drift log                outcomes and reports of the prediction log
  mlops-retrain run new.csv --no-push --serve var/served  no Git remote; the service reads var/served/best_model.joblib
  mlops-retrain approve 20260301-0a1b2c3d                 promote what waits
  mlops-retrain rollback                                  the champion before the present one
  mlops-retrain place --serve var/served                  let a service read the present champion
  mlops-retrain log                                       every decision, the newest last

exit code: 0 promoted, or waiting for approval; 3 rejected, the champion stays; 1 could not be done, the champion stays"""


def _who() -> str:
    """Who or what starts this: the actor of a CI run, or user and host."""
    if actor := os.environ.get("GITHUB_ACTOR"):
        return f"{actor} ({os.environ.get('GITHUB_WORKFLOW', 'workflow')}, run {os.environ.get('GITHUB_RUN_ID', '?')})"
    return f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"


def _given(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("found nothing, expected a value; is a shell variable unset?")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the parser of `mlops-retrain`."""
    found = argparse.ArgumentParser(
        prog="mlops-retrain",
        description="Retrain with new labelled rows in an isolated copy, compare challenger and champion on rows that neither was"
        "\ntrained on, and promote only what is better. Until the promotion nothing outside the copy is touched.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--version", action="version", version=f"%(prog)s {version('mlops-project')}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-v", "--verbose", action="store_true", help="show details and, on errors, the traceback")
    shared.add_argument("--audit", type=_given, metavar="FILE", default=str(AUDIT_LOG), help="audit log (default: %(default)s)")
    shared.add_argument(
        "--trigger", type=_given, metavar="TEXT", default=_who(), help="who or what asks (default: user and host)"
    )
    to = argparse.ArgumentParser(add_help=False)
    to.add_argument("--no-push", dest="push", action="store_false", help="keep the promotion in this repository and DVC cache")
    to.add_argument("--remote", type=_given, metavar="NAME", help="Git remote to push to (default: retraining.remote)")
    to.add_argument(
        "--into", type=_given, metavar="BRANCH", help="branch of the remote to move forward (default: retraining.into)"
    )
    to.add_argument(
        "--serve", type=_given, metavar="LINK", help="link to the files that a service reads (default: retraining.serve)"
    )
    to.add_argument(
        "--reload", type=_given, metavar="URL", help="service to tell by POST /v1/admin/reload; MLOPS_ADMIN_KEY is its key"
    )
    commands = found.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[shared, to], help="retrain and decide (the default)")
    run.add_argument(
        "files", type=_given, nargs="*", metavar="NEW.csv", help="new labelled rows, CSV or Parquet, - for CSV on stdin"
    )
    run.add_argument("--from-log", action="store_true", help="take outcomes of approved applicants from the prediction log")
    run.add_argument("--log-url", type=_given, metavar="URL", help="the prediction log (default: MLOPS_LOG_URL)")
    run.add_argument(
        "--drift",
        type=_given,
        action="append",
        default=[],
        metavar="FILE",
        help="JSON report of the monitoring; log: those that the log keeps",
    )
    run.add_argument("--only-if-drift", action="store_true", help="do nothing unless a report says drift or concept_drift")
    run.add_argument("--concept-drift", action="store_true", help="concept drift is confirmed: the new rows decide")
    run.add_argument(
        "--require-approval", action="store_true", help="stop before the promotion (see retraining.require_approval)"
    )
    run.add_argument(
        "--shadow", action="store_true", help="score the prediction log by both models, and stop before the promotion"
    )
    run.add_argument("--refused", type=_given, metavar="FILE", help="refused applicants for retraining.reject_inference")
    approve = commands.add_parser("approve", parents=[shared, to], help="promote a challenger that waits")
    approve.add_argument("run", type=_given, metavar="ID", help="id or branch of the run")
    commands.add_parser("rollback", parents=[shared, to], help="make the champion before the present one champion again")
    commands.add_parser("place", parents=[shared, to], help="put the present champion where --serve says")
    log = commands.add_parser("log", parents=[shared], help="print the audit log")
    log.add_argument("--json", action="store_true", help="whole records, one per line")
    return found


def main(argv: list[str] | None = None) -> int:
    """Parse arguments and do it; see EXAMPLES for exit codes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0] not in (*COMMANDS, "-h", "--help", "--version")):
        argv.insert(0, "run")
    args = parser().parse_args(argv)
    if args.command == "run" and bool(args.files) == args.from_log:
        parser().error("run: expected files of new rows, or --from-log")
    setup_logging(logging.DEBUG if args.verbose else logging.INFO)
    work = {"run": _run, "approve": _approve, "rollback": _rollback, "place": _place, "log": _log}[args.command]
    codes: list[int] = []
    code = guarded(lambda: recorded(lambda: codes.append(work(args))), verbose=args.verbose)
    return code or codes[0]


def _target(args: argparse.Namespace, settings: RetrainingParams) -> Target:
    from mlops_project.monitoring.promotion import Target

    remote = (args.remote or settings.remote) if args.push else None
    return Target(remote, (args.into or settings.into) if remote else None, args.serve or settings.serve, args.reload)


def _run(args: argparse.Namespace) -> int:
    from mlops_project.config import load_params
    from mlops_project.monitoring.retraining import Request, read_reports, run
    from mlops_project.serving import environment
    from mlops_project.serving.stores import DEFAULT_URL

    params = load_params()
    settings = params.retraining
    log_url = args.log_url or environment("MLOPS_LOG_URL") or DEFAULT_URL
    reports = read_reports(args.drift, log_url)
    if args.only_if_drift and not (args.concept_drift or any(reports.values())):
        print("no drift reported: nothing to do")
        return 0
    request = Request(
        files=tuple(args.files),
        log_url=log_url,
        from_log=args.from_log,
        outcome_days=params.quality.outcome_days,
        concept_drift=args.concept_drift or reports["concept_drift"],
        approval=args.require_approval or settings.require_approval,
        shadow=args.shadow,
        refused=args.refused,
    )
    found = run(request, settings, _target(args, settings), AuditLog(args.audit, args.trigger))
    print("\n".join(found.lines))
    print(f"{found.run}: {found.decision}; champion is {found.champion.label}")
    if found.decision == "awaiting approval":
        print(f"  mlops-retrain approve {found.run}")
    return REJECTED if found.decision == "rejected" else 0


def _approve(args: argparse.Namespace) -> int:
    from mlops_project.config import load_params
    from mlops_project.monitoring.retraining import approve

    champion = approve(args.run, _target(args, load_params().retraining), AuditLog(args.audit, args.trigger))
    print(f"{args.run}: promoted; champion is {champion.label}")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from mlops_project.config import load_params
    from mlops_project.monitoring.retraining import rollback

    champion = rollback(_target(args, load_params().retraining), AuditLog(args.audit, args.trigger))
    print(f"rolled back; champion is {champion.label}")
    return 0


def _place(args: argparse.Namespace) -> int:
    from mlops_project.config import load_params
    from mlops_project.errors import PipelineError
    from mlops_project.monitoring.retraining import place

    target = _target(args, load_params().retraining)
    if target.serve is None:
        raise PipelineError("place: expected --serve LINK, or retraining.serve in params.yaml")
    print(f"{target.serve}: champion is {place(target, AuditLog(args.audit, args.trigger)).label}")
    return 0


def _log(args: argparse.Namespace) -> int:
    for record in AuditLog(args.audit).read():
        if args.json:
            print(json.dumps(record, ensure_ascii=False))
            continue
        reasons = "; ".join(record.get("reasons", []))
        named = record.get("version") or ""
        print(
            "  ".join(filter(None, [record["time"], record["run"], record["event"], named, reasons, f"by {record['trigger']}"]))
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
