"""Reading files of any make, cleaning by the contract, and a split that stays."""

import csv
import io
import logging
import math
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mlops_project import dataset
from mlops_project.config import Params, PrepareParams
from mlops_project.dataset import Applicants, DataCleaner, DataLoader, DataSplitter, split_report
from mlops_project.errors import DataError
from mlops_project.identity import hash_rows
from mlops_project.schema import Column, Contract, Target

SMALL = Contract(
    target=Target(name="y", good="paid", bad="lost"),
    missing_tokens=["?"],
    columns={
        "amount": Column(kind="numeric", range=[0.0, 1000.0]),
        "home": Column(kind="nominal", codes=["own", "rent"]),
        "grade": Column(kind="ordinal", codes=[1, 2, 3]),
    },
)
WITH_ID = Contract(
    target=SMALL.target,
    missing_tokens=["?"],
    applicant_id="id",
    columns={
        "id": Column(kind="identifier"),
        **SMALL.columns,
        "branch": Column(kind="identifier"),
        "day": Column(kind="date", format="%d.%m.%Y"),
    },
)


def as_csv(table: pd.DataFrame, **settings: object) -> bytes:
    return table.to_csv(index=False, lineterminator="\n", **settings).encode()


# --- DataLoader: survives


@pytest.fixture
def load(tmp_path: Path, contract: Contract) -> Callable[..., pd.DataFrame]:
    def load_bytes(content: bytes, **options: bool) -> pd.DataFrame:
        (tmp_path / "raw.csv").write_bytes(content)
        return DataLoader(contract).load(tmp_path / "raw.csv", **options)

    return load_bytes


def test_every_cell_is_read_as_the_text_that_stands_in_the_file(load, raw_table: pd.DataFrame, contract: Contract) -> None:
    found = load(as_csv(raw_table))
    expected = raw_table[[*contract.columns, contract.target.name]]
    pd.testing.assert_frame_equal(found, expected.astype(found.dtypes))
    assert {" NAN ", "N/A", "NULL", ""} <= set(found.to_numpy().ravel())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda text: text.replace(b"\n", b"\r"), id="CR"),
        pytest.param(lambda text: text.rstrip(b"\n"), id="no last line end"),
        pytest.param(lambda text: b"\xef\xbb\xbf" + text, id="byte order mark"),
        pytest.param(lambda text: text.replace(b",", b";"), id="semicolons"),
        pytest.param(lambda text: text.replace(b",", b"\t"), id="tabs"),
        pytest.param(lambda text: text.replace(b",", b"|"), id="bars"),
        pytest.param(lambda text: text + b"\n\n\n", id="blank lines at the end"),
        pytest.param(lambda text: text.replace(b"\n", b"\n\n", 50), id="blank lines between"),
        pytest.param(
            lambda text: b"\xef\xbb\xbf" + text.replace(b",", b" ; ", 21).replace(b",", b";"), id="blanks in the header"
        ),
    ],
)
def test_files_of_any_make_give_the_same_table(change: Callable[[bytes], bytes], load, raw_table: pd.DataFrame) -> None:
    text = as_csv(raw_table.head(200))
    pd.testing.assert_frame_equal(load(change(text)), load(text))


def test_quoted_cells(load, raw_table: pd.DataFrame) -> None:
    table = raw_table.head(50)
    expected = load(as_csv(table))
    pd.testing.assert_frame_equal(load(as_csv(table, quoting=csv.QUOTE_ALL)), expected)
    with_text = table.assign(note='he said "no", twice;\n\nthen\r\nleft', **{"a, b": "x"})
    pd.testing.assert_frame_equal(load(as_csv(with_text)), expected)
    pd.testing.assert_frame_equal(load(as_csv(with_text, sep=";")), expected)
    # More commas than semicolons in the header: what counts is with which delimiter the contract's columns are there.
    with_commas = table.assign(**{"a" + "," * 50: "x"})
    pd.testing.assert_frame_equal(load(as_csv(with_commas, sep=";").replace(b'"', b"")), expected)


