"""What stands in the columns of an unknown table, and what each of them probably is."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mlops_project.schema import Column, Contract, Target

if TYPE_CHECKING:
    from collections.abc import Iterable

ALWAYS_MISSING = re.compile(r"(nan|<na>|nat)?")
TOKEN = re.compile(r"n/?a|#n/a|n\.a\.|\(?null\)?|nil|\?+|-{1,2}|\.|invalid|error|missing|#(value|null|ref)!|k\.a\.|keine angabe")
# Missing in a column of numbers, perhaps a category in a column of texts.
WEAK_TOKEN = re.compile(r"none|unknown|unbekannt|undefined|not (applicable|available)")
NUMBER_FOR_MISSING = re.compile(r"-1|-?9{3,}")
NAMES_SOMEBODY = re.compile(
    r"(.*_)?(ids?|nr|uuid|guid|key|ref|iban|ssn|\w+(nr|nummer|number|uuid)|(customer|client|loan|member|account|user|cust)id)(_.*)?"
    r"|customer|client|kunde|applicant|borrower|member|household"
)
NAMES_AN_ORDER = re.compile(r"(.*_)?(rating|grade|level|rank|count|num|number|years|stufe|anzahl)(_.*)?")
DATE_FORMATS = "%d.%m.%Y %d/%m/%Y %m/%d/%Y %Y/%m/%d %d-%m-%Y %m-%d-%Y %d-%b-%Y %b-%Y %Y-%m %d.%m.%y %m/%d/%y"
PLAIN_SCALAR = re.compile(r"(?!(null|true|false|yes|no|on|off|y|n|nan|inf)$)[a-z_]\w*", re.ASCII | re.IGNORECASE)
MAX_CODES, MAX_CATEGORIES, FEW_ROWS, MAX_TOKEN = 15, 60, 20, 30
MAX_OUTSIDE = 0.03  # more rows than this beyond the fences are the column's nature, not corruption


class Profile(NamedTuple):
    """One column: ``counts`` are value → rows, most frequent first; numbers if ``numeric``, else texts as mostly spelt."""

    name: str
    counts: dict[Any, int]
    missing: int
    numeric: bool
    number_share: float
    stray: dict[str, int]  # single texts in a column of numbers that are no known token

    @property
    def filled(self) -> int:
        return sum(self.counts.values())

    @property
    def evidence(self) -> str:
        rows = self.filled + self.missing + sum(self.stray.values())
        return f"{len(self.counts)} distinct, {self.missing / max(1, rows):.1%} missing"


class Guess(NamedTuple):
    """Kind of a column (of the contract, or ``drop``), why, and a second line for the contract: codes, range or format."""

    kind: str
    comment: str
    detail: str = ""


def spellings(cells: pd.Series) -> dict[str, int]:
    """Count the texts of a column, most frequent first; missing cells are the text ""."""
    counts = cells[cells.notna()].astype(str).value_counts()
    texts = {str(text): int(rows) for text, rows in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}
    return texts | {"": texts.get("", 0) + int(cells.isna().sum())}


def profile(name: str, spelt: dict[str, int], decimal: str, tokens: Counter[str]) -> Profile:
    """Fold letter case and spaces, tell values from missing cells and numbers from texts. Counts what it finds in ``tokens``."""
    first: dict[str, str] = {}
    rows: Counter[str] = Counter()
    for text, count in spelt.items():
        folded = text.strip().casefold()
        first.setdefault(folded, text.strip())
        rows[folded] += count
    parsed = zip(rows, _parse(rows, decimal, kind="numeric").tolist(), strict=True)
    number = {text: value for text, value in parsed if not math.isnan(value)}
    short = [text for text in rows if len(text) <= MAX_TOKEN]
    # Beside a "+", a "-" is a value too.
    missing = {t for t in short if ALWAYS_MISSING.fullmatch(t) or (TOKEN.fullmatch(t) and not (t == "-" and "+" in rows))}
    weak = {t for t in short if WEAK_TOKEN.fullmatch(t)}
    filled = rows.total() - sum(rows[t] for t in missing | weak)
    in_numbers, zero_led = sum(rows[t] for t in number), sum(rows[t] for t in number if t[0] == "0" and t[1:2].isdigit())
    numeric = filled > 0 and in_numbers >= 0.95 * filled and zero_led < 0.05 * filled
    if numeric:
        missing |= weak | {t for t in short if t not in number and rows[t] > 1}
    known = {token.casefold(): token for token in tokens}
    tokens.update({known.get(t, first[t]): rows[t] for t in short if t in missing and not ALWAYS_MISSING.fullmatch(t)})
    values: Counter[Any] = Counter()
    for text in number if numeric else (text for text in rows if text not in missing):
        values[_whole(number[text]) if numeric else first[text]] += rows[text]
    stray = {first[t]: rows[t] for t in rows if numeric and t not in missing and t not in number}
    ranked = dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))
    return Profile(name, ranked, sum(rows[t] for t in missing), numeric, in_numbers / max(1, filled), stray)


def guess(column: Profile, decimal: str) -> Guess:
    """Guess the kind of a column that is not the outcome."""
    if len(column.counts) < 2:
        reason = f"constant: {listed(column.counts)}" if column.counts else "holds no value"
        return Guess("drop", f"{reason}; {column.evidence}")
    if date := _date(column, decimal):
        return date
    if _names_somebody(column):
        rows = max(column.counts.values())
        return Guess("identifier", f"never a feature; {column.evidence}, up to {rows} row(s) each; CHECK")
    return _numbers(column) if column.numeric else _texts(column)


def _parse(texts: Iterable[Any], decimal: str, **column: Any) -> np.ndarray:
    """Read texts as the pipeline will: NaN where they are not of the column."""
    contract = Contract(
        target=Target(name="target", good=1, bad=0), columns={"cells": Column(**column)}, decimal="," if decimal == "," else "."
    )
    return contract.parse("cells", pd.Series([str(text) for text in texts], dtype=object))[0]


def _whole(number: float) -> float:
    return int(number) if float(number).is_integer() and abs(number) < 1e15 else float(number)


def _snake(name: str) -> str:
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).casefold())


def _date(column: Profile, decimal: str) -> Guess | None:
    texts, rows = list(column.counts), np.array(list(column.counts.values()))
    if column.numeric:
        formats: list[str | None] = ["%Y%m%d"] if all(19000101 <= value <= 21001231 for value in texts) else []
    else:
        formats = [None] * all(re.match(r"\d{4}-\d\d-\d\d", text) for text in texts[:5]) + DATE_FORMATS.split()
    # Of many distinct texts a few tell which formats are worth trying.
    formats = [form for form in formats if not np.isnan(_parse(texts[:20], decimal, kind="date", format=form)).all()]
    valid = {form: ~np.isnan(_parse(texts, decimal, kind="date", format=form)) for form in formats}
    if not (fitting := [form for form in valid if rows[valid[form]].sum() >= 0.95 * rows.sum()]):
        return None
    twofold = f"; CHECK: fits {fitting[1]} too" if len(fitting) > 1 else ""
    outside = {texts[i]: int(rows[i]) for i in np.flatnonzero(~valid[fitting[0]])}
    left = f"; no dates: {listed(outside)}" if outside else ""
    detail = f'format: "{fitting[0]}"  # as in {shown(texts[0])}{twofold}' if fitting[0] else ""
    return Guess("date", f"never a feature; {column.evidence}, such as {shown(texts[0])}{left}", detail)


def _names_somebody(column: Profile) -> bool:
    values, filled = column.counts, column.filled
    if any(not isinstance(v, int) if column.numeric else (len(v) > 40 or re.search(r"\s", v)) for v in values):
        return False
    if len(values) > MAX_CODES and NAMES_SOMEBODY.fullmatch(_snake(column.name)):
        return True
    # Numbers that are all distinct may be amounts ("1,234" is one too); without gaps they are a serial number.
    serial = max(values) - min(values) < 2 * filled if column.numeric else not any(re.search(r"\d[.,]\d", v) for v in values)
    return filled >= FEW_ROWS and serial and len(values) >= (1.0 if column.numeric else 0.9) * filled


def _numbers(column: Profile) -> Guess:
    counts, filled = column.counts, column.filled
    # Whole numbers: rare ones beyond the frequent ones are corrupted, rare ones between them are codes.
    whole = sorted(value for value in counts if isinstance(value, int))
    frequent = [v for v in whole if counts[v] >= max(2, 0.004 * filled) or len(counts) == 2]
    edges = (frequent[0] - 1, frequent[-1] + 1) if frequent else ()
    least = 1 if filled < 250 else 3
    codes = [v for v in whole if frequent and (frequent[0] <= v <= frequent[-1] or (v in edges and counts[v] >= least))]
    if sum(counts[v] for v in codes) >= 0.95 * filled:
        outside = {v: counts[v] for v in counts if v not in codes} | column.stray
        if len(codes) == 1:
            return Guess("drop", f"constant: {codes[0]}, but for {listed(outside)}; {column.evidence}")
        if len(codes) <= MAX_CODES and codes[-1] - codes[0] < 2 * len(codes) + 2:
            return _coded(column, {v: counts[v] for v in codes}, outside)
    low, high = -_upper_bound(column, -1), _upper_bound(column, 1)
    outside = {v: counts[v] for v in counts if not low <= v <= high} | column.stray
    left = f"left outside as implausible: {listed(outside)}" if outside else "widen it where more is possible"
    often = max(2, 0.02 * filled) if len(counts) > 50 else filled
    stands_for = [v for v in (low, high) if counts[v] >= (2 if NUMBER_FOR_MISSING.fullmatch(scalar(v)) else often) and v != 0]
    left += "".join(f"; does {scalar(v)} ({counts[v]}) mean missing? Then list it in missing_tokens" for v in stands_for)
    distinct = "; CHECK: all distinct, an identifier?" if len(whole) == filled >= FEW_ROWS else ""
    seen = f"seen {scalar(min(counts))} to {scalar(max(counts))}"
    return Guess("numeric", column.evidence + distinct, f"range: [{scalar(low)}, {scalar(high)}]  # {seen}; CHECK: {left}")


def _upper_bound(column: Profile, sign: int) -> float:
    """Return the largest plausible value of ``sign`` times the column.

    Few values far beyond Tukey's fences (on logarithms where values are positive), or nearer but after a gap, are not.
    """
    values, rows = np.array(sorted((sign * value, count) for value, count in column.counts.items())).T
    first, third = values[np.searchsorted(rows.cumsum(), rows.sum() * np.array([0.25, 0.75]))]
    scaled = np.log(np.maximum(values, first)) if first > 0 else values
    top, width = (np.log(third), np.log(third / first)) if first > 0 else (third, third - first)
    gap = np.diff(scaled, prepend=scaled[0]) > (math.log(1.5) if first > 0 else width)
    beyond = np.flatnonzero((scaled > top + 3 * width) | (gap & (scaled > top + 2 * width)))
    implausible = width > 0 and len(beyond) > 0 and rows[beyond[0] :].sum() <= MAX_OUTSIDE * rows.sum()
    return float(values[beyond[0] - 1] if implausible else values[-1])


def _texts(column: Profile) -> Guess:
    counts, filled = column.counts, column.filled
    rare = max(0.001 * filled, 2 if filled >= 200 else 1)
    kept = {text: counts[text] for text in sorted(counts) if counts[text] >= rare or len(counts) == 2}
    few = 1 < len(kept) <= min(MAX_CATEGORIES, max(10, filled / 2)) and sum(kept.values()) >= 0.9 * filled
    if few and max(map(len, kept)) <= 100:
        return _coded(column, kept, {text: counts[text] for text in counts if text not in kept})
    example = f"{column.evidence}, such as {listed(counts)}"
    if column.number_share >= 0.05:
        return Guess("drop", f"CHECK: numbers ({column.number_share:.0%}) and texts in one column; {example}")
    if sum(counts[text] for text in counts if re.search(r"\d", text) and len(text) < 25) >= 0.95 * filled:
        return Guess("drop", f"CHECK: numbers with a unit or thousands separator? Write plain ones; {example}")
    return Guess("drop", f"CHECK: free text or too many categories; {example}")


def _coded(column: Profile, kept: dict[Any, int], outside: dict[Any, int]) -> Guess:
    kind, check = "nominal", "; CHECK: ordinal if the codes have an order"
    if NAMES_AN_ORDER.fullmatch(_snake(column.name)) and column.numeric and len(kept) > 2:
        kind, check = "ordinal", "; CHECK: nominal if the codes have no order"
    codes = ", ".join(scalar(code, quote=True) for code in kept)
    left = f"; CHECK: left out as rare: {listed(outside)}" if outside else ""
    maybe = "".join(f"; does {text} mean missing?" for text in kept if WEAK_TOKEN.fullmatch(str(text).casefold()))
    detail = f"codes: [{codes}]  # rows: {listed(kept, MAX_CODES)}{left}{maybe}"
    return Guess(kind, column.evidence + (check if len(kept) > 2 else ""), detail)


def escaped(text: str) -> str:
    """Write a text so that it can stand in a YAML comment or between double quotes."""
    return "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)


def scalar(value: float | str, *, quote: bool = False) -> str:
    """Write a YAML scalar that reads as this number or this text, in YAML 1.1 and 1.2."""
    if not isinstance(value, str):
        return repr(_whole(value))
    return value if not quote and PLAIN_SCALAR.fullmatch(value) else f'"{escaped(value)}"'


def shown(value: Any) -> str:
    """Write a value for a comment, cut to 30 letters."""
    text = str(value)
    return escaped(text[:30]) + "…" * (len(text) > 30)


def listed(counts: dict[Any, int], limit: int = 5) -> str:
    """Write ``value (rows), …``, in the order given."""
    parts = [f"{shown(value)} ({rows})" for value, rows in list(counts.items())[:limit]]
    return ", ".join(parts) + (f", … ({sum(counts.values())} rows in all)" if len(counts) > limit else "")
