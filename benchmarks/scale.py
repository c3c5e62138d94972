"""What does the pipeline cost from ten thousand to ten million rows, what beside the plain way, and how does it grow?

Works in a temporary copy of this tree on synthetic applications (`benchmarks/synthetic.py`). `dvc repro` runs whole, each round
as if for the first time (no cache, no run cache, no known hashes); each stage is measured within it, and what is left is DVC's
own. Figures go to a JSON file as they come, one part of them after the other, by as many calls as you like;
`--write-docs` makes the tables and the plot of docs/scale.md out of it. Machines differ, and a busy one differs from itself: a
missed bar is no failure by itself, so the exit code is 0.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import PARQUET, ROOT, Usage, copy_of_tree, print_table, run, set_params, wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PYTHON = sys.executable
REPRO = [PYTHON, "-m", "dvc", "repro"]
PREDICT = "import sys; from mlops_project.cli import predict; sys.exit(predict())"
STAGES = ("prepare", "featurize", "train", "evaluate")
STEPS = ("prepare", "features", "train", "evaluate")
DVC, WHOLE, NO_OP = "DVC itself", "dvc repro", "dvc repro, nothing to do"
LINES = (*STAGES, DVC, WHOLE, NO_OP)
# The smallest says what the start of Python and its libraries costs.
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
MILLION, BILLION = 1_000_000, 1_000_000_000
# What is fitted for growth begins here: below, the start of Python is most of it.
GROWTH_FROM = PARQUET_FROM = 100_000
RESULTS = ROOT / "benchmarks/results/scale.json"
PAGE, PLOT = ROOT / "docs/scale.md", ROOT / "docs/scale.svg"
PACKAGES = ("numpy", "pandas", "scikit-learn", "xgboost-cpu", "xgboost", "pyarrow", "dvc")
GIB = 2**30 / 1e6  # Usage.peak is in MB
Row = list[str]
Entry = dict[str, Any]


class Bench:
    """A copy of the tree, the folder around it, synthetic inputs, and where results go.

    Parameters
    ----------
    folder : Path
        Where everything happens; inputs that an earlier call left there are used again.
    rounds : int
    results : Path
        JSON file that is added to.
    tables : str
        ``auto``: Parquet between the stages from `PARQUET_FROM` rows on, else CSV.
    """

    def __init__(self, folder: Path, rounds: int, results: Path, tables: str) -> None:
        self.folder, self.rounds, self.results, self.tables = folder, rounds, results, tables
        shutil.rmtree(folder / "tree", ignore_errors=True)
        self.tree = copy_of_tree(folder)
        self.libraries = _libraries()
        self.revision = _revision()
        self.machine = machine(folder)
        _say("the default file, once: it compiles the package and makes the default model")
        self.run(REPRO)
        self.default = folder / "default_model"
        shutil.rmtree(self.default, ignore_errors=True)
        shutil.copytree(self.tree / "models", self.default)
        path = self.tree / "dvc.yaml"
        measured = f"{Path(__file__).name} --child"
        text, count = re.subn(r"cmd: python src/(\w+)\.py", rf"cmd: python benchmarks/{measured} \1", path.read_text("utf-8"))
        if count != len(STAGES):
            sys.exit(f"dvc.yaml: found {count} commands `python src/<stage>.py`, expected {len(STAGES)}")
        path.write_text(text, encoding="utf-8")

    def run(self, command: Sequence[str], tree: Path | None = None, *, arrow: bool = False) -> Usage:
        """Run a command in a tree, with pyarrow only where it is needed: pandas takes longer to import where it is found."""
        tree = tree or self.tree
        return run(command, tree, tree, libraries=self.libraries if arrow else ())[0]

    def input(self, rows: int) -> tuple[Path, int]:
        """Return a file of so many applications, made in a child (a parent's memory counts for its children), and its copies."""
        sources = [ROOT / "benchmarks/synthetic.py", ROOT / "scripts/build_raw_data.py"]
        made_by = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]
        path = self.folder / f"applications-{rows}-{made_by}.csv"
        truth = path.with_suffix(".copies")
        if not path.exists():
            part = path.with_suffix(".part")
            _say(f"{rows:,} rows: making the file")
            self.run([PYTHON, "benchmarks/synthetic.py", str(rows), str(part), "--truth", str(truth)])
            part.replace(path)
        with truth.open("rb") as lines:
            return path, sum(1 for _ in lines) - 1

    def use(self, rows: int, path: Path) -> str:
        """Make a file the raw table of the copy, and set the params of its size; returns the form of the tables."""
        raw = self.tree / "data/raw/applications.csv"
        raw.unlink(missing_ok=True)
        try:
            os.link(path, raw)
        except OSError:
            shutil.copyfile(path, raw)
        # Of another size, and in the other form: a stage that reads the wrong one must not find it.
        for old in (self.tree / "data").glob("*/*"):
            if old.parent.name != "raw" and old.suffix in (".csv", ".parquet"):
                old.unlink()
        tables = self.tables if self.tables != "auto" else ("parquet" if rows >= PARQUET_FROM else "csv")
        set_params(self.tree, raw="data/raw/applications.csv", tables=tables, model="xgboost")
        return tables

    def reproduce(self, *, arrow: bool) -> dict[str, Usage]:
        """Run the whole pipeline as if for the first time; returns the cost per line of `LINES`."""
        for known in (self.tree / ".dvc/cache", self.folder / "dvc-site-cache"):
            shutil.rmtree(known, ignore_errors=True)
        log = self.tree.parent / "stages.jsonl"
        log.unlink(missing_ok=True)
        whole = self.run([*REPRO, "--force"], arrow=arrow)
        nothing = self.run(REPRO, arrow=arrow)
        ran = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if [name for name, *_ in ran] != list(STAGES):
            sys.exit(f"dvc repro ran {', '.join(name for name, *_ in ran)}, expected {', '.join(STAGES)}, each once")
        found = {name: Usage(*used) for name, *used in ran}
        stages = [sum(values) for values in zip(*found.values(), strict=True)]
        # The memory of DVC is that of a run in which it starts nothing.
        own = Usage(whole.cpu - stages[0], whole.wall - stages[1], nothing.peak)
        return found | {DVC: own, WHOLE: whole, NO_OP: nothing}

    def record(self, part: str, key: str, entry: Entry) -> None:
        """Add to the results file, which is whole at any moment."""
        results = load(self.results) if self.results.exists() else {}
        theirs = results.get("machine", {})
        if any(theirs.get(fact, self.machine[fact]) != self.machine[fact] for fact in ("processor", "cores", "memory")):
            _say(f"{self.results}: figures of another machine are replaced")
            results = {}
        results["machine"] = self.machine
        results.setdefault(part, {})[key] = {"revision": self.revision, "rounds": self.rounds} | entry
        self.results.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.results.with_suffix(".part")
        temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(self.results)