def test_shuffled_and_further_columns(load, raw_table: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    table = raw_table.head(50)
    shuffled = table.assign(branch="x", note="").sample(axis="columns", frac=1, random_state=1)
    with caplog.at_level(logging.INFO, logger="mlops_project"):
        pd.testing.assert_frame_equal(load(as_csv(shuffled)), load(as_csv(table)))
    messages = [record.message for record in caplog.records]
    assert any(
        re.search(r"ignored 2 column\(s\) that the contract does not name: (branch, note|note, branch)$", m) for m in messages
    )
    assert any(m.endswith("read 50 rows, 21 of 24 columns") for m in messages)
    assert not any("mixed_type_col" in m for m in messages)


def test_further_columns_may_stand_twice_and_the_target_may_be_absent(load, raw_table: pd.DataFrame) -> None:
    table = raw_table.head(5).assign(a="1", b="2").rename(columns={"b": "a"})
    assert load(as_csv(table)).shape == (5, 21)
    scored = load(as_csv(raw_table.head(5).drop(columns="kredit")), target=False)
    assert list(scored) == list(raw_table.columns[:20])


def test_standard_input(load, raw_table: pd.DataFrame, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    text = as_csv(raw_table.head(5))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    pd.testing.assert_frame_equal(DataLoader(contract).load("-"), load(text))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match=r"^standard input: is empty"):
        DataLoader(contract).load("-")


def test_ten_thousand_columns_are_read(load, raw_table: pd.DataFrame) -> None:
    header, row = as_csv(raw_table.head(1)).decode().splitlines()
    more = range(10_000 - 22)
    text = f"{header},{','.join(f'c{i}' for i in more)}\n{row}{',' * len(more)}\n"
    assert load(text.encode()).shape == (1, 21)


def test_parquet(tmp_path: Path, raw_table: pd.DataFrame, contract: Contract) -> None:
    path = tmp_path / "raw.parquet"
    if find_spec("pyarrow") is None:
        path.write_bytes(b"PAR1")
        with pytest.raises(DataError, match=r"raw.parquet: Parquet needs pyarrow; run .*parquet"):
            DataLoader(contract).load(path)
        return
    raw_table.to_parquet(path)
    pd.testing.assert_frame_equal(DataLoader(contract).load(path), raw_table[[*contract.columns, "kredit"]])
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"raw.parquet: cannot be read as Parquet"):
        DataLoader(contract).load(path)


