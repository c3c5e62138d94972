# shellcheck shell=bash disable=SC2034
# Sourced: have what DVC has under the version tag TAG (credit-risk-model@v1.2.3), which must be checked out, on main and up to
# date. Sets tag, name, version and commit.
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
