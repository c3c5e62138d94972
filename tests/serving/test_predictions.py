"""`mlops-predictions` on a real log: what is exported, deleted and forgotten."""

import contextlib
import csv
import json
import stat
import time
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from mlops_project.serving.predictions import main
from mlops_project.serving.records import Record, new_request_id, results
from mlops_project.serving.stores import open_store


def record(cells, applicants=(), age: float = 0.0) -> Record:
    rows = len(cells) if isinstance(cells, list) else 1
    answers = results([0.25] * rows, [0.75] * rows, [480.5] * rows, ["refuse"] * rows)
    return Record(new_request_id(), time.time() - age, "f" * 64, msgspec.json.encode(cells), answers, rows, applicants)


@pytest.fixture
def log(workdir, monkeypatch) -> str:
    url = f"sqlite:///{workdir}/predictions.db"
    monkeypatch.setenv("MLOPS_LOG_URL", url)
    open_store(url).close()
    return url


def append(url: str, *records: Record) -> None:
    with contextlib.closing(open_store(url)) as store:
        store.append(records)


def exported(path: Path = Path("out.csv")) -> list[dict[str, str]]:
    assert main(["export", "--output", str(path)]) == 0
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_export_has_a_row_per_applicant_with_inputs_and_outcome(log, capsys):
    several = record([{"age": 30, "purpose": "car"}, {"age": " 18.0 ", "extra": None}], ("anna", None))
    one = record({"age": "=1+1\n", "score": True})
    append(log, several, one)
    with contextlib.closing(open_store(log)) as store:
        store.outcomes([(several.request_id, 1, "bad")])
    rows = exported()
    assert "out.csv: 3 predictions" in capsys.readouterr().out
    assert [(row["request_id"], row["position"], row["applicant"]) for row in rows] == [
        (several.request_id, "0", "anna"),
        (several.request_id, "1", ""),
        (one.request_id, "0", ""),
    ]
    assert [row["outcome"] for row in rows] == ["", "bad", ""]
    assert [row["input_age"] for row in rows] == ["30", " 18.0 ", "=1+1\n"]
    assert (rows[2]["score"], rows[2]["input_score"]) == ("480.5", "true")
    assert stat.S_IMODE(Path("out.csv").stat().st_mode) == 0o600


def test_columns_of_a_bulk_request_are_exported_as_rows(log):
    bulk = msgspec.structs.replace(record([{}, {}]), inputs=json.dumps({"age": [30, None], "purpose": ["car", "new"]}).encode())
    append(log, bulk)
    assert [(row["input_age"], row["input_purpose"]) for row in exported()] == [("30", "car"), ("", "new")]
    assert main(["delete", "--request-id", bulk.request_id, "--position", "0"]) == 0
    assert [(row["position"], row["input_purpose"]) for row in exported()] == [("1", "new")]


def test_parquet_has_types_and_is_read_back_by_pandas(log):
    pytest.importorskip("pyarrow")
    append(log, record([{"age": 30}, {"age": "x"}]), record({"age": None, "purpose": 2}))
    assert main(["export", "--output", "out.parquet"]) == 0
    table = pd.read_parquet("out.parquet")
    assert table["p_good"].dtype == "float64"
    assert isinstance(table["time"].dtype, pd.DatetimeTZDtype)
    assert list(table["input_age"].fillna("")) == ["30", "x", ""]
    assert table["outcome_time"].isna().all()


def test_numbers_beyond_floats_are_exported(log):
    append(log, msgspec.structs.replace(record({}), inputs=b'{"age": 1e400, "n": 123456789012345678901234567890}'))
    (row,) = exported()
    assert (row["input_age"], row["input_n"]) == ("Infinity", "123456789012345678901234567890")


def test_one_endless_number_does_not_make_the_log_unreadable(log):
    endless = msgspec.structs.replace(record({}, ("anna",)), inputs=b'{"age": -' + b"9" * 10_000 + b"}")
    several = msgspec.structs.replace(record([{}, {}], ("berta", None)), inputs=b'[{"age": ' + b"9" * 10_000 + b'}, {"age": 2}]')
    append(log, endless, several, record({"age": 1}))
    assert [row["input_age"] for row in exported()] == ["-Infinity", "Infinity", "2", "1"]
    for name in ("anna", "berta"):
        assert main(["delete", "--applicant", name]) == 0
    assert [row["input_age"] for row in exported()] == ["2", "1"]


def test_an_empty_log_is_exported_with_its_header(log):
    assert exported() == []
    assert Path("out.csv").read_text(encoding="utf-8").startswith("request_id,position,time,")


def test_an_applicant_is_deleted_by_the_callers_reference(log, capsys):
    append(log, record([{"age": 1}, {"age": 2}], ("anna", "bert")), record({"age": 2}, ("bert",)))
    assert main(["delete", "--applicant", "bert"]) == 0
    assert "deleted 2 predictions" in capsys.readouterr().out
    assert [row["applicant"] for row in exported()] == ["anna"]
    assert main(["delete", "--applicant", "bert"]) == 1


def test_an_applicant_is_deleted_by_his_cells_as_the_contract_reads_them(log, root, contract):
    mine = dict.fromkeys(contract.features, "1")
    numbers = dict.fromkeys(contract.features, 1.0)
    other = mine | {contract.features[0]: "2"}
    append(log, record([mine, other]), record(numbers), record({**mine, "unknown column": "x"}))
    Path("applicant.json").write_text(json.dumps(mine), encoding="utf-8")
    assert main(["delete", "--like", "applicant.json", "--contract", str(root / "data/schema.yaml")]) == 0
    assert [row[f"input_{contract.features[0]}"] for row in exported()] == ["2"]


def test_prune_forgets_what_is_older(log, capsys):
    append(log, *(record({"age": i}, age=100 * 86400) for i in range(250)), record({"age": 1}, age=80 * 86400))
    assert main(["prune", "--older-than", "90d"]) == 0
    assert "deleted 250 requests" in capsys.readouterr().out
    assert len(exported()) == 1


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["export", "--output", "out.xlsx"], "expected a name that ends in .parquet or .csv"),
        (["export", "--output", "out.csv", "--log", "sqlite:///absent.db"], "there is no prediction log"),
        (["export", "--output", "out.csv", "--log", "mysql://u:secret@h"], "expected sqlite:///path"),
        (["delete", "--like", "absent.json"], "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(log, capsys, arguments, found):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert found in error
    assert error.count("\n") == 1
    assert "secret" not in error


def test_the_url_may_come_from_a_file_but_not_from_both(log, capsys, monkeypatch):
    Path("url.txt").write_text(log + "\n", encoding="utf-8")
    monkeypatch.setenv("MLOPS_LOG_URL_FILE", "url.txt")
    assert main(["export", "--output", "out.csv"]) == 1
    assert "expected one of them" in capsys.readouterr().err
    monkeypatch.delenv("MLOPS_LOG_URL")
    assert main(["export", "--output", "out.csv"]) == 0
    monkeypatch.setenv("MLOPS_LOG_URL_FILE", "absent.txt")
    assert main(["export", "--output", "out.csv"]) == 1
    assert "absent.txt cannot be read" in capsys.readouterr().err
