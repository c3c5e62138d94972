"""Applicants out of a request's body: JSON, CSV, Arrow or Parquet, read strictly.

A cell may hold anything that a cell of the raw table may: what the contract does not allow is treated as missing later. Refused
is what leaves open what the caller meant: a column that nobody knows, a key that stands twice, an array in a cell.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import struct
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mlops_project.files import APPLICANT_ID, NEEDS_PYARROW
from mlops_project.serving import parquet
from mlops_project.serving.problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlops_project.modeling.compiled import CompiledScorer

JSON, CSV = "application/json", "text/csv"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
TYPES = (JSON, CSV, ARROW, PARQUET)
DELIMITERS = ",;\t|"
MAX_ERRORS = 20
# From so many bytes on a JSON array is read into columns, as it is scored; less are few applicants, who are scored one by one.
TABLE_BYTES = 4096
# Digits from which on a whole number is read as a float: no contract's cell is that large.
LONG = 300
# Bytes that an applicant of an Arrow or Parquet table may take on average, where the body itself is not larger.
ROW_BYTES = 1000

Record = dict[str, str | int | float | bool | None]
Columns = dict[str, Sequence[Any]]
_records = msgspec.json.Decoder(list[Record] | Record).decode
# Truth values are left to the exact way: to a dict of known cells they are 1 and 0.
_columns = msgspec.json.Decoder(dict[str, list[str | int | float | None]]).decode


class Applicants(NamedTuple):
    """What a body holds: ``records``, one per applicant, or ``columns`` of cells."""

    n: int
    records: Sequence[Mapping[str, Any]] | None
    columns: Mapping[str, Sequence[Any]] | None
    references: Sequence[str | None]
    """The caller's own names of the applicants, by which their records are found later; empty if there are none."""
    plain: bool = False
    """Whether all cells are known to be text, numbers or None."""
    by_column: bool = False
    """Whether JSON came by columns: so the answer goes."""


class Names(NamedTuple):
    """Columns that a body may hold, and what they are."""

    features: tuple[str, ...]
    ignored: frozenset[str]
    """Columns of the table that no model reads: outcome, dates, weights, dropped ones, and those that are hidden."""
    reference: str
    allowed: frozenset[str]
    decode: Callable[[bytes], list[Any]]
    """Decodes a JSON array of objects with all features and perhaps `others`, in less than half of the time of dicts."""
    others: tuple[str, ...]

    @classmethod
    def of(cls, scorer: CompiledScorer) -> Names:
        """Return the names by the contract of a scorer."""
        contract = scorer.contract
        reference = contract.applicant_id or APPLICANT_ID
        everything = {*contract.columns, contract.target.name, *contract.drop}
        ignored = frozenset(everything.difference(scorer.columns, [reference]))
        allowed, features = frozenset({*everything, reference}), tuple(scorer.columns)
        others = (reference, *sorted(allowed.difference(features, [reference])))
        names = {f"_{i}": name for i, name in enumerate((*features, *others))}
        cell = str | int | float | None
        fields = [
            (key, cell) if name in features else (key, cell | msgspec.UnsetType, msgspec.UNSET) for key, name in names.items()
        ]
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
        return cls(features, ignored, reference, allowed, msgspec.json.Decoder(list[row]).decode, others)  # type: ignore[valid-type]


def read(body: bytes, kind: str, names: Names, max_rows: int) -> Applicants:
    """Read the applicants in a body of media type ``kind``.

    Raises
    ------
    Refusal
        400 if the body is not of that type, 422 if it holds something else than applicants, 413 if too many.
    """
    if kind == JSON:
        return _from_json(body, names, max_rows)
    columns = read_csv(body, names) if kind == CSV else read_arrow(body, kind, names, max_rows)
    return _from_columns(columns, names, max_rows, plain=kind == CSV)


def _from_json(body: bytes, names: Names, max_rows: int) -> Applicants:
    if len(body) >= TABLE_BYTES:
        table = read_table(body, names)
        if table is not None:
            return _from_columns(table, names, max_rows, plain=True)
        columns = read_columns(body)
        if columns is not None:
            _check_header(columns, names)
            return _from_columns(columns, names, max_rows, plain=True, by_column=True)
    content = read_json(body)
    if isinstance(content, list):
        return _from_records(content, names, max_rows)
    _check_header(content, names)
    return _from_columns(content, names, max_rows, by_column=True)


def _from_columns(
    columns: Mapping[str, Sequence[Any]], names: Names, max_rows: int, *, plain: bool = False, by_column: bool = False
) -> Applicants:
    n = len(next(iter(columns.values())))
    _check_number(n, max_rows)
    references = [None if cell in (None, "") else str(cell) for cell in columns.get(names.reference, ())]
    return Applicants(n, None, columns, references, plain, by_column)


