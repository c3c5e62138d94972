"""mlops-validate: every cell that breaks the contract, as a report, as JSON and as an exit code."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_project.cli import validate
from mlops_project.dataset import DataCleaner
from mlops_project.schema import Column, Contract, Target
from mlops_project.validation import Report, validate_table

SMALL = Contract(
    target=Target(name="y", good="paid", bad="lost"),
    missing_tokens=["?"],
    applicant_id="id",
    columns={
        "id": Column(kind="identifier", nullable=False),
        "branch": Column(kind="identifier"),
        "amount": Column(kind="numeric", range=[0.0, 100.0], nullable=False),
        "home": Column(kind="nominal", codes=["own", "rent"]),
        "day": Column(kind="date", nullable=False),
    },
)
CLEAN = {"id": "a", "branch": "x", "amount": "1", "home": "own", "day": "2020-01-31", "y": "paid"}


def table(*rows: dict[str, object]) -> pd.DataFrame:
    """Rows that are clean but for the cells given; ids are distinct unless given."""
    return pd.DataFrame([CLEAN | {"id": f"a{i}"} | row for i, row in enumerate(rows)])


def bad(report: Report) -> list[tuple]:
    return list(report.bad_cells.itertuples(index=False, name=None))


# --- the report


def test_a_clean_table_is_valid() -> None:
    report = validate_table(table({}, {"branch": "", "home": " RENT ", "y": "LOST"}), SMALL)
    assert report.valid
    assert (report.rows, bad(report)) == (2, [])
    assert report.to_dict() == {"valid": True, "rows": 2, "bad_cells": 0, "columns": report.columns, "cells": []}
    assert report.columns["home"] == {"valid": 2, "missing": 0, "tokens": 0, "out_of_contract": 0}
    assert report.columns["branch"] == {"valid": 1, "missing": 1, "tokens": 0, "out_of_contract": 0}
    assert list(report.columns) == ["id", "branch", "amount", "home", "day", "y"]


@pytest.mark.parametrize(
    ("cell", "rule"),
    [
        ({"amount": " ? "}, "missing-value token, expected an empty cell"),
        ({"home": "?"}, "missing-value token, expected an empty cell"),
        ({"id": " ? "}, "missing-value token, expected an empty cell"),
        ({"branch": "?"}, "missing-value token, expected an empty cell"),
        ({"amount": "101"}, "expected a number in 0 to 100"),
        ({"amount": "1_0"}, "expected a number in 0 to 100"),
        ({"home": "Owner"}, "expected one of own, rent"),
        ({"day": "31.1.2020"}, "expected a date (YYYY-MM-DD)"),
        ({"y": "maybe"}, "expected one of paid, lost"),
        ({"amount": ""}, "missing, expected a number in 0 to 100"),
        ({"id": " "}, "missing, expected text"),
        ({"day": "nan"}, "missing, expected a date (YYYY-MM-DD)"),
        ({"y": ""}, "missing, expected one of paid, lost"),
        ({"id": " a0 "}, "applicant id that stands earlier too"),
    ],
)
def test_each_rule(cell: dict[str, str], rule: str) -> None:
    report = validate_table(table({}, {}, cell, {}), SMALL)
    ((name, value),) = cell.items()
    assert bad(report) == [(3, name, value, rule)]
    assert not report.valid


def test_bad_cells_come_row_by_row_in_the_order_of_the_contract() -> None:
    report = validate_table(table({"y": "x", "amount": "-1"}, {}, {"home": "?", "id": "", "day": ""}), SMALL)
    assert [cell[:3] for cell in bad(report)] == [
        (1, "amount", "-1"),
        (1, "y", "x"),
        (3, "id", ""),
        (3, "home", "?"),
        (3, "day", ""),
    ]


def test_every_later_stand_of_an_id_is_bad_but_no_missing_one() -> None:
    free = Contract(target=SMALL.target, applicant_id="id", columns=SMALL.columns | {"id": Column(kind="identifier")})
    report = validate_table(table({"id": "x"}, {"id": ""}, {"id": "x"}, {"id": ""}, {"id": "x"}), free)
    assert [cell[:2] for cell in bad(report)] == [(3, "id"), (5, "id")]


def test_typed_tables_and_tables_without_target() -> None:
    typed = table({}, {}).drop(columns="y").assign(id=[1, 1], amount=[np.nan, 101.5], day=pd.to_datetime(["2020-01-31", None]))
    assert bad(validate_table(typed, SMALL)) == [
        (1, "amount", "", "missing, expected a number in 0 to 100"),
        (2, "id", "1", "applicant id that stands earlier too"),
        (2, "amount", "101.5", "expected a number in 0 to 100"),
        (2, "day", "", "missing, expected a date (YYYY-MM-DD)"),
    ]


def test_rows_count_by_position_whatever_the_index() -> None:
    rows = table({}, {"amount": "?"}).set_axis([70, 50])
    assert bad(validate_table(rows, SMALL))[0][:2] == (2, "amount")


def test_it_counts_what_the_cleaner_counts(raw_table: pd.DataFrame, contract: Contract) -> None:
    report = validate_table(raw_table, contract)
    cleaned = DataCleaner(contract).clean(raw_table).report
    counts = {name: {key: n for key, n in column.items() if key != "valid"} for name, column in report.columns.items()}
    assert counts.pop("kredit") == {
        "missing": cleaned["rows"]["dropped_target_missing"],
        "tokens": (raw_table["kredit"].str.strip().str.lower().isin(["invalid", "n/a", "?", "null", "error"])).sum(),
        "out_of_contract": cleaned["rows"]["dropped_target_invalid"] - report.columns["kredit"]["tokens"],
    }
    assert counts == cleaned["columns"]
    # Each column's counts add up, and each bad cell is listed once; an empty cell is allowed but for the target.
    assert all(sum(column.values()) == len(raw_table) for column in report.columns.values())
    listed = sum(column["tokens"] + column["out_of_contract"] for column in report.columns.values())
    assert len(report.bad_cells) == listed + report.columns["kredit"]["missing"]
    assert not report.bad_cells.duplicated(["row", "column"]).any()
    for row, column, value, _ in report.bad_cells.sample(50, random_state=0).itertuples(index=False):
        assert raw_table[column].iloc[row - 1] == value


# --- the command

CONTRACT = """
target: {name: y, good: paid, bad: lost}
missing_tokens: ["?"]
columns:
  amount: {kind: numeric, range: [0, 100]}
  home: {kind: nominal, codes: [own, rent]}