def pipeline(bench: Bench, rows: int, *, plain: bool) -> None:
    """Measure `dvc repro` with XGBoost; with ``plain`` the plain way in the same rounds."""
    path, copies = bench.input(rows)
    tables = bench.use(rows, path)
    script, files = str(ROOT / "benchmarks/plain_pipeline.py"), bench.folder / "plain"
    ours: list[dict[str, Usage]] = []
    theirs: list[dict[str, Usage]] = []
    for number in range(bench.rounds):
        _say(f"{rows:,} rows: round {number + 1} of {bench.rounds}")
        ours.append(bench.reproduce(arrow=tables == "parquet"))
        if plain:
            shutil.rmtree(files, ignore_errors=True)
            theirs.append({step: bench.run([PYTHON, script, step, str(path), str(files)], arrow=True) for step in STEPS})
    prepared, evaluated = (load(bench.tree / f"metrics/{stage}.json") for stage in ("prepare", "evaluate"))
    done = {"copies": copies, "merged": prepared["rows"]["duplicates_merged"], "roc_auc": evaluated["roc_auc"]}
    size = path.stat().st_size
    bench.record(
        "pipeline", str(rows), {"tables": tables, "bytes": size, "written": written(bench.tree), "usage": _joined(ours)} | done
    )
    if plain:
        roc_auc = load(files / "metrics.json")["roc_auc"]
        bench.record("plain", str(rows), {"usage": _joined(theirs), "stages": _joined(ours), "roc_auc": roc_auc})


