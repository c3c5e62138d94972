#!/usr/bin/env bash
# Compare the commit with where its branch left TARGET (default: main), apply the gate, and leave the report in review/.
set -euo pipefail
# A merge commit, as CI checks it out, leaves the target at its first parent; a plain branch where it began.
base=$(git merge-base "origin/${TARGET:-main}" HEAD)
rm -rf review
mkdir review
status=0
mlops-compare "$base" HEAD --gate --markdown review/report.md --json review/report.json --images review || status=$?
[ -s review/report.md ] || echo "The comparison failed (exit $status); the reason is in the log of this run." > review/report.md
# Neither a job summary nor a comment can show a picture that is not on the web.
sed -E 's/!\[([^]]*)\]\([^):]*\)/\1: picture in the artifact `review`/g' review/report.md > review/comment.md
[ -z "${GITHUB_STEP_SUMMARY:-}" ] || cat review/comment.md >> "$GITHUB_STEP_SUMMARY"
exit "$status"