"""


@pytest.fixture
def run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command on a CSV text; the result is exit code, standard output and error."""
    (workdir / "data").mkdir()
    (workdir / "data/schema.yaml").write_text(CONTRACT)

    def command(text: str | None, *options: str) -> tuple[int, str, str]:
        if text is not None:
            (workdir / "t.csv").write_text(text)
        code = validate(["t.csv", *options])
        return code, *capsys.readouterr()

    return command


GOOD = "amount,home,y\n1,own,paid\n2,,lost\n"
BAD = "amount,home,y\n1,own,paid\n?,x,lost\n101,Größe,\n"


def test_a_clean_file_exits_with_zero(run) -> None:
    code, out, err = run(GOOD)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "column                   valid   missing    tokens   out of contract",
        "amount                       2         0         0                 0",
        "home                         1         1         0                 0",
        "y                            2         0         0                 0",
        "2 rows, 0 bad cells: meets data/schema.yaml",
    ]


def test_bad_cells_exit_with_one(run) -> None:
    code, out, err = run(BAD)
    assert (code, err) == (1, "")
    assert out.splitlines()[:5] == [
        "row 2, amount: '?': missing-value token, expected an empty cell",
        "row 2, home: 'x': expected one of own, rent",
        "row 3, amount: '101': expected a number in 0 to 100",
        "row 3, home: 'Größe': expected one of own, rent",
        "row 3, y: '': missing, expected one of paid, lost",
    ]
    assert out.splitlines()[-1] == "3 rows, 5 bad cells: breaks data/schema.yaml"


