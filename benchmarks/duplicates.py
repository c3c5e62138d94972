"""How many copied applicants does the agreement rule find, and how many strangers does it take for one, as tables grow?

Applicants are drawn independently from a Gaussian copula of the clean rows, so every one that is merged with another is a
false merge; two in a hundred are appended again, and every cell gets dirt of its own, as `build_raw_data.make_dirty` does it.
Each table is searched with the plain rule alone and with the strict rule from several positions on.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from common import CLEAN_FILE, ROOT, print_table
from mlops_project.config import load_params
from mlops_project.identity import first_occurrences
from mlops_project.schema import load_contract

if TYPE_CHECKING:
    from mlops_project.schema import Contract

COPIES, ALTERED, MISSING = 0.02, 0.01, 0.015  # a token is missing as well
PART = 100_000


def draw(clean: pd.DataFrame, numeric: list[bool], n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n applicants, distributed and correlated as the clean rows are; numeric columns take values between theirs, too."""
    normal = ndtri((clean.rank(method="average").to_numpy() - 0.5) / len(clean))
    factor = np.linalg.cholesky(np.corrcoef(normal.T)).T
    ordered = np.sort(clean.to_numpy(float), axis=0)
    values = np.empty((n, len(numeric)), np.float32)
    for start in range(0, n, PART):
        part = values[start : start + PART]
        places = ndtr(rng.standard_normal(part.shape) @ factor) * len(clean)
        for i, known in enumerate(ordered.T):
            between = np.round(np.interp(places[:, i] - 0.5, np.arange(len(clean)), known))
            part[:, i] = between if numeric[i] else known[np.minimum(places[:, i].astype(int), len(clean) - 1)]
    return values


def spoil(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Alter and lose cells."""
    cells = values.ravel()
    hit = np.flatnonzero(rng.random(cells.size) < ALTERED)
    cells[hit[0::2]] += rng.integers(100, 1000, len(hit[0::2]))
    cells[hit[1::2]] *= rng.integers(10, 100, len(hit[1::2]))
    cells[rng.random(cells.size) < MISSING] = np.nan
    return cells.reshape(values.shape)


def dirty_columns(n: int, seed: int, contract: Contract) -> tuple[list[np.ndarray], np.ndarray]:
    """Cleaned columns, the outcome last, of n applicants and their copies (rows without outcome left out); who each row is."""
    rng = np.random.default_rng(seed)
    names = [*contract.features, contract.target.name]
    clean = pd.read_csv(CLEAN_FILE)[names]
    values = draw(clean, [name in contract.of_kind("numeric") for name in names], n, rng)
    people = np.append(np.arange(n), rng.permutation(n)[: round(COPIES * n)])
    columns = [np.empty(len(people), np.float32) for _ in names]
    for start in range(0, len(people), PART):
        dirty = pd.DataFrame(spoil(values[people[start : start + PART]], rng), columns=names)
        for name, column in zip(names, columns, strict=True):
            column[start : start + PART] = contract.parse(name, dirty[name]).values
    kept = ~np.isnan(columns[-1])
    return [column[kept] for column in columns], people[kept]


def judge(leaders: np.ndarray, people: np.ndarray) -> tuple[int, int, int]:
    """Count copies whose original is there, those of them that stand with it, and rows that were merged with a stranger."""
    originals = pd.Series(np.arange(len(people))).groupby(people).transform("first").to_numpy()
    copies = originals != np.arange(len(people))
    return (
        int(copies.sum()),
        int((leaders[copies] == leaders[originals[copies]]).sum()),
        int((people != people[leaders]).sum()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="default: %(default)s")
    parser.add_argument("--strict-after", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()
    contract, min_cells = load_contract(ROOT / "data/schema.yaml"), load_params(ROOT / "params.yaml").prepare.duplicate_min_cells
    lines = []
    for n in args.rows:
        columns, people = dirty_columns(n, args.seed, contract)
        for strict_after in (None, *(after for after in args.strict_after if after < len(people))):
            start = time.process_time()
            leaders = first_occurrences(columns, min_cells, strict_after=strict_after)
            cpu = time.process_time() - start
            copies, found, false = judge(leaders, people)
            rule = "plain" if strict_after is None else f"strict after {strict_after:,}"
            lines.append([f"{n:,}", rule, f"{copies:,}", f"{found:,}", f"{found / copies:.1%}", f"{false:,}", f"{cpu:.2f}"])
    print_table(["applicants", "rule", "copies", "found", "share", "false merges", "CPU s"], lines)


if __name__ == "__main__":
    main()
