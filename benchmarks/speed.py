"""What does the pipeline cost? Median CPU seconds, seconds and peak memory over interleaved rounds, beside the bars.

Works in a temporary copy of this tree (uncommitted changes included) and leaves the tree itself alone. Machines differ, and
a busy one differs from itself: read the ratios first, and the seconds beside the calibration, the import of pandas and
scikit-learn on the same machine in the same minutes. A bar in CPU seconds that is missed here is no failure by itself, so
the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Usage, copy_of_tree, fit_all, print_table, run, set_params, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = sys.executable
DVC = [PYTHON, "-m", "dvc", "repro"]
CALIBRATION = "calibration: import pandas, scikit-learn"
IMPORTS = "import pandas, sklearn.linear_model, sklearn.pipeline, sklearn.impute, sklearn.compose"
STAGES = ("prepare", "featurize", "train", "evaluate")
METHODS = ("SMOTE", "BorderlineSMOTE")
VALIDATED_ROWS = 1_000_000
HEADER = ("what", "CPU s", "lowest", "s", "peak MB", "share or ratio", "bar", "verdict")
Row = list[str]


class Bench:
    """A copy of the tree, the folder around it, and the measurements so far: name → one `Usage` per round."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.tree = copy_of_tree(folder)
        self.found: dict[str, list[Usage]] = {}

    def measure(self, name: str, command: list[str], folder: Path | None = None, codes: tuple[int, ...] = (0,)) -> str:
        used, text = run(command, folder or self.tree, self.tree, codes=codes)
        self.found.setdefault(name, []).append(used)
        return text

    def cpu(self, name: str) -> float:
        return statistics.median(used.cpu for used in self.found[name])

    def ratio(self, name: str, to: str) -> float:
        """Median of the ratios within each round: what else the machine does touches both sides of one."""
        return statistics.median(a.cpu / b.cpu for a, b in zip(self.found[name], self.found[to], strict=True))

    def row(self, name: str, *, ratio: str = "", bar: str = "", verdict: str = "") -> Row:
        used = self.found[name]
        wall, peak = (statistics.median(values) for values in (([u.wall for u in used]), [u.peak for u in used]))
        return [
            name,
            f"{self.cpu(name):.2f}",
            f"{min(u.cpu for u in used):.2f}",
            f"{wall:.2f}",
            f"{peak:.0f}",
            ratio,
            bar,
            verdict,
        ]


def pipeline(bench: Bench) -> list[Row]:
    """(a) The whole pipeline with logistic regression and 15 folds, and each stage script by itself."""
    _settle(bench)
    for _ in range(bench.rounds):
        bench.measure(CALIBRATION, [PYTHON, "-c", IMPORTS])
        bench.measure("dvc repro --force", [*DVC, "--force"])
        for stage in STAGES:
            bench.measure(f"  {stage}", [PYTHON, f"src/{stage}.py"])
    total = bench.cpu("dvc repro --force")
    calibrations = f"{total / bench.cpu(CALIBRATION):.1f} calibrations"
    rows = [bench.row("dvc repro --force", ratio=calibrations, bar="<= 9 CPU s", verdict=_verdict(total <= 9))]
    for stage in STAGES:
        cpu = bench.cpu(f"  {stage}")
        bar = {"bar": "<= 4 CPU s", "verdict": _verdict(cpu <= 4)} if stage == "train" else {}
        rows.append(bench.row(f"  {stage}", ratio=f"{cpu / total:.0%}", **bar))
    own = total - sum(bench.cpu(f"  {stage}") for stage in STAGES)
    return [*rows, ["  dvc itself (the rest)", f"{own:.2f}", "", "", "", f"{own / total:.0%}", "", ""]]


