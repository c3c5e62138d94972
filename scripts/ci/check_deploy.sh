#!/bin/sh
# Lint what deploys: hadolint, the Compose and Kubernetes schemas, checkov. All offline. $1: folder of the tools.
set -eu
tools=$1/bin
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
"$tools/hadolint" --failure-threshold style deploy/Dockerfile deploy/jobs/Dockerfile
"$tools/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose.yaml
for overlay in deploy/kubernetes/overlays/*/ deploy/kubernetes/monitoring/; do
    file=$rendered/$(basename "$overlay").yaml
    "$tools/kubectl" kustomize "$overlay" > "$file"
    "$tools/kubernetes-validate" --strict --quiet "$file"
done
# Whatever checkov could ask its makers for is not in question here: no key, no download.
"$tools/checkov" --quiet --compact --skip-download --framework kubernetes --directory "$rendered"
"$tools/checkov" --quiet --compact --skip-download --framework dockerfile --file deploy/Dockerfile --file deploy/jobs/Dockerfile
