#!/usr/bin/env bash
# Put the model of the version tag TAG (credit-risk-model@v1.2.3) into dist/, with policy, card and metrics.
# Nothing is trained: a release is what DVC has under that tag.
set -euo pipefail
fail() {
    echo "error: $*" >&2
    exit 1
}
tag=${TAG:?the version tag, for example credit-risk-model@v1.2.3}
[[ $tag =~ ^[a-z][a-z0-9-]*@v[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "$tag is no version tag; expected NAME@vMAJOR.MINOR.PATCH"
name=${tag%@*} version=${tag#*@}
commit=$(git rev-parse --verify --quiet "refs/tags/$tag^{commit}") || fail "there is no tag $tag"
[ "$commit" = "$(git rev-parse HEAD)" ] || fail "$tag is not what is checked out; git checkout $tag"
git merge-base --is-ancestor "$commit" "origin/${TARGET:-main}" || fail "$tag is not on ${TARGET:-main}; merge first, then tag"
python -m dvc pull --quiet || fail "the remote lacks what $tag names; \`dvc push\` from where it was made"
status=$(python -m dvc status)
[[ $status == *"up to date"* ]] || fail "dvc.lock is not up to date with the code at $tag:"$'\n'"$status"

rm -rf dist
mkdir dist
python -m dvc artifacts get . "$name" --rev "$version" -o "dist/$name-$version.joblib"
python -m dvc get --quiet . models/policy.json --rev "$tag" -o dist/policy.json
python scripts/model_card.py "$name" "$version" "$commit" > dist/model_card.md
cp metrics/*.json dist/
(cd dist && sha256sum -- * > SHA256SUMS)