def written(tree: Path) -> dict[str, int]:
    """Bytes of each stage's outputs, as dvc.lock has them."""
    import yaml

    lock = yaml.safe_load((tree / "dvc.lock").read_text(encoding="utf-8"))
    return {stage: sum(out["size"] for out in lock["stages"][stage]["outs"]) for stage in STAGES}


def scoring(bench: Bench, rows: int) -> None:
    """Measure `mlops-predict` on a file of so many rows, CSV to CSV, with the default model."""
    path, _ = bench.input(rows)
    scores = bench.folder / "scores.csv"
    model = str(bench.default / "best_model.joblib")
    used = []
    for number in range(bench.rounds):
        _say(f"mlops-predict, {rows:,} rows: round {number + 1} of {bench.rounds}")
        scores.unlink(missing_ok=True)
        used.append(bench.run([PYTHON, "-c", PREDICT, "--model", model, "--X-test", str(path), "--output", str(scores)]))
        with scores.open("rb") as lines:
            if (found := sum(1 for _ in lines) - 1) != rows:
                sys.exit(f"mlops-predict: found {found} predictions, expected {rows}")
    bench.record("predict", str(rows), {"usage": {"mlops-predict": used}})


def default_file(bench: Bench, before: str) -> None:
    """Measure each stage script on the default file, here and at an earlier revision, in turns within each round."""
    revision = subprocess.check_output(["git", "-C", str(ROOT), "rev-parse", "--short=12", f"{before}^{{commit}}"], text=True)
    parents = {"before": bench.folder / "before", "now": bench.folder / "now"}
    trees = {}
    for name, parent in parents.items():
        shutil.rmtree(parent, ignore_errors=True)
        parent.mkdir()
        trees[name] = copy_of_tree(parent, None if name == "now" else revision.strip())
        bench.run(REPRO, trees[name])
    found: dict[str, list[dict[str, Usage]]] = {name: [] for name in trees}
    rounds = 3 * bench.rounds  # cheap, and the bar is close
    for number in range(rounds):
        _say(f"default file: round {number + 1} of {rounds}")
        once: dict[str, dict[str, Usage]] = {name: {} for name in trees}
        for stage in STAGES:
            # Whoever comes second finds a warmer machine.
            for name in list(trees)[:: 1 if number % 2 else -1]:
                once[name][stage] = bench.run([PYTHON, f"src/{stage}.py"], trees[name])
        for name, used in once.items():
            found[name].append(used)
    usage = {f"{name}_usage": _joined(runs) for name, runs in found.items()}
    bench.record("default_file", "stages", {"before": revision.strip(), "rounds": rounds} | usage)


