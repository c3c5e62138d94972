"""Who is champion, and how another becomes it: by tags as gto writes them, in one step that happens or does not.

``NAME@v0.0.2`` is a version, ``NAME#champion#3`` says which commit was made champion third. The highest number counts: taking a
model back is one tag more. All that can fail is done before; what follows (push, link of the service, reload) can be repeated,
and is, by the next command, if a process is killed in between.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_project.config import BEST_MODEL, MODELS
from mlops_project.errors import PipelineError
from mlops_project.files import read_yaml
from mlops_project.manifest import SIGNING_KEY, manifest_path, setting, sign, verify
from mlops_project.monitoring.isolated import dvc, git_in
from mlops_project.review.revisions import Revision, git

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlops_project.monitoring.audit import AuditLog

logger = logging.getLogger(__name__)

STAGE = "champion"
BRANCH = "retrain/"
FIRST_VERSION = (0, 0, 1)
ADMIN_KEY = "MLOPS_ADMIN_KEY"
SECONDS_TO_RELOAD = 120


class Target(NamedTuple):
    """Where a champion goes.

    ``remote``: Git remote that is pushed to, None for none; ``into``: a branch there that moves forward with it; ``serve``: link
    to the folder that a service reads; ``reload``: address of a service that is told.
    """

    remote: str | None = None
    into: str | None = None
    serve: str | None = None
    reload: str | None = None


class Champion(NamedTuple):
    """A commit, its version if it has one, and its number among the champions (0: nobody was made champion yet)."""

    commit: str
    version: str | None
    number: int

    @property
    def label(self) -> str:
        return f"{self.version} ({self.commit[:10]})" if self.version else self.commit[:10]


def artifact() -> str:
    """Name of the model in the ``artifacts`` of dvc.yaml, which versions are tagged with."""
    for name, entry in read_yaml("dvc.yaml").get("artifacts", {}).items():
        if entry.get("path") == BEST_MODEL.as_posix():
            return name
    raise PipelineError(f"dvc.yaml: no artifact has the path {BEST_MODEL}; expected one, whose name the versions are tagged with")


def history(name: str) -> list[Champion]:
    """All champions in their order; the last is the present one."""
    versions = {commit: version for version, commit in _versions(name).items()}
    found = []
    for tag, commit in _tags(f"{name}#{STAGE}#*").items():
        number = tag.rpartition("#")[2]
        if number.isdecimal():
            found.append(Champion(commit, versions.get(commit), int(number)))
    return sorted(found, key=lambda champion: champion.number)


def champion(name: str) -> Champion:
    """The present champion; HEAD as long as nobody was made champion."""
    if past := history(name):
        return past[-1]
    commit = git("rev-parse", "HEAD").strip()
    versions = [version for version, tagged in _versions(name).items() if tagged == commit]
    return Champion(commit, versions[-1] if versions else None, 0)


def predecessor(name: str) -> Champion:
    """The champion before the present one, not counting those that were taken back.

    Raises
    ------
    PipelineError
        If there is none.
    """
    stack: list[Champion] = []
    for found in history(name):
        commits = [kept.commit for kept in stack]
        stack = stack[: commits.index(found.commit) + 1] if found.commit in commits else [*stack, found]
    if len(stack) < 2:
        raise PipelineError(f"{name}: there is no champion before {champion(name).label}; nothing was changed")
    return stack[-2]


def _versions(name: str) -> dict[str, str]:
    """Commits by version, the lowest version first."""
    pattern = re.compile(rf"{re.escape(name)}@v(\d+)\.(\d+)\.(\d+)\Z")
    found = {tag: commit for tag, commit in _tags(f"{name}@v*").items() if pattern.match(tag)}
    ordered = sorted(found, key=lambda tag: tuple(map(int, pattern.match(tag).groups())))  # type: ignore[union-attr]
    return {tag.rpartition("@")[2]: found[tag] for tag in ordered}


def _tags(pattern: str) -> dict[str, str]:
    form = "%(refname:strip=2) %(objectname) %(*objectname)"
    lines = [line.split() for line in git("for-each-ref", f"--format={form}", f"refs/tags/{pattern}").splitlines()]
    return {parts[0]: parts[-1] for parts in lines}


def check_target(target: Target) -> None:
    """Raise PipelineError if a promotion could not reach its target: before hours of training, not after."""
    if target.remote is not None:
        if target.remote not in git("remote").split():
            known = " ".join(git("remote").split()) or "none"
            raise PipelineError(
                f"retraining.remote: there is no Git remote {target.remote!r} (found: {known}), so nothing could be pushed;"
                " `git remote add`, or --no-push"
            )
        if not _team_remote():
            raise PipelineError(
                "DVC has no remote outside this repository, so nobody else would get the data and the model; `make remote`"
                " sets one, or --no-push"
            )
        git("ls-remote", "--quiet", "--heads", target.remote)
    if target.serve is not None and Path(target.serve).exists() and not Path(target.serve).is_symlink():
        raise PipelineError(
            f"{target.serve}: is no link, so it cannot be exchanged at once; name a path that is not there yet, or a link that"
            " `mlops-retrain place` made"
        )


def _team_remote() -> bool:
    from dvc.repo import Repo

    with Repo(".") as repo:
        name = repo.config["core"].get("remote")
        url = str(repo.config["remote"][name]["url"]) if name else ""
    return bool(url) and ("://" in url or not Path(url).resolve().is_relative_to(Path.cwd().resolve()))


def promote(tree: Path, commit: str, run: str, audit: AuditLog, target: Target) -> Champion:
    """Make a commit of a copy champion here, with the next version.

    Raises
    ------
    PipelineError
        If something stands against it: nothing is changed. Or if a step after the promotion failed: the next command repeats it.
    """
    name = artifact()
    before = champion(name)
    branch = f"refs/heads/{BRANCH}{run}"
    git("-C", str(tree), "update-ref", branch, commit)
    number, versions, tags = before.number, _versions(name), []
    if not number:  # so that there is something to go back to
        number = 1
        if before.version is None:
            tags.append((_next(name, versions), before.commit))
            versions[tags[-1][0].rpartition("@")[2]] = before.commit
        tags.append((f"{name}#{STAGE}#1", before.commit))
    tags += [(_next(name, versions), commit), (f"{name}#{STAGE}#{number + 1}", commit)]
    for tag, tagged in tags:
        # gto goes by the dates of tags: who was champion before was so earlier.
        when = git("log", "-1", "--format=%cI", tagged).strip() if tagged == before.commit else None
        git_in(tree, "tag", "--force", "--annotate", "--message", f"mlops-retrain {run}", tag, tagged, when=when)
    refs = [branch, *(f"refs/tags/{tag}" for tag, _ in tags)]
    if target.remote is not None:
        dvc(tree, "push", "--quiet")
        _push(target, refs, commit, "--dry-run", at=tree)
    if target.serve is not None:
        place_files(commit, target.serve, tree)
    found = Champion(commit, tags[-2][0].rpartition("@")[2], number + 1)
    record = {"kind": "promotion", "commit": commit, "version": found.version, "number": found.number, "refs": refs}
    audit.append("promoting", run, record | {"target": target._asdict()})
    # The one step. Git writes all of these references, or none.
    fetch(tree, refs)
    _finish(run, record, audit, target)
    return found


def rollback(run: str, audit: AuditLog, target: Target) -> Champion:
    """Make the champion before the present one champion again; errors as `promote`."""
    name = artifact()
    past = predecessor(name)
    found = past._replace(number=champion(name).number + 1)
    tag = f"{name}#{STAGE}#{found.number}"
    if target.serve is not None:
        place_files(found.commit, target.serve)
    record = {
        "kind": "rollback", "commit": found.commit, "version": found.version, "number": found.number,
        "refs": [f"refs/tags/{tag}"],
    }  # fmt: skip
    audit.append("promoting", run, record | {"target": target._asdict()})
    git_in(Path.cwd(), "tag", "--annotate", "--message", f"mlops-retrain rollback {run}", tag, found.commit)
    _finish(run, record, audit, target)
    return found


def settle(audit: AuditLog) -> None:
    """Finish the promotion during which a process was killed, or, if it had not come to pass, clear away what is left of it."""
    record = audit.unfinished()
    if record is None:
        return
    commit, refs = record["commit"], record["refs"]
    if _at(refs[-1]) == commit:
        logger.warning("%s of %s had come to pass when its process ended; finishing it", record["kind"], record["run"])
        _finish(record["run"], record, audit, Target(**record["target"]))
        return
    for ref in refs:
        if ref.startswith("refs/tags/") and _at(ref):
            git("update-ref", "-d", ref)
    audit.append("abandoned", record["run"], {"reasons": ["the process ended before the champion was changed"]})


def _at(ref: str) -> str:
    try:
        return git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").strip()
    except PipelineError:
        return ""


def _finish(run: str, record: Mapping[str, Any], audit: AuditLog, target: Target) -> None:
    """What follows a promotion and may be repeated."""
    try:
        if target.remote is not None:
            _push(target, record["refs"], record["commit"])
        deliver(record["commit"], target)
    except PipelineError as error:
        raise PipelineError(
            f"{record['version']} is champion here, but: {error}; the next mlops-retrain command tries again"
        ) from None
    audit.append("promoted" if record["kind"] == "promotion" else "rolled_back", run, {
        key: record[key] for key in ("commit", "version", "number")
    } | {"target": target._asdict()})  # fmt: skip


def deliver(commit: str, target: Target) -> None:
    """Put model and policy of a commit where a service reads them, and tell it."""
    if target.serve is not None:
        link(place_files(commit, target.serve), target.serve)
    if target.reload is not None:
        _reload(target.reload)


def fetch(tree: Path, refs: list[str]) -> None:
    """Take references with their commits out of a copy: all, or none."""
    # The copy's own folder: the pipeline may lie deeper.
    clone = git("-C", str(tree), "rev-parse", "--show-toplevel").strip()
    git(
        "fetch", "--quiet", "--atomic", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", clone,
        *(f"+{ref}:{ref}" for ref in refs),
    )  # fmt: skip


def offer(tree: Path, run: str, remote: str | None) -> None:
    """Take the branch of a run out of its copy, and show it to those who approve: its data are pushed first."""
    branch = f"refs/heads/{BRANCH}{run}"
    if remote is not None:
        dvc(tree, "push", "--quiet")
    fetch(tree, [branch])
    if remote is not None:
        git("push", "--quiet", "--force", remote, f"{branch}:{branch}")


def _push(target: Target, refs: list[str], commit: str, *options: str, at: Path | None = None) -> None:
    remote = str(target.remote)
    if at is not None:
        remote = git("remote", "get-url", "--push", remote).strip()
        if "://" not in remote and Path(remote).exists():
            remote = str(Path(remote).resolve())
    forward = [f"{commit}:refs/heads/{target.into}"] if target.into else []
    where = [] if at is None else ["-C", str(at)]
    git(*where, "push", "--quiet", "--atomic", *options, remote, *(f"{ref}:{ref}" for ref in refs), *forward)


def _next(name: str, versions: Mapping[str, str]) -> str:
    """The tag of the version after the last, with gto's default: one more in the last place."""
    last = list(versions)[-1] if versions else None
    numbers = FIRST_VERSION if last is None else tuple(map(int, last[1:].split(".")))
    major, minor, patch = numbers if last is None else (numbers[0], numbers[1], numbers[2] + 1)
    return f"{name}@v{major}.{minor}.{patch}"


