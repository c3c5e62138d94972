"""Console commands. They parse arguments, call the package and print; the work is done elsewhere."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_project.runtime import guarded, setup_logging

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from mlops_project.schema import Contract

CONTRACT_FILE = "data/schema.yaml"
REPORT_FILE = "reports/report.html"


def _parser(description: str, examples: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.register("type", None, _given)  # of every argument without a type of its own
    parser.add_argument("-v", "--verbose", action="store_true", help="show details and, on errors, the traceback")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('mlops-project')}")
    return parser


def _given(value: str) -> str:
    """Refuse the empty text that an unset shell variable gives: ``--output "$FILE"`` would replace the pipeline's own file."""
    if not value:
        raise argparse.ArgumentTypeError("found nothing, expected a value; is a shell variable unset?")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected 1 or more")
    return int(text)


def _check_files(parser: argparse.ArgumentParser, args: argparse.Namespace, inputs: str, outputs: str) -> None:
    """Refuse standard input that is read twice, and an output that is an input or another output."""

    def given(names: str) -> list[tuple[str, str]]:
        return [(f"--{name}", path) for name in names.split() if (path := getattr(args, name.replace("-", "_")))]

    read, written = given(inputs), given(outputs)
    if len(twice := [option for option, path in read if path == "-"]) > 1:
        parser.error(f"{' and '.join(twice)}: standard input can be read once; give files")
    for number, (option, path) in enumerate(written):
        others = written[:number] if path == "-" else read + written[:number]
        for other, taken in others:
            if Path(path).resolve() == Path(taken).resolve():
                parser.error(f"{option} and {other}: both are {path}; choose another output")


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
    parser.add_argument("--trials", type=_count, help="trials per search (default: tune.n_trials)")
    parser.add_argument(
        "--write",
        choices=("if-better", "always", "never"),
        default="if-better",
        help="write the values into params.yaml: if the interval of the gain is above 0, always or never (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    def _tune() -> None:
        import json

        import pandas as pd

        from mlops_project.config import PARAMS_FILE, PROCESSED, TUNING, load_params, table_path
        from mlops_project.files import atomic_path, read_outcomes, read_table, write_table
        from mlops_project.preprocessing import build_preprocessor, shown_contract
        from mlops_project.schema import load_contract
        from mlops_project.tuning import tune, write_values

        params = load_params()
        contract = load_contract(params.data.contract)
        X = read_table(table_path(PROCESSED, "Xtraintest", params.data), contract.text_columns)
        y = read_outcomes(table_path(PROCESSED, "ytraintest", params.data), X, contract.target.name)
        preprocessor = build_preprocessor(shown_contract(contract, params.featurize), params.featurize)
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


def prepare_data(argv: list[str] | None = None) -> int:
    """`mlops-prepare-data`: clean and split a raw table, as the prepare stage does."""
    parser = _parser(
        "Clean a raw credit table by the data contract, merge duplicates and hold out a share of the applicants (params.yaml,\n"
        "prepare), as the DVC stage prepare does. Without --save it only says what it would find.",
        "  mlops-prepare-data --input data/raw/german_credit_modified.csv --save\n"
        "  mlops-prepare-data --input new.parquet --save --output-dir /tmp/new\n"
        "  cat new.csv | mlops-prepare-data --input - --combined > clean.csv",
    )
    parser.add_argument("--input", metavar="FILE", help="CSV or Parquet, - for CSV on standard input (default: data.raw)")
    parser.add_argument(
        "--save", action="store_true", help="write X and y of both sides: traintest (development), test (held out)"
    )
    parser.add_argument(
        "--combined",
        action="store_true",
        help="all applicants as one table with the outcome last: combined.csv with --save, else on standard output",
    )
    parser.add_argument("--output-dir", metavar="FOLDER", help="where --save writes (default: data/processed)")
    args = parser.parse_args(argv)
    if args.output_dir and not args.save:
        parser.error("--output-dir: needs --save")

    def _prepare() -> None:
        from mlops_project.config import PROCESSED, load_params
        from mlops_project.dataset import prepare, save_prepared
        from mlops_project.files import require_form, write_table
        from mlops_project.schema import load_contract

        params = load_params()
        if args.save:
            require_form(params.data.tables)
        prepared = prepare(args.input or params.data.raw, load_contract(params.data.contract), params.prepare)
        folder = Path(args.output_dir or PROCESSED)
        if args.save:
            save_prepared(prepared, folder, params.data.tables)
        if args.combined:
            X, y = prepared.cleaned.rows()
            write_table(X.join(y), folder / "combined.csv" if args.save else "-")
        _tell(f"{folder}: written" if args.save else "nothing written (--save writes)")
        _tell_replaced()

    return _run(_prepare, verbose=args.verbose, log_level=logging.INFO)


def prepare_features(argv: list[str] | None = None) -> int:
    """`mlops-prepare-features`: fit the preprocessor, as the featurize stage does."""
    parser = _parser(
        "Fit the preprocessor (params.yaml, featurize) on development rows, as the DVC stage featurize does, and write\n"
        "these rows as a model sees them.",
        "  mlops-prepare-features --train data/processed/Xtraintest.csv --save-preprocessor\n"
        "  mlops-prepare-features --test data/processed/Xtest.csv --output-test held_out.parquet\n"
        "  mlops-prepare-features --output-train - | head",
    )
    parser.add_argument("--train", metavar="FILE", help="rows to fit on, - for standard input (default: the development rows)")
    parser.add_argument("--test", metavar="FILE", help="further rows to transform")
    parser.add_argument("--output-train", metavar="FILE", help="default: data/features/Xtraintest.csv; - is standard output")
    parser.add_argument("--output-test", metavar="FILE", help="default: data/features/Xtest.csv; - is standard output")
    parser.add_argument("--save-preprocessor", action="store_true", help="write models/preprocessor.joblib")
    args = parser.parse_args(argv)
    if args.output_test and not args.test:
        parser.error("--output-test: needs --test")
    _check_files(parser, args, "train test", "output-train output-test")

    def _features() -> None:
        from mlops_project.config import FEATURES, MODELS, PROCESSED, load_params, table_path
        from mlops_project.files import write_table
        from mlops_project.manifest import dump
        from mlops_project.preprocessing import feature_table, fit_preprocessor, shown_contract
        from mlops_project.schema import load_contract

        params = load_params()
        contract = load_contract(params.data.contract)
        columns = shown_contract(contract, params.featurize).features
        X = _table(args.train or table_path(PROCESSED, "Xtraintest", params.data), contract, columns)
        further = _table(args.test, contract, columns) if args.test else None
        preprocessor = fit_preprocessor(X, contract, params.featurize)
        if args.save_preprocessor:
            dump(preprocessor, MODELS / "preprocessor.joblib")
        write_table(feature_table(preprocessor, X), args.output_train or table_path(FEATURES, "Xtraintest", params.data))
        if further is not None:
            write_table(feature_table(preprocessor, further), args.output_test or table_path(FEATURES, "Xtest", params.data))
        _tell_replaced()

    return _run(_features, verbose=args.verbose, log_level=logging.INFO)


def train(argv: list[str] | None = None) -> int:
    """`mlops-train`: cross-validate and fit a model, as the train stage does."""
    from mlops_project.config import AVAILABLE_MODELS, SAMPLERS

    parser = _parser(
        "Cross-validate a model and fit it on all development rows, as the DVC stage train does. What is not given here is as\n"
        "params.yaml says. Without --output it writes what the stage writes.",
        "  mlops-train --model logistic_regression\n"
        "  mlops-train --model xgboost --smote\n"
        "  mlops-train --output models/model_$(date +%Y%m%d_%H%M%S).joblib",
    )
    parser.add_argument("--X-train", metavar="FILE", help="rows, - for standard input (default: data/processed/Xtraintest.csv)")
    parser.add_argument("--y-train", metavar="FILE", help="outcomes of these rows (default: data/processed/ytraintest.csv)")
    parser.add_argument("--preprocessor", metavar="FILE", help="recipe, fitted anew (default: models/preprocessor.joblib)")
    parser.add_argument(
        "--trust-file", action="store_true", help="load the preprocessor without a manifest: it runs whatever code is in it"
    )
    parser.add_argument("--model", choices=(*AVAILABLE_MODELS, "best"), help="default: train.model")
    parser.add_argument(
        "--smote", action=argparse.BooleanOptionalAction, help="synthetic rows or none (default: train.imbalance)"
    )
    parser.add_argument(
        "--smote-method", choices=SAMPLERS, help="implies --smote (default: train.imbalance, else BorderlineSMOTE)"
    )
    parser.add_argument("--no-evaluate", dest="evaluate", action="store_false", help="fit without cross-validation; no metrics")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the model only, with a line in models/registry.jsonl (default: models/best_model.joblib)",
    )
    args = parser.parse_args(argv)
    if args.smote is False and args.smote_method:
        parser.error("--no-smote contradicts --smote-method")
    if args.output == "-":
        parser.error("--output: found -, expected a file; a model does not go to standard output")
    _check_files(parser, args, "X-train y-train preprocessor", "output")

    def _train() -> None:
        from mlops_project.config import BEST_MODEL, MODELS, PROCESSED, fold_groups, load_params, table_path, with_training
        from mlops_project.manifest import dump
        from mlops_project.modeling import train as training
        from mlops_project.preprocessing import load_preprocessor, value_columns
        from mlops_project.schema import load_contract

        params = load_params()
        sampler = params.train.imbalance if params.train.imbalance in SAMPLERS else "BorderlineSMOTE"
        imbalance = (args.smote_method or sampler) if args.smote or args.smote_method else None if args.smote is None else "none"
        params = with_training(params, args.model, imbalance)
        contract = load_contract(params.data.contract)
        preprocessor = load_preprocessor(args.preprocessor or MODELS / "preprocessor.joblib", trust_file=args.trust_file)
        X_file = args.X_train or table_path(PROCESSED, "Xtraintest", params.data)
        y_file = args.y_train or table_path(PROCESSED, "ytraintest", params.data)
        X, y = _rows(X_file, y_file, contract, value_columns(preprocessor).contract.features)
        settings = X, y, preprocessor, contract, params.train, params.models, fold_groups(params.prepare)
        output = Path(args.output or BEST_MODEL)
        result = training.train(*settings) if args.evaluate else None
        model = result.model if result else training.fit(*settings)
        if output.resolve() != BEST_MODEL.resolve():
            training.save_version(model, output, result)
            if result:
                training.save_results(result)
        elif result:
            training.save_training(result, params.data)
        else:
            dump(model, output)
        if result:
            for name, entry in training.cross_validation_results(result.cross_validation).items():
                print(f"{name:<20}{entry['test_mean']:.3f} ± {entry['test_std']:.3f}")
        _tell(f"{output}: {model.name}, fitted on {len(X)} rows")
        _tell_replaced()

    return _run(_train, verbose=args.verbose, log_level=logging.INFO)


