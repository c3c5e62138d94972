"""Console commands. They parse arguments, call the package and print; the work is done elsewhere."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_project.runtime import guarded, setup_logging

if TYPE_CHECKING:
    from collections.abc import Callable

CONTRACT_FILE = "data/schema.yaml"
REPORT_FILE = "reports/report.html"


def _parser(description: str, examples: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show details and, on errors, the traceback")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('mlops-project')}")
    return parser


def _run(work: Callable[[], int | None], *, verbose: bool, failed: int | None = None) -> int:
    setup_logging(logging.DEBUG if verbose else logging.WARNING)
    return guarded(work, verbose=verbose, failed=failed)


def validate(argv: list[str] | None = None) -> int:
    """`mlops-validate FILE`: check a table against the data contract."""
    parser = _parser(
        "Check a credit table against the data contract: every bad cell with row, column, value and rule.",
        "  mlops-validate data/raw/german_credit_modified.csv\n"
        "  mlops-validate new.csv --json report.json --limit 0\n"
        "  head -100 new.csv | mlops-validate - --no-target\n\n"
        "exit code: 0 the table meets the contract, 1 it has bad cells, 2 it could not be checked",
    )
    parser.add_argument("file", help="CSV or Parquet file, - for CSV on standard input")
    parser.add_argument("--contract", default=CONTRACT_FILE, help="data contract (default: %(default)s)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the whole report as JSON, - for standard output in place of the table"
    )
    parser.add_argument("--limit", type=int, default=20, help="bad cells to print, 0 for all (default: %(default)s)")
    parser.add_argument("--no-target", dest="target", action="store_false", help="the file needs no outcome column")
    args = parser.parse_args(argv)
    if args.limit < 0:
        parser.error(f"--limit: found {args.limit}, expected 0 or more")

    def _validate() -> int:
        import json

        from mlops_project.dataset import DataLoader
        from mlops_project.files import write_json
        from mlops_project.schema import load_contract
        from mlops_project.validation import validate_table

        contract = load_contract(args.contract)
        report = validate_table(DataLoader(contract).load(args.file, target=args.target), contract)
        if args.json == "-":
            print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
            return 0 if report.valid else 1
        shown = report.bad_cells if args.limit == 0 else report.bad_cells.head(args.limit)
        for row, column, value, rule in shown.itertuples(index=False):
            print(f"row {row}, {column}: {value!r}: {rule}")
        if len(shown) < len(report.bad_cells):
            print(f"… and {len(report.bad_cells) - len(shown)} more (--limit 0 shows all)")
        print(f"{'column':<20}{'valid':>10}{'missing':>10}{'tokens':>10}{'out of contract':>18}")
        for name, counts in report.columns.items():
            print(f"{name:<20}{counts['valid']:>10}{counts['missing']:>10}{counts['tokens']:>10}{counts['out_of_contract']:>18}")
        print(f"{report.rows} rows, {len(report.bad_cells)} bad cells: {'meets' if report.valid else 'breaks'} {args.contract}")
        if args.json:
            write_json(report.to_dict(), args.json)
        return 0 if report.valid else 1

    # 1 is for bad cells; what could not be checked at all is 2, as with grep and diff.
    return _run(_validate, verbose=args.verbose, failed=2)


def draft_contract(argv: list[str] | None = None) -> int:
    """`mlops-draft-contract FILE`: propose a data contract for a new table."""
    parser = _parser(
        "Propose a data contract for a new credit table: kinds, codes, ranges, target, identifiers; every guess is commented.",
        "  mlops-draft-contract loans.csv                          print the draft\n"
        "  mlops-draft-contract loans.csv --output data/schema.yaml --force\n"
        "  mlops-draft-contract loans.csv --target Status --good paid",
    )
    parser.add_argument("file", help="CSV or Parquet file, - for CSV on standard input")
    parser.add_argument("--target", help="outcome column (default: guessed)")
    parser.add_argument("--good", help="value of the target that means good (default: guessed)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the draft here (default: standard output)")
    parser.add_argument("--force", action="store_true", help="replace the output file if it exists")
    args = parser.parse_args(argv)

    def _draft() -> None:
        from mlops_project.drafting import draft
        from mlops_project.errors import PipelineError
        from mlops_project.files import atomic_path

        if args.output and Path(args.output).exists() and not args.force:
            raise PipelineError(f"{args.output}: exists already; choose another --output or add --force")
        text = draft(args.file, target=args.target, good=args.good)
        if not args.output:
            print(text, end="")
            return
        with atomic_path(args.output) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        print(f"{args.output}: written; read every comment marked CHECK, then `dvc repro`", file=sys.stderr)

    return _run(_draft, verbose=args.verbose)


def report(argv: list[str] | None = None) -> int:
    """`mlops-report`: write one HTML page with all that the pipeline wrote."""
    parser = _parser(
        "Write the figures, plots and lineage of the last `dvc repro` as one HTML page, to be read without a network.",
        "  mlops-report\n  mlops-report --output /tmp/report.html\n\nrun it in the folder that holds dvc.yaml",
    )
    parser.add_argument("-o", "--output", metavar="FILE", default=REPORT_FILE, help="where to write it (default: %(default)s)")
    args = parser.parse_args(argv)

    def _report() -> None:
        from mlops_project.files import atomic_path
        from mlops_project.reporting.page import report as page

        text = page()
        with atomic_path(args.output) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        print(f"{args.output}: written; open it in a browser")

    return _run(_report, verbose=args.verbose)
