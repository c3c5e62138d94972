"""The one parser of cells, and the contracts that it refuses to work with."""

import datetime as dt
import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_project.cells import INVALID, MISSING, TOKEN, VALID, Cells
from mlops_project.errors import ContractError, DataError, PipelineError
from mlops_project.schema import Column, Contract, Target, load_contract

SMALL = Contract(
    target=Target(name="outcome", good="Paid", bad="Lost"),
    missing_tokens=["N/A", "?", "-999", "none"],
    applicant_id="id",
    columns={
        "id": Column(kind="identifier"),
        "since": Column(kind="date"),
        "closed": Column(kind="date", format="%d.%m.%Y"),
        "amount": Column(kind="numeric", range=[-1000.0, 5000.0]),
        "free": Column(kind="numeric"),
        "grade": Column(kind="ordinal", codes={1: "best", 2: "middling", 4: "worst"}),
        "home": Column(kind="nominal", codes=["Own", "Rent", "None"]),
        "branch": Column(kind="nominal", codes=["01", "1", "30"]),
    },
)
COMMA = Contract(target=Target(name="y", good=1, bad=0), decimal=",", columns={"x": Column(kind="numeric")})


def parse(name: str, *cells: object, contract: Contract = SMALL, dtype: object = object) -> list[float | str]:
    """Return the value of each valid cell and the name of each other cell's status."""
    values, status = contract.parse(name, pd.Series(cells, dtype=dtype))
    assert values.dtype == float
    assert np.isnan(values[status != VALID]).all()
    words = {MISSING: "missing", TOKEN: "token", INVALID: "invalid"}
    return [float(value) if code == VALID else words[code] for value, code in zip(values, status, strict=True)]


def same(first: Cells, second: Cells) -> bool:
    return np.array_equal(first.values, second.values, equal_nan=True) and np.array_equal(first.status, second.status)


@pytest.mark.parametrize("cell", ["18", "18.0", " 18.0 ", "\t18\n", "+18", "1.8e1", "1.8E+01", "018", "18.", "\u00a018\u2003"])
def test_numbers_in_plain_notation_are_read(cell: str) -> None:
    assert parse("amount", cell) == [18.0]


@pytest.mark.parametrize(
    "cell",
    [
        "1_000",
        "inf",
        "-Infinity",
        "1e999",
        "0x12",
        "0b1",
        "\u0661\u0668",
        "\uff11\uff18",
        "1,5",
        "1 000",
        "18 EUR",
        "1.2.3",
        ".",
        "-",
        "e5",
        "1e",
        "TRUE",
    ],
)
def test_what_python_or_a_spreadsheet_would_take_for_a_number_is_refused(cell: str) -> None:
    assert parse("amount", cell) == ["invalid"]
    assert parse("free", cell) == ["invalid"]


@pytest.mark.parametrize("cell", ["", "  ", "nan", " NaN ", " NAN ", "None", "<NA>", "NaT", None, math.nan, pd.NA, pd.NaT])
def test_empty_cells_are_missing_whatever_wrote_them(cell: object) -> None:
    assert parse("free", cell) == ["missing"]
    assert parse("since", cell) == ["missing"]


@pytest.mark.parametrize("cell", ["N/A", " n/a ", "?", "-999", "-999.0", " -9.99E2"])
def test_missing_value_tokens_count_apart_in_any_case_and_notation(cell: str) -> None:
    assert parse("free", cell) == ["token"]
    assert parse("amount", cell) == ["token"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "Int64", "int16"])
def test_a_token_that_is_a_number_is_one_in_numeric_columns_too(dtype: str) -> None:
    assert parse("free", -999, 7, dtype=dtype) == ["token", 7.0]


def test_both_ends_of_a_range_belong_to_it() -> None:
    assert parse("amount", "-1000", "5000.0", "-1000.01", "5000.01") == [-1000.0, 5000.0, "invalid", "invalid"]


def test_numeric_codes_are_that_number_in_any_notation() -> None:
    assert parse("grade", "1", "2.0", " 4e0 ", "3", "1.5", "x") == [1.0, 2.0, 4.0, "invalid", "invalid", "invalid"]