AWKWARD = {
    "id": ["1", "01", "1.0", " 1 ", "A", "", "?"],
    "amount": ["1,5", "1.5", "007", "-0", "", "?", "1e400", "x"],
    "home": ["01", "1", "own", "OWN", "", "?"],
    "grade": ["1", "2", "02", "1.0", "", "True"],
    "branch": ["07", "7", "7.0", ""],
    "day": ["31.12.2020", "01.01.2021", "31.02.2021", ""],
    "weight": ["1", "2,5"],
    "y": ["paid", "lost", " PAID", "", "?"],
}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*map(st.sampled_from, AWKWARD.values())), max_size=30),
    named=st.booleans(),
    delimiter=st.sampled_from(",;"),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    ends=st.booleans(),
    mark=st.booleans(),
    batch_rows=st.integers(1, 8),
)
def test_batches_give_the_applicants_of_the_whole_file(
    tmp_path_factory, rows, named, delimiter, newline, quoting, ends, mark, batch_rows
) -> None:
    columns = WITH_ID.columns | {
        "home": Column(kind="nominal", codes=["own", "1", "01"]),
        "weight": Column(kind="weight"),
    }
    contract = replace(WITH_ID, columns=columns, decimal=",", applicant_id="id" if named else None)
    rows = [*rows, ("2", "1", "own", "1", "07", "", "1", "paid"), ("3", "1", "own", "1", "07", "", "1", "lost")]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=quoting).writerows([AWKWARD, *rows])
    text = text.getvalue() if ends else text.getvalue().removesuffix(newline)
    path = tmp_path_factory.getbasetemp() / "awkward.csv"
    path.write_text(text, encoding="utf-8-sig" if mark else "utf-8", newline="")
    whole = DataCleaner(contract, 3).clean(DataLoader(contract).load(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SMALL_FILE", 0)
        patch.setattr(dataset, "BATCH_ROWS", batch_rows)
        parts = DataCleaner(contract, 3).clean_batches(DataLoader(contract).batches(path)).applicants()
    pd.testing.assert_frame_equal(parts.table, whole.table)
    pd.testing.assert_series_equal(parts.target, whole.target)
    assert parts.report == whole.report


# --- DataLoader: refuses


def test_what_is_not_a_file_is_refused(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(DataError, match=r"absent.csv: no such file; put the raw table there, .*params.yaml$"):
        DataLoader(contract).load(tmp_path / "absent.csv")
    with pytest.raises(
        DataError, match=r"is a folder that holds neither CSV nor Parquet files; expected one table in files of one kind$"
    ):
        DataLoader(contract).load(tmp_path)


def test_a_folder_is_one_table_in_the_order_of_paths(
    tmp_path: Path, raw_table: pd.DataFrame, contract: Contract, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [*contract.columns, "kredit"]
    folder = tmp_path / ".hidden" / "a folder"
    parts = {
        "month=2026-01/part.csv": raw_table[:3][wanted[::-1]],
        "month=2026-02/part.csv": raw_table[3:5],
        "z.csv": raw_table[5:9],
    }
    others = (".part.csv", ".ipynb_checkpoints/part.csv", "_temporary/0/part.csv", "_part.csv")
    for name, table in (parts | dict.fromkeys(others, raw_table)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(as_csv(table))
    (folder / "part.parquet").mkdir()
    (folder / "2026-03.csv.gz").touch()
    pd.testing.assert_frame_equal(DataLoader(contract).load(folder), raw_table[:9][wanted])
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"{folder}: left out 1 file(s) that are no table: 2026-03.csv.gz"]
    pd.testing.assert_frame_equal(pd.concat(DataLoader(contract).batches(folder), ignore_index=True), raw_table[:9][wanted])


def put(line: int, content: bytes) -> Callable[[bytes], bytes]:
    """Return a function that replaces a line, counted from 1, by another."""

    def change(text: bytes) -> bytes:
        lines = text.split(b"\n")
        lines[line - 1] = content.replace(b"@", lines[line - 1])
        return b"\n".join(lines)

    return change


# A row with a cell that goes over three lines.
MULTI_LINE = b",".join([b'"1\n\n2"'] + [b"1"] * 21)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda _: b"", "is empty; expected a CSV file with a header line", id="empty"),
        pytest.param(lambda _: b" \r\n\n", "is empty; expected", id="blank"),
        pytest.param(lambda text: text.split(b"\n")[0], "holds a header and no rows; expected at least one", id="header only"),
        pytest.param(lambda text: text.split(b"\n")[0] + b"\r\n\r\n", "holds a header and no rows", id="header and blank lines"),
        pytest.param(lambda _: b"\x1f\x8b\x08\x00\x00\x00", "is binary or UTF-16; expected CSV text in UTF-8", id="binary"),
        pytest.param(lambda text: text.decode().encode("utf-16"), "is binary or UTF-16", id="UTF-16"),
        pytest.param(lambda text: text.decode().encode("utf-16-le"), "is binary or UTF-16", id="UTF-16 without mark"),
        pytest.param(put(3, b"\0@"), "is binary or UTF-16", id="NUL"),
        pytest.param(lambda text: text * 30 + b"\0\n", "is binary or UTF-16", id="NUL far down"),
        pytest.param(put(9, b"@\xfc"), "byte 0xfc is not UTF-8; convert the file, for instance with `iconv", id="latin-1"),
        pytest.param(put(1, b"@,gr\xfcn"), "byte 0xfc is not UTF-8", id="latin-1 header"),
        pytest.param(lambda text: text.replace(b",", b":"), "found a single column 'laufkont:laufzeit:", id="wrong delimiter"),
        pytest.param(
            lambda text: text.replace(b",", b" "), "expected columns separated by comma, semicolon, tab", id="blanks between"
        ),
        pytest.param(lambda text: text.split(b"\n", 1)[1], "column(s) laufkont, laufzeit,", id="no header"),
        pytest.param(lambda text: b"\n" + text, "of the contract missing; found none", id="blank first line"),
        pytest.param(
            lambda text: text.replace(b"hoehe", b"Hoehe"), "column(s) hoehe of the contract missing; found", id="missing"
        ),
        pytest.param(
            lambda text: text.replace(b"kredit", b"x"), "column(s) kredit of the contract missing; found", id="no target"
        ),
        pytest.param(
            lambda text: text.replace(b"mixed_type_col", b" hoehe "), "column(s) hoehe stand more than once", id="doubled"
        ),
        pytest.param(put(4, b"1,2,3"), "line 4 has 3 cells, expected 22 as in the header; look for a stray", id="short row"),
        pytest.param(put(151, b"@,"), "line 151 has 23 cells, expected 22", id="long last row"),
        pytest.param(put(3, MULTI_LINE + b"\n\n1;2"), "line 7 has 1 cells, expected 22", id="short row after lines in quotes"),
        pytest.param(put(3, MULTI_LINE + b",1"), "line 3 (to 5) has 23 cells", id="long row over several lines"),
        pytest.param(lambda text: put(6, b"1\r\n@")(text).replace(b"\n", b"\r\n"), "line 6 has 1 cells", id="short row, CRLF"),
        pytest.param(put(5, b'"@'), "line 5 (to 151) has 1 cells, expected 22", id="unclosed quote"),
        pytest.param(lambda text: text.rstrip(b"\n") + b'x,"', "line 151 has 23 cells", id="unclosed quote, last row"),
        pytest.param(put(151, b",".join([b"1"] * 21 + [b'"1'])), "cannot be read as CSV", id="unclosed quote, last cell"),
        pytest.param(put(2, b"x" * 200_000 + b"@"), "cannot be read as CSV: field larger than field limit", id="huge cell"),
        pytest.param(put(1, b"@" + b",c" * 99_978), "found 100000 columns, expected at most 10000", id="100,000 columns"),
        pytest.param(put(1, b"@" + b",c" * 9_979), "found 10001 columns", id="10,001 columns"),
    ],
)
def test_what_would_be_read_wrongly_is_refused_in_one_line(change, message: str, load, raw_table: pd.DataFrame) -> None:
    text = as_csv(raw_table.head(150)).rstrip(b"\n")
    with pytest.raises(DataError) as caught:
        load(change(text))
    assert "raw.csv: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_unreadable_file_is_refused(tmp_path: Path, contract: Contract) -> None:
    (tmp_path / "raw.csv").symlink_to("/proc/self/mem")
    if not (tmp_path / "raw.csv").exists():
        pytest.skip("needs /proc, a file that exists and cannot be read")
    with pytest.raises(DataError, match=r"raw.csv: cannot be read as CSV"):
        DataLoader(contract).load(tmp_path / "raw.csv")


# --- DataCleaner


def raw_rows(*rows: tuple[str, ...], names: tuple[str, ...] = ("amount", "home", "grade", "y")) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(names), dtype=str)


