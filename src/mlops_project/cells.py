"""The one parser of cells: text or numbers of one column into values and what is wrong with them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

# Status of a parsed cell.
VALID, MISSING, TOKEN, INVALID = range(4)

# What stands for a missing value in any table, whatever the contract says.
EMPTY = ("", "nan", "<na>", "nat", "none")

# Texts of one column that are remembered at most, and so many more as a batch holds.
REMEMBERED = 1 << 17

# Plain decimal notation only: float() would also take "1_000", "inf" and other scripts' digits.
# No digit fits two places of the pattern: else a long cell of digits would be tried in all ways to part it.
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)


class Cells(NamedTuple):
    """Parsed cells: ``values`` float (NaN where not valid), ``status`` uint8, one of VALID, MISSING, TOKEN, INVALID."""

    values: np.ndarray
    status: np.ndarray


class CellParser:
    """Parses the cells of one column.

    Parameters
    ----------
    codes : mapping of code to float, optional
        The allowed codes and what each is parsed to; without it the column holds numbers or dates.
    text_codes : bool
        Whether the codes are text; they are compared without regard to letter case.
    bounds : sequence of two floats, optional
        Lowest and highest allowed number.
    date : bool
        Whether the column holds dates; they become days since 1970-01-01.
    date_format : str, optional
        As in ``datetime.strptime``; ISO 8601 by default.
    decimal : {".", ","}
        Decimal sign of numbers that are text.
    missing_tokens : iterable of str
        Texts that stand for a missing value, in any letter case.
    """

    def __init__(
        self,
        *,
        codes: Mapping[Any, float] | None,
        text_codes: bool,
        bounds: Sequence[float] | None,
        date: bool,
        date_format: str | None,
        decimal: str,
        missing_tokens: Iterable[str],
    ) -> None:
        self.text_codes = {str(code).strip().casefold(): value for code, value in codes.items()} if codes and text_codes else None
        self.number_codes = {float(code): value for code, value in codes.items()} if codes and not text_codes else None
        self.low, self.high = bounds or (-math.inf, math.inf)
        self.date = date
        self.date_format = date_format
        self.decimal = decimal
        self.tokens = {token.strip().casefold() for token in missing_tokens}
        # Tokens such as -999 are missing in a column of numbers too.
        self._known: dict[str, tuple[float, int]] = {}
        self.missing_numbers = {float(token) for token in self.tokens if _NUMBER.fullmatch(token)}

    def parse(self, cells: pd.Series) -> Cells:
        """Parse cells of shape (n,): text, numbers or both."""
        import pandas as pd
        from pandas.api.types import infer_dtype, is_bool_dtype, is_numeric_dtype

        if isinstance(cells.dtype, pd.CategoricalDtype):
            distinct, places = self._parse_distinct(cells.cat.categories), cells.cat.codes.to_numpy()
            # The last one is for the place -1: missing.
            extended = Cells(np.append(distinct.values, math.nan), np.append(distinct.status, np.uint8(MISSING)))
            return Cells(extended.values[places], extended.status[places])
        plain_numbers = is_numeric_dtype(cells.dtype) and not is_bool_dtype(cells.dtype)
        if plain_numbers and self.text_codes is None and not self.date:
            return self.parse_numbers(cells.to_numpy(dtype=float, na_value=np.nan))
        cells = cells.astype(object)
        if infer_dtype(cells).startswith("mixed"):
            # True == 1: a cell must not be read as its neighbour is. (Series.map would make 1.0 of 1.)
            written = [str(cell) if isinstance(cell, (bool, np.bool_)) else cell for cell in cells]
            cells = pd.Series(written, dtype=object)
        # Tables repeat few distinct texts: parse each one once.
        positions, texts = pd.factorize(cells)
        parsed = [self.parse_cell(text) for text in texts] + [(math.nan, MISSING)]
        values, status = zip(*parsed, strict=True)
        return Cells(np.array(values, dtype=float)[positions], np.array(status, dtype=np.uint8)[positions])

    def _parse_distinct(self, categories: pd.Index) -> Cells:
        """Parse the distinct cells of a batch; texts are remembered for the batches that come after it."""
        import pandas as pd

        texts = categories.tolist()
        if not all(type(text) is str for text in texts):
            return self.parse(pd.Series(categories))
        if len(self._known) > REMEMBERED:
            self._known.clear()
        known = self._known
        for text in texts:
            if text not in known:
                known[text] = self.parse_cell(text)
        found = [known[text] for text in texts]
        return Cells(np.array([value for value, _ in found], dtype=float), np.array([kind for _, kind in found], dtype=np.uint8))

    def parse_numbers(self, values: np.ndarray) -> Cells:
        """Parse cells of shape (n,) that are numbers already, NaN where missing; not for text codes and dates."""
        missing, token = np.isnan(values), np.isin(values, list(self.missing_numbers))
        if self.number_codes is not None:
            codes = np.array(list(self.number_codes))
            order = np.argsort(codes)
            at = order[np.searchsorted(codes, values, sorter=order).clip(max=len(codes) - 1)]
            valid = codes[at] == values
            values = np.array(list(self.number_codes.values()), dtype=float)[at]
        else:
            valid = np.isfinite(values) & (values >= self.low) & (values <= self.high) & ~token
        status = np.select([missing, valid, token], [MISSING, VALID, TOKEN], INVALID).astype(np.uint8)
        return Cells(np.where(valid, values, math.nan), status)

    def parse_cell(self, cell: Any) -> tuple[float, int]:
        """Return value and status of one cell. None and NaN, which are missing in every column, are not for this."""
        if type(cell) in (int, float) and self.text_codes is None and not self.date:
            return self._parse_number(cell)
        try:
            text = str(cell).strip().casefold()
        except ValueError:  # a whole number of more digits than Python writes
            return math.nan, INVALID
        if text in EMPTY and not (self.text_codes and text in self.text_codes):
            return math.nan, MISSING
        number = None
        if self.date:
            value = self._date(cell, text)
        elif self.text_codes is not None:
            # A code "1" that a spreadsheet or a numeric column turned into 1.0 is still that code.
            value = self.text_codes.get(text, self.text_codes.get(text.removesuffix(".0")))
        else:
            written = text
            if self.decimal != "." and isinstance(cell, str):
                # A point is no decimal sign here: "1.500" may well be 1500. "_" makes it no number.
                written = text.replace(".", "_").replace(self.decimal, ".")
            number = float(written) if _NUMBER.fullmatch(written) else None
            value = None if number is None else self._number(number)
        if value is not None:
            return value, VALID
        return math.nan, TOKEN if text in self.tokens or number in self.missing_numbers else INVALID

    def _parse_number(self, cell: float) -> tuple[float, int]:
        """As the text of the number would be parsed, in a fifth of the time."""
        try:
            number = float(cell)
        except OverflowError:
            return math.nan, INVALID
        value = self._number(number)
        if value is not None:
            return value, VALID
        return math.nan, TOKEN if number in self.missing_numbers else INVALID

    def _number(self, number: float) -> float | None:
        if self.number_codes is not None:
            return self.number_codes.get(number)
        inside = self.low <= number <= self.high and math.isfinite(number)
        return number if inside and number not in self.missing_numbers else None

    def _date(self, cell: Any, text: str) -> float | None:
        try:
            if hasattr(cell, "isoformat"):  # a date already, out of a Parquet file
                day = datetime.fromisoformat(cell.isoformat())
            elif self.date_format:
                day = datetime.strptime(text.removesuffix(".0"), self.date_format)  # noqa: DTZ007 - set below
            else:
                day = datetime.fromisoformat(text.upper())
        except ValueError:
            return None
        return day.replace(tzinfo=day.tzinfo or UTC).timestamp() / 86400


def identifier_status(cells: pd.Series, missing_tokens: Iterable[str]) -> np.ndarray:
    """Status of identifier cells, shape (n,): any text is VALID unless it stands for a missing value."""
    texts = cells.astype(str).str.strip().str.casefold()
    tokens = texts.isin([token.strip().casefold() for token in missing_tokens])
    # A missing cell that is no text stays one in astype.
    return np.select([texts.isin(EMPTY) | cells.isna(), tokens], [MISSING, TOKEN], VALID).astype(np.uint8)