def test_text_codes_are_their_position_in_any_case() -> None:
    assert parse("home", "Own", " RENT ", "rent", "Owner", "1") == [0.0, 1.0, 1.0, "invalid", "invalid"]


def test_a_code_beats_a_missing_value_token_and_the_words_for_missing() -> None:
    assert parse("home", "none", " NONE ", "?", "") == [2.0, 2.0, "token", "missing"]


def test_quoted_codes_survive_a_spreadsheet_that_made_numbers_of_them() -> None:
    assert parse("branch", "01", "1", "1.0", 1, 1.0, "30.0", "3") == [0.0, 1.0, 1.0, 1.0, 1.0, 2.0, "invalid"]
    assert parse("branch", 30, 1, dtype="float64") == parse("branch", 30, 1, dtype="int64") == [2.0, 1.0]


def test_the_target_becomes_one_for_good_and_zero_for_bad() -> None:
    assert parse("outcome", "PAID", " lost ", "Pending", "", "n/a") == [1.0, 0.0, "invalid", "missing", "token"]
    swapped = Contract(target=Target(name="y", good=1, bad=2), columns={"x": Column(kind="numeric")})
    for dtype in (object, "float64"):
        assert parse("y", 1.0, 2.0, 0.0, None, contract=swapped, dtype=dtype) == [1.0, 0.0, "invalid", "missing"]


def test_decimal_commas() -> None:
    assert parse("x", "1,5", "-0,25", "12", "1,5e2", contract=COMMA) == [1.5, -0.25, 12.0, 150.0]
    # A point is a thousands separator where commas are decimal: 1.500 is never read as one and a half.
    assert parse("x", "1.500", "1.5", "1.500,5", contract=COMMA) == ["invalid"] * 3
    assert parse("x", 1.5, 2, contract=COMMA) == parse("x", 1.5, 2, contract=COMMA, dtype="float64") == [1.5, 2.0]


def test_dates_become_days_since_1970() -> None:
    cells = ["1970-01-02", "19700102", "1970-01-02T12:00:00Z", "1970-01-02 01:00:00+01:00", dt.date(1970, 1, 2)]
    assert parse("since", *cells) == [1.0, 1.0, 1.5, 1.0, 1.0]
    assert parse("since", "1970-1-2", "31.12.1999", "2023-02-29", "soon") == ["invalid"] * 4
    assert parse("closed", "02.01.1970", "2.1.1970", "1970-01-02", "?") == [1.0, 1.0, "invalid", "token"]


@pytest.mark.parametrize("name", ["since", "closed"])
def test_dates_of_a_typed_file_need_no_format(name: str) -> None:
    assert parse(name, "1970-01-02", None, dtype="datetime64[s]") == [1.0, "missing"]


def test_booleans_are_text() -> None:
    flags = Contract(target=SMALL.target, columns={"f": Column(kind="nominal", codes=["false", "true"])})
    for dtype in (bool, "boolean", object):
        assert parse("f", True, False, contract=flags, dtype=dtype) == [1.0, 0.0]
    assert parse("grade", True, False, dtype=bool) == ["invalid", "invalid"]


def test_cells_of_an_empty_column() -> None:
    for dtype in (object, "str", "float64"):
        values, status = SMALL.parse("amount", pd.Series([], dtype=dtype))
        assert values.shape == status.shape == (0,)


numbers = st.one_of(
    st.integers(-2000, 6000).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, -999.0, -1000.0, 5000.0, 1.0, 2.0, 4.0]),
)


@settings(max_examples=100)
@given(st.lists(numbers, max_size=30), st.sampled_from(["amount", "free", "grade"]))
def test_numbers_and_their_text_parse_to_the_same_cells(cells: list[float], name: str) -> None:
    expected = SMALL.parse(name, pd.Series(cells, dtype=float))
    assert same(SMALL.parse(name, pd.Series([repr(cell) for cell in cells], dtype=str)), expected)
    assert same(SMALL.parse(name, pd.Series([repr(cell) for cell in cells], dtype=object)), expected)
    assert same(SMALL.parse(name, pd.Series(cells, dtype=object)), expected)
    assert same(SMALL.parse(name, pd.Series(cells, dtype="float64").astype("Float64")), expected)


