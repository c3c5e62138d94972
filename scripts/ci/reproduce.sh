#!/bin/sh
# Reproduce the commit; fail if its metrics are not what its code gives. FORCE=1 runs every stage.
set -eu
python scripts/reproduce.py ${FORCE:+--force}
if ! git diff --exit-code --stat -- metrics; then
    echo "error: metrics/ in this commit are not what its code and params give; run \`make pipeline\` and commit dvc.lock and metrics/" >&2
    exit 1
fi
# The same numbers from a model that ends in another bit: seen between kinds of processors (docs/decisions.md).
git diff --quiet -- dvc.lock || echo "note: same metrics, but other bytes in an output than on the machine of this commit"
