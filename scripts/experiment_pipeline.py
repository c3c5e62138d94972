"""Run the named experiments of experiments.yaml as DVC experiments, and compare them with the params as they are.

They run in disposable clones that share this workspace's DVC cache: HEAD plus the uncommitted changes of tracked files.
The workspace is only read; each finished experiment is fetched back as a Git reference, as soon as it is finished. So a
killed run leaves everything as it was, but for the experiments that it has finished.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_project.config import METRICS, PARAMS_FILE, PREDICTIONS, PROCESSED, Params, load_params, table_path
from mlops_project.errors import PipelineError
from mlops_project.experiments import (
    EXPERIMENTS_FILE,
    Experiment,
    compare,
    fold_scores,
    load_experiments,
    select,
    verdicts,
)
from mlops_project.files import atomic_path, read_table
from mlops_project.parallel import VARIABLE, asked, connect
from mlops_project.runtime import guarded, setup_logging

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pandas as pd
    from tqdm import tqdm

RESULTS = Path("experiments")
PREFIX = "mlops-experiments-"
# A hook's GIT_DIR would lead the clones' Git back here; without optional locks `git diff` does not write the index.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))} | {
    "GIT_OPTIONAL_LOCKS": "0",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    # One thread per process: the experiments share the processors already.
    **{name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
}
DVC = (sys.executable, "-m", "dvc")


class Finished(NamedTuple):
    """What an experiment left: its metrics by file, its out-of-fold predictions, and their score per fold."""

    metrics: dict[str, Any]
    out_of_fold: pd.DataFrame
    scores: np.ndarray


class Outcome(NamedTuple):
    """How long an experiment took, and what it left or why it failed."""

    seconds: float
    finished: Finished | None = None
    error: str = ""


class Run:
    """One run: the folder of its clones, the processes that it started, and what it found out about the workspace."""

    def __init__(self, folder: Path, lock: int, results: Path, params: Params) -> None:
        self.folder, self.lock, self.results = folder, lock, results
        self.metric = params.train.selection_metric
        self.contract_file = params.data.contract
        # One cluster for all experiments; one that is not there is told before a clone is made.
        self.cluster = {VARIABLE: connect(asked()).scheduler.address} if asked() else {}
        self.top = Path(git("rev-parse", "--show-toplevel").strip())
        self.prefix = git("rev-parse", "--show-prefix").strip()
        self.commit = git("rev-parse", "HEAD").strip()
        self.changes = git_bytes(
            "diff", "--binary", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/", "HEAD"
        )
        self.identity = {key: git("config", "--get", key, codes=(0, 1)).strip() for key in ("user.name", "user.email")}
        self.clones: queue.SimpleQueue[Clone] = queue.SimpleQueue()
        self.processes: set[subprocess.Popen[str]] = set()

    def dvc(self, *arguments: str, folder: Path, log: Path) -> tuple[int, str]:
        """Run DVC and return its exit code and what it printed. The lock goes along: it is held until DVC ends, too."""
        with subprocess.Popen(
            [*DVC, *arguments],
            cwd=folder,
            env=ENVIRONMENT | self.cluster | {"DVC_SITE_CACHE_DIR": str(self.folder / "site-cache"), "DVC_NO_ANALYTICS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that its stages can be stopped with it
            text=True,
            errors="replace",
            pass_fds=[self.lock],
        ) as process:
            self.processes.add(process)
            printed = process.communicate()[0]
            self.processes.discard(process)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ dvc {' '.join(arguments)}\n{printed}\n")
        return process.returncode, printed

    def stop(self) -> None:
        for process in list(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


class Clone:
    """A disposable clone of the workspace: HEAD and the uncommitted changes, with the workspace's DVC cache and remotes."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.top = run, run.folder / f"clone{number}"
        self.folder = self.top / run.prefix
        # --shared copies no object; the clone adds its own to its own store.
        git("clone", "--quiet", "--shared", "--no-checkout", str(run.top), str(self.top))
        for key, value in run.identity.items():
            git("config", key, value or "experiments", folder=self.top)
        self.reset()
        share_cache(self.folder)

    def reset(self) -> None:
        """Bring tracked files back to what the workspace held when the run began; outputs stay."""
        git("checkout", "--quiet", "--force", "--detach", self.run.commit, folder=self.top)
        git("clean", "--quiet", "--force", "-d", folder=self.top)
        if self.run.changes:
            git_bytes("apply", "--index", "--whitespace=nowarn", "-", folder=self.top, content=self.run.changes)

    def baseline(self) -> Outcome:
        """Reproduce the params as they are: nothing runs if dvc.lock is up to date."""
        start, log = time.monotonic(), self.run.results / "baseline.log"
        if self.run.dvc("checkout", "--quiet", folder=self.folder, log=log)[0]:
            # What no remote has is reproduced, or missed with DVC's own words.
            self.run.dvc("fetch", "--quiet", folder=Path.cwd(), log=log)
            self.run.dvc("checkout", "--quiet", folder=self.folder, log=log)
        code, printed = self.run.dvc("repro", folder=self.folder, log=log)
        return self._outcome(code, printed, start, log)

    def experiment(self, one: Experiment) -> Outcome:
        """Run one experiment and fetch it back."""
        start, log = time.monotonic(), self.run.results / f"{one.name}.log"
        self.reset()
        chosen = [argument for text in one.set_params for argument in ("--set-param", text)]
        names = ("--name", one.name, "--message", one.title, "--force")
        code, printed = self.run.dvc("exp", "run", *names, *chosen, folder=self.folder, log=log)
        found = self._outcome(code, printed, start, log)
        if found.finished is None:
            return found
        reference = f"refs/exps/{self.run.commit[:2]}/{self.run.commit[2:]}/{one.name}"
        quiet = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules")
        git("fetch", *quiet, str(self.top), f"+{reference}:{reference}")
        return found

    def _outcome(self, code: int, printed: str, start: float, log: Path) -> Outcome:
        seconds = time.monotonic() - start
        if code:
            return Outcome(seconds, error=f"{reason(printed)} ({log})")
        from mlops_project.schema import load_contract

        metrics = {name: json.loads((self.folder / METRICS / f"{name}.json").read_bytes()) for name in ("train", "evaluate")}
        data = load_params(self.folder / PARAMS_FILE).data
        out_of_fold, weight = read_table(self.folder / table_path(PREDICTIONS, "out_of_fold", data)), None
        contract = load_contract(self.folder / self.run.contract_file)
        if contract.weight:
            X = read_table(self.folder / table_path(PROCESSED, "Xtraintest", data), contract.text_columns)
            weight = X.assign(weight=contract.row_weights(X))["weight"]
        return Outcome(seconds, Finished(metrics, out_of_fold, fold_scores(out_of_fold, self.run.metric, weight)))


