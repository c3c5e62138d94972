"""The data contract: what each column of a credit table may hold, and the one parser of its cells.

`prepare`, `mlops-validate`, the fitted model and whatever scores applicants later all read cells through
`Contract.parse`, so that a value means the same everywhere.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from mlops_project.cells import CellParser, Cells
from mlops_project.errors import ContractError, DataError
from mlops_project.files import read_yaml
from mlops_project.strict import Strict, convert

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd

Code = int | float | str


class Target(Strict, frozen=True):
    """The outcome column: ``good`` becomes 1, ``bad`` becomes 0, anything else drops the row."""

    name: str
    good: Code
    bad: Code
    english: str = ""
    meaning: str = ""


class Column(Strict, frozen=True):
    """One column of the contract."""

    kind: Literal["numeric", "ordinal", "nominal", "identifier", "date", "weight"]
    english: str = ""
    meaning: str = ""
    unit: str | None = None
    codes: dict[Code, str] | list[Code] | None = None
    range: Annotated[list[float], Meta(min_length=2, max_length=2)] | None = None
    format: str | None = None
    nullable: bool = True
    monotone: Literal["increasing", "decreasing"] | None = None
    protected: bool = False
    bands: list[float] | None = None

    @property
    def code_list(self) -> list[Code]:
        """The allowed codes in the contract's order, which is the rank order of text codes; number codes rank by value."""
        return list(self.codes or [])

    @property
    def has_text_codes(self) -> bool:
        return isinstance(next(iter(self.codes or [0])), str)

    @property
    def domain(self) -> str:
        """What the column may hold, in words."""
        if self.codes is not None:
            return f"one of {', '.join(map(str, self.code_list))}"
        if self.range is not None:
            return f"a number in {self.range[0]:g} to {self.range[1]:g}"
        words = {"date": f"a date ({self.format or 'YYYY-MM-DD'})", "identifier": "text", "weight": "a number above 0"}
        return words.get(self.kind, "a number")


class Contract(Strict, frozen=True):
    """The data contract of one credit table, read from data/schema.yaml by `load_contract`."""

    target: Target
    columns: dict[str, Column]
    decimal: Literal[".", ","] = "."
    missing_tokens: list[str] = []
    applicant_id: str | None = None
    drop: list[str] = []

    @property
    def features(self) -> list[str]:
        """Columns that a model may see, in contract order."""
        return self.of_kind("numeric", "ordinal", "nominal")

    @property
    def passengers(self) -> list[str]:
        """Identifier, date and weight columns: they travel beside the features and are never one."""
        return [name for name in self.of_kind("identifier", "date", "weight") if name != self.applicant_id]

    @property
    def weight(self) -> str | None:
        """The column that says how many applicants a row stands for, if there is one."""
        return next(iter(self.of_kind("weight")), None)

    @property
    def protected(self) -> list[str]:
        """Feature columns that `featurize.without_protected` hides from the model."""
        return [name for name in self.features if self.columns[name].protected]

    def without(self, names: Iterable[str]) -> Contract:
        """Return the contract without some columns, as a model sees it that must not know them."""
        left = set(names)
        return msgspec.structs.replace(self, columns={name: c for name, c in self.columns.items() if name not in left})

    @property
    def text_columns(self) -> list[str]:
        """Columns whose cells are text even where they look like numbers: text codes, identifiers and dates."""
        return [name for name, column in self.columns.items() if column.has_text_codes or column.kind in ("identifier", "date")]

    @property
    def code_labels(self) -> dict[str, dict[float, str]]:
        """For each coded column what its parsed codes mean, in the contract's words."""
        labels = {}
        for name in self.of_kind("nominal", "ordinal"):
            column = self.columns[name]
            words = list(column.codes.values()) if isinstance(column.codes, dict) else column.code_list
            codes = range(len(words)) if column.has_text_codes else column.code_list
            labels[name] = {float(code): str(word) for code, word in zip(codes, words, strict=True)}
        return labels

    def of_kind(self, *kinds: str) -> list[str]:
        return [name for name, column in self.columns.items() if column.kind in kinds]

    def require(self, found: Iterable[Any], names: Iterable[str], source: str) -> None:
        """Raise `DataError` unless every one of ``names`` is among ``found``."""
        found = [str(name) for name in found]
        if missing := [name for name in names if name not in found]:
            shown = ", ".join(found[:30]) + (f", … ({len(found)} in all)" if len(found) > 30 else "")
            raise DataError(
                f"{source}: column(s) {', '.join(missing)} of the contract missing; found {shown or 'none'};"
                " rename or add them, or change data/schema.yaml"
            )

    def parse(self, name: str, cells: pd.Series) -> Cells:
        """Parse the cells of one column, dirt and all.

        Parameters
        ----------
        name : str
            A feature, a date column or the target.
        cells : Series of shape (n,)
            Text, numbers or both.

        Returns
        -------
        Cells of shape (n,)
            Numbers as they are; codes that are numbers as that number; text codes as their position in the contract;
            dates as days since 1970-01-01; weights as numbers; the target as 1 (good) or 0 (bad).
        """
        return self.parser(name).parse(cells)

    def parser(self, name: str) -> CellParser:
        """Return the parser of a feature's, a date's or the target's cells."""
        if name == self.target.name:
            column = Column(kind="nominal", codes=[self.target.good, self.target.bad])
            meanings: list[Any] = [1.0, 0.0]
        else:
            column = self.columns[name]
            meanings = list(range(len(column.code_list))) if column.has_text_codes else column.code_list
        return CellParser(
            codes=dict(zip(column.code_list, meanings, strict=True)) if column.codes else None,
            text_codes=column.has_text_codes,
            # The smallest positive number: a weight of 0 would be a row that is not there.
            bounds=(5e-324, sys.float_info.max) if column.kind == "weight" else column.range,
            date=column.kind == "date",
            date_format=column.format,
            decimal=self.decimal,
            missing_tokens=self.missing_tokens,
        )

    def parse_features(self, table: pd.DataFrame, source: str = "table") -> Cells:
        """Parse all feature columns of a table into arrays of shape (n rows, n features), in contract order."""
        self.require(table.columns, self.features, source)
        parsed = [self.parse(name, table[name]) for name in self.features]
        return Cells(np.column_stack([c.values for c in parsed]), np.column_stack([c.status for c in parsed]))

    def row_weights(self, table: pd.DataFrame) -> np.ndarray:
        """Return how many applicants each row stands for, shape (n rows,): the weight column, else ones."""
        return np.ones(len(table)) if self.weight is None else self.parse(self.weight, table[self.weight]).values

    def labels(self, name: str, values: np.ndarray) -> np.ndarray:
        """Parsed values as they are written to files: text codes as their text, all else as numbers."""
        column = self.columns[name]
        if not column.has_text_codes:
            return values
        codes = np.array([*column.code_list, None], dtype=object)
        return codes[np.where(np.isnan(values), len(codes) - 1, values).astype(int)]


