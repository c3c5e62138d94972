"""Resolve merge conflicts of what the pipeline writes by running what the merge changed (`make resolve`).

That is dvc.lock, metrics/, the manifests in models/, the model card and the figures in README.md.

Neither side's lock is right for the merged params, so one is taken as a start and `dvc repro` writes the right one. Conflicts
in other files are for people, first. Works in a merge, a rebase, a cherry-pick and after `git stash pop`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import figures

README = "README.md"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def generated(path: str) -> bool:
    return path in ("dvc.lock", figures.CARD.as_posix()) or path.startswith(("metrics/", "models/"))


def unmerged() -> dict[str, set[int]]:
    """Return the paths in conflict, with the stages that the index has: 1 common ancestor, 2 ours, 3 theirs."""
    found: dict[str, set[int]] = {}
    for line in filter(None, git("ls-files", "--unmerged", "-z").split("\0")):
        entry, path = line.split("\t", 1)
        found.setdefault(path, set()).add(int(entry.split()[2]))
    return found


def main() -> int:
    conflicts = unmerged()
    ours = [path for path in conflicts if generated(path)]
    # The figures in README.md are rewritten below; whether that is all that is in conflict there shows then.
    others = [path for path in conflicts if not generated(path) and path != README]
    if others:
        print(f"error: {', '.join(others)}: in conflict; edit, `git add` them, and call `make resolve` again", file=sys.stderr)
        return 1
    for path in ours:
        # Where one side has removed the file, the other one's is a start as well.
        side = "--ours" if 2 in conflicts[path] else "--theirs"
        git("checkout", side, "--", path)
    print(f"{', '.join(ours) or 'dvc.lock'}: made anew by dvc repro", flush=True)
    if subprocess.run([sys.executable, "-m", "dvc", "repro", "--pull"], check=False).returncode:
        print(
            "error: the pipeline stopped, so nothing is resolved; mend what it says and call `make resolve` again",
            file=sys.stderr,
        )
        return 1
    git("add", "--", "dvc.lock", "metrics", "models")
    readme = Path(README)
    text = figures.with_figures(readme.read_text(encoding="utf-8"))
    if any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines()):
        print(f"error: {README}: in conflict beyond its figures; edit it, `git add` it", file=sys.stderr)
        return 1
    figures.main()
    git("add", "--", README, str(figures.CARD))
    print(
        "resolved and staged: dvc.lock, metrics/, models/, the model card and the figures in README.md. Look at"
        " `git diff --cached`, then"
    )
    print("go on with git merge --continue, git rebase --continue or git commit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