def manifest(argv: list[str] | None = None) -> int:
    """`mlops-manifest write|sign|verify|keygen`: what vouches for the files that are loaded."""
    parser = _parser(
        "A model is loaded only if its SHA-256 stands in the manifest beside it, which the pipeline writes. A service asks for\n"
        "more, of model and policy: that it is in Git's HEAD or, with a key, signed. Images have no Git: sign what is in them.",
        "  mlops-manifest write elsewhere/model.joblib         for a file that came without one, if you know who made it\n"
        "  mlops-manifest keygen --output signing.pem          a new key, and signing.pem.pub\n"
        "  mlops-manifest sign --key signing.pem models/best_model.joblib models/policy.json\n"
        "  mlops-manifest verify models/best_model.joblib models/policy.json\n"
        "  mlops-manifest verify --key signing.pem.pub models/best_model.joblib",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    keygen = commands.add_parser("keygen", help="make an Ed25519 key")
    keygen.add_argument("-o", "--output", metavar="FILE", required=True, help="the secret key; the public one has .pub behind it")
    write = commands.add_parser("write", help="vouch for files: whoever loads them runs the code in them")
    write.add_argument("files", metavar="FILE", nargs="+", help="model or preprocessor")
    for name, key, text in (
        ("sign", "MLOPS_SIGNING_KEY", "sign the manifests of files that they vouch for"),
        ("verify", "MLOPS_MANIFEST_KEY", "check files by their manifests, and these by Git or, with a key, by their signatures"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("files", metavar="FILE", nargs="+", help="model or policy")
        command.add_argument("--key", metavar="FILE", help=f"key in PEM (default: {key} or the file that {key}_FILE names)")
        command.add_argument("--uncommitted", action="store_true", help="accept manifests that are not in Git's HEAD")
    args = parser.parse_args(argv)

    def _manifest() -> None:
        from mlops_project import manifest as manifests
        from mlops_project.errors import PipelineError

        if args.command == "keygen":
            manifests.write_keys(args.output)
            _tell(f"{args.output}: secret, for `mlops-manifest sign`; {args.output}.pub: for whoever runs the service")
            return
        if args.command == "write":
            for file in args.files:
                manifests.write_manifest(file)
                print(manifests.manifest_path(file))
            return
        name = manifests.SIGNING_KEY if args.command == "sign" else manifests.PUBLIC_KEY
        key = manifests.setting(name, args.key)
        if args.command == "verify":
            for file in args.files:
                print(f"{manifests.verify(file, public_key=key, allow_uncommitted=args.uncommitted)}  {file}")
            return
        if key is None:
            raise PipelineError(f"no key to sign with; give --key FILE, or set {name} or {name}_FILE")
        for file in args.files:
            print(manifests.sign(file, key, allow_uncommitted=args.uncommitted))

    return _run(_manifest, verbose=args.verbose)


def predict(argv: list[str] | None = None) -> int:
    """`mlops-predict`: predict rows with a saved model, and compare with their outcomes."""
    parser = _parser(
        "Predict rows with a saved model, and compare with their outcomes where these are known. Decisions are at\n"
        "P(good) = 0.5; the decision policy and the figures to report are those of the DVC stage evaluate, in metrics/.\n"
        "A file without outcomes may be of any length: memory is bounded, and the same command goes on where a killed one was.",
        "  mlops-predict --save                                           the held-out rows\n"
        "  mlops-predict --X-test new.csv --output scores.csv --reasons   rows without known outcome\n"
        "  mlops-predict --X-test - --output - < new.csv",
    )
    parser.add_argument("--model", metavar="FILE", default="models/best_model.joblib", help="default: %(default)s")
    parser.add_argument(
        "--trust-file", action="store_true", help="load a model without a manifest: it runs whatever code is in it"
    )
    parser.add_argument("--X-test", metavar="FILE", help="rows, - for standard input (default: data/processed/Xtest.csv)")
    parser.add_argument("--y-test", metavar="FILE", help="outcomes (default: data/processed/ytest.csv if --X-test is not given)")
    parser.add_argument("--output", metavar="FILE", help="write the predictions there; - is standard output")
    parser.add_argument(
        "--batch-size", type=_count, metavar="N", help="rows to predict at a time (default: 1000; with outcomes all)"
    )
    parser.add_argument("--proba", action="store_true", help="also the probability of default and the score in points")
    parser.add_argument("--reasons", action="store_true", help="also the three columns that lower the score most")
    parser.add_argument("--save", action="store_true", help="write predictions/predictions.csv and evaluation_metrics.json there")
    args = parser.parse_args(argv)
    _check_files(parser, args, "model X-test y-test", "output")

    def _predict() -> None:
        from mlops_project.config import PROCESSED, load_params, table_path
        from mlops_project.files import write_table
        from mlops_project.modeling import predict as predicting
        from mlops_project.modeling.model import load_model

        model = load_model(args.model, trust_file=args.trust_file)
        X_file, y_file = args.X_test, args.y_test
        if not X_file:
            data = load_params().data
            X_file, y_file = table_path(PROCESSED, "Xtest", data), y_file or table_path(PROCESSED, "ytest", data)
        outputs = [*([predicting.PREDICTED] if args.save else []), *([args.output] if args.output else [])]
        names = ["standard output" if output == "-" else output for output in outputs]
        written = f"{', '.join(names)} written" if names else "nothing written (--save and --output write)"
        reasons = 3 if args.reasons else 0
        if not y_file and outputs and "-" not in (args.X_test, args.output):
            from mlops_project.modeling.batch import BATCH_ROWS, predict_file

            for output in outputs:
                size = args.batch_size or BATCH_ROWS
                rows = predict_file(model, args.model, X_file, output, batch_rows=size, details=args.proba, reasons=reasons)
            if args.save:
                predicting.save_metrics(None)
            _tell(f"{written}: {rows} rows, {model.name}")
            return
        if y_file:
            X, y = _rows(X_file, y_file, model.contract, model.feature_names_in_)
        else:
            X, y = _table(X_file, model.contract, model.feature_names_in_, named=False), None
        y_proba = predicting.p_good(model, X, args.batch_size)
        metrics = None if y is None else predicting.compare(model, X, y, y_proba)
        table = predicting.prediction_table(model, X, y_proba, y, details=args.proba, reasons=reasons)
        for output in outputs:
            write_table(table, output)
        if args.save:
            predicting.save_metrics(metrics)
        for name, value in (metrics or {}).items():
            print(f"{name:<20}{value:.3f}", file=sys.stderr if args.output == "-" else sys.stdout)
        _tell(f"{written}: {len(X)} rows, {model.name}")

    return _run(_predict, verbose=args.verbose, log_level=logging.INFO)


def _table(file: str | Path, contract: Contract, columns: list[str], *, named: bool = True) -> pd.DataFrame:
    """Rows that hold these columns."""
    from mlops_project.files import read_table

    table = read_table(file, contract.text_columns, named=named)
    contract.require(table.columns, columns, "standard input" if str(file) == "-" else str(file))
    return table


def _rows(X_file: str | Path, y_file: str | Path, contract: Contract, columns: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """Rows that hold these columns and their outcomes, matched by applicant id."""
    from mlops_project.errors import DataError

    X, outcomes = _table(X_file, contract, columns), _table(y_file, contract, [contract.target.name])
    for file, ids in ((X_file, X.index), (y_file, outcomes.index)):
        if ids.has_duplicates:
            raise DataError(f"{file}: found the applicant id {ids[ids.duplicated()][0]!r} twice, expected it once; drop a row")
    if absent := int((~X.index.isin(outcomes.index)).sum()):
        raise DataError(f"{y_file}: lacks the outcome of {absent} of {len(X)} rows of {X_file}; expected the same applicant ids")
    y = outcomes.loc[X.index, contract.target.name]
    if len(wrong := y[~y.isin([0, 1])]):
        found = "an empty cell" if wrong.isna().iloc[0] else repr(str(wrong.iloc[0]))
        raise DataError(f"{y_file}: found {found}, expected 1 (good) or 0 (bad) in {contract.target.name}")
    return X, y


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _tell_replaced() -> None:
    """Say which outputs of the pipeline are no longer what dvc.lock records."""
    import hashlib

    from mlops_project.files import read_yaml

    if not Path("dvc.lock").exists():
        return
    for stage, entry in read_yaml("dvc.lock")["stages"].items():
        for out in entry.get("outs", []):
            path = Path(out["path"])
            if path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != out["md5"]:
                _tell(
                    f"{path}: tracked by DVC and not as dvc.lock records it; `dvc status` shows it, `dvc repro {stage}` renews it"
                )


def mlflow_sync(argv: list[str] | None = None) -> int:
    """`mlops-mlflow-sync`: push revisions to an MLflow tracking server."""
    parser = _parser(
        "Push what Git and DVC hold of a revision to an MLflow tracking server: params, metrics, plots, model. One run per\n"
        "commit: what is there already is left as it is.",
        "  mlops-mlflow-sync                                   the current commit\n"
        "  mlops-mlflow-sync --revision main v1.0 dusty-mole   commits, branches, tags, DVC experiments\n"
        "  mlops-mlflow-sync --experiments                     all DVC experiments\n"
        "  mlops-mlflow-sync --champion                        and make its model the champion of the registry\n\n"
        "needs the extra mlflow: uv pip install -e '.[mlflow]'",
    )
    parser.add_argument("--revision", metavar="REV", nargs="+", default=[], help="what to push (default: HEAD)")
    parser.add_argument("--experiments", action="store_true", help="push all DVC experiments")
    parser.add_argument("--champion", action="store_true", help="register the model and move the alias champion to it")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=os.environ.get("MLFLOW_TRACKING_URI") or "http://127.0.0.1:5000",
        help="address of the server (default: MLFLOW_TRACKING_URI, here %(default)s)",
    )
    parser.add_argument("--to", metavar="NAME", default="credit_classification", help="MLflow experiment (default: %(default)s)")
    parser.add_argument(
        "--registered-model", metavar="NAME", default="credit-risk-model", help="name in the registry (default: %(default)s)"
    )
    parser.add_argument(
        "--trust-file", action="store_true", help="take models of revisions without a manifest: runs whatever code is in them"
    )
    args = parser.parse_args(argv)
    if args.champion and (args.experiments or len(args.revision) > 1):
        parser.error("--champion: found several revisions, expected one")

    def _sync() -> int:
        from mlops_project.tracking.sync import Target, experiments, named, sync

        revisions = named(args.revision or ([] if args.experiments else ["HEAD"])) + (experiments() if args.experiments else [])
        target = Target(args.tracking_uri, args.to, args.registered_model)
        failed = 0
        for pushed in sync(revisions, target, champion=args.champion, trust_file=args.trust_file):
            label = pushed.revision.label
            if pushed.error is None:
                print(f"{label}: run {pushed.run_id} {'written' if pushed.new else 'is there already'}")
            else:
                failed += 1
                _tell(f"error: {label}: {pushed.error}")
        if args.champion and not failed:
            print(f"models:/{target.model}@champion is the model of {revisions[0].label}")
        return min(failed, 1)

    return _run(_sync, verbose=args.verbose)
