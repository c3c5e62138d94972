"""Write the figures of metrics/ into README.md, between its two markers (`make figures`)."""

import re
import sys
from pathlib import Path

from reproduce import metrics_table

BLOCK = re.compile(r"(<!-- figures: make figures -->\n```text\n)[^`]*(```\n)", re.DOTALL)


def with_figures(readme: str) -> str:
    """Return the README's text with the present figures."""
    table = "\n".join(line.rstrip() for line in metrics_table())
    text, found = BLOCK.subn(lambda match: match[1] + table + "\n" + match[2], readme)
    if found != 1:
        sys.exit("error: README.md: found no place for the figures; expected a text block after <!-- figures: make figures -->")
    return text


if __name__ == "__main__":
    path = Path("README.md")
    path.write_text(with_figures(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