def test_cells_are_counted_by_column_and_rows_by_reason() -> None:
    raw = raw_rows(
        ("1", "own", "1", "paid"),
        ("?", "OWN ", "4", "lost"),
        ("", "x", "2", "PAID "),
        ("2000", "?", "?", "?"),
        ("5", "", "3", ""),
        ("6", "rent", "3", "maybe"),
        ("7", "rent", "3", " nan "),
        ("1", "", "1.0", "paid"),
    )
    cleaned = DataCleaner(SMALL, 2).clean(raw)
    assert cleaned.report == {
        "rows": {"read": 8, "dropped_target_missing": 2, "dropped_target_invalid": 2, "duplicates_merged": 1, "applicants": 3},
        "columns": {
            "amount": {"missing": 1, "tokens": 1, "out_of_contract": 1},
            "home": {"missing": 2, "tokens": 1, "out_of_contract": 1},
            "grade": {"missing": 0, "tokens": 1, "out_of_contract": 1},
        },
    }
    expected = pd.DataFrame({"amount": [1, np.nan, np.nan], "home": ["own", "own", None], "grade": [1, np.nan, 2]})
    pd.testing.assert_frame_equal(cleaned.table.reset_index(drop=True), expected, check_dtype=False)
    assert cleaned.target.tolist() == [1, 0, 1]
    assert cleaned.target.name == "y"
    assert list(cleaned.table.index) == list(cleaned.target.index) == cleaned.split_key
    assert cleaned.table.index.name == "applicant_id"


