#!/bin/sh
# Lint what deploys: hadolint, the Compose and Kubernetes schemas, checkov. All offline. $1: folder of the tools; beside it lies
# dask-operator, with the schemas of its resources.
set -eu
tools=$1/bin
definitions=$1/../dask-operator/dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds
here=$(dirname "$0")
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
"$tools/hadolint" --failure-threshold style deploy/Dockerfile deploy/jobs/Dockerfile
"$tools/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose.yaml
for overlay in deploy/kubernetes/overlays/*/ deploy/kubernetes/monitoring/; do
    file=$rendered/$(basename "$overlay").yaml
    "$tools/kubectl" kustomize "$overlay" > "$file"
    "$tools/kubernetes-validate" --strict --quiet "$file"
done
"$tools/kubectl" kustomize deploy/kubernetes/dask > "$rendered/dask.all"
"$tools/python" "$here/check_dask.py" "$rendered/dask.all" "$definitions" > "$rendered/dask.yaml"
"$tools/kubernetes-validate" --strict --quiet "$rendered/dask.yaml"
# Whatever checkov could ask its makers for is not in question here: no key, no download.
"$tools/checkov" --quiet --compact --skip-download --framework kubernetes --directory "$rendered"
"$tools/checkov" --quiet --compact --skip-download --framework dockerfile --file deploy/Dockerfile --file deploy/jobs/Dockerfile
