#!/usr/bin/env bash
# Bring IMAGE@DIGEST into the cluster of KUBECONFIG_CONTENT by the overlay OVERLAY, and take it back if it does not become ready.
# RENDER=1 prints the manifests and does nothing.
set -euo pipefail
fail() {
    echo "error: $*" >&2
    exit 1
}
overlay=${OVERLAY:?staging or production}
[[ ${DIGEST:?} =~ ^sha256:[0-9a-f]{64}$ ]] || fail "$DIGEST is no digest"
[ -d "deploy/kubernetes/overlays/$overlay" ] || fail "there is no overlay $overlay"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r deploy/kubernetes "$folder"
cat > "$folder/kustomization.yaml" << END
resources: [kubernetes/overlays/$overlay]
images:
  - name: registry.example.org/credit-risk-model
    newName: ${IMAGE:?}
    digest: $DIGEST
END
kubectl kustomize "$folder" > "$folder/manifests.yaml"
if [ -n "${RENDER:-}" ]; then
    cat "$folder/manifests.yaml"
    exit
fi
(umask 077 && printf '%s' "${KUBECONFIG_CONTENT:?}" > "$folder/kubeconfig")
export KUBECONFIG=$folder/kubeconfig
kubectl apply --filename "$folder/manifests.yaml"
namespace=credit-risk-$overlay deployment=deployment/credit-risk-model
if ! kubectl --namespace "$namespace" rollout status "$deployment" --timeout 5m; then
    kubectl --namespace "$namespace" rollout undo "$deployment" \
        || fail "$IMAGE@$DIGEST did not become ready in $namespace, and there is no version before"
    fail "$IMAGE@$DIGEST did not become ready in $namespace; the version before is back"
fi
