#!/bin/sh
# Install the pinned requirements file $2 into the environment of the Python $1, hashes checked, bytecode compiled
# (without it every stage would import for twice as long).
set -eu
python=$1 requirements=$2
if ! "$python" -m uv --version >/dev/null 2>&1; then
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$(dirname "$0")/../requirements/uv.txt" || true
fi
# uv is several times faster; pip knows registries that are set up in its own configuration only.
"$python" -m uv --system-certs pip install --quiet --python "$python" --compile-bytecode --require-hashes -r "$requirements" ||
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$requirements"
