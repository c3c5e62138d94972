"""Console commands. They parse arguments, call the package and print; the work is done elsewhere."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def _run(work: Callable[[], int | None], *, verbose: bool, failed: int | None = None, log_level: int = logging.WARNING) -> int:
    setup_logging(logging.DEBUG if verbose else log_level)
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


def tune(argv: list[str] | None = None) -> int:
    """`mlops-tune`: search hyper-parameters, and say by nested cross-validation what that gains."""
    parser = _parser(
        "Search the hyper-parameters of one model (tune.space in params.yaml) on the development rows, and measure by nested\n"
        "cross-validation what searching gains. Held-out rows are not read. Interrupted or killed, it goes on where it was.",
        "  mlops-tune                                  the model that train.model names\n"
        "  mlops-tune --model xgboost --trials 50      another one\n"
        "  mlops-tune --model xgboost --write always   write the values even if the gain may be noise\n\n"
        "Values go to models.<model> in params.yaml and to the copies for blend and best; trials and report go to tuning/.",
    )
    parser.add_argument("--model", help="a model with hyper-parameters of its own (default: train.model)")
    parser.add_argument("--trials", type=int, help="trials per search (default: tune.n_trials)")
    parser.add_argument(
        "--write",
        choices=("if-better", "always", "never"),
        default="if-better",
        help="write the values into params.yaml: if the interval of the gain is above 0, always or never (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.trials is not None and args.trials < 1:
        parser.error(f"--trials: found {args.trials}, expected 1 or more")

    def _tune() -> None:
        import json

        import pandas as pd

        from mlops_project.config import PARAMS_FILE, PROCESSED, TUNING, load_params
        from mlops_project.files import atomic_path, read_table, write_table
        from mlops_project.preprocessing import build_preprocessor
        from mlops_project.schema import load_contract
        from mlops_project.tuning import tune, write_values

        params = load_params()
        contract = load_contract(params.data.contract)
        X = read_table(PROCESSED / "Xtraintest.csv", contract.text_columns)
        y = read_table(PROCESSED / "ytraintest.csv").loc[X.index, contract.target.name]
        shown = contract.without(contract.protected) if params.featurize.without_protected else contract
        preprocessor = build_preprocessor(shown, params.featurize)
        report, trials = tune(X, y, preprocessor, contract, params, TUNING, name=args.model, n_trials=args.trials)
        model, values = report["model"], report["values"]
        write_table(pd.DataFrame(trials), TUNING / f"{model}.csv", index=False)
        with atomic_path(TUNING / f"{model}.json") as temporary:  # not rounded: small values would lose digits
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        for line in _tuning_lines(report):
            print(line)
        if values == report["current"] or args.write == "never" or (args.write == "if-better" and not report["better"]):
            print(f"{PARAMS_FILE} is left as it is")
        else:
            print(f"{PARAMS_FILE}: written to {', '.join(write_values(PARAMS_FILE, model, values))}; train it: make pipeline")

    return _run(_tune, verbose=args.verbose, log_level=logging.INFO)


def _tuning_lines(report: dict[str, Any]) -> list[str]:
    gain, current, values = report["gain"], report["current"], report["values"]
    lines = [
        f"{report['model']}: {report['n_trials']} trials per search, {report['seconds']} s; {report['metric']} on unseen rows",
        f"  {'outer fold':<12}{'current':>9}{'tuned':>9}",
    ]
    lines += [f"  {number:<12}{fold['current']:>9.4f}{fold['tuned']:>9.4f}" for number, fold in enumerate(report["folds"], 1)]
    lines.append(
        f"  gain {gain['mean']:+.4f}, {gain['confidence']:.0%} interval {gain['low']:+.4f} to {gain['high']:+.4f}"
        " (above 0: better)"
    )
    lines.append("Search on all development rows (its own score flatters: it is the best of many)")
    lines.append(f"  {report['metric']:<18}{report['search']['current']:>12.4f}{report['search']['best']:>12.4f}")
    lines += [f"  {key:<18}{current[key]!s:>12}{values[key]!s:>12}" for key in values]
    return [*lines, report["verdict"]]


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


def compare(argv: list[str] | None = None) -> int:
    """`mlops-compare BASE [HEAD]`: what a change does, whether that is more than noise, and with --gate whether it may go in."""
    parser = _parser(
        "Compare two revisions: params, data, code, every metric, and a verdict (better, worse, within noise, no change) from\n"
        "paired predictions. A revision is whatever Git knows, a DVC experiment, or `workspace`.",
        "  mlops-compare main                                  the workspace with main\n"
        "  mlops-compare main my-branch --markdown review.md --json review.json --images review\n"
        "  mlops-compare HEAD dusty-mole                       an experiment\n"
        "  mlops-compare origin/main HEAD --gate               run HEAD's pipeline again, hold it to review.yaml\n\n"
        "exit code: 0 compared (with --gate: passed), 1 with --gate a rule is broken, 2 it could not be compared",
    )
    parser.add_argument("base", metavar="BASE", help="the revision that stands")
    parser.add_argument("head", metavar="HEAD", nargs="?", default="workspace", help="the change (default: %(default)s)")
    parser.add_argument("--gate", action="store_true", help="hold the head to review.yaml of the base; runs its pipeline again")
    parser.add_argument("--reproduce", action="store_true", help="run a pipeline again where its predictions are nowhere")
    parser.add_argument("--markdown", metavar="FILE", help="write the report as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--images", metavar="FOLDER", help="write ROC and calibration curves as SVG")
    args = parser.parse_args(argv)

    def _compare() -> int:
        from mlops_project.files import atomic_path, write_json
        from mlops_project.review.curves import write_images
        from mlops_project.review.report import as_markdown, as_text
        from mlops_project.review.review import review

        report, predictions = review(args.base, args.head, gate=args.gate, reproduce_missing=args.reproduce)
        print(as_text(report), end="")
        images = []
        if args.images and predictions is not None:
            names = report["base"]["label"], report["head"]["label"]
            images = write_images(Path(args.images), (predictions[0].held_out, predictions[1].held_out), names)
        if args.markdown:
            with atomic_path(args.markdown) as temporary:
                text = as_markdown(report, images, Path(args.markdown).parent)
                temporary.write_text(text, encoding="utf-8", newline="\n")
        if args.json:
            write_json(report, args.json)
        return 1 if args.gate and not report["gate"]["passed"] else 0

    # 1 is for a broken rule; what could not be compared is 2.
    return _run(_compare, verbose=args.verbose, failed=2, log_level=logging.INFO)
