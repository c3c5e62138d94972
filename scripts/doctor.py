"""Diagnose what bites DVC users here, and say how to mend it (`make doctor`, `make doctor FIX=1`).

Each line is ✓ or ✗, what was found and the fix. With --fix, what can be mended without losing work is mended.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path.cwd()
# `make` puts .venv on PATH; what people type by hand runs with the PATH before that.
TYPED_PATH = os.environ.get("TYPED_PATH") or os.environ.get("PATH", "")
DVC = (sys.executable, "-m", "dvc")


class Finding(NamedTuple):
    """``fix`` in words; ``mend`` does it, where that can lose nothing."""

    ok: bool
    what: str
    fix: str = ""
    mend: Callable[[], object] | None = None


def run(*command: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def git(*arguments: str) -> str:
    return run("git", *arguments).stdout


def listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def python_environment() -> Iterator[Finding]:
    """Which Python and DVC run, what they import, and whether the pinned versions are installed."""
    venv = ROOT / ".venv"
    here = Path(sys.prefix)
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever Python started this
        yield Finding(False, f"Python {sys.version.split()[0]}, expected 3.11 or newer", "make init, with PYTHON=/path/to/python")
    elif venv.exists() and here.resolve() != venv.resolve():
        yield Finding(False, f"the doctor runs in {here}, not in .venv", "make doctor")
    else:
        yield Finding(True, f"Python {sys.version.split()[0]} of {here}")

    wanted = Path(sys.executable).parent
    typed = {name: shutil.which(name, path=TYPED_PATH) for name in ("dvc", "python")}
    if typed["dvc"] is None:
        yield Finding(True, "no dvc on PATH; make targets bring their own, for typed commands: . .venv/bin/activate")
    else:
        strange = [
            f"{name} is {path}" for name, path in typed.items() if path and Path(path).parent.resolve() != wanted.resolve()
        ]
        strange += [] if typed["python"] else ["python is missing, which every stage calls"]
        if typed["python"]:
            number = run(typed["python"], "-c", "import sys; print(*sys.version_info[:3])").stdout.split()
            if [int(part) for part in number] < [3, 11]:
                strange.append(f"python is version {'.'.join(number)}, expected 3.11 or newer")
        what = "; ".join(strange) or f"dvc and python on PATH are those of {wanted}"
        yield Finding(not strange, f"on PATH {what}" if strange else what, ". .venv/bin/activate, in each new shell")

    with tempfile.TemporaryDirectory() as elsewhere:  # not in a folder whose src would be found by chance
        found = run(sys.executable, "-c", "import mlops_project; print(mlops_project.__file__)", cwd=elsewhere)
    expected = ROOT / "src/mlops_project/__init__.py"
    imported = found.stdout.strip() or (found.stderr.strip().splitlines() or ["nothing"])[-1]
    fix = "unset PYTHONPATH" if os.environ.get("PYTHONPATH") else "rm -f .venv/core.done && make init"
    good = found.returncode == 0 and Path(imported).resolve() == expected.resolve()
    yield Finding(good, f"the package is imported from {imported}" + ("" if good else f", expected {expected}"), fix)
    yield _pins()


def _pins() -> Finding:
    from packaging.markers import Marker

    old = []
    for line in (ROOT / "requirements/core.txt").read_text(encoding="utf-8").splitlines():
        pin = re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)(?: *; *([^\\]+))?", line)
        if not pin or (pin[3] and not Marker(pin[3].strip()).evaluate()):
            continue
        try:
            installed = version(pin[1])
        except PackageNotFoundError:
            installed = "absent"
        if installed != pin[2]:
            old.append(f"{pin[1]} {installed}, pinned {pin[2]}")
    return Finding(not old, listed(old) or "all pinned versions are installed", "rm -f .venv/core.done && make init")


def working_processes() -> list[int]:
    """Return the process ids of DVC and Git that work in this folder."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = [os.path.basename(word) for word in (process.info["cmdline"] or [])[:4]]
        inside = process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(ROOT)
        if inside and process.info["pid"] != os.getpid() and ("dvc" in words or words[:1] == ["git"]):
            found.append(process.info["pid"])
    return found