def place_files(commit: str, serve: str, tree: Path | None = None) -> Path:
    """Put model, policy, manifests and, with ``MLOPS_SIGNING_KEY``, signatures of a commit beside the link of a service.

    They come out of ``tree``, a copy in which they are, or from DVC.

    Returns the folder, ``SERVE.d/COMMIT``. It appears whole or not at all.
    """
    folder = Path(f"{serve}.d") / commit[:12]
    revision, key = Revision(commit[:12], commit), setting(SIGNING_KEY)
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in (BEST_MODEL, MODELS / "policy.json"):
            copied, manifest = partial / path.name, manifest_path(path)
            text = revision.read(manifest) if tree is None else (tree / manifest).read_text(encoding="utf-8")
            if text is None:
                raise PipelineError(f"{manifest}: not in {commit[:12]}; expected what the pipeline writes")
            made = tree / path if tree is not None else path
            copied.write_bytes(made.read_bytes() if tree is not None and made.exists() else revision.output(path))
            manifest_path(copied).write_text(text, encoding="utf-8", newline="\n")
            verify(copied, public_key=None, allow_uncommitted=True) if key is None else sign(copied, key, allow_uncommitted=True)
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        partial.rename(folder)
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be written ({error.strerror}); the champion stays") from None
    return folder


def link(folder: Path, serve: str) -> None:
    """Let the link of a service point to a folder, at once."""
    path = Path(serve)
    temporary = path.with_name(f".{path.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(folder.parent.name) / folder.name)
        os.replace(temporary, path)
    except OSError as error:
        raise PipelineError(f"{serve}: the link cannot be changed ({error.strerror})") from None


def _reload(address: str) -> None:
    key = setting(ADMIN_KEY)
    request = urllib.request.Request(f"{address.rstrip('/')}/v1/admin/reload", method="POST")  # noqa: S310 - from the command line
    if key:
        request.add_header("Authorization", f"Bearer {key.strip()}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_TO_RELOAD) as answer:  # noqa: S310
            found = json.loads(answer.read())
        logger.info("%s: %s, model %s", address, found.get("outcome"), found.get("model_version"))
    except urllib.error.HTTPError as error:
        raise PipelineError(
            f"{address}: the service answered {error.code}: {error.read(2000).decode(errors='replace')}"
        ) from None
    except (OSError, ValueError) as error:
        raise PipelineError(f"{address}: no answer to the reload ({error})") from None