def _from_records(records: list[Record], names: Names, max_rows: int) -> Applicants:
    _check_number(len(records), max_rows)
    if not all(map(names.allowed.issuperset, records)):
        unknown = [(row, name) for row, record in enumerate(records) for name in record if name not in names.allowed]
        raise invalid([(row, name, unknown_column(name, names)) for row, name in unknown[:MAX_ERRORS]], len(unknown))
    found = [record.get(names.reference) for record in records]
    references = [] if found.count(None) == len(found) else [None if name in (None, "") else str(name) for name in found]
    return Applicants(len(records), records, None, references)


def _check_number(n: int, max_rows: int) -> None:
    if n == 0:
        raise Refusal(422, "Unprocessable Content", "found no applicant, expected at least one")
    if n > max_rows:
        raise Refusal(413, "Content Too Large", f"found {n} applicants, expected {max_rows} at most; send several requests")


def unknown_column(name: str, names: Names) -> str:
    """Say that nobody knows a column, and which one may be meant."""
    near = difflib.get_close_matches(name[:100], names.features, n=1)
    return f"unknown column{f'; did you mean {near[0]}?' if near else ''}"


def invalid(errors: Iterable[tuple[int | None, str | None, str]], total: int | None = None) -> Refusal:
    """Return a problem that names row (from 0), field and fault of each error, of ``total`` many."""
    listed = []
    for row, field, detail in errors:
        entry: dict[str, Any] = {"detail": detail}
        if row is not None:
            entry["row"] = row
        if field is not None:
            entry["field"] = field
        listed.append(entry)
    first = listed[0]
    where = ", ".join(f"{key} {first[key]}" for key in ("row", "field") if key in first)
    total = total or len(listed)
    more = f" (and {total - 1} more)" if total > 1 else ""
    detail = f"{where}: {first['detail']}{more}" if where else f"{first['detail']}{more}"
    return Refusal(422, "Unprocessable Content", detail, errors=listed)


# --- JSON