def test_a_merged_applicant_keeps_the_first_cells_and_takes_what_was_missing_from_the_copies() -> None:
    raw = raw_rows(("7", "?", "?", "paid"), ("8", "own", "1", "lost"), ("7", "rent", "", "paid"), ("7", "", "2", "paid"))
    cleaned = DataCleaner(SMALL, 2).clean(raw)
    assert cleaned.table.to_numpy().tolist() == [[7.0, "rent", 2.0], [8.0, "own", 1.0]]
    # The id is that of the first occurrence alone: a later copy that fills a gap renames nobody.
    assert cleaned.split_key == DataCleaner(SMALL, 2).clean(raw.head(2)).split_key


def test_the_outcome_counts_as_a_cell_in_the_agreement() -> None:
    raw = raw_rows(("1", "own", "1", "paid"), ("1", "own", "1", "lost"), ("1", "own", "?", "paid"))
    assert DataCleaner(SMALL, 3).clean(raw).report["rows"]["duplicates_merged"] == 1


def test_equal_rows_that_are_not_merged_get_numbered_ids_and_one_side() -> None:
    raw = raw_rows(*[("1", "own", "1", "paid")] * 3, ("2", "own", "1", "lost"))
    cleaned = DataCleaner(SMALL, 0).clean(raw)
    key = cleaned.split_key[0]
    assert list(cleaned.table.index)[:3] == [key, f"{key}-2", f"{key}-3"]
    assert cleaned.split_key[:3] == [key] * 3


@pytest.mark.parametrize("missing", ["paid", "lost"])
def test_a_target_with_one_class_is_refused(missing: str) -> None:
    raw = raw_rows(("1", "own", "1", "x"), ("2", "own", "1", "paid" if missing == "lost" else "lost"))
    with pytest.raises(
        DataError, match=rf"^here: no row has y = '{missing}', so .*; found {{'x': 1, .*; check target in the contract$"
    ):
        DataCleaner(SMALL).clean(raw, "here")


def test_a_column_without_a_valid_value_is_said_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    raw = raw_rows(("1", "x", "1", "paid"), ("2", "?", "2", "lost"), ("3", "", "2", "lost"))
    with caplog.at_level(logging.INFO, logger="mlops_project"):
        table = DataCleaner(SMALL).clean(raw).table
    assert table["home"].isna().all()
    assert [r.message for r in caplog.records if "no valid value" in r.message] == [
        "table: column home holds no valid value; the model learns nothing from it"
    ]


ID_COLUMNS = ("id", "amount", "home", "grade", "branch", "day", "y")
ID_ROWS = [
    (" 007 ", "1", "own", "1", " 01 ", "31.12.2020", "paid"),
    ("8", "2", "rent", "2", "1", "x", "lost"),
    ("007", "9", "own", "3", "02", "01.01.2021", "lost"),
    ("", "3", "own", "1", "", "02.01.2021", "paid"),
    ("NaN", "3", "own", "1", "1", "09.09.9999", "paid"),
    (" ? ", "4", "own", "2", "?", "2.1.2021", "paid"),
    ("?", "5", "own", "2", "1", "02.01.2021", "paid"),
]


