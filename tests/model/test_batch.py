"""Files of any length: the rows of the small way, in bounded memory, and a killed run goes on where it stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace

from build_raw_data import write_csv
from mlops_project.cli import predict
from mlops_project.config import Params
from mlops_project.dataset import Applicants
from mlops_project.errors import DataError, PipelineError
from mlops_project.manifest import dump, manifest_path
from mlops_project.modeling import batch
from mlops_project.modeling.batch import Place, predict_file
from mlops_project.modeling.model import RiskModel, load_model
from mlops_project.modeling.predict import prediction_table
from mlops_project.modeling.train import fit
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Contract

SCRIPT = (
    "import sys\nfrom mlops_project.modeling import batch\nfrom mlops_project.modeling.model import load_model\n"
    "batch.CHECKPOINT_SECONDS = 0.0\n"
    "batch.predict_file(load_model('model.joblib'), 'model.joblib', *sys.argv[1:], batch_rows=100, details=True)"
)


def fit_one(name: str, applicants: Applicants, contract: Contract, params: Params) -> RiskModel:
    few = replace(params.models.decision_tree, max_depth=3)
    models, train = replace(params.models, decision_tree=few), replace(params.train, model=name)
    preprocessor = build_preprocessor(contract, params.featurize)
    return fit(applicants.table[:300], applicants.target[:300], preprocessor, contract, train, models)


@pytest.fixture(scope="module")
def model_file(_applicants: Applicants, contract: Contract, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.joblib"
    dump(fit_one("scorecard", _applicants, contract, params), path)
    return path


@pytest.fixture
def here(model_file: Path, raw_table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model and 1,020 raw rows, which is the working directory."""
    for file in (model_file, manifest_path(model_file)):
        shutil.copy(file, tmp_path)
    write_csv(raw_table, tmp_path / "rows.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(source: str = "rows.csv", output: str = "scores.csv", **options) -> pd.DataFrame:
    rows = predict_file(load_model("model.joblib"), "model.joblib", source, output, **options)
    read = pd.read_parquet if output.endswith(".parquet") else pd.read_csv
    found = read(output)
    assert len(found) == rows
    return found


@pytest.mark.parametrize("batch_rows", [1, 7, 1000, 5000])
def test_predictions_are_those_of_the_small_way(batch_rows: int, here: Path, raw_table: pd.DataFrame) -> None:
    if batch_rows == 1:
        raw_table = raw_table[:30]
        write_csv(raw_table, here / "rows.csv")
    run(batch_rows=batch_rows, details=True, reasons=3)
    model = load_model("model.joblib")
    table = raw_table.set_index(pd.RangeIndex(1, len(raw_table) + 1, name="row"))
    expected = prediction_table(model, table, model.predict_proba(table)[:, 1], details=True, reasons=3)
    assert (here / "scores.csv").read_text(encoding="utf-8") == expected.to_csv(lineterminator="\n")
    assert sorted(path.name for path in here.iterdir()) == [
        "model.joblib",
        "model.joblib.manifest.json",
        "rows.csv",
        "scores.csv",
    ]


@pytest.mark.parametrize(
    ("delimiter", "end", "encoding"), [(";", "\r\n", "utf-8"), ("\t", "\r", "utf-8-sig"), ("|", "\n", "utf-8-sig")]
)
def test_csv_files_are_read_as_they_come(delimiter, end, encoding, here, raw_table, monkeypatch) -> None:
    expected = run()
    monkeypatch.setattr(batch, "BLOCK", 100)  # line ends fall on the edges of blocks
    columns = list(raw_table.columns)[::-1]
    noted = raw_table[columns].assign(note='say "no";\n, then\r\nyes')
    text = noted.to_csv(index=False, sep=delimiter, lineterminator=end)
    (here / "other.csv").write_bytes((text + end).encode(encoding))
    pd.testing.assert_frame_equal(run("other.csv", "other-scores.csv"), expected)


def test_rows_are_named_by_their_ids_where_they_have_some(here: Path, applicants: Applicants, raw_table: pd.DataFrame) -> None:
    applicants.table[:50].to_csv("rows.csv")
    assert list(run()["applicant_id"]) == list(applicants.table.index[:50])
    raw_table[:50].to_csv("rows.csv", index=False)
    assert list(run()["row"]) == list(range(1, 51))


def test_ids_are_quoted_where_they_must_be_and_stay_text(here: Path, applicants: Applicants) -> None:
    ids = ['a,"b"', "007", "1e5", "é\nx"]
    applicants.table[:4].set_axis(pd.Index(ids, name="applicant_id")).to_csv("rows.csv")
    run()
    assert list(pd.read_csv("scores.csv", dtype=str)["applicant_id"]) == ids


def test_a_killed_run_goes_on_where_it_stopped(here: Path, raw_table: pd.DataFrame) -> None:
    long = pd.concat([raw_table] * 8, ignore_index=True)
    write_csv(long, here / "long.csv")
    predict_file(load_model("model.joblib"), "model.joblib", "long.csv", "whole.csv", details=True)
    progress, done = here / "scores.csv.progress", []
    for _ in range(3):
        before = progress.read_bytes() if progress.exists() else b""
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, "long.csv", "scores.csv"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not progress.exists() or progress.read_bytes() in (before, b""):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (here / "scores.csv").exists()
        done.append(json.loads(progress.read_bytes())["place"]["rows"])
    assert done == sorted(set(done))
    assert 0 < done[-1] < len(long)
    with (here / "scores.csv.partial").open("ab") as stream:
        stream.write(b"half a ro")  # what a kill may leave behind
    left = subprocess.run([sys.executable, "-c", SCRIPT, "long.csv", "scores.csv"], check=True, capture_output=True, text=True)
    assert left.returncode == 0
    assert (here / "scores.csv").read_bytes() == (here / "whole.csv").read_bytes()
    assert not list(here.glob("scores.csv.*"))


class Killed(Exception):  # noqa: N818
    pass


def run_some(batches: int) -> None:
    """Run so many batches of 100 rows and die behind a checkpoint."""
    columns, count = batch.prediction_columns, iter(range(batches))

    def dies(*arguments):
        if next(count, None) is None:
            raise Killed
        return columns(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch, "CHECKPOINT_SECONDS", 0.0)
        patched.setattr(batch, "prediction_columns", dies)
        with pytest.raises(Killed):
            run(batch_rows=100)


@pytest.mark.parametrize(
    "change",
    ["input", "model", "options", "damaged progress", "no partial", "short partial"],
)
def test_what_belongs_to_another_job_is_not_gone_on_with(change, here, applicants, contract, params, raw_table) -> None:
    run_some(3)
    options = {}
    if change == "input":
        write_csv(raw_table[::-1], here / "rows.csv")
    elif change == "model":
        dump(fit_one("logistic_regression", applicants, contract, params), "model.joblib")
    elif change == "options":
        options = {"details": True}
    elif change == "damaged progress":
        (here / "scores.csv.progress").write_bytes(b'{"job":')
    elif change == "no partial":
        (here / "scores.csv.partial").unlink()
    else:
        os.truncate("scores.csv.partial", 10)
    found = run(batch_rows=100, **options)
    again = run(output="fresh.csv", **options)
    pd.testing.assert_frame_equal(found, again)
    assert len(found) == len(raw_table)


def test_a_run_that_goes_on_reads_only_the_rest(here: Path, raw_table: pd.DataFrame) -> None:
    run_some(9)
    places = []
    write = batch._write

    def noting(stream, table, place, *rest):
        places.append(place)
        return write(stream, table, place, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch, "_write", noting)
        found = run(batch_rows=100)
    assert [place.rows for place in places] == [900]
    assert places[0].written > 0
    assert list(found["row"]) == list(range(1, len(raw_table) + 1))


def test_two_runs_do_not_write_one_file(here: Path) -> None:
    import fcntl

    with (here / "scores.csv.partial").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(PipelineError, match=r"scores\.csv: another run is writing it"):
            run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("laufkont,laufzeit\n1,2\n", r"column\(s\) moral, verw, .* missing"),
        ("{header}\n", "holds a header and no rows"),
        ("{header}\n{row}\n{row},9\n", "line 3 has 23 cells, expected 22"),
        ('{header}\n{row}\n"{row}\n{row}\n', r"line 3 \(to 4\) has 1 cells"),
        ("{header},laufzeit\n{row},1\n", r"column\(s\) laufzeit stand more than once"),
        ("{header}\n{row}\xe9\n", "byte 0xe9 is not UTF-8"),
        ("{header}\n\0{row}\n", "is binary or UTF-16"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing_behind(text: str, message: str, here: Path, raw_table: pd.DataFrame) -> None:
    row = ",".join(["1"] * 22)
    (here / "rows.csv").write_bytes(text.format(header=",".join(raw_table.columns), row=row).encode("latin-1"))
    with pytest.raises(DataError, match=message):
        run()
    assert not list(here.glob("scores.csv*"))


def test_an_input_that_changes_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = batch.prediction_columns

    def append(*arguments):
        with (here / "rows.csv").open("a", encoding="utf-8") as stream:
            stream.write("\n")
        return columns(*arguments)

    monkeypatch.setattr(batch, "prediction_columns", append)
    with pytest.raises(DataError, match="changed while it was read"):
        run()


def test_the_input_is_not_overwritten(here: Path) -> None:
    with pytest.raises(PipelineError, match="is the input, too"):
        run(output="rows.csv")
    with pytest.raises(DataError, match="no such file"):
        run(source="absent.csv")


def test_a_model_that_does_not_compile_is_asked_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(details=True, reasons=2)
    monkeypatch.setattr(batch, "tolerance", lambda scorer: -1.0)
    found = run(output="other.csv", details=True, reasons=2)
    pd.testing.assert_frame_equal(found, expected)


def test_reasons_of_a_model_without_compiled_contributions_are_its_own(here, applicants, contract, params, raw_table) -> None:
    dump(fit_one("decision_tree", applicants, contract, params), "model.joblib")
    write_csv(raw_table[:20], here / "rows.csv")
    found = run(reasons=2, batch_rows=8)
    expected = [[reason.code for reason in row] for row in load_model("model.joblib").reasons(raw_table[:20], 2)]
    assert found[["reason_1", "reason_2"]].apply(lambda row: list(row.dropna()), axis=1).tolist() == expected


def test_parquet_in_and_out(here: Path, raw_table: pd.DataFrame) -> None:
    pytest.importorskip("pyarrow")
    expected = run(details=True, reasons=2)
    numbers = raw_table.assign(hoehe=pd.to_numeric(raw_table["hoehe"], errors="coerce"))
    numbers.to_parquet("rows.parquet", row_group_size=300)
    numbers.to_csv("numbers.csv", index=False)
    of_numbers = run("numbers.csv", "numbers-scores.csv", details=True, reasons=2)
    found = run("rows.parquet", "scores.parquet", details=True, reasons=2, batch_rows=70)
    pd.testing.assert_frame_equal(found, of_numbers, check_dtype=False)
    assert len(found) == len(expected)
    for done in (0, 299, 300, 301, 950):
        table = batch._open_parquet(Path("rows.parquet"), load_model("model.joblib").contract, list(raw_table)[:3], 70)
        batches = list(table.batches(Place(rows=done)))
        assert [i for one in batches for i in one.ids] == list(range(done + 1, len(raw_table) + 1))
        cells = [cell for one in batches for cell in one.cells["laufzeit"]]
        np.testing.assert_array_equal(pd.Series(cells).fillna("-"), raw_table["laufzeit"][done:].fillna("-"))


def test_the_command_takes_raw_files_without_ids(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "model.joblib", "--X-test", "rows.csv"]
    assert predict([*common, "--output", "scores.csv", "--proba", "--reasons"]) == 0
    assert "scores.csv written: 1020 rows, scorecard" in capsys.readouterr().err
    assert predict([*common, "--output", "-", "--proba", "--reasons"]) == 0
    assert capsys.readouterr().out == (here / "scores.csv").read_text(encoding="utf-8")
    assert predict([*common, "--save"]) == 0
    assert len(pd.read_csv("predictions/predictions.csv")) == 1020


def test_the_command_refuses_a_model_without_a_manifest_unless_it_is_trusted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model.joblib").rename("other.joblib")
    arguments = ["--model", "other.joblib", "--X-test", "rows.csv", "--output", "scores.csv"]
    assert predict(arguments) == 1
    assert capsys.readouterr().err.startswith("error: other.joblib.manifest.json: not found; ")
    assert not Path("scores.csv").exists()
    assert predict([*arguments, "--trust-file"]) == 0
    assert len(pd.read_csv("scores.csv")) == 1020