@settings(max_examples=50)
@given(st.lists(st.integers(-(2**53), 2**53) | st.integers(-10, 10), max_size=20), st.sampled_from(["amount", "grade"]))
def test_integer_dtypes_parse_as_text_does(cells: list[int], name: str) -> None:
    expected = SMALL.parse(name, pd.Series([str(cell) for cell in cells], dtype=str))
    for dtype in ("int64", "Int64", "float64"):
        assert same(SMALL.parse(name, pd.Series(cells, dtype=dtype)), expected)


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["1", "1.0", " 2 ", "", "?", "-999", "5001", None, "x", "none", "Own"]), max_size=12), st.randoms()
)
def test_each_cell_is_parsed_on_its_own(cells: list[str | None], random) -> None:
    order = list(range(len(cells)))
    random.shuffle(order)
    for name in ("amount", "grade", "home", "since", "outcome"):
        values, status = SMALL.parse(name, pd.Series(cells, dtype=object))
        shuffled = SMALL.parse(name, pd.Series([cells[i] for i in order], dtype=object))
        assert same(shuffled, Cells(values[order], status[order]))
        alone = [SMALL.parse(name, pd.Series([cell], dtype=object)).status[0] for cell in cells]
        assert status.tolist() == alone


@settings(max_examples=60)
@given(st.lists(st.text(max_size=8) | st.floats() | st.integers() | st.none(), max_size=10))
def test_no_cell_makes_the_parser_fail_or_escape_the_domain(cells: list[object]) -> None:
    for name in SMALL.columns:
        values, status = SMALL.parse(name, pd.Series(cells, dtype=object))
        assert set(status.tolist()) <= {VALID, MISSING, TOKEN, INVALID}
        valid = values[status == VALID]
        assert np.isfinite(valid).all()
        if name == "amount":
            assert ((valid >= -1000) & (valid <= 5000)).all()
        if codes := SMALL.columns[name].code_list:
            assert set(valid) <= set(range(3) if name != "grade" else codes)


def test_a_table_is_parsed_in_the_order_of_the_contract_whatever_its_own() -> None:
    table = pd.DataFrame({"branch": ["01"], "extra": ["x"], "home": ["rent"], "grade": ["4"], "free": ["?"], "amount": [" 7 "]})
    values, status = SMALL.parse_features(table)
    assert SMALL.features == ["amount", "free", "grade", "home", "branch"]
    np.testing.assert_array_equal(values, [[7, np.nan, 4, 1, 0]])
    assert status.tolist() == [[VALID, TOKEN, VALID, VALID, VALID]]


def test_require_names_what_is_missing_and_what_was_found() -> None:
    SMALL.require(["a", "b", 3], ["b", "3"], "here")
    with pytest.raises(
        DataError, match=r"^new.csv: column\(s\) a, c of the contract missing; found b; rename or add them, .*schema.yaml$"
    ):
        SMALL.require(["b"], ["a", "b", "c"], "new.csv")
    with pytest.raises(DataError, match="found none;"):
        SMALL.require([], ["a"], "new.csv")
    with pytest.raises(DataError) as caught:
        SMALL.require([f"c{i}" for i in range(40)], ["a"], "new.csv")
    assert "c29, … (40 in all);" in str(caught.value)
    assert "c30" not in str(caught.value)


def test_labels_write_what_parse_reads() -> None:
    home = SMALL.labels("home", np.array([1.0, np.nan, 0.0]))
    assert home.tolist() == ["Rent", None, "Own"]
    assert parse("home", *home) == [1.0, "missing", 0.0]
    np.testing.assert_array_equal(SMALL.labels("grade", np.array([4.0, np.nan])), [4.0, np.nan])


def test_kinds_of_columns() -> None:
    assert SMALL.passengers == ["since", "closed"]
    assert SMALL.text_columns == ["id", "since", "closed", "home", "branch"]
    assert SMALL.of_kind("numeric", "date") == ["since", "closed", "amount", "free"]