def test_an_id_of_the_contract_decides_who_is_one_applicant() -> None:
    cleaned = DataCleaner(WITH_ID, 2).clean(raw_rows(*ID_ROWS, names=ID_COLUMNS))
    # Without an id, or with a missing-value token for one, the cells tell who it is; nobody is called "?".
    nameless = hash_rows(np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 2.0], [5.0, 0.0, 2.0]]), WITH_ID)
    assert list(cleaned.table.index) == cleaned.split_key == ["007", "8", *nameless]
    assert list(cleaned.table) == ["amount", "home", "grade", "branch", "day"]
    assert cleaned.table["amount"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert cleaned.table["branch"].fillna("-").tolist() == ["01", "1", "-", "-", "1"]
    assert cleaned.table["day"].fillna("-").tolist() == ["2020-12-31", "-", "2021-01-02", "2021-01-02", "2021-01-02"]
    assert cleaned.target.tolist() == [1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(pd.Series(["7", None, None, "8"], dtype=object), id="object"),
        pytest.param(pd.Series(["7", None, None, "8"], dtype="str"), id="text"),
        pytest.param(pd.Series(["7", None, None, "8"], dtype="category"), id="category"),
        pytest.param(pd.Series([7, None, None, 8], dtype="Int64"), id="integer"),
    ],
)
def test_applicants_without_an_id_are_not_one_whatever_the_type(ids: pd.Series) -> None:
    raw = raw_rows(*ID_ROWS[:4], names=ID_COLUMNS).assign(id=ids, branch=ids, day="31.12.2020")
    table = DataCleaner(WITH_ID, 0).clean(raw).table
    assert list(table.index[[0, 3]]) == ["7", "8"]
    assert len(set(table.index)) == 4
    assert not {"nan", "None", "<NA>"} & set(table.index)
    assert table["branch"].isna().tolist() == [False, True, True, False]


def test_integer_ids_of_parquet_stay_integers_where_a_batch_lacks_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra `parquet`")
    from pyarrow import parquet

    table = pa.table({"id": [7, None, 7], "amount": [1, 2, 3], "home": ["own", None, "rent"], "grade": [1, 2, 3],
                      "branch": [1, 1, None], "day": [None] * 3, "y": ["paid", "lost", "paid"]})  # fmt: skip
    parquet.write_table(table, tmp_path / "raw.parquet")
    monkeypatch.setattr(dataset, "BATCH_ROWS", 2)
    cleaned = DataCleaner(WITH_ID).clean_batches(DataLoader(WITH_ID).batches(tmp_path / "raw.parquet")).applicants()
    assert cleaned.report["rows"]["duplicates_merged"] == 1
    assert cleaned.table.index[0] == "7"


def test_typed_identifiers_are_text_too() -> None:
    raw = raw_rows(*ID_ROWS, names=ID_COLUMNS).assign(id=range(7), branch=range(7))
    table = DataCleaner(WITH_ID).clean(raw).table
    assert list(table.index) == table["branch"].tolist() == list("0123456")


def test_the_cleaner_gets_the_same_applicants_from_text_and_from_numbers(raw_table: pd.DataFrame, contract: Contract) -> None:
    numbers = raw_table.apply(pd.to_numeric, errors="coerce")
    first, second = DataCleaner(contract).clean(raw_table), DataCleaner(contract).clean(numbers)
    pd.testing.assert_frame_equal(first.table, second.table)
    pd.testing.assert_series_equal(first.target, second.target)


def test_cleaning_leaves_its_input_alone(raw_table: pd.DataFrame, contract: Contract) -> None:
    before = raw_table.copy()
    DataCleaner(contract).clean(raw_table)
    pd.testing.assert_frame_equal(raw_table, before)


