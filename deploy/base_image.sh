#!/bin/sh
# Make a base for deploy/Dockerfile out of Debian packages, where no image registry can be reached: Debian 12 with its own
# Python 3.11. $1: name of the image (default: localhost/python:3.11-bookworm). Needs root, buildah and mmdebstrap; MIRROR=… is an
# address of Debian's packages. buildah's own settings (BUILDAH_ISOLATION, STORAGE_DRIVER, …) hold.
set -eu
image=${1:-localhost/python:3.11-bookworm}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mmdebstrap --quiet --variant=essential --include=ca-certificates,libstdc++6,python3,python3-venv \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$folder/root.tar" ${MIRROR:+"$MIRROR"}
container=$(buildah from scratch)
buildah add --quiet "$container" "$folder/root.tar" / > /dev/null
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$image" > /dev/null
echo "$image"