def test_the_domain_in_words() -> None:
    domains = {name: column.domain for name, column in SMALL.columns.items()}
    assert domains == {
        "id": "text",
        "since": "a date (YYYY-MM-DD)",
        "closed": "a date (%d.%m.%Y)",
        "amount": "a number in -1000 to 5000",
        "free": "a number",
        "grade": "one of 1, 2, 4",
        "home": "one of Own, Rent, None",
        "branch": "one of 01, 1, 30",
    }


TARGET = "target: {name: y, good: 1, bad: 0}\n"


def columns(*lines: str) -> str:
    return TARGET + "columns:\n  n: {kind: numeric}\n" + "".join(f"  {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {n: {kind: numeric}}", "the key 'target' is missing; expected there: target, columns, decimal"),
        (TARGET, "the key 'columns' is missing"),
        ("target: {name: y, good: 1}\ncolumns: {n: {kind: numeric}}", "the key 'target.bad' is missing"),
        (columns() + "droped: [x]", "unknown key 'droped'; did you mean 'drop'? allowed: target, columns"),
        (
            columns("a: {kind: numeric, rang: [0, 1]}"),
            "unknown key 'columns.a.rang'; did you mean 'range'? allowed: kind, english",
        ),
        (columns("a: {range: [0, 1]}"), "the key 'columns.a.kind' is missing"),
        (columns("a: {kind: number}"), "columns.a.kind: found 'number'; allowed: numeric, ordinal, nominal, identifier, date"),
        (columns("a: {kind: numeric, nullable: yes}"), "columns.a.nullable: found 'yes'; expected bool, got str"),
        (columns("a: numeric"), "columns.a: found 'numeric', expected the keys kind, english"),
        (columns() + "decimal: ;", "decimal: found ';'; allowed: ., ,"),
        (
            columns("a: {kind: nominal, codes: {true: x}}"),
            "columns.a.codes: found {True: 'x'}; expected int | float | str, got bool",
        ),
        (TARGET + "columns: {1: {kind: numeric}}", "columns: found {1: {'kind': 'numeric'}}; expected str, got int"),
        (columns() + "missing_tokens: [NULL]", "missing_tokens.0: found None; expected str, got null"),
        (
            columns("a: {kind: nominal}"),
            "columns.a: is nominal and lists no codes; expected codes: {code: meaning, …} or [code, …]",
        ),
        (columns("a: {kind: ordinal, codes: []}"), "columns.a: is ordinal and lists no codes"),
        (
            columns("a: {kind: numeric, codes: [1]}"),
            "columns.a: is numeric and lists codes; remove them or make it ordinal or nominal",
        ),
        (
            columns("a: {kind: nominal, codes: [1, b]}"),
            "columns.a: mixes text and number codes ([1, 'b']); quote all of them or none",
        ),
        (
            columns("a: {kind: nominal, codes: [b, B]}"),
            "columns.a: codes ['b', 'B'] are not distinct when letter case is ignored",
        ),
        (columns("a: {kind: nominal, codes: [1, 1.0]}"), "columns.a: codes [1, 1.0] are not distinct"),
        (
            columns("a: {kind: ordinal, codes: [1], range: [0, 1]}"),
            "columns.a: is ordinal and has a range; only numeric columns have one",
        ),
        (columns("a: {kind: numeric, range: [9, 1]}"), "columns.a: found range [9.0, 1.0], expected the lower bound first"),
        (columns("a: {kind: numeric, range: [.nan, 1]}"), "columns.a: found range [nan, 1.0]"),
        (columns("a: {kind: numeric, range: [1]}"), "columns.a.range: found [1]; expected array of length >= 2"),
        (columns("a: {kind: nominal, codes: [1], monotone: increasing}"), "columns.a: is nominal and has a monotone direction"),
        (
            TARGET + "columns: {a: {kind: date}}",
            "columns: no numeric, ordinal or nominal column, so there is nothing to learn from",
        ),
        (columns("y: {kind: numeric}"), "target 'y' stands among the columns too; remove it there, it must never be a feature"),
        ("target: {name: y, good: A, bad: a}\ncolumns: {n: {kind: numeric}}", "target.good and target.bad are both 'A'"),
        (
            "target: {name: y, good: 1, bad: '0'}\ncolumns: {n: {kind: numeric}}",
            "one is text and one a number; quote both or none",
        ),
        (columns() + "drop: [n, x, y]", "['n', 'y'] stand both in drop and in use"),
        (
            columns("i: {kind: identifier}") + "applicant_id: n",
            "applicant_id 'n' must be a column of kind identifier; found ['i']",
        ),
        (columns("applicant_id: {kind: identifier}"), "a column is called applicant_id but is not the contract's applicant_id"),
        (
            "target: {name: applicant_id, good: 1, bad: 0}\ncolumns: {n: {kind: numeric}}",
            "a column is called applicant_id but is not the contract's applicant_id",
        ),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(
    text: str, message: str, write_contract: Callable[[str], Contract]
) -> None:
    with pytest.raises(ContractError) as caught:
        write_contract(text)
    assert "contract.yaml: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_contract_with_every_key_is_read(write_contract: Callable[[str], Contract]) -> None:
    found = write_contract(
        "target: {name: y, english: outcome, meaning: repaid, good: paid, bad: lost}\n"
        "decimal: ','\nmissing_tokens: [on, 'NULL']\napplicant_id: i\ndrop: [junk]\ncolumns:\n"
        "  i: {kind: identifier, nullable: false}\n  d: {kind: date, format: '%Y'}\n"
        "  n: {kind: numeric, range: [0, 1e3], unit: EUR, monotone: increasing, english: debt, meaning: what is owed}\n"
        "  o: {kind: ordinal, codes: {yes: 'a', no: b}, monotone: decreasing}\n"
    )
    # As DVC reads YAML: on, yes and no are text, 1e3 is a number.
    assert found.columns["o"].code_list == ["yes", "no"]
    assert found.columns["n"].range == [0.0, 1000.0]
    assert found.missing_tokens == ["on", "NULL"]
    assert (found.features, found.passengers, found.applicant_id) == (["n", "o"], ["d"], "i")