def no_op(bench: Bench) -> list[Row]:
    """(b) `dvc repro` with nothing to do, beside DVC on four stages that copy one file."""
    _settle(bench)
    empty = bench.folder / "empty"
    empty.mkdir()
    stages = "".join(f"  s{i}:\n    cmd: cp {i} {i + 1}\n    deps: ['{i}']\n    outs: ['{i + 1}']\n" for i in range(4))
    (empty / "dvc.yaml").write_text(f"stages:\n{stages}", encoding="utf-8")
    (empty / "0").write_text("0\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=empty, check=True)
    run([PYTHON, "-m", "dvc", "init", "--quiet"], empty, bench.tree)
    (empty / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n", encoding="utf-8")
    run(DVC, empty, bench.tree)
    for _ in range(6 * bench.rounds):  # cheap, and the bar is close
        text = bench.measure("dvc repro, nothing to do", DVC)
        if "Running" in text:
            sys.exit(f"dvc repro ran a stage, expected none:\n{text}")
        bench.measure("the same, empty pipeline", DVC, empty)
    ratio = bench.ratio("dvc repro, nothing to do", "the same, empty pipeline")
    first = bench.row("dvc repro, nothing to do", ratio=f"{ratio:.2f} x", bar="<= 1.3 x", verdict=_verdict(ratio <= 1.3))
    return [first, bench.row("the same, empty pipeline", ratio="1 x")]


def models(bench: Bench) -> list[Row]:
    """(c) All five models over 15 folds of the development rows with resampling; CPU s of the fits, imports aside."""
    _settle(bench)
    rows, worst = [], 0.0
    for method in METHODS:
        found: dict[str, list[dict[str, Any]]] = {"together": [], "plain": []}
        for _ in range(bench.rounds):
            for way, results in found.items():
                command = [PYTHON, "benchmarks/speed.py", "--child", way, method]
                text = bench.measure(f"{way} {method}", command)
                results.append(json.loads(text.splitlines()[-1]))
        pairs = zip(found["together"][0]["roc_auc"], found["plain"][0]["roc_auc"], strict=True)
        worst = max([worst, *(abs(ours - theirs) for ours, theirs in pairs)])
        plain = statistics.median(result["cpu"] for result in found["plain"])
        for way, label in (("together", "encoded once per fold"), ("plain", "one pipeline after the other")):
            cpus, seconds = ([result[key] for result in found[way]] for key in ("cpu", "wall"))
            cpu, peak = statistics.median(cpus), statistics.median(used.peak for used in bench.found[f"{way} {method}"])
            judged = ["<= 17 CPU s", _verdict(cpu <= 17)] if way == "together" else ["", ""]
            times = [f"{cpu:.2f}", f"{min(cpus):.2f}", f"{statistics.median(seconds):.2f}", f"{peak:.0f}", f"{cpu / plain:.2f} x"]
            rows.append([f"five models, {method}, {label}", *times, *judged])
    return [*rows, ["  largest difference of a ROC-AUC between the two", "", "", "", "", f"{worst:.0e}", "", ""]]


def leaderboard(bench: Bench) -> list[Row]:
    """(d) The train stage with `train.model: best`: eight models over 15 folds and the fit of the pick, imports included."""
    rows = []
    for calibration, bar in (("none", 25), ("sigmoid", 50)):
        _settle(bench)
        set_params(bench.tree, model="best", calibration=calibration)
        name = f"leaderboard of eight models, calibration {calibration}"
        for _ in range(bench.rounds):
            bench.measure(name, [PYTHON, "src/train.py"])
        rows.append(bench.row(name, bar=f"<= {bar} CPU s", verdict=_verdict(bench.cpu(name) <= bar)))
    set_params(bench.tree, model="logistic_regression", calibration="none")
    return rows


def experiments(bench: Bench) -> list[Row]:
    """(g) The five experiments of experiments.yaml, beside train and evaluate of the same five called directly."""
    from mlops_project.experiments import load_experiments

    _settle(bench)
    found = load_experiments(bench.tree / "experiments.yaml", bench.tree / "params.yaml")
    direct: list[Usage] = []
    names = {jobs: f"make experiments JOBS={jobs}" for jobs in (1, 2)}
    for _ in range(min(bench.rounds, 3)):
        runs = []
        for one in found:
            set_params(bench.tree, **{key.removeprefix("train."): str(value) for key, value in one.config.items()})
            runs += [run([PYTHON, f"src/{stage}.py"], bench.tree, bench.tree)[0] for stage in ("train", "evaluate")]
        direct.append(Usage(sum(used.cpu for used in runs), sum(used.wall for used in runs), max(used.peak for used in runs)))
        set_params(bench.tree, model="logistic_regression", imbalance="none")
        run(DVC, bench.tree, bench.tree)
        for jobs, name in names.items():
            # Nothing may come out of the cache of runs, or it would be no work.
            shutil.rmtree(bench.tree / ".dvc/cache/runs", ignore_errors=True)
            bench.measure(name, [PYTHON, "scripts/experiment_pipeline.py", "--jobs", str(jobs)])
    bench.found["train and evaluate of the five, directly"] = direct
    rows = [bench.row("train and evaluate of the five, directly", ratio="1 x")]
    for name in names.values():
        ratio = bench.ratio(name, "train and evaluate of the five, directly")
        rows.append(bench.row(name, ratio=f"{ratio:.2f} x", bar="< 2.5 x", verdict=_verdict(ratio < 2.5)))
    return rows


def size(bench: Bench) -> list[Row]:
    """(e) The environment that runs this, and what of it the core's requirements put there."""
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (bench.tree / "requirements/core.txt").read_text(encoding="utf-8"), re.MULTILINE)
    whole = {
        path: path.lstat().st_size for path in Path(sys.prefix).resolve().rglob("*") if path.is_file() and not path.is_symlink()
    }
    core: set[Path] = set()
    for name in [*names, "pip", "setuptools"]:
        try:
            listed = distribution(name).files or []
        except PackageNotFoundError:  # a marker leaves it out on this platform
            continue
        for file in listed:
            path = Path(str(file.locate())).resolve()
            # Compiled bytecode is not always in the package's own list.
            core.update([path, *path.parent.glob(f"__pycache__/{path.stem}.*.pyc")] if path.suffix == ".py" else [path])
    compiled = sum(size for path, size in whole.items() if path.suffix == ".pyc") / 1e6
    total, of_core = sum(whole.values()) / 1e6, sum(whole.get(path, 0) for path in core) / 1e6
    rest = "is it all" if total - of_core < 5 else "the rest is not the core's"
    return [
        [f"this environment ({rest}), MB", "", "", "", f"{total:.0f}", f"bytecode {compiled:.0f}", "", ""],
        ["  packages of requirements/core.txt, MB", "", "", "", f"{of_core:.0f}", "", "<= 850 MB", _verdict(of_core <= 850)],
    ]


def validation(bench: Bench) -> list[Row]:
    """(f) `mlops-validate` on a million dirty rows, no two chunks of them alike."""
    million = bench.folder / "million.csv"
    run([PYTHON, "benchmarks/speed.py", "--child", "rows", str(million)], bench.tree, bench.tree)
    command = [PYTHON, "-c", "import sys; from mlops_project.cli import validate; sys.exit(validate())", str(million)]
    name = f"mlops-validate, {VALIDATED_ROWS:,} rows, {million.stat().st_size / 1e6:.0f} MB"
    for _ in range(min(bench.rounds, 3)):
        text = bench.measure(name, command, codes=(1,))
        if f"{VALIDATED_ROWS} rows" not in text:
            sys.exit(f"mlops-validate: expected a summary of {VALIDATED_ROWS} rows, found:\n{text[-2000:]}")
    return [bench.row(name, ratio=f"{1e6 * bench.cpu(name) / VALIDATED_ROWS:.1f} µs per row", bar="seconds")]


def _settle(bench: Bench) -> None:
    """Bring the copied tree to logistic regression, 15 folds and no resampling, once, and compile what it imports."""
    if (bench.folder / "settled").exists():
        return
    set_params(bench.tree, model="logistic_regression", imbalance="none", n_splits="5", n_repeats="3")
    run(DVC if any(bench.tree.glob("data/raw/*.csv")) else [*DVC, "--pull"], bench.tree, bench.tree)
    run(DVC, bench.tree, bench.tree)
    (bench.folder / "settled").touch()


def _verdict(kept: bool) -> str:
    return "kept" if kept else "MISSED"


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "a": pipeline,
    "b": no_op,
    "c": models,
    "d": leaderboard,
    "e": size,
    "f": validation,
    "g": experiments,
}


def main() -> int:
    parts = "\n".join(f"  {key}  {(part.__doc__ or '').split(') ', 1)[1]}" for key, part in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{parts}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per measurement (default: %(default)s)")
    parser.add_argument("--only", default="a,b,c,d,e,f,g", metavar="a,b", help="parts to measure (default: %(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, what = args.child
        write_rows(Path(what), VALIDATED_ROWS) if way == "rows" else fit_all(way, what)
        return 0
    keys = args.only.split(",")
    if args.rounds < 1 or set(keys) - set(PARTS):
        parser.error(f"found --rounds {args.rounds} --only {args.only}, expected 1 or more and some of {', '.join(PARTS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.rounds)
        for key in keys:
            print(f"{key}: {(PARTS[key].__doc__ or '').split(') ', 1)[1]}", file=sys.stderr)
            for _ in range(3):
                bench.measure(CALIBRATION, [PYTHON, "-c", IMPORTS])
            rows += PARTS[key](bench)
        rows.insert(0, bench.row(CALIBRATION, ratio="1 calibration"))
    print(f"{args.rounds} rounds, medians; Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print_table(HEADER, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