def head() -> Iterator[Finding]:
    """A branch must be checked out; a killed `dvc exp run` leaves HEAD detached and DVC's own files staged."""
    branch, commit = git("symbolic-ref", "--quiet", "--short", "HEAD").strip(), git("rev-parse", "--short", "HEAD").strip()
    staged = git("ls-files", "--", ".dvc/tmp").split()
    if branch:
        yield Finding(True, f"on branch {branch}")
    else:
        before = git("rev-parse", "--abbrev-ref", "@{-1}").strip()
        branches = git("for-each-ref", "--points-at", "HEAD", "--format=%(refname:short)", "refs/heads").split()
        if len(branches) > 1 and before in branches:
            branches = [before]
        if len(branches) == 1:
            # Neither a file nor the index changes: the branch points at this very commit.
            yield Finding(
                False,
                f"HEAD is detached at {commit}, as after a killed dvc exp run",
                f"git symbolic-ref HEAD refs/heads/{branches[0]}; then look at `git diff HEAD -- params.yaml`: a killed"
                " experiment leaves its values there, `git restore --staged --worktree params.yaml` drops them",
                partial(git, "symbolic-ref", "HEAD", f"refs/heads/{branches[0]}"),
            )
        else:
            yield Finding(False, f"HEAD is detached at {commit} ({listed(branches) or 'no branch'} there)", "git switch BRANCH")
    if staged:
        fix = "git rm -r -q -f --cached .dvc/tmp"
        yield Finding(False, f"DVC's temporary files are staged: {listed(staged)}", fix, partial(run, *fix.split()))
    if not branch and (stashes := git("stash", "list").splitlines()):
        what = f"uncommitted changes may be in a stash, where a killed dvc exp run leaves them: {stashes[0]}"
        yield Finding(False, what, "git stash show -p; git stash pop if something of it is missing here, else git stash drop")


def experiments() -> Iterator[Finding]:
    """References that a killed run left, and experiments of commits that no branch holds any more."""
    names = git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    internal = [name for name in names if name.startswith(("refs/exps/exec/", "refs/exps/temp/"))]
    # EXEC_HEAD alone stays after every run.
    if [
        name for name in internal if not name.endswith(("/EXEC_HEAD", "/EXEC_APPLY", "/EXEC_CHECKPOINT"))
    ] and not working_processes():
        yield Finding(
            False,
            f"references of a killed experiment: {listed(internal)}",
            "; ".join(f"git update-ref -d {name}" for name in internal),
            lambda: [git("update-ref", "-d", name) for name in internal],
        )
    baselines: dict[str, list[str]] = {}
    for name in names:
        if parts := re.fullmatch(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38,62})/(.+)", name):
            baselines.setdefault(parts[1] + parts[2], []).append(parts[3])
    lost = {
        commit: experiments
        for commit, experiments in baselines.items()
        if not git("for-each-ref", "--contains", commit, "refs/heads", "refs/tags", "refs/remotes").strip()
    }
    for commit, found in lost.items():
        # These hold results: people decide.
        fix = f"dvc exp branch NAME BRANCH keeps one; dvc exp remove --rev {commit} removes them"
        yield Finding(False, f"experiments of {commit[:7]}, which is on no branch: {listed(found)}", fix)
    if len(lost) < len(baselines) or not names:
        kept = sum(len(found) for commit, found in baselines.items() if commit not in lost)
        yield Finding(True, f"{kept} experiments of commits on branches")


def locks() -> Iterator[Finding]:
    """Locks of processes that are gone."""
    if working := working_processes():
        yield Finding(True, f"locks not looked at: DVC or Git is at work (process {listed([str(pid) for pid in working])})")
        return
    stale = list((ROOT / git("rev-parse", "--git-common-dir").strip()).rglob("*.lock"))
    rwlock = ROOT / ".dvc/tmp/rwlock"
    if rwlock.exists():
        try:
            content = json.loads(rwlock.read_text(encoding="utf-8") or "{}")
        except ValueError:
            content = {"write": {"unreadable": {}}}
        if any(content.values()):
            stale.append(rwlock)
    names = [os.path.relpath(path, ROOT) for path in stale]
    if names:
        fix = f"rm -f {' '.join(names)}"
        yield Finding(False, f"locks of killed processes: {listed(names)}", fix, partial(run, "rm", "-f", *names))
    else:
        yield Finding(True, "no stale locks of DVC or Git")


