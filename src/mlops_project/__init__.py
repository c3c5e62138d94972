"""Credit-risk pipeline: raw applications in, an honest and reproducible risk model out."""

import sys
from importlib.util import find_spec

if find_spec("msgspec") is None:
    # DVC runs `python` from PATH; without the project's environment that is another Python.
    sys.exit(
        f"error: {sys.executable} lacks the project's packages; use `make pipeline`, or put the environment first:"
        " `make init && . .venv/bin/activate`"
    )