def read_json(body: bytes) -> list[Record] | Columns:
    """Read one applicant, an object; several, an array of objects; or an object of columns, each an array of n cells.

    Cells are texts, numbers, truth values or null.

    Returns
    -------
    list of dict, or dict of list
        Records, or columns of equal length.

    Raises
    ------
    Refusal
        400 if it is not JSON as RFC 8259 has it (NaN and Infinity are not), if a key stands twice in an object, or if it is
        nested too deeply; 422 if it holds something else.
    """
    try:
        found = _records(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _strictly(body)
    records = found if isinstance(found, list) else [found]
    # Each key has its colon. More of them stand in texts, or behind a key that stands twice: then it is looked at closely.
    if body.count(b":") == sum(map(len, records)):
        return records
    return _strictly(body)


def read_columns(body: bytes) -> Columns | None:
    """Read an object of columns; None where `read_json` must look."""
    try:
        columns = _columns(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if body.count(b":") != len(columns) or len(set(map(len, columns.values()))) != 1:
        return None
    return columns  # type: ignore[return-value]


def read_table(body: bytes, names: Names) -> Columns | None:
    """Read an array of objects into columns; None where `read_json` must look: at gaps, at what is wrong, at truth values.

    Columns that are not `Names.features` are there if any applicant has them.
    """
    try:
        rows = names.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not rows:
        return None
    columns = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
    found: dict[str, Sequence[Any]] = dict(zip(names.features, columns, strict=False))
    given = len(rows) * len(found)
    for name, column in zip(names.others, columns[len(found) :], strict=True):
        cells = len(rows) - column.count(msgspec.UNSET)
        given += cells
        if cells:
            found[name] = [None if cell is msgspec.UNSET else cell for cell in column]
    return found if body.count(b":") == given else None  # see `read_json`


def _strictly(body: bytes) -> list[Record] | Columns:
    """Read what the fast decoders refuse or do not notice; slower, and exact about what is wrong."""
    content = decode_json(body)
    if not isinstance(content, (dict, list)):
        raise Refusal(422, "Unprocessable Content", f"found {_name(content)}, expected an object or an array of objects")
    if isinstance(content, dict) and any(isinstance(cells, list) for cells in content.values()):
        return _columns_strictly(content)
    records = content if isinstance(content, list) else [content]
    errors: list[tuple[int | None, str | None, str]] = []
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            errors.append((row, None, f"found {_name(record)}, expected an object with one applicant"))
            continue
        errors += [(row, field, _no_cell(cell)) for field, cell in record.items() if isinstance(cell, (dict, list))]
    if errors:
        raise invalid(errors[:MAX_ERRORS], len(errors))
    return records


def _columns_strictly(content: dict[str, Any]) -> Columns:
    if single := [(None, name, f"found {_name(c)}, expected an array") for name, c in content.items() if not isinstance(c, list)]:
        raise invalid(single[:MAX_ERRORS], len(single))
    first, n = next((name, len(cells)) for name, cells in content.items())
    expected = f"expected {n} as in {first[:100]}"
    if other := [(None, name, f"found {len(c)} cells, {expected}") for name, c in content.items() if len(c) != n]:
        raise invalid(other[:MAX_ERRORS], len(other))
    wrong = [
        (row, name, _no_cell(cell))
        for name, cells in content.items()
        for row, cell in enumerate(cells)
        if isinstance(cell, (dict, list))
    ]
    if wrong:
        raise invalid(wrong[:MAX_ERRORS], len(wrong))
    return content


def _no_cell(cell: Any) -> str:
    return f"found {_name(cell)}, expected a text, a number, true, false or null"


def decode_json(body: bytes) -> Any:
    """Decode JSON strictly: no NaN, no key twice. Numbers that are too large become infinite. Raises Refusal (400)."""
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
        json.dumps(content, ensure_ascii=False).encode()  # a lone surrogate is no text
        return content
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise _malformed("a text holds half of a surrogate pair") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except ValueError as error:
        raise _malformed(str(error)) from None


def _malformed(what: str) -> Refusal:
    return Refusal(400, "Bad Request", f"the body cannot be read as JSON: {what}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} stands twice in an object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value; leave the field out, or send null")


def _integer(text: str) -> int | float:
    return int(text) if len(text) < LONG else float(text)


def _name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


# --- CSV


def read_csv(body: bytes, names: Names) -> dict[str, list[str]]:
    """Read a CSV table (UTF-8; comma, semicolon, tab or |) with a header; cells stay text, as in the raw table.

    Raises
    ------
    Refusal
        400 if it is not CSV; 422 if a column is unknown, absent or there twice, or a row is longer or shorter than the header.
    """
    try:
        text = body.decode("utf-8-sig")
        first = text[: text.find("\n") if "\n" in text else None]
        delimiter = max(DELIMITERS, key=lambda sign: sum(name in names.allowed for name in _split(first, sign)))
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except UnicodeDecodeError as error:
        raise Refusal(400, "Bad Request", f"the body cannot be read as CSV: byte {error.start} is not UTF-8") from None
    except csv.Error as error:
        raise Refusal(400, "Bad Request", f"the body cannot be read as CSV: {error}") from None
    if not rows:
        raise Refusal(400, "Bad Request", "the body is empty, expected a header and one line per applicant")
    header = [name.strip() for name in rows.pop(0)]
    _check_header(header, names)
    wrong = [(row, len(cells)) for row, cells in enumerate(rows) if len(cells) != len(header)]
    if wrong:
        expected = f"expected {len(header)} as in the header"
        raise invalid([(row, None, f"found {cells} cells, {expected}") for row, cells in wrong[:MAX_ERRORS]], len(wrong))
    if not rows:
        return {name: [] for name in header}
    return {name: list(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}


def _split(line: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line.rstrip("\r")], delimiter=delimiter), [])]


def _check_header(header: Iterable[str], names: Names) -> None:
    header = list(header)
    if unknown := [name for name in header if name not in names.allowed]:
        raise invalid([(None, name[:100], unknown_column(name, names)) for name in unknown[:MAX_ERRORS]], len(unknown))
    if twice := [name for name in names.allowed if header.count(name) > 1]:
        raise invalid((None, name, "the column stands twice") for name in sorted(twice))
    if absent := [name for name in names.features if name not in header]:
        raise invalid((None, name, "the column is absent; leave its cells empty where the value is not known") for name in absent)


# --- Arrow and Parquet