def data() -> Iterator[Finding]:
    """Missing data and who has it, and remotes that do not answer."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        opened = Repo(str(ROOT))
    except DvcException as error:
        yield Finding(False, f"DVC cannot be opened: {' '.join(str(error).split())}", "mend .dvc/config or .dvc/config.local")
        return
    with opened as repo:
        outs = {os.path.relpath(out.fs_path, ROOT): out for out in repo.index.outs if out.use_cache and out.hash_info}
        held: dict[str, set[str]] = {}
        yield from _remotes(repo, outs, held)
        missing = {path for path in outs if not os.path.exists(path)}
        cached = {path for path in missing if repo.cache.local.exists(outs[path].hash_info.value)}
    if not missing:
        yield Finding(True, f"{len(outs)} files of data and models are there")
    if cached:
        what = f"in the cache, not in the workspace: {listed(sorted(cached))}"
        yield Finding(False, what, "dvc checkout", partial(run, *DVC, "checkout", "--quiet", *sorted(cached)))
    missing -= cached
    for remote, paths in held.items():
        if here := sorted(missing & paths):
            what = f"missing, the remote {remote} has it: {listed(here)}"
            yield Finding(False, what, f"dvc pull -r {remote}", partial(run, *DVC, "pull", "--quiet", "--remote", remote, *here))
            missing -= paths
    raw = {path for path in missing if outs[path].stage.is_data_source}
    if raw:
        yield Finding(False, f"missing, in no remote: {listed(sorted(raw))}", "whoever added it must push it: dvc push")
    if made := sorted(missing - raw):
        yield Finding(False, f"missing, in no remote: {listed(made)}", "make pipeline makes it anew")


def _remotes(repo: Any, outs: dict[str, Any], held: dict[str, set[str]]) -> Iterator[Finding]:
    default, pinned = repo.config["core"].get("remote"), {out.remote for out in outs.values()}
    for remote, config in repo.config["remote"].items():
        name = f"remote {remote}{' (default)' if remote == default else ''}"
        change = f"dvc remote modify {'' if remote in pinned else '--local '}{remote} url URL"
        try:
            store = repo.cloud.get_remote_odb(remote)
            held[remote] = {path for path, out in outs.items() if store.exists(out.hash_info.value)}
        except Exception as error:  # noqa: BLE001 - each kind of server has errors of its own
            what = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield Finding(False, what, f"check the address, the network and your key; {change}")
            continue
        if outs and not held[remote] and remote not in pinned:
            # Some servers that do not answer look like empty ones to DVC.
            what = f"{name} at {config['url']} has none of the {len(outs)} files: not there, or never pushed to"
            yield Finding(False, what, f"dvc push -r {remote}, or {change}")
        else:
            yield Finding(True, f"{name} has {len(held[remote])} of {len(outs)} files")
    if default is None:
        yield Finding(
            False, "no default remote", "dvc remote default embedded", partial(run, *DVC, "remote", "default", "embedded")
        )
    elif default not in repo.config["remote"]:
        yield Finding(False, f"the default remote {default} is not declared", f"dvc remote add --local -d {default} URL")
    elif default == "embedded":
        yield Finding(True, "dvc push would write to the embedded remote, into Git; a team's: dvc remote add --local -d NAME URL")


def files() -> Iterator[Finding]:
    """Untracked files that experiments elsewhere (--temp, --queue, make experiments) miss, and pushes into Git by accident."""
    untracked = git("ls-files", "--others", "--exclude-standard").splitlines()
    missed = [name for name in untracked if name.startswith(("src/", "data/", "scripts/"))]
    if missed:
        add = ("git", "add", "--", *missed)
        what = f"untracked, so not in experiments that run elsewhere: {listed(missed)}"
        yield Finding(False, what, f"git add {' '.join(missed)}", partial(run, *add))
    if stored := [name for name in untracked if name.startswith(".dvc/store/")]:
        yield Finding(
            False,
            f"{len(stored)} files were pushed into the embedded remote, which Git would take for good",
            "your team's remote as default: dvc remote add --local -d NAME URL; dvc push; then git clean -fd .dvc/store",
        )
    if not missed and not stored:
        yield Finding(True, "no untracked file that an experiment elsewhere would miss")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "environment": python_environment,
    "branch": head,
    "experiments": experiments,
    "locks": locks,
    "data": data,
    "files": files,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="exit code: 0 all is well, 1 something is not",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fix", action="store_true", help="mend what can be mended without losing work, and look again")
    parser.add_argument("--only", choices=CHECKS, help="one of the checks")
    args = parser.parse_args()
    if not (ROOT / "dvc.yaml").exists():
        print(f"error: {ROOT}: found no dvc.yaml; run from the folder that holds it", file=sys.stderr)
        return 2
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `make doctor | head`
    bad = 0
    for name, check in CHECKS.items():
        if args.only not in (None, name):
            continue
        found = list(check())
        if args.fix and any(finding.mend for finding in found if not finding.ok):
            for finding in found:
                if not finding.ok and finding.mend:
                    print(f"  mended: {finding.what}")
                    finding.mend()
            found = list(check())
        for finding in found:
            print(f"{'✓' if finding.ok else '✗'} {name}: {finding.what}", flush=True)
            if not finding.ok:
                print(f"    fix{' (or --fix)' if finding.mend else ''}: {finding.fix}")
        bad += sum(not finding.ok for finding in found)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
