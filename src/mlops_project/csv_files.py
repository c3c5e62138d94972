"""CSV files as they come: encoding, delimiter and row lengths checked before pandas reads them as text."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd

from mlops_project.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

DELIMITERS = ",;\t|"
BLOCK = 1 << 20


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
        binary = binary or any(b"\0" in part for part in itertools.chain([head], iter(lambda: stream.read(BLOCK), b"")))
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
    _need_rows(path, source, delimiter)
    with readable(source):
        return _named(pd.read_csv(path, dtype=str, **_plain(header, delimiter, wanted)), header, wanted)


def read_batches(
    path: Path, source: str, header: list[str], delimiter: str, wanted: list[int], rows: int
) -> Iterator[pd.DataFrame]:
    """Read as `read_columns`, some rows at a time, as categories: each distinct text of a batch stands there once."""
    _need_rows(path, source, delimiter)
    with (
        readable(source),
        # Not dtype="category": where all texts of a batch look like numbers, pandas 3.1 makes numbers of them, and "01" is lost.
        pd.read_csv(path, dtype=object, chunksize=rows, **_plain(header, delimiter, wanted)) as batches,
    ):
        for batch in batches:
            yield pd.DataFrame({header[i]: _distinct(batch[i]) for i in wanted}, index=batch.index)


def _distinct(cells: pd.Series) -> pd.Categorical:
    codes, texts = pd.factorize(cells)  # in the order of the rows: sorting would cost a fifth of the reading
    return pd.Categorical.from_codes(codes, pd.Index(texts, dtype=object))


def _need_rows(path: Path, source: str, delimiter: str) -> None:
    if check_rows(path, source, delimiter) == 0:
        raise DataError(f"{source}: holds a header and no rows; expected at least one applicant")


def _plain(header: list[str], delimiter: str, wanted: list[int]) -> dict[str, Any]:
    """Options for pandas: the header was read and checked; plain positions keep pandas from renaming or guessing anything."""
    return {
        "sep": delimiter,
        "header": None,
        "names": range(len(header)),
        "usecols": wanted,
        "skiprows": 1,
        "keep_default_na": False,
        "na_values": [],
        "encoding": "utf-8-sig",
        "low_memory": False,  # else it reads in parts of its own, and joins them
    }


def _named(table: pd.DataFrame, header: list[str], wanted: list[int]) -> pd.DataFrame:
    return table[wanted].set_axis([header[i] for i in wanted], axis=1)


def check_rows(file: str | Path | io.BytesIO, source: str, delimiter: str = ",") -> int:
    """Count the rows, and raise DataError if one has another length than the header: pandas would fill or shift it in silence."""
    with readable(source), _opened(file) as stream:
        if (found := _plain_rows(stream, delimiter)) is not None:
            return found
    count = 0
    with readable(source), _opened(file) as content:
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


def _opened(file: str | Path | io.BytesIO) -> BinaryIO:
    # A copy: closing the text closes what is below it.
    return io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else open(file, "rb")


def _plain_rows(stream: BinaryIO, delimiter: str) -> int | None:
    """Count the rows of a file in which every line has as many cells as the first; None where only a parser can tell.

    A seventh of the time that a parser takes. Quotes, blank lines, lone carriage returns and whatever is wrong are for it.
    """
    width, rows, rest = 0, 0, b""
    while block := stream.read(BLOCK):
        text = rest + block
        end = text.rfind(b"\n") + 1
        text, rest = text[:end], text[end:]
        found = _delimiters(text, delimiter)
        if found is None:
            return None
        if len(found):
            width = width or int(found[0])
            if not width or (found != width).any():
                return None
            rows += len(found)
    if rest:
        found = _delimiters(rest + b"\n", delimiter)
        if found is None or not width or found.tolist() != [width]:
            return None
        rows += 1
    return rows - 1 if width else None


def _delimiters(text: bytes, delimiter: str) -> np.ndarray | None:
    """Delimiters per line; None if there are quotes, lone carriage returns, or lines longer than a cell may be."""
    if b'"' in text or text.count(b"\r") != text.count(b"\r\n"):
        return None
    cells = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(cells == ord("\n"))
    if np.diff(ends, prepend=-1).max(initial=0) > csv.field_size_limit():
        return None
    return np.diff(np.searchsorted(np.flatnonzero(cells == ord(delimiter)), ends), prepend=0)


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
