"""A fitted model as a plan of plain arrays: what scores applicants fast, in processes without pandas and scikit-learn.

`mlops_project.modeling.compiling` makes the plan of a `RiskModel` and proves that both give the same answers.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from mlops_project.cells import MISSING, VALID
from mlops_project.errors import PipelineError
from mlops_project.files import atomic_path
from mlops_project.modeling.forms import FORMS, ROWS_TO_SEARCH, Boosted, Encoding, RowView, Sum, sigmoid
from mlops_project.modeling.policy import Policy
from mlops_project.modeling.reasons import Reason, Wording, map_sums
from mlops_project.modeling.scale import ScoreScale, log_odds
from mlops_project.schema import Contract

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mlops_project.cells import CellParser

    # Rows as members take them: in the values view, encoded, and what the only member knows of them, if it does: what their
    # cells add where it is a `Sum`, and what `Tables` ask where it has these.
    Seen = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]

FORMAT = 3
# Cells per column whose parsed value is remembered, and the longest text among them.
REMEMBERED = 4096
LONGEST = 24
# As many places have a byte for a name.
BYTE = 256
# Types whose equal values are parsed alike. True == 1, so a truth value must not be looked up.
PLAIN = frozenset((str, int, float, type(None)))
# Up to so many applicants are read row by row, more column by column.
FEW = 4
NOTHING: tuple[str, ...] = ()
# Conformal sets by (good is in it) + 2 · (bad is in it), and decisions by whether approved: the same objects in all answers.
SETS: tuple[list[str], ...] = ([], ["good"], ["bad"], ["good", "bad"])
_SETS, _DECISIONS = np.empty(4, dtype=object), np.array(["refuse", "approve"], dtype=object)
_SETS[:] = SETS


class Parsed(NamedTuple):
    """Parsed cells of the columns that a model reads.

    ``values`` are float of shape (n rows, n columns), NaN where missing or out of contract; ``status`` uint8 of the same shape,
    as in `Cells`, or None where all are valid; ``columns`` the names; ``places`` says where remembered cells are, int of shape
    (n columns, n rows), 0 if they are not, or None.
    """

    values: np.ndarray
    status: np.ndarray | None
    columns: Sequence[str]
    places: np.ndarray | None = None

    def gaps(self) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
        """Return per row the columns that were treated as missing, and those that were.

        The first were given, and are a token or not in the contract; the others were absent or empty.
        """
        treated: list[Any] = [NOTHING] * len(self.values)
        missing = treated.copy()
        if self.status is None:
            return treated, missing
        # NumPy finds what is true in one dimension in a seventh of the time of two.
        status = self.status.T.ravel()
        found = np.flatnonzero(status != VALID)
        columns, rows = np.divmod(found, len(self.values))
        for column, row, kind in zip(columns.tolist(), rows.tolist(), status[found].tolist(), strict=True):
            named = missing if kind == MISSING else treated
            named[row] += (self.columns[column],)
        return treated, missing


class CompiledScorer:
    """Scores applicants from a plan.

    Parameters
    ----------
    header : dict
        JSON: contract, policy, scale, names, members and what tells where the model comes from.
    arrays : mapping of str to ndarray

    Attributes
    ----------
    header : dict
    model_version : str
        SHA-256 of the model file.
    columns : list of str
        Features that it reads, in contract order.
    contract : Contract
    policy : Policy or None
    scale : ScoreScale
    can_explain : bool
        Whether it has `reasons` and `contributions`; if not, the model itself must be asked.
    """

    def __init__(self, header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.header = header
        self.arrays = arrays
        self.model_version: str = header["model_version"]
        self.contract = contract_from_plan(header["contract"])
        self.policy = None if header["policy"] is None else Policy.from_json(json.dumps(header["policy"]))
        self.scale = ScoreScale(*header["scale"])
        self.columns: list[str] = header["columns"]
        self.can_explain: bool = header["can_explain"]
        # What remembered cells mean, by column and place (`_Reader`).
        self._values = np.full((len(self.columns), REMEMBERED), math.nan)
        self._statuses = np.full(self._values.shape, MISSING, dtype=np.uint8)
        tables = zip(self.columns, self._values, self._statuses, strict=True)
        self._readers = [_Reader(self.contract.parser(name), values, statuses) for name, values, statuses in tables]
        self._places = [reader.places.__getitem__ for reader in self._readers]
        self._value_at = [reader.values.item for reader in self._readers]
        # With one key it would return no tuple.
        self._pick = itemgetter(*self.columns) if len(self.columns) > 1 else None
        self._view = RowView(**_part(arrays, "view"))
        self._encode = Encoding(**_part(arrays, "encoding")) if header["encoded"] else None
        self._members = [_Member(member, _part(arrays, f"member{i}")) for i, member in enumerate(header["members"])]
        self._words = Wording(self.contract, header["value_columns"])
        # What trees that are looked up ask of rows, P(good) and contributions have in common.
        form = self._members[0].form if len(self._members) == 1 else None
        self._tables = form.tables if isinstance(form, Boosted) else None
        # What remembered cells add to the log-odds, by column and place, where the model is a sum over cells; NaN: not known yet.
        self._added = None
        if isinstance(form, Sum) and not len(self._view.numerators):
            self._added = np.full(self._values.shape, math.nan)
        if self.can_explain:
            self._typical, self._mean = arrays["reference.typical"], arrays["reference.mean"]

    @classmethod
    def load(cls, path: str | Path, *, lean: bool = False) -> CompiledScorer:
        """Read what `save` wrote. Nothing in it is code.

        Parameters
        ----------
        path : str or Path
        lean : bool
            Keep scikit-learn and pandas, which XGBoost imports for its estimators if they are there, out of this process. For
            processes that do no more than score: XGBoost's estimators will not work there.

        Raises
        ------
        PipelineError
            If the file is absent or damaged, or another version of this package wrote it.
        """
        try:
            # NumPy would leave a file open that it cannot read.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            header = json.loads(arrays.pop("header").tobytes())
        except FileNotFoundError:
            raise PipelineError(f"{path}: not found; compile the model first") from None
        except Exception as error:  # a damaged archive raises almost anything
            raise PipelineError(f"{path}: cannot be read as a plan ({type(error).__name__}); compile the model anew") from error
        if header.get("format") != FORMAT:
            raise PipelineError(f"{path}: found plan format {header.get('format')!r}, expected {FORMAT}; compile the model anew")
        if lean and any(member["form"] == "boosted" for member in header["members"]):
            with _without("sklearn", "pandas"):
                import xgboost  # noqa: F401
        return cls(header, arrays)

    def save(self, path: str | Path) -> None:
        """Write the plan: an ``.npz`` file, the same bytes for the same plan. Raises PipelineError if it cannot be written."""
        header = np.frombuffer(json.dumps(self.header, allow_nan=False).encode(), dtype=np.uint8)
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, allow_pickle=False, header=header, **dict(self.arrays))

    def parse(self, records: Sequence[Mapping[str, Any]]) -> Parsed:
        """Parse applicants, column name → cell, as `Contract.parse_features` parses a table; absent columns are missing.

        Cells may be text, numbers, truth values, None or anything else, which is out of contract.
        """
        if len(records) <= FEW:
            rows = [self._parse_row(record) for record in records]
            values = np.array([row for row, _ in rows], dtype=float).reshape(len(rows), len(self.columns))
            if all(status is None for _, status in rows):
                return Parsed(values, None, self.columns)
            valid = bytes(len(self.columns))
            return Parsed(values, np.array([list(status or valid) for _, status in rows], dtype=np.uint8), self.columns)
        return self._parse_columns(list(zip(*map(self._cells, records), strict=True)), len(records), plain=False)

    def parse_columns(self, columns: Mapping[str, Any], *, plain: bool = False) -> Parsed:
        """Parse applicants that come as columns.

        Parameters
        ----------
        columns : mapping of str to array or sequence of shape (n rows,)
            Name → cells.
        plain : bool
            Whether it is known that all cells are text, numbers or None, so that nobody need look.

        Raises
        ------
        DataError
            If a column is absent.
        """
        self.contract.require(columns, self.columns, "columns")
        cells = [columns[name] for name in self.columns]
        return self._parse_columns(cells, len(cells[0]), plain)

    def p_good(self, values: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Return P(good) of parsed values, shape (n rows,); with their ``places`` it is faster."""
        return self._p_good(self._see(values, places))

    def score(self, p_good: np.ndarray) -> np.ndarray:
        """Return points on the model's scale, shape (n rows,): higher is safer."""
        return self.scale.points(log_odds(p_good))

    def decide(self, p_good: np.ndarray) -> list[str]:
        """Return approve or refuse by the policy's threshold, per row."""
        return _DECISIONS.take(self._policy.approved(p_good)).tolist()

    def default_probability(self, p_good: np.ndarray) -> np.ndarray:
        """Return P(bad) at the policy's prior default rate, shape (n rows,): what the threshold is compared with."""
        return 1 - self._policy.correct(p_good)

    def conformal_sets(self, p_good: np.ndarray) -> list[list[str]]:
        """Return per row the classes in its conformal set: good, bad, both or none. Do not change these lists."""
        good, bad = self._policy.conformal_sets(p_good)
        return _SETS.take(good + 2 * bad).tolist()

    def contributions(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        """Split log-odds as `RiskModel.contributions` does: base, and parts of shape (n rows, n columns + n ratios).

        Raises
        ------
        ValueError
            If `can_explain` is false.
        """
        return self._contributions(self._see(values, None))

    def reasons(self, values: np.ndarray, top: int = 3, places: np.ndarray | None = None) -> list[list[Reason]]:
        """Return per row the columns that lower its score most, as `RiskModel.reasons`; raises as `contributions`."""
        return self._reasons(values, top, places, self._see(values, places))

    def explain(
        self, values: np.ndarray, top: int = 3, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[list[Reason]]]:
        """Return `p_good` and `reasons`, in less time than one after the other; raises as `contributions`."""
        seen = self._see(values, places)
        return self._p_good(seen), self._reasons(values, top, places, seen)

    @property
    def _policy(self) -> Policy:
        if self.policy is None:
            raise ValueError("this plan was compiled without a policy, so it decides nothing")
        return self.policy

    def _see(self, values: np.ndarray, places: np.ndarray | None) -> Seen:
        """Return what P(good) and contributions of parsed values have in common."""
        rows = self._view(values)
        known = self._look_up(values, places)
        encoded = None if self._encode is None or known is not None else self._encode(rows)
        if self._tables is not None:
            known = self._tables.compare(rows if encoded is None else encoded)
        return rows, encoded, known

    def _p_good(self, seen: Seen) -> np.ndarray:
        if len(self._members) == 1:
            return self._members[0].p_good(*seen)
        return np.mean([member.p_good(*seen) for member in self._members], axis=0)

    def _contributions(self, seen: Seen) -> tuple[float, np.ndarray]:
        if not self.can_explain:
            raise ValueError(f"the plan of {self.header['name']} has no contributions; ask the model itself")
        base, parts = self._members[0].contributions(seen, self._typical, self._encode)
        return base + float(self._mean.sum()), parts - self._mean

    def _reasons(self, values: np.ndarray, top: int, places: np.ndarray | None, seen: Seen) -> list[list[Reason]]:
        _, parts = self._contributions(seen)
        cells, ratios = values, seen[0][:, values.shape[1] :]
        if ratios.shape[1]:
            cells = np.hstack([cells, ratios])
            places = None if places is None else np.vstack([places, np.zeros(ratios.shape[::-1], dtype=places.dtype)])
        # Isotonic calibration makes a contribution of all cells of a row.
        known = self._added is not None and len(values) >= ROWS_TO_SEARCH and self._members[0].calibration != "isotonic"
        alike = known and places is not None
        return self._words.reasons(cells, parts, self.scale.points_per_log_odds, top, places, alike=alike)

    def _look_up(self, values: np.ndarray, places: np.ndarray | None) -> np.ndarray | None:
        """Return what each cell adds, shape (n rows, n columns), or None where there is nothing to look up."""
        # So that few applicants get the same last digit by columns as one by one.
        if self._added is None or places is None or len(values) < ROWS_TO_SEARCH:
            return None
        parts = self._added.take(places)
        unknown = np.flatnonzero(np.isnan(parts).any(axis=1)).tolist()
        rows = self._view(values) if unknown else values
        for i in unknown:
            parts[i] = self._members[0].form.part(i, rows[:, i])
            remembered = places[i] > 0
            self._added.put(places[i][remembered], parts[i][remembered])
        return parts.T

    def _cells(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return a record's cells in the order of the columns, None where absent."""
        try:
            return self._pick(record) if self._pick else (record[self.columns[0]],)
        except KeyError:
            return tuple([record.get(name) for name in self.columns])

    def _parse_row(self, record: Mapping[str, Any]) -> tuple[list[float], bytearray | None]:
        """Return values, and statuses unless all are valid."""
        cells = self._cells(record)
        if not PLAIN.issuperset(map(type, cells)):
            pairs = list(map(_Reader.read, self._readers, cells))
            status = bytearray(kind for _, kind in pairs)
            return [value for value, _ in pairs], status if any(status) else None
        try:
            places = [place(cell) for place, cell in zip(self._places, cells, strict=True)]
        except KeyError:
            places = [reader.place(cell) for reader, cell in zip(self._readers, cells, strict=True)]
        values = [value_at(place) for value_at, place in zip(self._value_at, places, strict=True)]
        total = sum(values)
        if total == total:  # noqa: PLR0124 - not NaN, so none of them is
            return values, None
        status = bytearray(len(cells))
        for i, value in enumerate(values):
            if value != value:  # noqa: PLR0124
                reader, place = self._readers[i], places[i]
                values[i], status[i] = (value, reader.statuses.item(place)) if place else reader.read(cells[i])
        return values, status if any(status) else None

    def _parse_columns(self, columns: Sequence[Any], n_rows: int, plain: bool) -> Parsed:
        # Columns are read, and by most models scored, one by one: so each lies in one piece.
        places = np.zeros((len(columns), n_rows), dtype=np.intp)
        read: dict[int, tuple[Any, Any]] = {}
        for i, (reader, cells) in enumerate(zip(self._readers, columns, strict=True)):
            if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf" and reader.parser.text_codes is None:
                read[i] = reader.parser.parse_numbers(cells.astype(float))
            elif plain or PLAIN.issuperset(map(type, listed := cells.tolist() if isinstance(cells, np.ndarray) else cells)):
                places[i] = reader.find(cells if plain else listed)
            else:
                pairs = np.array([reader.read(cell) for cell in listed])
                read[i] = pairs[:, 0], pairs[:, 1]
        unknown = () if places.all() else zip(*(at.tolist() for at in np.nonzero(places == 0)), strict=True)
        places += np.arange(len(columns))[:, np.newaxis] * REMEMBERED * (places > 0)
        values, status = self._values.take(places), self._statuses.take(places)
        for i, row in unknown:
            if i not in read:
                values[i, row], status[i, row] = self._readers[i].read(columns[i][row])
        for i, found in read.items():
            values[i], status[i] = found
        return Parsed(values.T, status.T if status.any() else None, self.columns, places)


class _Reader:
    """Reads one column's cells, and remembers what common ones mean: each has a place in ``values`` and ``statuses``.

    At place 0 is nothing, for what is not remembered.
    """

    def __init__(self, parser: CellParser, values: np.ndarray, statuses: np.ndarray) -> None:
        self.parser, self.values, self.statuses = parser, values, statuses
        # 1 and 1.0 are the same key and not the same text.
        self.kinds: tuple[type, ...] = (str,) if parser.text_codes is not None else (str, int, float)
        # A column of codes has few cells that are worth it, however many others come.
        self.room = REMEMBERED if parser.text_codes is None and parser.number_codes is None else BYTE
        # Cells without truth values: True == 1, so one would be found where the other was meant. No subclass of dict, in which
        # Python would look up in twice the time.
        self.places: dict[Any, int] = {None: 1}  # missing, as all places are at first
        self._lock = threading.Lock()

    def read(self, cell: Any) -> tuple[float, int]:
        """Return value and status of a cell."""
        if cell is None or cell != cell:  # noqa: PLR0124 - NaN
            return math.nan, MISSING
        return self.parser.parse_cell(cell)

    def find(self, cells: Sequence[Any]) -> np.ndarray:
        """Return the places of plain cells, int of shape (n rows,)."""
        try:
            # With one key it would return no tuple.
            found = itemgetter(*cells)(self.places) if len(cells) > 1 else [self.places[cell] for cell in cells]
        except KeyError:
            found = list(map(self.place, cells))
        # Bytes take a quarter of the time of an array.
        return np.frombuffer(bytes(found), dtype=np.uint8) if len(self.places) < BYTE else np.array(found, dtype=np.intp)

    def place(self, cell: Any) -> int:
        """Return the place of a plain cell. What has none yet is read and, if it is short and there is room, gets one."""
        found = self.places.get(cell)
        if found is not None:
            return found
        if type(cell) not in self.kinds or cell != cell or (type(cell) is str and len(cell) > LONGEST):  # noqa: PLR0124
            return 0
        with self._lock:  # or two threads give one place to two cells
            if cell in self.places:
                return self.places[cell]
            place = len(self.places) + 1
            if place >= self.room:
                return 0
            self.values[place], self.statuses[place] = self.read(cell)
            self.places[cell] = place
        return place


class _Member:
    """One model of the vote: its form, the view that it reads, and its calibration."""

    def __init__(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.view: str = header["view"]
        self.calibration: str = header["calibration"]
        if self.calibration != "none":
            # Sigmoid: slope and intercept. Isotonic: margins and probabilities between which straight lines run.
            self.first, self.second = arrays.pop("calibration.first"), arrays.pop("calibration.second")
        self.form: Any = FORMS[header["form"]](**arrays)

    def p_good(self, rows: np.ndarray, encoded: np.ndarray | None, known: np.ndarray | None) -> np.ndarray:
        X, given = self._rows(rows, encoded), () if known is None else (known,)
        return self.form.p_good(X, *given) if self.calibration == "none" else self._calibrate(self.form.margin(X, *given))

    def contributions(self, seen: Seen, typical: np.ndarray, encode: Encoding | None) -> tuple[float, np.ndarray]:
        """Return base and parts as `reasons.split` has them."""
        rows, encoded, known = seen
        if self.calibration == "isotonic":
            rows, known = np.vstack([typical, rows]), None
            encoded = None if encode is None else encode(rows)
        base, parts = self.form.split(self._rows(rows, encoded), known)
        if self.calibration == "none":
            return base, parts
        if self.calibration == "sigmoid":
            slope, intercept = float(self.first[0]), float(self.second[0])
            return slope * base + intercept, slope * parts
        return map_sums(lambda margins: log_odds(self._calibrate(margins)), base + parts[0].sum(), parts[1:] - parts[0])

    def _rows(self, rows: np.ndarray, encoded: np.ndarray | None) -> Any:
        return encoded if self.view == "encoded" else rows

    def _calibrate(self, margins: np.ndarray) -> np.ndarray:
        if self.calibration == "sigmoid":
            return sigmoid(self.first * margins + self.second)
        return np.interp(margins, self.first, self.second)


def contract_to_plan(contract: Contract) -> dict[str, Any]:
    """Return a contract as JSON content. Keys of JSON are text, so codes with meanings become pairs."""
    content = msgspec.to_builtins(contract)
    for column in content["columns"].values():
        if isinstance(column["codes"], dict):
            column["codes"] = {"pairs": list(column["codes"].items())}
    return content


def contract_from_plan(content: dict[str, Any]) -> Contract:
    """Return the contract that `contract_to_plan` took."""
    columns = {}
    for name, column in content["columns"].items():
        codes = column["codes"]
        columns[name] = {**column, "codes": dict(codes["pairs"])} if isinstance(codes, dict) else column
    return msgspec.convert({**content, "columns": columns}, Contract)


def _part(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Let imports of packages fail that nobody has imported yet."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # stands for: there is none
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
