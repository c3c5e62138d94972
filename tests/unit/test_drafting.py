"""mlops-draft-contract: what it makes of tables that nobody has described."""

import csv
import json
import string
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_project import cli
from mlops_project.dataset import DataCleaner, DataLoader
from mlops_project.drafting import draft
from mlops_project.errors import DataError, PipelineError
from mlops_project.files import read_yaml
from mlops_project.schema import Contract, load_contract


def _write(path: Path, columns: dict[str, list[object]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def _load(text: str, folder: Path) -> Contract:
    path = folder / "draft.yaml"
    path.write_text(text, encoding="utf-8")
    return load_contract(path)


@pytest.fixture
def drafted(tmp_path):
    """Draft a contract for columns of 40 rows, shorter ones repeated; an outcome is added unless there is one."""

    def run(columns, *, rows=40, delimiter=",", outcome=True, **options):
        columns = {name: (list(cells) * rows)[:rows] for name, cells in columns.items()}
        if outcome:
            columns["target"] = ([0, 0, 0, 1] * rows)[:rows]
        text = draft(_write(tmp_path / "table.csv", columns, delimiter), **options)
        return _load(text, tmp_path), text

    return run


def _comment(text: str, key: str) -> str:
    """Return the lines about a column."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().removeprefix("- ").startswith(key))
    return "\n".join(lines[at : at + 3])


# The repository's own tables


@pytest.fixture
def dirty(raw_table, tmp_path) -> Path:
    raw_table.to_csv(tmp_path / "dirty.csv", index=False)
    return tmp_path / "dirty.csv"


@pytest.fixture
def clean(clean_table, tmp_path) -> Path:
    clean_table.to_csv(tmp_path / "clean.csv", index=False)
    return tmp_path / "clean.csv"


@pytest.mark.parametrize(
    ("table", "drop", "tokens"), [("dirty", ["mixed_type_col"], {"invalid", "n/a", "?", "null", "error"}), ("clean", [], set())]
)
def test_the_german_table_comes_out_as_the_finished_contract_has_it(request, contract, tmp_path, table, drop, tokens):
    text = draft(request.getfixturevalue(table))
    found = _load(text, tmp_path)
    assert (found.target.name, found.target.good, found.target.bad) == ("kredit", 1, 0)
    assert list(found.columns) == list(contract.columns)
    for name, finished in contract.columns.items():
        column = found.columns[name]
        assert column.code_list == finished.code_list, name
        if finished.kind == "numeric":
            assert column.kind == "numeric"
            # A corrupted value close to the others cannot be told from them.
            assert finished.range[0] <= column.range[0] < column.range[1] <= 2 * finished.range[1]
        else:  # whether codes have an order, numbers do not say
            assert column.kind == finished.kind or "CHECK: ordinal if" in _comment(text, f"{name}:")
    assert found.drop == drop
    assert {token.casefold() for token in found.missing_tokens} == tokens
    assert found.applicant_id is None


def test_corrupted_cells_are_left_out_and_named(dirty):
    text = draft(dirty)
    assert "CHECK: left out as rare: " in _comment(text, "laufkont:")
    assert "CHECK: left outside as implausible: " in _comment(text, "alter:")
    assert "%) and texts in one column" in _comment(text, "mixed_type_col")
    assert "two values stand in gastarb, telef, pers too" in _comment(text, "target:")


def test_two_drafts_of_one_file_are_equal_and_name_no_folder(dirty):
    text = draft(dirty)
    assert text == draft(dirty)
    assert str(dirty.parent) not in text


def test_every_guess_comes_with_evidence(dirty):
    lines = [line.strip() for line in draft(dirty).splitlines()]
    assert all(
        "  # " in line for line in lines if line.split(":")[0] in ("kind", "codes", "range", "name", "good", "bad", "decimal")
    )
    assert all("distinct" in line and "missing" in line for line in lines if line.startswith("kind"))


# How numbers are written


def test_semicolons_decimal_commas_and_a_byte_order_mark(tmp_path):
    path = _write(tmp_path / "de.csv", {"rate": [f"{i},5" for i in range(30)], "Status": ["good", "good", "bad"] * 10}, ";")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    contract = _load(draft(path), tmp_path)
    assert contract.decimal == ","
    assert contract.columns["rate"].range == [0.5, 29.5]


def test_a_decimal_comma_in_the_header_does_not_hide_the_delimiter(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b;c;d\n1,5;x;0\n2,5;y;1\n2,5;y;1\n", encoding="utf-8")
    assert set(_load(draft(path), tmp_path).columns) <= {"a,b", "c"}


def test_thousands_separators_are_not_decimals(drafted):
    contract, text = drafted({"amount": [f"{1000 + 37 * i:,}" for i in range(40)], "x": [1, 2, 3]})
    assert contract.decimal == "."
    assert "were not read as numbers" in text
    assert contract.drop == ["amount"]
    assert "thousands separator" in _comment(text, "amount")


def test_a_point_is_no_thousands_separator_where_the_comma_is_decimal(drafted):
    contract, text = drafted(
        {"amount": [f"1.{100 + i}" for i in range(40)], "x": [f"{i},25" for i in range(41)]}, delimiter=";", rows=41
    )
    assert (contract.decimal, contract.drop) == (",", ["amount"])
    assert "numbers such as 0,25; CHECK: cells such as 1.100 were not read as numbers" in text


# Numbers


def test_a_few_corrupted_numbers_do_not_widen_the_range(drafted):
    ages = [20 + i % 50 for i in range(200)]
    contract, text = drafted({"age": [*ages[:-2], 2400, "9.5e7"]}, rows=200)
    assert contract.columns["age"].range == [20, 69]
    assert "seen 20 to 95000000; CHECK: left outside as implausible: 2400 (1), 95000000 (1)" in text


def test_a_long_tail_is_kept(drafted):
    ranks = np.linspace(-0.999, 0.999, 2000)
    incomes = np.exp(8 + 0.8 * np.arctanh(ranks)).round()  # about 300 times the median at the end
    contract, _ = drafted({"income": incomes.tolist()}, rows=2000)
    assert contract.columns["income"].range == [incomes.min(), incomes.max()]


def test_negative_numbers_are_fenced_on_their_own_side(drafted):
    days = [-(100 + 7 * i) for i in range(199)]
    contract, _ = drafted({"days": [*days, -5_000_000]}, rows=200)
    assert contract.columns["days"].range == [-1486, -100]


def test_a_number_that_may_stand_for_missing_is_asked_about(drafted):
    _, text = drafted({"delay": [*[0.5 + i for i in range(150)], *[-999] * 50]}, rows=200)
    assert "does -999 (50) mean missing?" in _comment(text, "delay:")


def test_few_dense_whole_numbers_are_codes_and_others_a_quantity(drafted):
    contract, text = drafted({"job": [1, 2, 3, 2], "term": [12, 24, 36, 48, 60], "num_cards": [0, 1, 2, 5]})
    assert (contract.columns["job"].kind, contract.columns["job"].codes) == ("nominal", [1, 2, 3])
    assert (contract.columns["num_cards"].kind, contract.columns["num_cards"].codes) == ("ordinal", [0, 1, 2, 5])
    assert contract.columns["term"].range == [12, 60]
    assert "CHECK: ordinal if" in _comment(text, "job:")
    assert "CHECK: nominal if" in _comment(text, "num_cards:")


def test_missing_words_are_found_in_numbers(drafted):
    contract, text = drafted(
        {"x": [*[i / 7 for i in range(380)], *["unknown"] * 10, *["not told"] * 5, *["n/a"] * 4, "typo"]}, rows=400
    )
    assert contract.missing_tokens == ["unknown", "not told", "n/a"]
    assert "typo (1)" in _comment(text, "x:")


# Texts


def test_words_that_yaml_would_change_stay_text(drafted):
    words = {
        "a": ["yes", "no"],
        "b": ["on", "off", "y"],
        "c": ["1e5", "2e5", "0x1f"],
        "d": ["01", "02", "10"],
        "e": ["true", "False", "~"],
    }
    contract, _ = drafted(words)
    for name, codes in words.items():
        assert contract.columns[name].code_list == sorted(codes), name
    assert all(column.kind == "nominal" for column in contract.columns.values())


def test_null_is_missing_none_and_unknown_may_be_categories(drafted):
    contract, text = drafted({"guarantor": ["none", "co-applicant", "unknown", "null"]})
    assert contract.columns["guarantor"].codes == ["co-applicant", "none", "unknown"]
    assert contract.missing_tokens == ["null"]
    assert "does none mean missing?; does unknown mean missing?" in text


def test_letter_case_and_spaces_make_no_new_category(drafted):
    contract, text = drafted({"job": [*["Skilled", "other"] * 190, *[" sKILLED "] * 19, "Skiled"]}, rows=400)
    assert contract.columns["job"].codes == ["Skilled", "other"]
    assert "left out as rare: Skiled (1)" in text


def test_odd_column_names_and_codes_survive(drafted):
    odd = 'a: "b" # c\\d\te\u2028\U000e0001é'
    contract, _ = drafted({odd: ["x", odd, "ü"], "on": [1, 2, 3], "1": [1, 2, 3], "": [1, 2], "n" * 600: [1, 2]})
    assert set(contract.columns) == {odd, "on", "1"}
    assert contract.columns[odd].code_list == sorted(["x", odd, "ü"])
    assert contract.drop == ["", "n" * 600]


def test_names_that_stand_twice_are_left_out(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,a,b,y\n" + "1,2,x,0\n3,4,z,1\n5,6,z,1\n", encoding="utf-8")
    text = draft(path)
    assert _load(text, tmp_path).drop == ["a"]
    assert "stands 2 times" in text


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([f"a remark, number {i}, on this case" for i in range(40)], "free text"),
        ([f"{1000 + 7 * i} EUR" for i in range(40)], "numbers with a unit"),
        ([*range(100, 128), *["bad"] * 12], "numbers (70%) and texts"),
        (["x"], "constant: x"),
        ([7.5], "constant: 7.5"),
        ([*[7] * 398, 700, 154], "constant: 7, but for 154 (1), 700 (1)"),
        (["", "N/A", "nan"], "holds no value"),
    ],
)
def test_junk_is_dropped_with_a_reason(drafted, cells, reason):
    contract, text = drafted({"junk": cells, "x": [1, 2, 3]}, rows=400 if len(cells) == 400 else 40)
    assert contract.drop == ["junk"]
    assert reason in _comment(text, "junk")


# Dates and identifiers


@pytest.mark.parametrize(
    ("form", "expected"),
    [("%Y-%m-%d", None), ("%Y-%m-%dT%H:%M:%S", None), ("%d.%m.%Y",) * 2, ("%m/%d/%Y",) * 2, ("%Y%m%d",) * 2, ("%b-%Y",) * 2],
)
def test_dates(drafted, form, expected):
    days = pd.date_range("2020-01-01", periods=40, freq="9D").strftime(form).tolist()
    contract, text = drafted({"opened": days, "x": [1, 2, 3]})
    assert contract.columns["opened"].kind == "date"
    assert contract.columns["opened"].format == expected
    assert "never a feature" in text


def test_a_date_that_fits_two_formats_is_flagged(drafted):
    contract, text = drafted({"opened": [f"0{i}/0{i + 1}/2020" for i in range(1, 8)], "x": [1, 2, 3]})
    assert contract.columns["opened"].format == "%d/%m/%Y"
    assert "CHECK: fits %m/%d/%Y too" in text


def test_identifiers(drafted):
    contract, _ = drafted(
        {
            "contract": [f"A-{i}" for i in range(40)],
            "row": range(1000, 1040),
            "branchId": [f"B{i % 20}" for i in range(40)],
            "income": [900 + 61 * i for i in range(40)],
            "applicant_income": [17 * i for i in range(40)],
            "paid": range(0, 400, 10),
        }
    )
    assert contract.of_kind("identifier") == ["contract", "row", "branchId"]
    assert contract.applicant_id == "contract"
    assert contract.of_kind("numeric") == ["income", "applicant_income", "paid"]


def test_an_applicant_id_is_proposed_only_where_it_is_unique(drafted):
    ids = [f"C{i}" for i in range(39)]
    assert drafted({"customer_id": [*ids, "C0"], "x": [1, 2, 3]})[0].applicant_id is None
    assert drafted({"customer_id": [*ids, ""], "x": [1, 2, 3]})[0].applicant_id is None
    assert drafted({"customer_id": [*ids, "C39"], "x": [1, 2, 3]})[0].applicant_id == "customer_id"
    both = {"customer_id": [*ids, "C39"], "x": [1, 2, 3], "applicant_id": [*ids, "X"]}
    assert drafted(both)[0].applicant_id == "applicant_id"
    contract, _ = drafted(both | {"applicant_id": [1, 2]})
    assert (contract.applicant_id, contract.drop) == ("customer_id", ["applicant_id"])


# The outcome


@pytest.mark.parametrize(
    ("name", "cells", "good", "bad"),
    [
        ("Status", ["good"] * 9 + ["bad"], "good", "bad"),
        ("Status", ["bad"] * 9 + ["good"], "good", "bad"),
        ("loan_status", ["Charged Off"] + ["Fully Paid"] * 4, "Fully Paid", "Charged Off"),
        ("outcome", ["paid", "default", "paid"], "paid", "default"),
        ("default", ["yes", "no", "no"], "no", "yes"),
        ("default", ["yes", "yes", "no"], "no", "yes"),
        ("SeriousDlqin2yrs", [0, 0, 0, 1], 0, 1),
        ("BAD", [1, 1, 0], 0, 1),
        ("good", ["TRUE", "FALSE", "FALSE"], "TRUE", "FALSE"),
        ("creditability", [1, 1, 0], 1, 0),
        ("Class", [1, 1, 2], 1, 2),
        ("TARGET", [0, 0, 0, 1], 0, 1),
        ("y", ["1.0", "0.0", "1.0"], 1, 0),
        ("good_bad", [1, 0, 1], 1, 0),
        ("A16", ["-", "+", "-"], "+", "-"),
        ("label", ["01", "02", "01"], "01", "02"),
    ],
)
def test_outcomes_and_which_value_is_good(drafted, name, cells, good, bad):
    columns = {"telephone": ["b", "a", "c", "b"], name: cells, "last": [0.25, 1.5]}
    contract, text = drafted(columns, outcome=False)
    assert (contract.target.name, contract.target.good, contract.target.bad) == (name, good, bad)
    assert "CHECK" in _comment(text, "name:")


def test_target_and_good_are_respected(drafted):
    columns = {"foreign": ["yes", "no", "no"], "x": [1, 2, 3]}
    contract, _ = drafted(columns, target="foreign", good="YES")
    assert (contract.target.name, contract.target.good) == ("foreign", "yes")
    assert "target" in contract.columns
    contract, _ = drafted(columns, good="no")
    assert (contract.target.name, contract.target.good, contract.target.bad) == ("foreign", "no", "yes")
    assert drafted(columns, good="1.0")[0].target.good == 1


def test_rows_without_an_outcome_yet_are_counted(drafted):
    status = ["Fully Paid", "Charged Off", "Current", "Current"]
    contract, text = drafted({"state": status, "x": [1, 2, 3]}, target="state")
    assert (contract.target.good, contract.target.bad) == ("Fully Paid", "Charged Off")
    assert "without outcome are Current (20)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "colour"}, r"no column 'colour' \(--target\) that can be the outcome; did you mean 'color'\?"),
        ({"target": "zzz"}, r"no column 'zzz' .* found color, x$"),
        ({"target": "color"}, r"--target color holds 3 values: a \(14\), b \(13\), c \(13\); expected two"),
        ({}, r"found no column of two values that could be the outcome; name it with --target"),
        ({"good": "x"}, r"no column of two values, one of them 'x' \(--good\), that could be"),
    ],
)
def test_what_cannot_be_the_outcome_is_refused_in_one_line(drafted, options, message):
    with pytest.raises(DataError, match=message) as error:
        drafted({"color": ["a", "b", "c"], "x": [1, 2, 3]}, outcome=False, **options)
    assert "\n" not in str(error.value)


def test_a_good_value_that_the_target_lacks_is_refused(drafted):
    with pytest.raises(DataError, match=r"target holds no 'paid' \(--good\); found 0 \(30\), 1 \(10\)"):
        drafted({"x": [1, 2, 3]}, target="target", good="paid")


def test_a_table_without_a_feature_is_refused(drafted):
    with pytest.raises(DataError, match=r"no column beside 'target' can be a feature; found id: identifier"):
        drafted({"id": [f"x{i}" for i in range(40)], "const": [1]})


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n", "holds a header and no rows"),
        (b"a\n1\n", "found a single column 'a'"),
        (b"a,b\n1,2,3\n", "line 2 has 3 cells, expected 2"),
        (b"a,b\n\xe4,1\n", "is not UTF-8"),
        (b"PK\x03\x04\0\0", "is binary"),
        (b"\n1,2\n", "the first line is blank"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=message):
        draft(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        draft(tmp_path / "absent.csv")


def test_typed_columns_of_a_parquet_file(tmp_path, monkeypatch):
    table = pd.DataFrame(
        {
            "opened": pd.date_range("2020-01-01", periods=30),
            "amount": np.linspace(1, 2, 30),
            "owner": [True, False, False] * 10,
            "kids": pd.array([0, 1, None] * 10, dtype="Int64"),
            "job": pd.Categorical(["a", "b", None] * 10),
            "bad": [0, 0, 1] * 10,
        }
    )
    monkeypatch.setattr(pd, "read_parquet", lambda path: table)
    path = tmp_path / "t.parquet"
    path.touch()
    contract = _load(draft(path), tmp_path)
    assert {name: column.kind for name, column in contract.columns.items()} == {
        "opened": "date",
        "amount": "numeric",
        "owner": "nominal",
        "kids": "nominal",
        "job": "nominal",
    }
    assert (contract.target.good, contract.target.bad) == (0, 1)
    applicants = DataCleaner(contract, 0).clean(DataLoader(contract).load(path))
    assert applicants.report["columns"]["kids"] == {"missing": 10, "tokens": 0, "out_of_contract": 0}
    assert applicants.report["columns"]["owner"] == {"missing": 0, "tokens": 0, "out_of_contract": 0}
    assert applicants.table["opened"].iloc[0] == "2020-01-01"


# The command


def test_the_command_writes_the_draft_and_does_not_replace_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _write(Path("t.csv"), {"x": [1, 2, 3] * 10, "Status": ["good", "bad", "good"] * 10})
    assert cli.draft_contract(["t.csv"]) == 0
    printed = capsys.readouterr().out
    assert cli.draft_contract(["t.csv", "--output", "c.yaml"]) == 0
    assert Path("c.yaml").read_text(encoding="utf-8") == printed
    with open("t.csv", encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert cli.draft_contract(["-"]) == 0
    assert capsys.readouterr().out == printed.replace("t.csv", "standard input")
    assert read_yaml("c.yaml")["target"] == {"name": "Status", "good": "good", "bad": "bad"}
    capsys.readouterr()
    assert cli.draft_contract(["t.csv", "--output", "c.yaml"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.draft_contract(["t.csv", "--output", "c.yaml", "--force", "--good", "bad"]) == 0
    assert read_yaml("c.yaml")["target"]["good"] == "bad"
    capsys.readouterr()
    assert cli.draft_contract(["t.csv", "--target", "x"]) == 1
    assert capsys.readouterr().err.startswith("error: t.csv: --target x holds 3 values")


# Any table

_alphabet = st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), st.sampled_from(string.printable))
_ODD = "yes,no,on,off,null,none,nan,NaN,true,~,01,1e5,1e400,-0,0x1f,1.0,2,3;5,-999,?,N/A,unknown,good,bad"
_words = st.sampled_from(
    [*(word.replace(";", ",") for word in _ODD.split(",")), "2020-01-31", "31.12.2020", "20200131", "-", "+"]
)
_cells = st.one_of(
    _words, st.text(_alphabet, max_size=8), st.integers(-5, 5).map(str), st.floats(-1e3, 1e3).map(str), st.just("")
)
_names = st.one_of(
    st.sampled_from(["target", "Status", "id", "applicant_id", "default", "on", "1", ""]), st.text(_alphabet, max_size=6)
)


@st.composite
def _tables(draw):
    rows = draw(st.integers(0, 25))
    columns = []
    for _ in range(draw(st.integers(1, 5))):
        few = draw(st.lists(_cells, min_size=1, max_size=draw(st.sampled_from([1, 2, 3, 25]))))
        columns.append([draw(_names), *draw(st.lists(st.sampled_from(few), min_size=rows, max_size=rows))])
    if draw(st.booleans()):
        columns.append([draw(_names), *draw(st.permutations((["good", "bad"] * rows)[:rows]))])
    return list(zip(*columns, strict=True)), draw(st.sampled_from(",;\t|"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(_tables())
def test_any_table_gives_a_contract_that_works_or_an_error_in_one_line(table):
    rows, delimiter = table
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        with open(path, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter=delimiter).writerows(rows)
        try:
            text = draft(path)
        except PipelineError as problem:
            text, error = "", str(problem)
        if not text:
            assert len(error.splitlines()) == 1
            return
        contract = _load(text, Path(folder))
        assert json.dumps(text) == json.dumps(draft(path))
        known = [contract.target.name, *contract.columns, *contract.drop]
        assert sorted(known) == sorted({str(name).strip() for name in rows[0]})
        raw = DataLoader(contract).load(path)
        applicants = DataCleaner(contract, 2).clean(raw)
        assert applicants.report["rows"]["read"] == len(raw)
        assert 2 <= len(applicants.table) <= len(raw)