def git_bytes(*arguments: str, folder: Path | None = None, content: bytes = b"", codes: tuple[int, ...] = (0,)) -> bytes:
    # No garbage collection or maintenance that would go on in the background.
    command = ["git", "-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "core.hooksPath=/dev/null", *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, input=content, capture_output=True, check=False)
    if done.returncode not in codes:
        raise PipelineError(f"git {' '.join(arguments[:2])}: {' '.join(done.stderr.decode(errors='replace').split())}")
    return done.stdout


def git(*arguments: str, folder: Path | None = None, codes: tuple[int, ...] = (0,)) -> str:
    return git_bytes(*arguments, folder=folder, codes=codes).decode()


def share_cache(folder: Path) -> None:
    """Give a clone this workspace's local DVC configuration and its cache."""
    from dvc.config import Config

    workspace = Config(str(Path(".dvc").absolute()))
    cache = Path(workspace["cache"].get("dir") or ".dvc/cache").absolute()
    local = workspace.load_one("local")  # with relative paths resolved
    with Config(str(folder / ".dvc")).edit("local") as config:
        config.update(local)
        config["cache"] = {**local.get("cache", {}), "dir": str(cache)}


def reason(printed: str) -> str:
    """Return the line of a failed DVC command that says why: the stage's own, if it has one."""
    lines = [line.strip() for line in printed.splitlines() if re.match(r"(error|ERROR): ", line.strip())]
    of_stage = [line for line in lines if line.startswith("error: ")]
    text = [*(of_stage or lines), "no reason was printed"][0]
    # What a stage advises is for the workspace, which is untouched.
    return text.split(": ", 1)[-1].split(" | ", 1)[0]


@contextlib.contextmanager
def temporary_folder() -> Iterator[tuple[Path, int]]:
    """Yield a folder and the descriptor of its lock; folders that killed runs left behind are removed first."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or just removed
            lock = os.open(old / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder, lock
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def check_workspace() -> None:
    """Refuse what no clone can be made of, and say what an experiment takes along and what it leaves."""
    git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if git("ls-files", "--unmerged"):
        raise PipelineError("found files with merge conflicts, expected none; finish the merge first, `make resolve` helps")
    if changed := git("diff", "--name-only", "HEAD").split("\n")[:-1]:
        print(f"note: the experiments include the uncommitted changes of {listed(changed)}", file=sys.stderr)
    untracked = git("ls-files", "--others", "--exclude-standard").split("\n")[:-1]
    if missed := [name for name in untracked if name.startswith(("src/", "data/"))]:
        print(f"note: without the untracked {listed(missed)}; `git add` takes a file along", file=sys.stderr)


def listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def work(experiments: list[Experiment], jobs: int) -> int:
    """Run, report, and return the exit code."""
    params = load_params()
    check_workspace()
    results = RESULTS / f"run_{time.strftime('%Y%m%d_%H%M%S')}"
    results.mkdir(parents=True, exist_ok=True)
    with temporary_folder() as (folder, lock):
        run = Run(folder, lock, results, params)
        try:
            baseline, outcomes = run_all(run, experiments, jobs)
        finally:
            run.stop()
    report = {one.title: entry(one, outcomes[one.name]) for one in experiments}
    with atomic_path(results / "results.json") as path:  # not rounded: a small setting would become 0
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    table = "\n".join(comparison_table(experiments, outcomes, baseline, params))
    (results / "comparison.txt").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\nresults: {results / 'results.json'}; all of DVC's columns: dvc exp show; take one: dvc exp apply NAME")
    failed = [one.title for one in experiments if outcomes[one.name].error]
    if baseline.error or failed:
        print(f"error: failed: {', '.join(failed + ['the baseline'] * bool(baseline.error))}", file=sys.stderr)
    return int(bool(failed or baseline.error))


def run_all(run: Run, experiments: list[Experiment], jobs: int) -> tuple[Outcome, dict[str, Outcome]]:
    """Run the baseline, then the experiments, ``jobs`` at a time, each job in a clone of its own."""
    from tqdm import tqdm

    outcomes: dict[str, Outcome] = {}
    # Progress is for the eye; without a terminal a line per experiment says as much.
    with tqdm(total=len(experiments) + 1, unit="run", disable=not sys.stderr.isatty()) as bar:
        first = Clone(run, 0)
        run.clones.put(first)
        bar.set_description("baseline")
        # Alone: what it has to run is then in the cache for all.
        baseline = first.baseline()
        tell(bar, "baseline", baseline, run.metric)
        bar.set_description("experiments")
        for number in range(1, jobs):
            run.clones.put(Clone(run, number))

        def one_by_one(one: Experiment) -> Outcome:
            clone, start = run.clones.get(), time.monotonic()
            try:
                return clone.experiment(one)
            except (PipelineError, OSError) as error:
                return Outcome(time.monotonic() - start, error=str(error))
            finally:
                run.clones.put(clone)

        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(one_by_one, one): one for one in experiments}
            try:
                for future in as_completed(futures):
                    one = futures[future]
                    outcomes[one.name] = future.result()
                    tell(bar, one.title, outcomes[one.name], run.metric)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                run.stop()
                raise
    return baseline, outcomes


def tell(bar: tqdm[Any], title: str, found: Outcome, metric: str) -> None:
    scores = found.finished and found.finished.scores
    result = f"FAILED: {found.error}" if scores is None else f"{metric} {scores.mean():.3f} ± {scores.std():.3f}"
    bar.write(f"{title}: {result}  ({found.seconds:.0f} s)", file=sys.stderr)
    bar.update()


def entry(one: Experiment, found: Outcome) -> dict[str, Any]:
    """Return what results.json says of an experiment."""
    if found.finished is None:
        return {"config": one.config, "error": found.error}
    return {"config": one.config, "metrics": found.finished.metrics, "experiment": one.name}


def comparison_table(
    experiments: list[Experiment], outcomes: dict[str, Outcome], baseline: Outcome, params: Params
) -> Iterator[str]:
    """Yield the lines of the comparison, the best experiment first."""
    from mlops_project.modeling.selection import LOWER_IS_BETTER

    metric = params.train.selection_metric
    lower = metric in LOWER_IS_BETTER
    titles = {one.name: one.title for one in experiments}
    finished = {name: found.finished for name, found in outcomes.items() if found.finished is not None}
    reference = baseline.finished and (baseline.finished.scores, baseline.finished.out_of_fold)
    compared = {name: compare(found.scores, found.out_of_fold, reference) for name, found in finished.items()}
    judged = verdicts(compared, lower_is_better=lower)
    own = f"(baseline: {params.train.model})"
    width = max(map(len, [own, *titles.values()]))

    def cells(title: str, found: Finished) -> str:
        evaluated = found.metrics["evaluate"]
        held_out = f"{evaluated[metric]:.3f}" if metric in evaluated else ""
        mean = f"{found.scores.mean():.3f} ± {found.scores.std():.3f}"
        return f"{title:<{width}}  {mean:>15}  {held_out:>8}  {evaluated['expected_cost']:>5.3f}"

    rows: list[tuple[float, str]] = []
    for name, found in compared.items():
        against, (p_value, verdict) = " " * 40, judged[name]
        if found.difference is not None:
            against = f"{found.difference:>+10.4f}  {f'{found.low:+.4f} to {found.high:+.4f}':<20}  {p_value:>6.2f}"
        rows.append((found.mean, f"{cells(titles[name], finished[name])}  {against}  {verdict:<22}  {name}"))
    if baseline.finished is not None:
        rows.append((float(baseline.finished.scores.mean()), cells(own, baseline.finished)))
    yield (
        f"{metric:<{width}}  {'cross-validated':>15}  {'held out':>8}  {'cost':>5}  {'difference':>10}  {'95 % interval':<20}"
        f"  {'p':>6}  {'verdict':<22}  dvc exp apply"
    )
    rows.sort(key=lambda row: row[0] if lower else -row[0])
    yield from (text for _, text in rows)
    yield from (f"{titles[name]:<{width}}  FAILED: {found.error}" for name, found in outcomes.items() if found.error)
    if baseline.error:
        yield f"{own:<{width}}  FAILED: {baseline.error}"
    if paired := sum(found.difference is not None for found in compared.values()):
        test = "corrected resampled t-test"
        yield f"difference: to the baseline, over the same folds ({test}); p: adjusted for {paired} comparisons (Holm)"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python scripts/experiment_pipeline.py                            all of experiments.yaml\n"
        "  python scripts/experiment_pipeline.py --list                     what there is\n"
        "  python scripts/experiment_pipeline.py --only 'SVM + SMOTE'       one, by its title or its DVC name (svm-smote)\n"
        "  python scripts/experiment_pipeline.py --only svm-smote,logreg-smote --jobs 1\n"
        "  make experiments ONLY=svm-smote JOBS=1\n\n"
        "exit code: 0 all finished, 1 one failed (the others are there), 2 nothing was run",
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="run this one (several: comma, or repeat)")
    parser.add_argument("--list", action="store_true", help="list the experiments and what they set, and run nothing")
    parser.add_argument("--jobs", type=int, metavar="N", help="experiments at a time (default: one per processor)")
    parser.add_argument("--file", default=EXPERIMENTS_FILE, help="where they are declared (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs: found {args.jobs}, expected 1 or more")
    setup_logging()
    # As an interrupt: what was started is stopped, and the clones are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen: list[Experiment] = []

    def choose() -> None:
        wanted = [name.strip() for text in args.only for name in text.split(",")]
        chosen.extend(select(load_experiments(args.file), wanted))
        if args.list:
            for one in chosen:
                print(f"{one.title}  ({one.name})")
                print("".join(f"    {key}: {json.dumps(value)}\n" for key, value in one.config.items()), end="")

    if (code := guarded(choose, failed=2)) or args.list:
        return code
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return guarded(lambda: work(chosen, min(args.jobs or processors, len(chosen))))


if __name__ == "__main__":
    sys.exit(main())
