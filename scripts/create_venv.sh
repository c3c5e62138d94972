#!/bin/sh
# Make the virtual environment $1 with the first Python of at least 3.11 that can; PYTHON=… chooses one.
set -eu
venv=$1
for python in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    command -v "$python" >/dev/null 2>&1 || continue
    # The interpreter behind an activated environment: that environment may be the very one to be made anew.
    base=$("$python" -c 'import sys, venv, ensurepip; sys.version_info < (3, 11) and sys.exit(1); print(sys._base_executable)' 2>/dev/null) || continue
    echo "setting up $venv with $("$base" --version) (once; about a minute)" >&2
    # A half-made or moved environment is not repaired but made anew.
    rm -rf "$venv"
    # shellcheck disable=SC2093  # the first that can ends the loop
    exec "$base" -m venv "$venv"
done
echo "error: no Python 3.11 or newer with the venv module on PATH; install one (Debian: apt install python3-venv) or set PYTHON=/path/to/python" >&2
exit 1
