"""Writes that happen whole or not at all, and tables that come back as they went."""

import importlib.util
import io
import json
import math
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_project.errors import DataError, PipelineError
from mlops_project.files import (
    TableWriter,
    atomic_path,
    read_outcomes,
    read_table,
    require_form,
    rounded,
    scratch_folder,
    spread,
    write_json,
    write_table,
)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


# --- atomic_path


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "one")
    write_text(str(path), "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), PipelineError("no")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_path(path) as temporary:
        assert not path.exists()
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_who_has_the_old_file_open_keeps_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with path.open() as reader:
        write_text(path, "new and longer")
        assert reader.read() == "old"
    assert path.read_text() == "new and longer"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is full")
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fill() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            with open("/dev/full", "w", encoding="utf-8") as full:
                full.write("x")

    with pytest.raises(
        PipelineError, match=r"file.txt: cannot be written \(No space left on device\); nothing was changed; check"
    ):
        fill()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file where a folder should be: root may write into any folder, so permissions would tell nothing here."""
    (tmp_path / "taken").write_text("a file")
    for path in (tmp_path / "taken" / "file.txt", tmp_path / "taken" / "deeper" / "file.txt"):
        with pytest.raises(PipelineError) as caught:
            write_text(path, "x")
        assert str(caught.value).startswith(f"{path}: cannot be written (")
        assert "\n" not in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(PipelineError, match=r"folder: cannot be written \(Is a directory\)"):
        write_text(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "taken"]


def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_live_ones_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    abandoned, other = tmp_path / ".file.txt.abc.tmp", tmp_path / ".file.txt2.abc.tmp"
    for left in (abandoned, other):
        left.write_text("half")
        os.utime(left, (0, 0))
    with atomic_path(path) as at_work:
        assert not abandoned.exists()
        assert other.exists(), "belongs to another file"
        at_work.write_text("slow")
        os.utime(at_work, (0, 0))
        write_text(path, "fast")
        assert at_work.read_text() == "slow", "locked, so not abandoned"
    assert path.read_text() == "slow"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, other.name])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into folders without permission")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PipelineError, match=r"cannot be written \(Permission denied\)"):
        write_text(tmp_path / "locked" / "file.txt", "x")


# --- JSON


def test_json_has_rounded_numbers_and_python_types(tmp_path: Path) -> None:
    content = {
        "share": 1 / 3,
        "count": np.int64(3),
        "flag": np.bool_(True),
        "figures": (np.float64(0.1234567), np.float32(0.5)),
        "nested": {1: [None, "Größe"]},
        "tiny": 1e-9,
    }
    write_json(content, tmp_path / "m.json")
    text = (tmp_path / "m.json").read_bytes().decode()
    assert json.loads(text) == {
        "share": 0.333333,
        "count": 3,
        "flag": True,
        "figures": [0.123457, 0.5],
        "nested": {"1": [None, "Größe"]},
        "tiny": 0.0,
    }
    assert text.endswith("}\n")
    assert "Größe" in text
    assert "\r" not in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_is_not_json_is_refused_and_the_old_file_stays(value: float, tmp_path: Path) -> None:
    write_json({"a": 1}, tmp_path / "m.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": [value]}, tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_rounding_leaves_what_is_no_float() -> None:
    assert rounded([1, True, "x", None, 0.12345678]) == [1, True, "x", None, 0.123457]
    assert type(rounded(np.float32(2))) is float
    assert type(rounded(np.int8(2))) is int


# --- tables


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "amount": [1.5, np.nan, 0.1 + 0.2],
            "count": [1, 2, 3],
            "home": ["none", "NA", None],
            "branch": ["007", "1e3", None],
            "empty": [np.nan] * 3,
            "quoted": ['a,"b"', "c\nd", "Größe"],
        },
        index=pd.Index(["0012", "1e5", "nan"], name="applicant_id"),
    )


def test_a_table_comes_back_as_it_went(table: pd.DataFrame, tmp_path: Path) -> None:
    write_table(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv", ["branch", "not in the file"]), table, check_dtype=False)
    raw = (tmp_path / "t.csv").read_bytes()
    assert raw.startswith(b"applicant_id,amount,count,home,branch,empty,quoted\n")
    assert b"\r" not in raw
    write_table(table, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == raw


def test_categories_called_none_or_na_are_no_missing_cells(table: pd.DataFrame, tmp_path: Path) -> None:
    write_table(table, tmp_path / "t.csv")
    found = read_table(tmp_path / "t.csv")
    assert found["home"].isna().tolist() == [False, False, True]
    assert found.index.tolist() == ["0012", "1e5", "nan"]


def test_without_being_named_text_that_looks_like_numbers_becomes_some(table: pd.DataFrame, tmp_path: Path) -> None:
    """The reason why stages name the contract's text columns."""
    write_table(table, tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv")["branch"].tolist()[:2] == [7.0, 1000.0]
    assert read_table(tmp_path / "t.csv", ["branch"])["branch"].tolist()[:2] == ["007", "1e3"]


@settings(max_examples=30)
@given(st.lists(st.floats(allow_infinity=False), min_size=1, max_size=20))
def test_floats_come_back_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    index = pd.Index([f"a{i}" for i in range(len(values))], name="applicant_id")
    write_table(pd.DataFrame({"x": values}, index=index), path)
    np.testing.assert_array_equal(read_table(path)["x"].to_numpy(float), values)


def test_a_series_and_a_table_without_index(table: pd.DataFrame, tmp_path: Path) -> None:
    write_table(table["count"], tmp_path / "y.csv")
    assert read_table(tmp_path / "y.csv")["count"].tolist() == [1, 2, 3]
    write_table(table[["count"]], tmp_path / "plain.csv", index=False)
    assert (tmp_path / "plain.csv").read_bytes() == b"count\n1\n2\n3\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found; run `dvc repro` (or the stage that writes it) first"),
        (b"", "cannot be read: No columns to parse from file; expected CSV in UTF-8"),
        (b"x\n1\n", "found columns ['x'], expected 'applicant_id'; rerun `dvc repro prepare`"),
        (b"applicant_id,x\n", "holds no rows; expected one or more"),
        (b"applicant_id,x\n1,2,3\n4,5,6\n", "line 2 has 3 cells, expected 2 as in the header"),
        (b"applicant_id,x\n1,2,3,4\n1,2\n1,2,3,4,5\n", "line 2 has 4 cells, expected 2 as in the header"),
        (b"applicant_id,x\n1,\xff\n", "cannot be read: 'utf-8' codec"),
    ],
)
def test_what_is_no_such_table_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "X.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SHORT = "applicant_id,x,y\n1,2,3\n\n4,,\n5,6\n7,8,9\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SHORT, "line 5 has 2 cells, expected 3"),
        (SHORT.replace("\n", "\r\n"), "line 5 has 2 cells, expected 3"),
        (SHORT.replace("5,6", "5"), "line 5 has 1 cells, expected 3"),
        (SHORT.replace("1,2,3", '1,2,"3\n3"'), "line 6 has 2 cells, expected 3"),
        (SHORT.replace("5,6", '5,"6\n6"'), r"line 5 (to 6) has 2 cells, expected 3"),
        (SHORT.replace("5,6", "5,6,7,8"), "line 5 has 4 cells, expected 3"),
        ("applicant_id,x\n1,2\n3", "line 3 has 1 cells, expected 2"),
    ],
)
def test_rows_of_another_length_than_the_header_are_refused(content: str, message: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "X.csv"
    path.write_bytes(content.encode())
    rest = f"{message} as in the header; look for a stray delimiter or quote there"
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert str(caught.value) == f"{path}: {rest}"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    with pytest.raises(DataError) as caught:
        read_table("-")
    assert str(caught.value) == f"standard input: {rest}"


def test_empty_cells_at_the_end_of_a_row_are_missing(tmp_path: Path) -> None:
    (tmp_path / "X.csv").write_text("applicant_id,x,y\n1,2,\n\n4,,\n7,8,9\n", encoding="utf-8")
    assert read_table(tmp_path / "X.csv")["y"].isna().tolist() == [True, True, False]


def test_parquet_goes_out_and_comes_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"code": ["01", None], "amount": [1.5, 2.0]}, index=pd.Index(["a", "b"], name="applicant_id"))
    path = tmp_path / "t.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(DataError, match=r"t.parquet: Parquet needs pyarrow; run .*parquet"):
            write_table(table, path)
        return
    write_table(table, path)
    pd.testing.assert_frame_equal(read_table(path, ["code"]), table, check_dtype=False)
    write_table(table["amount"], path)
    assert list(read_table(path).columns) == ["amount"]


