"""Write the figures of metrics/ into README.md, between its two markers, and the model card (`make figures`)."""

import re
import sys
from pathlib import Path

from mlops_project.errors import PipelineError
from mlops_project.reporting.card import model_card
from mlops_project.reporting.results import read_results
from reproduce import metrics_table

CARD = Path("docs/model-card.md")

BLOCK = re.compile(r"(<!-- figures: make figures -->\n```text\n)[^`]*(```\n)", re.DOTALL)


def with_figures(readme: str) -> str:
    """Return the README's text with the present figures."""
    table = "\n".join(line.rstrip() for line in metrics_table())
    text, found = BLOCK.subn(lambda match: match[1] + table + "\n" + match[2], readme)
    if found != 1:
        sys.exit("error: README.md: found no place for the figures; expected a text block after <!-- figures: make figures -->")
    return text


def main() -> None:
    try:
        card = model_card(read_results())
    except PipelineError as error:
        sys.exit(f"error: {error}")
    readme = Path("README.md")
    for path, text in ((readme, with_figures(readme.read_text(encoding="utf-8"))), (CARD, card)):
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
