"""What a user sees of a run: readable lines, one line per error, the rest in the log file, and exit codes."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_project.errors import ContractError, DataError, ParamsError, PipelineError
from mlops_project.runtime import LAST_ERROR, LOG_FILE, guarded, run_stage, setup_logging

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def failing(error: BaseException):
    def work() -> None:
        raise error

    return work


# --- standard output


@pytest.mark.parametrize(
    ("to", "told"),
    [(">/dev/full", "error: standard output: No space left on device; "), (">&-", "error: standard output: is closed; ")],
)
def test_a_standard_output_that_takes_nothing_is_one_line(to: str, told: str, workdir: Path) -> None:
    script = (
        "import sys, pandas; from mlops_project.files import write_table; from mlops_project.runtime import guarded;"
        "sys.exit(guarded(lambda: write_table(pandas.DataFrame({'x': [1]}), '-')))"
    )
    command = ["sh", "-c", f'"$@" {to}', "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(told)


# --- logging


def test_lines_are_readable_on_stderr_and_full_in_the_file(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    logging.getLogger("mlops_project.dataset").info("read %d rows", 5)
    logging.getLogger("mlops_project").debug("detail")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "read 5 rows\n")
    log = (workdir / LOG_FILE).read_text().splitlines()
    assert re.fullmatch(rf"{STAMP} - mlops_project.dataset - INFO - read 5 rows", log[0])
    assert re.fullmatch(rf"{STAMP} - mlops_project - DEBUG - detail", log[1])


def test_verbose_lines_are_full(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(logging.DEBUG)
    logging.getLogger("mlops_project").debug("detail")
    assert re.fullmatch(rf"{STAMP} - mlops_project - DEBUG - detail\n", capsys.readouterr().err)


def test_set_up_twice_logs_once_and_appends(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    logging.getLogger("mlops_project").info("one")
    setup_logging(logging.WARNING)
    logging.getLogger("mlops_project").info("two")
    logging.getLogger("mlops_project").warning("three")
    assert capsys.readouterr().err == "one\nthree\n"
    assert [line.rpartition(" - ")[2] for line in (workdir / LOG_FILE).read_text().splitlines()] == ["one", "two", "three"]


def test_a_log_file_that_cannot_be_written_does_not_stop_the_work(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "logs").write_text("a file where the folder should be")
    setup_logging()
    logging.getLogger("mlops_project").info("work")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{LOG_FILE}: no log file (File exists)", "work"]


def test_importing_sets_up_nothing(workdir: Path) -> None:
    code = "import logging, mlops_project.runtime, mlops_project.dataset; assert not logging.getLogger('mlops_project').handlers"
    done = subprocess.run([sys.executable, "-c", code], cwd=workdir, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(workdir.iterdir()) == []


# --- guarded


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_the_exit_code_is_that_of_the_work(result: int | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: result, failed=2) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [PipelineError, ParamsError, ContractError, DataError])
def test_expected_errors_are_one_line_and_their_traceback_is_in_the_log_file(kind, workdir: Path, capsys) -> None:
    setup_logging()
    assert guarded(failing(kind("a.csv: is empty")), hint=" | try again") == 1
    assert capsys.readouterr() == ("", "error: a.csv: is empty | try again\n")
    log = (workdir / LOG_FILE).read_text()
    assert "Traceback (most recent call last)" in log
    assert f"{kind.__name__}: a.csv: is empty" in log


def test_the_exit_code_of_expected_errors_can_be_given() -> None:
    assert guarded(failing(DataError("x")), failed=2) == 2
    assert guarded(failing(MemoryError()), failed=2) == 2
    assert guarded(failing(ValueError("x")), failed=2) == 70


def test_verbose_shows_the_traceback(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(logging.DEBUG)
    assert guarded(failing(DataError("a.csv: is empty")), verbose=True) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: a.csv: is empty\n")


def test_a_bug_says_so_in_one_line(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    assert guarded(failing(KeyError("many\n  lines " + "x" * 500)), hint=" | try again") == 70
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected KeyError: 'many\\n lines xxx")
    assert err.endswith(f" (a bug; traceback in {LOG_FILE} or with --verbose) | try again\n")
    assert err.count("\n") == 1
    assert len(err) < 450
    assert "KeyError" in (workdir / LOG_FILE).read_text()
    setup_logging(logging.DEBUG)
    assert guarded(failing(ValueError("two\nlines")), verbose=True) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "error: unexpected ValueError: two lines (a bug;" in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written\n"),
        (MemoryError(), 1, "error: out of memory; try fewer rows or a machine with more memory\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_interruptions(error: BaseException, code: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert guarded(failing(error)) == code
    assert capfd.readouterr() == ("", message)


@pytest.mark.parametrize("lines", [1, 200_000])
def test_a_reader_that_has_gone_is_no_error(lines: int, workdir: Path, buffered: dict[str, str]) -> None:
    """As with `| head -1`: the pipe breaks in the middle of the output, or when the last of it is flushed."""
    code = f"import sys; from mlops_project.runtime import guarded; sys.exit(guarded(lambda: print('line\\n' * {lines})))"
    pipe, arguments = subprocess.PIPE, [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdout=pipe, stderr=pipe, cwd=workdir, env=buffered) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


# --- run_stage


def stage(work, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["stage.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_stage(work, "what it does")
    return caught.value.code


def test_a_stage_exits_with_its_code(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert stage(lambda: None, monkeypatch) == 0
    assert stage(failing(DataError("a.csv: is empty")), monkeypatch) == 1
    assert capsys.readouterr() == ("", "error: a.csv: is empty\n")
    assert (workdir / LOG_FILE).exists()


def test_a_stage_under_dvc_says_how_to_get_the_old_outputs_back(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("DVC_STAGE", "prepare")
    assert stage(failing(DataError("a.csv: is empty")), monkeypatch) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: a.csv: is empty \| dvc removed this stage's old outputs before it ran: `make restore` .*\n", err)


def test_the_options_of_a_stage(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert stage(failing(DataError("a.csv: is empty")), monkeypatch, "--verbose") == 1
    assert "Traceback" in capsys.readouterr().err
    assert stage(lambda: None, monkeypatch, "--help") == 0
    assert "what it does" in capsys.readouterr().out
    assert stage(lambda: None, monkeypatch, "--no-such-option") == 2


def test_a_failed_stage_leaves_the_class_of_its_error_until_the_next_one_starts(workdir: Path, monkeypatch) -> None:
    for error in (DataError("a.csv: is empty"), ParamsError("no model"), KeyError("a bug")):
        assert stage(failing(error), monkeypatch) != 0
        assert json.loads(LAST_ERROR.read_text()) == {"class": type(error).__name__, "message": str(error)}
    assert stage(lambda: None, monkeypatch) == 0
    assert not LAST_ERROR.exists()
    # An interruption is no error of the stage.
    assert stage(failing(DataError("a.csv: is empty")), monkeypatch) == 1
    assert stage(failing(KeyboardInterrupt()), monkeypatch) == 130
    assert not LAST_ERROR.exists()


def test_a_log_folder_that_cannot_be_written_does_not_hide_the_error(workdir: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (workdir / "logs").write_text("a file where the folder should be")
    assert stage(failing(DataError("a.csv: is empty")), monkeypatch) == 1
    assert capsys.readouterr().err.endswith("\nerror: a.csv: is empty\n")