# --- DataSplitter


def people(n: int, *, bad_share: float = 0.3, seed: int = 0, **columns: object) -> Applicants:
    rng = np.random.default_rng(seed)
    keys = [f"{value:016x}" for value in rng.integers(0, 2**63, n)]
    index = pd.Index(keys, name="applicant_id")
    target = pd.Series((rng.random(n) >= bad_share).astype(int), index=index, name="y")
    return Applicants(pd.DataFrame(columns, index=index), target, keys, {})


def head(applicants: Applicants, n: int) -> Applicants:
    return Applicants(applicants.table[:n], applicants.target[:n], applicants.split_key[:n], {})


@pytest.fixture
def prepare(params: Params) -> PrepareParams:
    return params.prepare


@given(st.integers(0, 2**32 - 1), st.integers(100, 390))
@settings(max_examples=25)
def test_appended_rows_never_move_an_old_one(params: Params, seed: int, n: int) -> None:
    everybody = people(400)
    splitter = DataSplitter(replace(params.prepare, split_seed=seed))
    held_out = splitter.held_out(everybody)
    np.testing.assert_array_equal(splitter.held_out(head(everybody, n)), held_out[:n])


@pytest.mark.parametrize("test_size", [0.1, 0.3, 0.5])
def test_the_share_is_near_the_one_asked_for(test_size: float, prepare: PrepareParams) -> None:
    held_out = DataSplitter(replace(prepare, test_size=test_size)).held_out(people(5000))
    assert held_out.mean() == pytest.approx(test_size, abs=0.02)


def test_the_seed_draws_another_split_and_the_size_only_a_larger_one(prepare: PrepareParams) -> None:
    everybody = people(2000)
    small = DataSplitter(replace(prepare, test_size=0.2)).held_out(everybody)
    large = DataSplitter(replace(prepare, test_size=0.4)).held_out(everybody)
    assert large[small].all()
    other = DataSplitter(replace(prepare, test_size=0.4, split_seed=prepare.split_seed + 1)).held_out(everybody)
    # Independent: of those held out by one seed, the other holds out two fifths again.
    assert other[large].mean() == pytest.approx(0.4, abs=0.05)


def test_the_side_of_an_applicant_never_changes() -> None:
    """Another literal here means that every held-out applicant of every team changes sides."""
    params = PrepareParams(
        duplicate_min_cells=12,
        duplicate_strict_after=None,
        split="hash",
        group_column=None,
        date_column=None,
        test_size=0.5,
        split_seed=42,
    )
    names = [f"applicant-{i}" for i in range(16)]
    table = pd.DataFrame(index=pd.Index(names, name="applicant_id"))
    applicants = Applicants(table, pd.Series([0, 1] * 8, index=table.index), names, {})
    assert "".join(map(str, DataSplitter(params).held_out(applicants).astype(int))) == SIDES


SIDES = "0111000110001001"


def test_stratified_shares_are_exact(prepare: PrepareParams) -> None:
    everybody = people(1000, bad_share=0.1)
    held_out = DataSplitter(replace(prepare, split="stratified", test_size=0.25)).held_out(everybody)
    for label in (0, 1):
        of_class = everybody.target.to_numpy() == label
        assert held_out[of_class].sum() == round(of_class.sum() * 0.25)


def test_no_group_is_on_both_sides_and_appended_rows_move_none(prepare: PrepareParams) -> None:
    groups = np.random.default_rng(1).integers(0, 80, 600).astype(str)
    everybody = people(600, branch=groups)
    splitter = DataSplitter(replace(prepare, split="by_group", group_column="branch"))
    held_out = splitter.held_out(everybody)
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert 0.15 < held_out.mean() < 0.45
    np.testing.assert_array_equal(splitter.held_out(head(everybody, 300)), held_out[:300])


