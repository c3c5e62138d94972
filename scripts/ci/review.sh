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
# A changed raw table: what mlops-validate counts in it, beside the same of the table before. A share that jumped fails the review.
raw=$(python -c 'from mlops_project.config import load_params; print(load_params().data.raw)')
if ! git diff --quiet "$base" HEAD -- "$raw" "$raw.dvc"; then
    jump=0
    git show "$base:metrics/prepare.json" > review/counts.json
    mlops-monitor data "$raw" --counts review/counts.json --no-record > review/data.txt 2>&1 || jump=$?
    printf '\n## Raw table\n\n```text\n%s\n```\n' "$(cat review/data.txt)" >> review/report.md
    [ "$status" -ne 0 ] || status=$jump
fi
# Neither a job summary nor a comment can show a picture that is not on the web.
sed -E 's/!\[([^]]*)\]\([^):]*\)/\1: picture in the artifact `review`/g' review/report.md > review/comment.md
[ -z "${GITHUB_STEP_SUMMARY:-}" ] || cat review/comment.md >> "$GITHUB_STEP_SUMMARY"
exit "$status"