def read_arrow(body: bytes, kind: str, names: Names, max_rows: int) -> Columns:
    """Read an Arrow stream or a Parquet file.

    Raises
    ------
    Refusal
        400 if it is none; 422 as `read_csv`, and if a column is of another type than text, numbers or dates; 413 if it is much
        larger than its body; 415 if an Arrow stream is compressed; 501 if pyarrow is not installed.
    """
    pa = import_pyarrow()
    limit = max(len(body), ROW_BYTES * max_rows)
    try:
        stream = _parquet(body, max_rows, limit) if kind == PARQUET else body
        if any(_is_compressed(message) for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(stream))):
            raise Refusal(415, "Unsupported Media Type", "found compressed buffers, expected none")
        reader = pa.ipc.open_stream(pa.BufferReader(stream))
        _check_header(reader.schema.names, names)
        _check_types(reader.schema, pa)
        table = _batches(reader, limit, max_rows, pa)
        return {name: cells(column, pa, limit) for name, column in zip(table.column_names, table.columns, strict=True)}
    except pa.ArrowException as error:
        what = " ".join(str(error).split())[:200]
        raise Refusal(400, "Bad Request", f"the body cannot be read as {kind}: {what}") from None
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise Refusal(400, "Bad Request", f"the body cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from None


@cache
def import_pyarrow() -> Any:
    """Return pyarrow, which is a large package and needed by few. Raises Refusal (501) if it is not there."""
    # It would bring pandas if that is there, which a worker does not need.
    sys.meta_path.insert(0, _NoPandas)
    try:
        import pyarrow as pa
        import pyarrow.ipc

        pa.array([0])  # here it looks for pandas, once
    except ImportError:
        raise Refusal(501, "Not Implemented", f"Arrow and {NEEDS_PYARROW}; send JSON or CSV") from None
    finally:
        sys.meta_path.remove(_NoPandas)
    return pa


class _NoPandas:
    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ImportError(name)


def _batches(reader: Any, limit: int, max_rows: int, pa: Any) -> Any:
    batches, n, size = [], 0, 0
    for batch in reader:
        # Offsets and lengths in a body are a caller's: unchecked they lead anywhere in the memory, even when a size is asked for.
        batch.validate(full=True)
        n, size = n + batch.num_rows, size + batch.nbytes
        if n > max_rows or size > limit:
            _check_number(n, max_rows)
            raise _much_larger()
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def _parquet(body: bytes, max_rows: int, limit: int) -> bytes:
    """Return a Parquet file as an Arrow stream. Raises Refusal."""
    code, found = parquet.as_stream(body, max_rows, limit)
    if code == parquet.TOO_MANY:
        _check_number(int(found), max_rows)
    if code == parquet.TOO_LARGE:
        raise _much_larger()
    if code:
        raise Refusal(400, "Bad Request", f"the body cannot be read as {PARQUET}: {found.decode('ascii', 'replace').strip()}")
    return found


def _much_larger() -> Refusal:
    return Refusal(413, "Content Too Large", "the table is much larger than the body; send it in parts")


def _is_compressed(message: Any) -> bool:
    """Whether a message of an Arrow stream holds compressed buffers, which would be unpacked before their size is known.

    pyarrow does not tell. So the field ``compression`` is looked up as Arrow's Message.fbs has it.
    """
    content = message.metadata.to_pybytes()
    batch = _field(content, struct.unpack_from("<I", content)[0], 2)
    if message.type == "dictionary" and batch:
        batch = _field(content, batch + struct.unpack_from("<I", content, batch)[0], 1)
    elif message.type != "record batch":
        return False
    return bool(batch) and _field(content, batch + struct.unpack_from("<I", content, batch)[0], 3) > 0


def _field(content: bytes, table: int, number: int) -> int:
    """Return where a field of a FlatBuffers table stands, 0 if it is absent."""
    fields = table - struct.unpack_from("<i", content, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", content, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", content, fields + place)[0]
    return table + offset if offset else 0


def _check_types(schema: Any, pa: Any) -> None:
    """Refuse other columns than plain ones and dictionaries of these; views share bytes, so that their size says nothing."""
    types = pa.types
    plain = (
        types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null, types.is_date,
        types.is_timestamp, types.is_time, types.is_string, types.is_large_string,
    )  # fmt: skip

    def is_plain(kind: Any) -> bool:
        return any(is_kind(kind.value_type if types.is_dictionary(kind) else kind) for is_kind in plain)

    if wrong := [field for field in schema if not is_plain(field.type)]:
        raise invalid((None, field.name, f"found the type {field.type}, expected text, numbers or dates") for field in wrong)


def cells(column: Any, pa: Any, limit: int) -> Sequence[Any]:
    """Return the cells of a column: a NumPy array where it holds plain numbers, else a list; null is None or NaN.

    Raises
    ------
    Refusal
        413 if the texts of a dictionary are longer in all rows than ``limit``.
    """
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.to_numpy()
    if not pa.types.is_dictionary(column.type):
        return _listed(column, pa)
    found: list[Any] = []
    for chunk in column.chunks:
        values = [*_listed(chunk.dictionary, pa), None]
        found += [values[-1 if code is None else code] for code in chunk.indices.to_pylist()]
    if sum(len(cell) for cell in found if isinstance(cell, str)) > limit:
        raise _much_larger()
    return found


def _listed(column: Any, pa: Any) -> list[Any]:
    # Python knows no nanoseconds, no years beyond 9999 and not all time zones.
    return (column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist()