def test_the_newest_are_held_out_and_no_day_is_on_both_sides(prepare: PrepareParams) -> None:
    days = pd.Series(pd.Timestamp("2020-01-01") + pd.to_timedelta(np.random.default_rng(2).integers(0, 100, 500), "D"))
    dates = days.dt.strftime("%Y-%m-%d").to_numpy()
    held_out = DataSplitter(replace(prepare, split="by_time", date_column="day")).held_out(people(500, day=dates))
    assert dates[held_out].min() > dates[~held_out].max()
    assert held_out.mean() == pytest.approx(0.3, abs=0.02)
    assert held_out.mean() >= 0.3


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        (
            {"split": "by_group", "group_column": "x"},
            {"branch": "1"},
            "split by_group: column 'x' is not an identifier or date column",
        ),
        ({"split": "by_group", "group_column": "branch"}, {"branch": [None] * 20 + ["1"] * 80}, "no valid value in 20 row"),
        ({"split": "by_time", "date_column": "day"}, {"day": [None] + ["2020-01-01"] * 99}, "no valid value in 1 row"),
        ({"split": "by_time", "date_column": "day"}, {"day": "2020-01-01"}, "the development rows hold 0 good and 0 bad"),
        ({"split": "by_group", "group_column": "branch"}, {"branch": "1"}, "expected some of each; use more rows"),
        ({"test_size": 1e-6}, {}, "the held-out rows hold 0 good and 0 bad applicants, expected some of each"),
        ({"test_size": 1 - 1e-6}, {}, "the development rows hold 0 good and 0 bad applicants"),
    ],
)
def test_splits_that_cannot_be_are_refused(changes: dict, columns: dict, message: str, prepare: PrepareParams) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        DataSplitter(replace(prepare, **changes)).held_out(people(100, **columns))


def test_a_side_without_one_class_is_refused(prepare: PrepareParams) -> None:
    everybody = people(100)
    target = everybody.target.where(DataSplitter(prepare).held_out(everybody), 1)
    with pytest.raises(DataError, match=r"the development rows hold .* good and 0 bad applicants"):
        DataSplitter(prepare).held_out(everybody._replace(target=target))


def test_a_later_duplicate_of_a_held_out_applicant_stays_held_out(raw_table, contract: Contract, prepare: PrepareParams) -> None:
    """The whole way: today's file, next year's file with old and new applicants appended in another state of dirt."""
    today = raw_table.head(700)
    now = DataCleaner(contract).clean(today)
    side = pd.Series(DataSplitter(prepare).held_out(now), index=now.table.index)
    again = today.iloc[::7].copy()
    again.loc[:, "hoehe"] = " N/A "
    again.loc[:, "wohn"] = " " + again["wohn"].str.strip() + " "
    later = DataCleaner(contract).clean(pd.concat([today, again, raw_table.iloc[700:]], ignore_index=True))
    later_side = pd.Series(DataSplitter(prepare).held_out(later), index=later.table.index)
    assert list(later.table.index[: len(side)]) == list(side.index)
    pd.testing.assert_series_equal(later_side[: len(side)], side)
    merged = later.report["rows"]["duplicates_merged"] - now.report["rows"]["duplicates_merged"]
    assert merged >= 0.97 * len(again)
    assert later_side[len(side) :].mean() == pytest.approx(0.3, abs=0.1)


def test_the_report_of_a_split(caplog: pytest.LogCaptureFixture) -> None:
    y = np.array([1] * 70 + [0] * 30 + [1] * 20 + [0] * 20)
    held_out = np.arange(140) >= 100
    report = split_report(y, held_out)
    pooled = 50 / 140
    z = (0.5 - 0.3) / math.sqrt(pooled * (1 - pooled) * (1 / 100 + 1 / 40))
    expected = {"development": 100, "held_out": 40, "bad_share_development": 0.3, "bad_share_held_out": 0.5, "class_share_z": z}
    assert report == pytest.approx(expected)
    assert not caplog.records
    split_report(np.sort(y), held_out)
    assert "0.0% bad held out against 50.0% in development" in caplog.text