def test_the_limit_shortens_the_list_and_nothing_else(run) -> None:
    code, out, _ = run(BAD, "--limit", "2", "--json", "report.json")
    lines = out.splitlines()
    assert code == 1
    assert lines[1] == "row 2, home: 'x': expected one of own, rent"
    assert lines[2] == "… and 3 more (--limit 0 shows all)"
    assert lines[3].startswith("column ")
    assert len(json.loads(Path("report.json").read_text())["cells"]) == 5
    many = "amount,home,y\n" + "?,own,paid\n" * 30
    assert run(many)[1].count("\nrow ") == 19
    assert "… and 10 more" in run(many)[1]
    assert run(many, "--limit", "0")[1].count("row ") == 30


def test_json_to_a_file_and_to_standard_output(run) -> None:
    code, out, _ = run(BAD, "--json", "report.json")
    assert code == 1
    assert "5 bad cells" in out
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    code, out, err = run(BAD, "--json", "-")
    assert (code, err) == (1, "")
    assert json.loads(out) == report
    assert (report["valid"], report["rows"], report["bad_cells"]) == (False, 3, 5)
    assert report["columns"]["amount"] == {"valid": 1, "missing": 0, "tokens": 1, "out_of_contract": 1}
    assert report["cells"][3] == {"row": 3, "column": "home", "value": "Größe", "rule": "expected one of own, rent"}
    code, out, _ = run(GOOD, "--json", "-")
    assert (code, json.loads(out)["valid"]) == (0, True)


def test_the_target_may_be_left_out(run) -> None:
    text = "amount,home\n1,own\n"
    assert run(text, "--no-target")[0] == 0
    code, out, err = run(text)
    assert (code, out) == (2, "")
    assert err.startswith("error: t.csv: column(s) y of the contract missing; found amount, home;")
    # With --no-target a target that is there is not looked at either.
    assert run("amount,home,y\n1,own,maybe\n", "--no-target")[0] == 0


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, (), "error: t.csv: no such file;"),
        ("", (), "error: t.csv: is empty;"),
        ("amount,home,y\n1,own\n", (), "error: t.csv: line 2 has 2 cells, expected 3"),
        (GOOD, ("--contract", "absent.yaml"), "error: absent.yaml: not found in "),
        (GOOD, ("--contract", "t.csv"), "error: t.csv: found str, expected keys with values"),
        (BAD, ("--json", "t.csv/report.json"), "error: t.csv/report.json: cannot be written ("),
    ],
)
def test_what_cannot_be_checked_exits_with_two(text, options, message: str, run) -> None:
    code, _, err = run(text, *options)
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_verbose_shows_the_traceback(run) -> None:
    code, _, err = run("", "--verbose")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert run("")[2].count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["t.csv", "--limit", "-1"], ["t.csv", "--limit", "x"], ["t.csv", "--unknown"]])
def test_wrong_arguments_exit_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        validate(arguments)
    assert capsys.readouterr().err.startswith("usage: ")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in {
        "--help": "exit code: 0 the table meets the contract, 1 it has bad cells",
        "--version": version("mlops-project"),
    }.items():
        with pytest.raises(SystemExit, match="0"):
            validate([option])
        assert text in capsys.readouterr().out


def test_standard_input(run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for text, code in {GOOD: 0, BAD: 1, "": 2}.items():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert validate(["-"]) == code
    assert "error: standard input: is empty" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_error(run, workdir: Path, buffered: dict[str, str]) -> None:
    (workdir / "t.csv").write_text("amount,home,y\n" + "?,own,paid\n" * 20_000)
    code = "import sys; from mlops_project.cli import validate; sys.exit(validate(['t.csv', '--limit', '0']))"
    pipe, arguments = subprocess.PIPE, [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdout=pipe, stderr=pipe, cwd=workdir, env=buffered) as process:
        assert process.stdout.readline().startswith(b"row 1, amount")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
