"""Print what an extra of pyproject.toml asks for, one requirement a line (`make requirements` compiles it)."""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    extras = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    print("\n".join(extras[sys.argv[1]]))