def load_contract(path: str | Path) -> Contract:
    """Read and check a data contract.

    Raises
    ------
    ContractError
        If a key is unknown or missing, or a column's description contradicts itself.
    """
    contract = convert(read_yaml(path), Contract, str(path), ContractError)
    for name, column in contract.columns.items():
        if problem := _column_problem(column):
            raise ContractError(f"{path}: columns.{name}: {problem}")
    for problem in _table_problems(contract):
        raise ContractError(f"{path}: {problem}")
    return contract


def _column_problem(column: Column) -> str | None:  # noqa: C901, PLR0911 - one return per rule
    codes = column.code_list
    folded = [code.strip().casefold() if isinstance(code, str) else float(code) for code in codes]
    coded = column.kind in ("ordinal", "nominal")
    if coded and not codes:
        return f"is {column.kind} and lists no codes; expected codes: {{code: meaning, …}} or [code, …]"
    if not coded and codes:
        return f"is {column.kind} and lists codes; remove them or make it ordinal or nominal"
    if len({isinstance(code, str) for code in codes}) > 1:
        return f"mixes text and number codes ({codes}); quote all of them or none"
    if len(set(folded)) < len(folded):
        return f"codes {codes} are not distinct when letter case is ignored"
    if column.range is not None and column.kind != "numeric":
        return f"is {column.kind} and has a range; only numeric columns have one"
    if column.range is not None and not column.range[0] < column.range[1]:
        return f"found range {column.range}, expected the lower bound first"
    if column.monotone and column.kind not in ("numeric", "ordinal"):
        return f"is {column.kind} and has a monotone direction; only numeric and ordinal columns have one"
    if column.protected and not (coded or column.kind == "numeric"):
        return f"is {column.kind} and protected; only numeric, ordinal and nominal columns have groups to compare"
    if column.bands is not None and column.kind != "numeric":
        return f"is {column.kind} and has bands; only numeric columns have them"
    if column.bands is not None and (not column.bands or column.bands != sorted(set(column.bands))):
        return f"found bands {column.bands}, expected the lower bounds of the second and later bands in rising order"
    if column.protected and column.kind == "numeric" and column.bands is None:
        return "is numeric and protected; expected bands: the lower bounds of the second and later groups, such as [26, 41]"
    return None


def _table_problems(contract: Contract) -> Iterable[str]:
    names = list(contract.columns)
    if not contract.features:
        yield "columns: no numeric, ordinal or nominal column, so there is nothing to learn from"
    if len(weights := contract.of_kind("weight")) > 1:
        yield f"columns {weights} are all of kind weight; expected one at most"
    if contract.target.name in names:
        yield f"target {contract.target.name!r} stands among the columns too; remove it there, it must never be a feature"
    if str(contract.target.good).casefold() == str(contract.target.bad).casefold():
        yield f"target.good and target.bad are both {contract.target.good!r}"
    if isinstance(contract.target.good, str) != isinstance(contract.target.bad, str):
        yield "target.good and target.bad: one is text and one a number; quote both or none"
    if both := [name for name in contract.drop if name in names or name == contract.target.name]:
        yield f"{both} stand both in drop and in use"
    if contract.applicant_id is not None and contract.applicant_id not in contract.of_kind("identifier"):
        identifiers = contract.of_kind("identifier")
        yield f"applicant_id {contract.applicant_id!r} must be a column of kind identifier; found {identifiers}"
    if "applicant_id" in [*names, contract.target.name] and contract.applicant_id != "applicant_id":
        yield "a column is called applicant_id but is not the contract's applicant_id; name it there or rename it"
