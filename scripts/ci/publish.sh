#!/usr/bin/env bash
# Push the image IMAGE with REGISTRY_TOKEN; leave its name without tag and its digest in GITHUB_OUTPUT.
set -euo pipefail
image=${IMAGE,,}
docker login "${image%%/*}" --username "${REGISTRY_USER:?}" --password-stdin <<< "${REGISTRY_TOKEN:?}"
docker push --quiet "$image"
digest=$(docker inspect --format '{{index .RepoDigests 0}}' "$image")
printf 'name=%s\ndigest=%s\n' "${image%:*}" "${digest#*@}" >> "${GITHUB_OUTPUT:-/dev/stdout}"