def stage(name: str) -> int:
    """Run a stage in place of DVC's command and write down what it cost: a child in the copied tree."""
    start = time.perf_counter()
    process = subprocess.Popen([PYTHON, f"src/{name}.py"])
    used = wait(process, start)
    with Path("../stages.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps([name, *used]) + "\n")
    return process.returncode


def _joined(runs: Sequence[dict[str, Usage]]) -> dict[str, list[Usage]]:
    return {name: [run[name] for run in runs] for name in runs[0]}


def _libraries() -> list[Path]:
    """Where children find pyarrow: where make put it, or nowhere else than this Python does."""
    if PARQUET.exists():
        return [PARQUET]
    if importlib.util.find_spec("pyarrow") is None:
        sys.exit(f"found no pyarrow, neither in this environment nor in {PARQUET}; run `make .venv/parquet.done`")
    return []


def _revision() -> str:
    return subprocess.check_output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"], text=True).strip()


def machine(folder: Path) -> Entry:
    """Facts that the figures depend on, without the machine's name."""
    facts: Entry = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        names = []
    facts["processor"] = names[0] if names else platform.processor() or "unknown"
    facts["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["memory"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    facts["load"] = round(os.getloadavg()[0], 1)
    block, probe = os.urandom(1 << 20), folder / "probe"
    start = time.perf_counter()
    with probe.open("wb") as file:
        for _ in range(256):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    facts["disk"] = round(256 * (1 << 20) / 1e6 / (time.perf_counter() - start))
    probe.unlink()
    facts["packages"] = {}
    for name in PACKAGES:
        try:
            facts["packages"][name] = version(name)
        except ImportError:
            continue
    for information in PARQUET.glob("pyarrow-*.dist-info"):
        facts["packages"].setdefault("pyarrow", information.name.split("-")[1].removesuffix(".dist"))
    return facts


# What the figures say ---------------------------------------------------------------------------------------------------------


class Figures:
    """The results file, asked for medians, growth and bars."""

    def __init__(self, results: Entry) -> None:
        self.results = results
        self.sizes = sorted(int(rows) for rows in results.get("pipeline", {}))

    def median(self, rows: int, line: str, measure: str, part: str = "pipeline", usage: str = "usage") -> float | None:
        """Median over the rounds of ``cpu``, ``wall`` or ``peak``; None where it was not measured."""
        try:
            used = self.results[part][str(rows)][usage][line]
        except KeyError:
            return None
        return statistics.median(Usage(*one)._asdict()[measure] for one in used)

    def total(self, rows: int, part: str, usage: str, lines: Iterable[str], measure: str) -> float | None:
        """CPU seconds or seconds of several lines together, or the peak of the largest."""
        values = [self.median(rows, line, measure, part, usage) for line in lines]
        if any(value is None for value in values):
            return None
        return (max if measure == "peak" else sum)(value for value in values if value is not None)

    def series(self, line: str, measure: str) -> dict[int, float]:
        found = {rows: self.median(rows, line, measure) for rows in self.sizes}
        return {rows: value for rows, value in found.items() if value is not None}

    def growth(self, line: str, measure: str, *, net: bool = False) -> float | None:
        """Exponent of the growth from `GROWTH_FROM` rows on: 1 is proportional.

        With ``net`` without what the smallest file costs, which is the start of Python and its libraries: the whole grows less
        than what does the work.
        """
        series = self.series(line, measure)
        start = 0.0
        if net:
            if not series or min(series) >= GROWTH_FROM:
                return None
            start = series[min(series)]
        points = [(rows, value - start) for rows, value in series.items() if rows >= GROWTH_FROM and value > start]
        if len(points) < 2:
            return None
        x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
        return statistics.linear_regression(x, y).slope

    def per_row(self, line: str) -> float | None:
        """Bytes of memory per further row, between the two largest sizes."""
        series = self.series(line, "peak")
        if len(series) < 2 or max(series) < GROWTH_FROM:
            return None
        a, b = sorted(series)[-2:]
        return 1e6 * (series[b] - series[a]) / (b - a)

    def at(self, line: str, rows: int) -> tuple[float | None, float | None]:
        """Extrapolate CPU seconds and peak MB from the largest size: by the growth found, but never below proportional, and by
        the memory per further row.
        """
        cpu, peak = self.series(line, "cpu"), self.series(line, "peak")
        growth, per_row = self.growth(line, "cpu", net=True) or self.growth(line, "cpu"), self.per_row(line)
        if growth is None or per_row is None:
            return None, None
        last = max(cpu)
        return cpu[last] * (rows / last) ** max(1.0, growth), peak[last] + max(0.0, per_row) * (rows - last) / 1e6

    def ratio(self, line: str) -> float | None:
        """CPU time on the default file, now to before: the median of the ratios within each round."""
        entry = self.results.get("default_file", {}).get("stages")
        if entry is None:
            return None
        pairs = zip(entry["now_usage"][line], entry["before_usage"][line], strict=True)
        return statistics.median(now[0] / before[0] for now, before in pairs)


def bars(figures: Figures) -> list[Row]:
    """The bars, what was found, and whether they are kept; "-" where something was not measured."""
    ten = 10 * MILLION
    median, total = figures.median, figures.total
    rows: list[Row] = []

    def bar(what: str, limit: float, unit: str, found: float | None, *, least: bool = False) -> None:
        kept = "-" if found is None else "kept" if (found >= limit if least else found <= limit) else "MISSED"
        rows.append([what, f"{'>=' if least else '<='} {limit:g} {unit}".strip(), _number(found), kept])

    def gib(found: float | None) -> float | None:
        return None if found is None else found / GIB

    bar("`dvc repro`, 10⁶ rows", 60, "CPU s", median(MILLION, WHOLE, "cpu"))
    bar("`dvc repro`, 10⁶ rows, largest process", 1.5, "GiB", gib(median(MILLION, WHOLE, "peak")))
    bar("`dvc repro`, 10⁷ rows", 500, "CPU s", median(ten, WHOLE, "cpu"))
    bar("`dvc repro`, 10⁷ rows, largest process", 4, "GiB", gib(median(ten, WHOLE, "peak")))
    bar("prepare, 10⁷ rows", 60, "CPU s", median(ten, "prepare", "cpu"))
    bar("prepare, 10⁷ rows, memory", 1, "GiB", gib(median(ten, "prepare", "peak")))
    for name in STAGES:
        growth = figures.growth(name, "cpu") if figures.sizes and figures.sizes[-1] >= ten else None
        bar(f"growth of {name}, 10⁵ to 10⁷ rows", 1.05, "", growth)
    for measure, what in (("cpu", "CPU time"), ("peak", "memory")):
        ours = median(MILLION, WHOLE, measure, "plain", "stages")
        theirs = total(MILLION, "plain", "usage", STEPS, measure)
        bar(f"{what}, plain way to `dvc repro`, 10⁶ rows", 2, "x", theirs / ours if ours and theirs else None, least=True)
    for name in STAGES:
        bar(f"{name}, default file, now to before", 1.05, "x", figures.ratio(name))
    bar("`mlops-predict`, 10⁷ rows", 120, "CPU s", median(ten, "mlops-predict", "cpu", "predict"))
    bar("`mlops-predict`, 10⁷ rows, memory", 1, "GiB", gib(median(ten, "mlops-predict", "peak", "predict")))
    return rows


def tables(figures: Figures) -> dict[str, tuple[Row, list[Row]]]:
    """Name → header and rows of each table of docs/scale.md."""
    sizes, results = figures.sizes, figures.results
    heads = [_power(rows) for rows in sizes]
    found: dict[str, tuple[Row, list[Row]]] = {}
    for measure, name in (("cpu", "CPU s"), ("wall", "s"), ("peak", "peak MB")):
        header = [name, *heads, "growth", "net of the start" if measure != "peak" else "bytes per row"]
        lines = []
        for line in LINES:
            last = figures.per_row(line) if measure == "peak" else figures.growth(line, measure, net=True)
            cells = [_number(figures.median(rows, line, measure)) for rows in sizes]
            lines.append([line, *cells, _number(figures.growth(line, measure)), _number(last)])
        found[measure] = header, lines
    entries = [results["pipeline"][str(rows)] for rows in sizes]
    found["written"] = (
        ["MB", *heads],
        [
            ["raw file", *(_number(entry["bytes"] / 1e6) for entry in entries)],
            *([f"written by {name}", *(_number(entry["written"][name] / 1e6) for entry in entries)] for name in STAGES),
        ],
    )
    found["done"] = (
        ["what was done", *heads],
        [
            ["form of the tables", *(entry["tables"] for entry in entries)],
            ["copies planted", *(f"{entry['copies']:,}" for entry in entries)],
            ["rows merged", *(f"{entry['merged']:,}" for entry in entries)],
            ["ROC-AUC, held out", *(_number(entry["roc_auc"]) for entry in entries)],
            [
                "the same of the plain way",
                *(_number(results.get("plain", {}).get(str(rows), {}).get("roc_auc")) for rows in sizes),
            ],
            ["rounds", *(str(entry["rounds"]) for entry in entries)],
            ["revision", *(entry["revision"] for entry in entries)],
        ],
    )
    lines = []
    for rows in sorted(map(int, results.get("plain", {}))):
        ours = [(name, ("plain", "stages", [name])) for name in (*STAGES, DVC)]
        theirs = [(f"plain: {step}", ("plain", "usage", [step])) for step in STEPS]
        for name, of in [
            *ours,
            ("**`dvc repro`**", ("plain", "stages", [WHOLE])),
            *theirs,
            ("**plain way**", ("plain", "usage", STEPS)),
        ]:
            lines.append([f"{_power(rows)}: {name}", *(_number(figures.total(rows, *of, measure)) for measure in Usage._fields)])
    found["plain"] = ["side by side", "CPU s", "s", "peak MB"], lines
    lines = []
    for rows in sorted(map(int, results.get("predict", {}))):
        values = [figures.median(rows, "mlops-predict", measure, "predict") for measure in Usage._fields]
        lines.append([f"`mlops-predict`, {_power(rows)} rows", *map(_number, values), _number(rows / (values[0] or math.nan))])
    found["predict"] = ["default model, CSV to CSV", "CPU s", "s", "peak MB", "rows per CPU s"], lines
    lines, revision = [], ""
    if entry := results.get("default_file", {}).get("stages"):
        revision = f" ({entry['before']})"
        for name in STAGES:
            before, now = (statistics.median(used[0] for used in entry[f"{way}_usage"][name]) for way in ("before", "now"))
            lines.append([name, _number(before), _number(now), _number(figures.ratio(name))])
    found["default"] = ["default file", f"CPU s before{revision}", "CPU s now", "ratio"], lines
    lines = []
    for line in (*STAGES, DVC, WHOLE):
        cpu, peak = figures.at(line, BILLION)
        lines.append([line, _number(cpu and cpu / 3600), _number(peak and peak / 1e3), _number(figures.per_row(line))])
    found["billion"] = ["10⁹ rows, extrapolated", "CPU hours", "peak GB", "bytes of memory per row"], lines
    found["bars"] = ["bar", "limit", "found", "verdict"], bars(figures)
    facts = results["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in sorted(facts["packages"].items()))
    found["machine"] = (
        ["machine", ""],
        [
            ["processor", f"{facts['processor']}, {facts['cores']} cores; one thread per process is used"],
            ["memory", f"{facts['memory']} GiB"],
            ["disk", f"{facts['disk']} MB/s, 256 MiB written and synchronised"],
            ["load at the start", f"{facts['load']}"],
            ["system", f"{facts['system']}, Python {facts['python']}"],
            ["packages", packages],
        ],
    )
    return found


def _number(value: float | None) -> str:
    """Three digits that count; "-" for what was not measured."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _power(rows: int) -> str:
    exponent = round(math.log10(rows))
    return "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) if rows == 10**exponent else f"{rows:,}"


def markdown(header: Row, rows: list[Row]) -> str:
    """Return a table as Markdown; empty if it has no rows."""
    if not rows:
        return "Not measured.\n"
    rule = ["---", *("---:" for _ in header[1:])] if any(header[1:]) else ["---" for _ in header]
    return "".join("| " + " | ".join(row) + " |\n" for row in (header, rule, *rows))


def write_docs(results: Entry) -> None:
    """Put the tables between the markers of docs/scale.md, and draw docs/scale.svg."""
    made = tables(Figures(results))
    text = PAGE.read_text(encoding="utf-8")
    for name, (header, rows) in made.items():
        block = re.compile(rf"(<!-- scale: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = markdown(header, rows)
        text, count = block.subn(lambda match, table=table: match[1] + table + match[2], text)
        if count != 1:
            sys.exit(f"{PAGE}: found {count} places for the table {name}, expected one: <!-- scale: {name} --> … <!-- end -->")
    PAGE.write_text(text, encoding="utf-8", newline="\n")
    draw(Figures(results), PLOT)


def draw(figures: Figures, path: Path) -> None:
    """Draw CPU time and memory over rows, both axes logarithmic; the same bytes for the same figures."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "scale", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        for axis, measure, label in zip(axes, ("cpu", "peak"), ("CPU seconds", "peak memory, MB"), strict=True):
            for line in (*STAGES, DVC, WHOLE):
                series = figures.series(line, measure)
                style = {"color": "black", "linewidth": 2} if line == WHOLE else {"linewidth": 1.2}
                axis.plot(list(series), list(series.values()), marker="o", markersize=3.5, label=line, **style)
            if figures.sizes and measure == "cpu":
                first, last = figures.sizes[0], figures.sizes[-1]
                top = max(figures.series(WHOLE, measure).values())
                axis.plot([first, last], [top * first / last, top], ":", color="grey", linewidth=1, label="proportional")
            limits = {"cpu": ((MILLION, 60), (10 * MILLION, 500)), "peak": ((MILLION, 1.5 * GIB), (10 * MILLION, 4 * GIB))}
            axis.plot(*zip(*limits[measure], strict=True), "_", color="red", markersize=14, label="bars of dvc repro")
            axis.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
            axis.grid(visible=True, which="major", linewidth=0.4)
            axis.minorticks_off()  # half of the file
        axes[0].legend(fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    return int(float(text))


def measure(args: argparse.Namespace, folder: Path) -> None:
    bench = Bench(folder, args.rounds, args.results, args.tables)
    if args.before:
        default_file(bench, args.before)
    for rows in args.predict:
        scoring(bench, rows)
    for rows in sorted({*args.sizes, *args.plain}):
        pipeline(bench, rows, plain=rows in args.plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=_count, default=SIZES, metavar="ROWS", help="pipeline; none: --sizes alone")
    parser.add_argument(
        "--plain", nargs="+", type=_count, default=[], metavar="ROWS", help="sizes at which the plain way runs, too"
    )
    parser.add_argument("--predict", nargs="+", type=_count, default=[], metavar="ROWS", help="sizes to score by mlops-predict")
    parser.add_argument("--before", metavar="REV", help="compare the stages on the default file with those of this revision")
    parser.add_argument("--rounds", type=int, default=3, help="per measurement; medians count (default: %(default)s)")
    parser.add_argument("--tables", choices=("auto", "csv", "parquet"), default="auto", help="default: Parquet from 10⁵ rows on")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work and leave everything there: the inputs are used again")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="JSON file to add to (default: benchmarks/results/scale.json)"
    )
    parser.add_argument("--write-docs", action="store_true", help="write tables and plot of docs/scale.md from the results")
    parser.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return stage(args.child)
    smallest = min([*args.sizes, *args.plain, *args.predict], default=1_000)
    if args.rounds < 1 or smallest < 1_000:
        parser.error(f"found --rounds {args.rounds} and a size of {smallest}, expected 1 or more and 1000 or more")
    if args.sizes or args.plain or args.predict or args.before:
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            measure(args, args.keep.resolve())
        else:
            with tempfile.TemporaryDirectory() as folder:
                measure(args, Path(folder))
    if not args.results.exists():
        sys.exit(f"{args.results}: no such file; expected figures there, which a call with --sizes, --plain or --predict leaves")
    results = load(args.results)
    for header, rows in tables(Figures(results)).values():
        if rows:
            print_table(header, rows)
            print()
    if args.write_docs:
        write_docs(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