def test_a_folder_that_a_killed_process_left_is_removed_and_that_of_another_at_work_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".bins-left").mkdir()
    (tmp_path / ".bins-left" / "page").touch()
    os.utime(tmp_path / ".bins-left", (0, 0))
    with scratch_folder(".bins-") as first:
        os.utime(first, (0, 0))
        assert [path.name for path in tmp_path.iterdir()] == [Path(first).name]
        with scratch_folder(".bins-") as second:
            assert Path(first).is_dir()
            assert Path(second).is_dir()
    assert not list(tmp_path.iterdir())


def test_a_form_that_cannot_be_written_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    require_form("csv")
    with pytest.raises(DataError, match=r"^data.tables = parquet: Parquet needs pyarrow; run .*, or set data.tables: csv"):
        require_form("parquet")


def test_tables_go_through_standard_input_and_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"code": ["01", None], "amount": [1.5, 2.0]}, index=pd.Index(["a", "b"], name="applicant_id"))
    write_table(table, "-")
    printed = capsys.readouterr().out
    assert printed == "applicant_id,code,amount\na,01,1.5\nb,,2.0\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    pd.testing.assert_frame_equal(read_table("-", ["code"]), table, check_dtype=False)


def test_rows_without_ids_are_numbered_where_that_is_enough(tmp_path):
    (tmp_path / "raw.csv").write_text("a,b\n1,x\n2,\n", encoding="utf-8")
    table = read_table(tmp_path / "raw.csv", named=False)
    assert (table.index.name, list(table.index), list(table)) == ("row", [1, 2], ["a", "b"])
    with pytest.raises(DataError, match="expected 'applicant_id'"):
        read_table(tmp_path / "raw.csv")


