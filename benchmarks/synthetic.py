"""Any number of dirty credit applications from applicants who never were, in bounded memory.

Why not resample the thousand clean rows, with a little noise on the numbers? Because most cells of two such rows would agree,
and the pipeline takes rows whose valid cells all agree for one applicant: the file would be full of duplicates that nobody
planted, what merges them would be measured on the wrong work, and copies of one row on both sides of the split would let a model
remember. So every applicant is drawn anew:

- **Features** by a Gaussian copula, which is fitted to the clean rows: normal scores of the ranks, their correlation, and back
  by each column's own order statistics. Each code keeps its share; numbers are interpolated between neighbours in their order
  and rounded, so round figures stay heaped and an amount has thousands of values. How codes hang together beyond one correlation
  per pair is lost.
- **Outcomes** are draws with the probabilities of a logistic regression on numbers and codes, fitted once to the clean outcomes.
  Drawn by the copula as one more column they would hardly depend on nominal codes (ROC-AUC of XGBoost 0.71 at 20,000 rows
  instead of 0.79), and by one copula per class too much, because the noise of 300 bad rows would be the truth (0.86).
- **Copies** stand at random later places, each with dirt of its own, and nobody is copied twice or a copy of a copy.
- **Dirt** is that of the raw file: `build_raw_data.make_dirty`, chunk by chunk.

The same rows, seed and share of copies give the same bytes on one machine.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from common import CLEAN_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NUMBERS = ("laufzeit", "hoehe", "alter")
TARGET = "kredit"
COPIES = 0.02
CHUNK = 50_000


class Population:
    """Whom applicants are drawn from.

    Parameters
    ----------
    clean : DataFrame
        Rows without dirt: integers, ``TARGET`` among the columns.
    numbers : sequence of str
        Columns that are quantities; the others are codes.
    """

    def __init__(self, clean: pd.DataFrame, numbers: Sequence[str] = NUMBERS) -> None:
        self.clean, self.numbers = clean, list(numbers)
        self.features = [name for name in clean if name != TARGET]
        values = clean[self.features].to_numpy(dtype=float)
        self._sorted = np.sort(values, axis=0)
        scores = ndtri((rankdata(values, axis=0) - 0.5) / len(values))
        self._factor = np.linalg.cholesky(np.corrcoef(scores, rowvar=False))

    @cached_property
    def _outcomes(self) -> Any:
        from sklearn.compose import make_column_transformer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        codes = [name for name in self.features if name not in self.numbers]
        encoder = make_column_transformer((StandardScaler(), self.numbers), (OneHotEncoder(), codes))
        # C: a little penalty, so that rare codes are not certain of their outcome.
        model = make_pipeline(encoder, LogisticRegression(C=0.3, max_iter=1000))
        return model.fit(self.clean[self.features], self.clean[TARGET])

    def draw(self, size: int, rng: np.random.Generator) -> pd.DataFrame:
        """Draw independent applicants: shape (size, k), floats, the columns of the clean rows, the target last."""
        # Only `random` is drawn: NumPy may change the other distributions from one version to the next.
        shares = ndtr(ndtri(rng.random((size, len(self.features)))) @ self._factor.T)
        last = len(self._sorted) - 1
        table = pd.DataFrame(index=range(size))
        for i, name in enumerate(self.features):
            if name in self.numbers:
                drawn = np.round(np.interp(shares[:, i] * last, np.arange(last + 1), self._sorted[:, i]))
            else:
                drawn = self._sorted[np.minimum((shares[:, i] * (last + 1)).astype(int), last), i]
            table[name] = drawn
        good = self._outcomes.predict_proba(table)[:, list(self._outcomes.classes_).index(1)]
        table[TARGET] = (rng.random(size) < good).astype(float)
        return table


def plant(rows: int, copies: float, rng: np.random.Generator) -> np.ndarray:
    """Choose which rows are copies of which.

    Returns
    -------
    ndarray of shape (c, 2), int
        Row numbers from 0 on of original and copy, by rising copy; an original stands above its copy, and no row is in two pairs.
        ``c`` is the share ``copies`` of those rows that are no copies.
    """
    wanted = 2 * round(copies * rows / (1 + copies))
    found = np.empty(0, dtype=np.int64)
    while len(found) < wanted:
        found = np.union1d(found, (rng.random(wanted) * rows).astype(np.int64))
    pairs = np.sort(found[np.argsort(rng.random(len(found)))[:wanted]].reshape(-1, 2), axis=1)
    return pairs[np.argsort(pairs[:, 1])]


def applications(population: Population, rows: int, seed: int, pairs: np.ndarray) -> Iterator[pd.DataFrame]:
    """Yield ``rows`` dirty applications, text as in a CSV file, `CHUNK` at a time; ``pairs`` is what `plant` returned.

    What waits in memory is the originals' values until their copies' turn: 2 % of the rows, 84 bytes each.
    """
    from build_raw_data import make_dirty

    by_original = np.argsort(pairs[:, 0])
    waiting = np.empty((len(pairs), len(population.features) + 1), dtype=np.float32)
    for number, start in enumerate(range(0, rows, CHUNK), 1):
        stop = min(start + CHUNK, rows)
        rng = np.random.default_rng([seed, number])
        table = population.draw(stop - start, rng)
        values = table.to_numpy()
        # First keep the originals, then write the copies: both may be in this chunk.
        here = by_original[slice(*np.searchsorted(pairs[by_original, 0], (start, stop)))]
        waiting[here] = values[pairs[here, 0] - start]
        due = slice(*np.searchsorted(pairs[:, 1], (start, stop)))
        values[pairs[due, 1] - start] = waiting[due]
        clean = pd.DataFrame(values, columns=table.columns)
        yield make_dirty(clean, int(rng.random() * 2**53), target=TARGET, copies=0.0)


def write(pattern: str, tables: Iterator[pd.DataFrame], rows: int, parts: int = 1) -> list[Path]:
    """Write tables of together ``rows`` rows to CSV or Parquet, in ``parts`` files of about the same length.

    ``pattern`` is the file's path; in it ``{}`` becomes the number of the part, from 1 on. Parquet holds text, too: dirt has no
    type. It has one row group per table.
    """
    bounds = [rows * i // parts for i in range(parts + 1)]
    paths = [Path(pattern.replace("{}", f"{i + 1:0{len(str(parts))}}")) for i in range(parts)]
    done = part = 0
    with ExitStack() as stack:
        append = _opened(paths[0], stack)
        for table in tables:
            rest = table
            while len(rest):
                if done == bounds[part + 1]:
                    stack.close()
                    part += 1
                    append = _opened(paths[part], stack)
                head, rest = rest[: bounds[part + 1] - done], rest[bounds[part + 1] - done :]
                append(head)
                done += len(head)
    return paths


def _opened(path: Path, stack: ExitStack) -> Callable[[pd.DataFrame], None]:
    """Begin a file and return what appends a table to it; it ends with ``stack``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".parquet":
        stream = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        return lambda table: table.to_csv(stream, index=False, header=stream.tell() == 0, lineterminator="\n")
    import pyarrow as pa
    import pyarrow.parquet as pq

    writers: list[Any] = []

    def append(table: pd.DataFrame) -> None:
        columns = pa.table({name: pa.array(table[name].tolist(), pa.string()) for name in table})
        if not writers:
            writers.append(stack.enter_context(pq.ParquetWriter(path, columns.schema)))
        writers[0].write_table(columns)

    return append


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=lambda text: int(float(text)), help="how many, copies included, such as 1e6")
    parser.add_argument("path", help="the file, .csv or .parquet (needs pyarrow); with --parts, {} becomes the part's number")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other applicants (default: %(default)s)")
    parser.add_argument("--copies", type=float, default=COPIES, help="share that applies twice (default: %(default)s)")
    parser.add_argument("--parts", type=int, default=1, help="write so many files (default: %(default)s)")
    parser.add_argument("--truth", type=Path, help="write which rows (from 0 on) are copies of which, as CSV: original,copy")
    args = parser.parse_args()
    if (
        args.rows < 1
        or not 0 <= args.copies < 1
        or not 1 <= args.parts <= args.rows
        or (args.parts > 1 and "{}" not in args.path)
    ):
        parser.error(
            f"found {args.rows} rows, --copies {args.copies}, --parts {args.parts} of {args.path};"
            " expected 1 row or more, a share from 0 to below 1, a row or more per part and {} in the path of several"
        )
    # Chunks count from 1 on: the share of copies changes nobody else.
    pairs = plant(args.rows, args.copies, np.random.default_rng([args.seed, 0]))
    paths = write(
        args.path, applications(Population(pd.read_csv(CLEAN_FILE)), args.rows, args.seed, pairs), args.rows, args.parts
    )
    if args.truth:
        pd.DataFrame(pairs, columns=["original", "copy"]).to_csv(args.truth, index=False, lineterminator="\n")
    size = sum(path.stat().st_size for path in paths)
    print(f"{args.rows} rows, {len(pairs)} of them copies, {size} bytes in {len(paths)} file(s)")


if __name__ == "__main__":
    sys.exit(main())
