"""CSV files as they come: encoding, delimiter and row lengths checked before pandas reads them as text."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from typing import TYPE_CHECKING

import pandas as pd

from mlops_project.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

DELIMITERS = ",;\t|"


def sniff(path: Path, source: str, known: Collection[str] | None) -> tuple[list[str], str]:
    """Find the header and the delimiter.

    Parameters
    ----------
    path : Path
    source : str
        What messages call the file.
    known : collection of str, optional
        Column names to expect: the delimiter that yields most of them wins. Without them, the one with most columns.

    Raises
    ------
    DataError
        If the file is empty, binary or not UTF-8.
    """
    with readable(source), open(path, "rb") as stream:
        head = stream.read(1 << 16)
        if not head.strip():
            raise DataError(f"{source}: is empty; expected a CSV file with a header line")
        binary = head[:2] in (b"\xff\xfe", b"\xfe\xff")
        binary = binary or any(b"\0" in part for part in itertools.chain([head], iter(lambda: stream.read(1 << 20), b"")))
    if binary:
        raise DataError(f"{source}: is binary or UTF-16; expected CSV text in UTF-8 (or a file that ends in .parquet)")
    best: tuple[int, list[str], str] = (-1, [], ",")
    for delimiter in DELIMITERS:
        with readable(source), open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter=delimiter)
            try:
                header = [name.strip() for name in next(reader)]
                if known is None:  # most columns, rather where the first row agrees: a comma may be the decimal sign
                    score = (len(header) - 1) * (1 + (len(next(reader, header)) == len(header)))
                else:
                    score = len(set(known).intersection(header))
            except csv.Error:  # with the wrong delimiter a wide header is one cell, longer than cells may be
                continue
        if score > best[0]:
            best = score, header, delimiter
    return best[1], best[2]


def read_columns(path: Path, source: str, header: list[str], delimiter: str, wanted: list[int]) -> pd.DataFrame:
    """Read the columns at the positions ``wanted`` as text, empty cells as "".

    Raises
    ------
    DataError
        If there is no row, a row is longer or shorter than the header, or the file cannot be read.
    """
    with readable(source):
        if check_rows(path, source, delimiter) == 0:
            raise DataError(f"{source}: holds a header and no rows; expected at least one applicant")
        # The header was read and checked; plain positions keep pandas from renaming or guessing anything.
        table = pd.read_csv(
            path,
            sep=delimiter,
            header=None,
            names=range(len(header)),
            usecols=wanted,
            skiprows=1,
            dtype=str,
            keep_default_na=False,
            na_values=[],
            encoding="utf-8-sig",
        )
    return table[wanted].set_axis([header[i] for i in wanted], axis=1)


def check_rows(file: str | Path | io.BytesIO, source: str, delimiter: str = ",") -> int:
    """Count the rows, and raise DataError if one has another length than the header: pandas would fill or shift it in silence."""
    count = 0
    # A copy: closing the text closes what is below it.
    with readable(source), io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else open(file, "rb") as content:
        reader = csv.reader(io.TextIOWrapper(content, newline="", encoding="utf-8-sig"), delimiter=delimiter)
        width = len(next(filter(None, reader)))
        start = reader.line_num + 1
        for row in reader:
            if len(row) != width and row:
                # A row goes over several lines where a quoted cell does, or where a quote is never closed.
                end = "" if reader.line_num == start else f" (to {reader.line_num})"
                raise DataError(
                    f"{source}: line {start}{end} has {len(row)} cells, expected {width} as in the header;"
                    " look for a stray delimiter or quote there"
                )
            count += bool(row)
            start = reader.line_num + 1
    return count


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn what reading a CSV file may raise into a `DataError` that names ``source``."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: byte {error.object[error.start]:#04x} is not UTF-8; convert the file,"
            " for instance with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    except (OSError, csv.Error, pd.errors.ParserError) as error:
        raise DataError(f"{source}: cannot be read as CSV: {' '.join(str(error).split())}") from error