# --- tables in parts


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_in_parts_is_the_table(ending: str, table: pd.DataFrame, tmp_path: Path) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="the extra `parquet`")
    whole, parts = tmp_path / f"whole.{ending}", tmp_path / f"parts.{ending}"
    write_table(table, whole)
    with TableWriter(parts) as writer:
        for start in range(len(table)):
            writer.write(table.iloc[start : start + 1])
        assert not parts.exists(), "it appears whole"
    pd.testing.assert_frame_equal(read_table(parts), read_table(whole))
    if ending == "csv":
        assert parts.read_bytes() == whole.read_bytes()


def test_a_part_that_fails_leaves_the_old_table(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(table, path)
    before = path.read_bytes()
    with pytest.raises(AttributeError), TableWriter(path) as writer:
        [writer.write(part) for part in (table.head(1), "no table")]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_of_many_rows_some_are_read_evenly_spread(ending: str, tmp_path: Path) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="the extra `parquet`")
    path = tmp_path / f"table.{ending}"
    index = pd.Index([f"a{i}" for i in range(101)], name="applicant_id")
    write_table(pd.DataFrame({"n": range(101), "text": index}, index=index), path)
    found = read_table(path, at_most=5)
    assert found["n"].tolist() == [0, 25, 50, 75, 100]
    assert found.index.tolist() == found["text"].tolist()
    assert len(read_table(path, at_most=101)) == 101
    assert read_table(path, at_most=3, ids=False)["n"].tolist() == [0, 50, 100]


def test_positions_are_spread() -> None:
    assert spread(10, 20).tolist() == list(range(10))
    assert spread(1, 5).tolist() == [0]
    assert spread(5, 3).tolist() == [0, 2, 4]


def test_outcomes_follow_their_rows(tmp_path: Path) -> None:
    path, ids = tmp_path / "y.csv", pd.Index(["a", "b", "c"], name="applicant_id")
    write_table(pd.Series([1, 0, 1], index=ids, name="kredit"), path)
    for wanted in (["a", "b", "c"], ["c", "b"]):
        X = pd.DataFrame(index=pd.Index(wanted, name="applicant_id"))
        expected = [{"a": 1, "b": 0, "c": 1}[name] for name in wanted]
        assert read_outcomes(path, X, "kredit").tolist() == expected
    with pytest.raises(DataError, match=r"y.csv: found no outcome for 1 of 2 applicants; take rows and outcomes of one run"):
        read_outcomes(path, pd.DataFrame(index=["a", "x"]), "kredit")
