#!/bin/sh
# Run a command in a fresh clone of MLOPS_REPOSITORY with its data: job.sh mlops-monitor run --drift
set -eu
git clone --quiet --branch "${MLOPS_BRANCH:-main}" "${MLOPS_REPOSITORY:?where the repository is}" project
cd project
# The clone's code, not the image's: a stage runs what the commit holds.
export PYTHONPATH="$PWD/src"
python3 -m dvc pull --quiet
# 3: drift, worse quality, a challenger that was rejected. The job did its work, and the report says so.
"$@" || [ $? -eq 3 ]
