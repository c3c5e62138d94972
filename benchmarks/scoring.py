"""What does an answer cost: by the compiled plan, beside the pipeline it came from, in bulk, and in memory?

Works on models fitted here and in a temporary copy of this tree. Machines differ, and a busy one differs from itself: read the
ratios, which compare neighbours within each round. A missed bar is no failure by itself, so the exit code is 0.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import ALL_MODELS, CLEAN_FILE, copy_of_tree, dirty_applicants, print_table, run

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = sys.executable
SIZES = (1, 1000)
BULK = ("scorecard", "xgboost")
BULK_ROWS = 1_000_000
PREDICT = "import sys; from mlops_project.cli import predict; sys.exit(predict())"
WORKER = (
    "import sys; from mlops_project.modeling.compiled import CompiledScorer\n"
    "scorer = CompiledScorer.load(sys.argv[1], lean=True); scorer.p_good(scorer.parse([{}]).values)"
)


def fitted_models(folder: Path) -> dict[str, Any]:
    """Fit every model on one dirty file and write it, with its plan, to ``folder``."""
    from msgspec.structs import replace

    from mlops_project.config import load_params
    from mlops_project.manifest import dump
    from mlops_project.modeling.compiling import compile_model
    from mlops_project.modeling.train import fit
    from mlops_project.preprocessing import build_preprocessor
    from mlops_project.schema import load_contract

    root = Path(__file__).resolve().parents[1]
    params, contract = load_params(root / "params.yaml"), load_contract(root / "data/schema.yaml")
    applicants = dirty_applicants(0, folder)
    models = {}
    for name in ALL_MODELS:
        preprocessor = build_preprocessor(contract, params.featurize)
        train = replace(params.train, model=name)
        models[name] = fit(applicants.table, applicants.target, preprocessor, contract, train, params.models)
        dump(models[name], folder / f"{name}.joblib")
        compile_model(models[name]).save(folder / f"{name}.npz")
    return models


def answers(models: dict[str, Any], folder: Path, rounds: int) -> None:
    """(a) Cells of one applicant and of a thousand to P(good): plan and pipeline; and the reasons by the plan."""
    import pandas as pd

    from mlops_project.modeling.compiled import CompiledScorer

    clean = pd.read_csv(CLEAN_FILE).drop(columns="kredit")
    rows = []
    for name, model in models.items():
        scorer = CompiledScorer.load(folder / f"{name}.npz")
        for size in SIZES:
            table = clean[:size]
            records: list[Any] = table.to_dict("records")
            values = scorer.parse(records).values
            ways: dict[str, Callable[[], Any]] = {
                "parse": lambda records=records, scorer=scorer: scorer.parse(records),
                "score": lambda values=values, scorer=scorer: scorer.p_good(values),
                "pipeline": lambda records=records, model=model: model.predict_proba(pd.DataFrame(records)),
            }
            if scorer.can_explain:
                ways["reasons"] = lambda values=values, scorer=scorer: scorer.reasons(values, 3)
            found: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, work in ways.items():
                    found[way].append(_seconds(work))
            plan = [a + b for a, b in zip(found["parse"], found["score"], strict=True)]
            ratio = statistics.median(b / a for a, b in zip(plan, found["pipeline"], strict=True))
            times = {way: f"{1e6 * statistics.median(seconds) / size:.1f}" for way, seconds in found.items()}
            rows.append(
                [name, f"{size}", times["parse"], times["score"], times.get("reasons", "-"), times["pipeline"], f"{ratio:.0f} x"]
            )
    print_table(("model", "rows", "parse, µs a row", "score", "reasons", "pipeline", "pipeline to plan"), rows)


def bulk(folder: Path, tree: Path, rounds: int) -> None:
    """(b) `mlops-predict` on a million dirty rows, and what a process holds that has a plan and nothing else."""
    million = folder / "million.csv"
    run([PYTHON, "benchmarks/speed.py", "--child", "rows", str(million)], tree, tree)
    rows = []
    for name in BULK:
        arguments = ["--model", str(folder / f"{name}.joblib"), "--X-test", str(million), "--output", str(folder / "scores.csv")]
        for options in ([], ["--proba", "--reasons"]) if name == "scorecard" else ([],):
            used = [run([PYTHON, "-c", PREDICT, *arguments, *options], tree, tree)[0] for _ in range(rounds)]
            cpu, wall, peak = (statistics.median(values) for values in zip(*used, strict=True))
            what = " ".join([f"mlops-predict, {name}", *options])
            rows.append([what, f"{cpu:.1f}", f"{wall:.1f}", f"{BULK_ROWS / cpu:,.0f}", f"{peak:.0f}"])
    for name in BULK:
        used = [run([PYTHON, "-c", WORKER, str(folder / f"{name}.npz")], tree, tree)[0] for _ in range(rounds)]
        cpu, wall, peak = (statistics.median(values) for values in zip(*used, strict=True))
        rows.append([f"a process with the plan of {name}", f"{cpu:.2f}", f"{wall:.2f}", "", f"{peak:.0f}"])
    print_table(("what", "CPU s", "s", "rows per CPU s", "peak MB"), rows)


def _seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of one call, out of as many as fit in a twentieth of a second."""
    calls, start = 0, time.process_time()
    while (used := time.process_time() - start) < 0.05:
        work()
        calls += 1
    return used / calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per measurement (default: %(default)s)")
    parser.add_argument("--only", choices=("a", "b"), help="a: single answers, b: bulk (default: both)")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder = Path(args.child)
        models = fitted_models(folder)
        if args.only != "b":
            answers(models, folder, args.rounds)
        return 0
    if args.rounds < 1:
        parser.error(f"--rounds: found {args.rounds}, expected 1 or more")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = copy_of_tree(folder)
        print(f"{args.rounds} rounds, medians; Python {platform.python_version()}, {platform.system()} {platform.machine()}")
        only = ["--only", args.only] if args.only else []
        # In a child: what is started later inherits the peak memory of this process.
        command = [PYTHON, "benchmarks/scoring.py", "--child", str(folder), "--rounds", str(args.rounds), *only]
        print(run(command, tree, tree)[1], end="", flush=True)
        if args.only != "a":
            bulk(folder, tree, min(args.rounds, 3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