def test_a_file_that_is_no_contract_is_refused(tmp_path) -> None:
    with pytest.raises(PipelineError, match=r"schema.yaml: not found in .*; run from the folder that holds dvc.yaml"):
        load_contract(tmp_path / "schema.yaml")
    (tmp_path / "schema.yaml").write_text("- a\n- b\n")
    with pytest.raises(PipelineError, match="found list, expected keys with values"):
        load_contract(tmp_path / "schema.yaml")


# --- weights and protected columns


def test_a_weight_is_a_number_above_zero_and_never_a_feature() -> None:
    contract = Contract(target=Target(name="y", good=1, bad=0), columns={"x": Column(kind="numeric"), "w": Column(kind="weight")})
    assert contract.weight == "w"
    assert contract.features == ["x"]
    assert contract.passengers == ["w"]
    assert parse("w", "2", "0.5", "0", "-1", "", "much", contract=contract) == [
        2,
        0.5,
        "invalid",
        "invalid",
        "missing",
        "invalid",
    ]


def test_a_contract_without_its_protected_columns(contract: Contract) -> None:
    assert contract.protected == ["famges", "alter", "gastarb"]
    reduced = contract.without(contract.protected)
    assert reduced.features == [name for name in contract.features if name not in contract.protected]
    assert reduced.protected == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("x: {kind: numeric, protected: true}", "expected bands"),
        ("x: {kind: numeric, bands: [3, 2]}", "rising order"),
        ("x: {kind: nominal, codes: [1, 2], bands: [1]}", "only numeric columns"),
        ("x: {kind: date, protected: true}", "is date and protected"),
        ("x: {kind: weight}, z: {kind: weight}, v: {kind: numeric}", "expected one at most"),
    ],
)
def test_weights_and_groups_that_make_no_sense_are_refused(
    write_contract: Callable[[str], Contract], lines: str, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        write_contract(f"target: {{name: y, good: 1, bad: 0}}\ncolumns: {{{lines}}}\n")


def test_a_long_cell_takes_no_longer_than_its_length(contract):
    parser = contract.parser("alter")
    begun = time.process_time()
    for text in ("9" * 200_000 + "x", "9" * 200_000 + ".", "." + "9" * 200_000 + "e", "9" * 200_000):
        assert parser.parse_cell(text)[1] == INVALID
    assert time.process_time() - begun < 1
