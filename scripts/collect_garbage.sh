#!/bin/sh
# Remove from the cache and the default remote what no commit of this clone uses; DVC asks first, unless FORCE=1.
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
# Of branches DVC sees only those that are checked out here, of commits all that have been fetched.
git fetch --quiet --all || echo "warning: not everything could be fetched; what only others have committed may be removed" >&2
trap 'git checkout --quiet -- .dvc/store' EXIT
python -m dvc gc --cloud --all-commits ${FORCE:+--force}
