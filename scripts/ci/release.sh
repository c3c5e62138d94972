#!/usr/bin/env bash
# Put the model of the version tag TAG (credit-risk-model@v1.2.3) into dist/, with policy, card and metrics.
# Nothing is trained: a release is what DVC has under that tag.
set -euo pipefail
# shellcheck source=scripts/ci/at_tag.sh
. "$(dirname "$0")/at_tag.sh"

rm -rf dist
mkdir dist
python -m dvc artifacts get . "$name" --rev "$version" -o "dist/$name-$version.joblib"
mlops-manifest verify models/best_model.joblib > /dev/null
cmp models/best_model.joblib "dist/$name-$version.joblib"
# Under its new name, so that whoever downloads both can load it.
mlops-manifest write "dist/$name-$version.joblib" > /dev/null
python -m dvc get --quiet . models/policy.json --rev "$tag" -o dist/policy.json
python scripts/model_card.py "$name" "$version" "$commit" > dist/model_card.md
cp metrics/*.json dist/
(cd dist && sha256sum -- * > SHA256SUMS)
