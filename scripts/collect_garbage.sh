#!/bin/sh
# Remove from the cache and the default remote what no commit and no experiment of this clone uses; DVC asks first.
#   DRY=1             list what would go, and remove nothing
#   FORCE=1           do not ask, as a scheduled job needs it
#   SINCE=2026-06-01  keep what tags, experiments and the commits since that day use, and no older commit
#   PROJECTS="A B"    where the cache is shared: the other clones that use it (none: PROJECTS=none)
# DVC cleans the embedded remote as well, and of that it keeps only the outputs that are pinned to it: all released
# models go (seen with DVC 3.67). They are in Git, so they are brought back.
set -eu
if [ -n "$(git status --porcelain -- .dvc/store)" ]; then
    echo "error: .dvc/store has changes that are not in Git; commit or undo them first (git status)" >&2
    exit 1
fi
if [ "$(python -m dvc config core.remote)" = embedded ]; then
    echo "error: the default remote is the embedded one, whose garbage \`make embed\` removes; add a team remote first (docs/remotes.md)" >&2
    exit 1
fi
shared=$(python -m dvc config cache.dir)
if [ -n "$shared" ] && [ -z "${PROJECTS:-}" ]; then
    echo "error: the cache may be shared ($shared), and what only other clones use would go; expected:" \
        "PROJECTS=\"/path/of/a/clone …\", or PROJECTS=none if there is no other" >&2
    exit 1
fi
if [ "${PROJECTS:-none}" = none ]; then PROJECTS=''; fi
# Of branches DVC sees only those that are checked out here, of commits all that have been fetched.
git fetch --quiet --all --tags || echo "warning: not everything could be fetched; what only others have committed may be removed" >&2
keep=--all-commits
[ -z "${SINCE:-}" ] || keep="--all-tags --date $SINCE"
# shellcheck disable=SC2086 # words
set -- --cloud --all-experiments $keep ${PROJECTS:+--projects $PROJECTS}

# A folder's files are known from its listing alone. Where that is absent or unreadable, DVC takes the files for garbage, unless
# somebody says no; and nobody is asked with --force or --dry. So all is looked for beforehand, without either.
# shellcheck disable=SC2086 # words
python - "${SINCE:-}" . $PROJECTS <<'END'
import logging
import sys

from dvc.exceptions import DvcException
from dvc.repo import Repo

logging.getLogger("dvc").setLevel(logging.CRITICAL)
since, *projects = sys.argv[1:]
keep = {"all_tags": True, "commit_date": since} if since else {"all_commits": True}
for path in projects:
    try:
        with Repo(path) as project:
            project.used_objs(all_experiments=True, **keep)
    except (DvcException, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        sys.exit(
            f"error: {path}: not all that is in use can be found ({reason}); nothing was removed. Whoever made it must `dvc push`,"
            " then `dvc fetch --all-commits` here"
        )
END

if [ -n "${DRY:-}" ]; then
    # Without what comes back from Git.
    python -m dvc gc --dry "$@" 2>/dev/null | awk -v store="$PWD/.dvc/store/" \
        '/^Removing / && index($0, store) == 0 {print; n++} END {print n + 0 " objects would be removed"}'
    exit
fi
trap 'git checkout --quiet -- .dvc/store' EXIT
python -m dvc gc "$@" ${FORCE:+--force}
