#!/usr/bin/env bash
# Build the image of the version tag TAG as IMAGE:VERSION, with the model that DVC has under it, signed by MLOPS_SIGNING_KEY.
# ENGINE=buildah does without Docker, BASE is another base, OPTIONS are further ones of the build.
set -euo pipefail
# shellcheck source=scripts/ci/at_tag.sh
. "$(dirname "$0")/at_tag.sh"

image=${IMAGE:-localhost/$name}
files=(models/best_model.joblib models/policy.json)
mlops-manifest sign "${files[@]}"
read -ra options <<< "${OPTIONS:-}"
"${ENGINE:-docker}" build --file deploy/Dockerfile ${BASE:+--build-arg "BASE=$BASE"} --build-arg "COMMIT=$commit" \
    --tag "${image,,}:$version" "${options[@]}" .
echo "${image,,}:$version"
