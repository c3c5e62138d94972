#!/usr/bin/env bash
# Promote the challenger RUN, which somebody has approved: version, champion, and TARGET moved forward to it.
set -euo pipefail
. "$(dirname "$0")/git_token.sh"
git fetch --quiet --tags origin "+refs/heads/retrain/*:refs/remotes/origin/retrain/*"
mlops-retrain approve "${RUN:?the id of a run}" --into "${TARGET:-main}"
