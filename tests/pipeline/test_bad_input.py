"""What cannot work ends in one line that says what to do, and changes no file."""

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from build_raw_data import make_dirty, write_csv

ROOT = Path(__file__).resolve().parents[2]
RAW = "data/raw/german_credit_modified.csv"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, clean_table):
    """Data of the pipeline, prepared once, without DVC."""
    path = tmp_path_factory.mktemp("prepared")
    (path / "data/raw").mkdir(parents=True)
    write_csv(make_dirty(clean_table, seed=7), path / RAW)
    for name in ("data/schema.yaml", "params.yaml"):
        (path / name).write_bytes((ROOT / name).read_bytes())
    assert stage(path, "prepare").returncode == 0
    return path


@pytest.fixture
def workspace(tmp_path, prepared):
    return Path(shutil.copytree(prepared, tmp_path / "workspace"))


def stage(workspace: Path, name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    script = str(ROOT / "src" / f"{name}.py")
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=workspace, capture_output=True, text=True, check=False, timeout=300, **options
    )


def snapshot(workspace: Path) -> dict[str, str]:
    files = (path for path in workspace.rglob("*") if path.is_file() and "logs" not in path.parts and path != workspace / RAW)
    return {str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def columns(table: pd.DataFrame, **changes) -> bytes:
    return csv(table.assign(**changes))


def csv(table: pd.DataFrame, **options) -> bytes:
    return table.to_csv(index=False, **options).encode()


def wide(table: pd.DataFrame) -> bytes:
    header = ",".join([*table.columns, *(f"extra{i}" for i in range(100_000))])
    return f"{header}\n{','.join(['1'] * 100_022)}\n".encode()


REFUSED = {
    "absent": (lambda t: None, "no such file"),
    "empty": (lambda t: b"", "is empty"),
    "header only": (lambda t: csv(t.head(0)), "no rows"),
    "binary": (lambda t: bytes(range(256)) * 40, "binary"),
    "utf-16": (lambda t: t.to_csv(index=False).encode("utf-16"), "UTF-16"),
    "latin-1": (lambda t: columns(t, mixed_type_col="für").decode().encode("latin-1"), "not UTF-8"),
    "wrong delimiter": (lambda t: csv(t, sep=":"), "expected columns separated by"),
    "column missing": (lambda t: csv(t.drop(columns="hoehe")), "hoehe"),
    "column doubled": (lambda t: csv(pd.concat([t, t[["hoehe"]]], axis=1)), "hoehe stand more than once"),
    "one class": (lambda t: columns(t, kredit="1.0"), "kredit = 0"),
    "no valid target": (lambda t: columns(t, kredit="maybe"), "kredit = 1"),
    "row too short": (lambda t: csv(t.head(50)) + b"1,2,3\n", "line 52 has 3 cells, expected 22"),
    "row too long": (lambda t: csv(t.head(50)) + b"1," * 30 + b"\n", "line 52 has 31 cells, expected 22"),
    "100,000 columns": (wide, "100022 columns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_prepare_refuses(workspace, raw_table, case):
    make, expected = REFUSED[case]
    before = snapshot(workspace)
    content = make(raw_table)
    if content is None:
        (workspace / RAW).unlink()
    else:
        (workspace / RAW).write_bytes(content)
    done = stage(workspace, "prepare")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert expected in errors[0]
    assert errors[0] == done.stderr.splitlines()[-1]
    assert snapshot(workspace) == before


def test_verbose_shows_the_traceback(workspace):
    (workspace / RAW).unlink()
    assert "Traceback" in stage(workspace, "prepare", "--verbose").stderr


def test_too_few_rows_for_the_folds(workspace):
    for name in ("Xtraintest", "ytraintest"):
        path = workspace / "data/processed" / f"{name}.csv"
        path.write_text("\n".join(path.read_text(encoding="utf-8").split("\n")[:5]) + "\n", encoding="utf-8")
    assert stage(workspace, "featurize").returncode == 0
    done = stage(workspace, "train")
    assert done.returncode == 1
    assert "error: cross-validation: found" in done.stderr
    assert not (workspace / "metrics/train.json").exists()


def test_stage_before_its_inputs(workspace):
    done = stage(workspace, "evaluate")
    assert done.returncode == 1
    assert done.stderr.startswith("error: models/best_model.joblib: not found; run `dvc repro`")


def test_outside_the_project(tmp_path):
    done = stage(tmp_path, "prepare")
    assert done.returncode == 1
    assert "run from the folder that holds dvc.yaml" in done.stderr


def test_output_folder_that_cannot_be_written(workspace):
    # A file where the folder should be: refuses root too, whom permissions do not stop.
    (workspace / "metrics/prepare.json").unlink()
    (workspace / "metrics").rmdir()
    (workspace / "metrics").write_text("in the way")
    done = stage(workspace, "prepare")
    assert done.returncode == 1
    assert "error: metrics/prepare.json: cannot be written" in done.stderr


def test_disk_full(workspace):
    before = snapshot(workspace)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = stage(workspace, "prepare", preexec_fn=limit)
    assert done.returncode == 1
    assert "cannot be written (File too large)" in done.stderr
    assert snapshot(workspace) == before


SURVIVED = {
    "CRLF": lambda t: csv(t, lineterminator="\r\n"),
    "byte order mark": lambda t: b"\xef\xbb\xbf" + csv(t),
    "semicolons": lambda t: csv(t, sep=";"),
    "tabs": lambda t: csv(t, sep="\t"),
    "quoted cells": lambda t: csv(t, quoting=1),
    "shuffled columns": lambda t: csv(t[sorted(t.columns)]),
    "extra columns": lambda t: columns(t, note="x, y", other=""),
}


@pytest.mark.parametrize("case", SURVIVED)
def test_prepare_survives_another_form_of_the_same_table(workspace, raw_table, case):
    before = snapshot(workspace)
    (workspace / RAW).write_bytes(SURVIVED[case](raw_table))
    assert stage(workspace, "prepare").returncode == 0
    assert snapshot(workspace) == before, "the same cells give the same bytes"


def test_the_whole_pipeline_survives_odd_columns(workspace, raw_table):
    table = raw_table.copy()
    table["verm"] = ""
    table["wohn"] = "3.0"
    table.loc[:40, "verw"] = "77"
    write_csv(table, workspace / RAW)
    for name in ("prepare", "featurize", "train", "evaluate"):
        done = stage(workspace, name)
        assert done.returncode == 0, done.stderr
        if name == "prepare":
            assert "verm holds no valid value" in done.stderr
    report = pd.read_json(workspace / "metrics/prepare.json")["columns"]
    assert report["verm"]["missing"] == len(table)
    assert report["verw"]["out_of_contract"] >= 41


def test_failed_repro_says_how_to_restore(clone):
    clone.repro("--pull")
    committed = clone.git("rev-parse", "HEAD:metrics/prepare.json")
    good = (clone.path / "data/processed/Xtest.csv").read_bytes()
    raw = clone.path / RAW
    raw.write_text("a,b\n1,2\n")
    done = clone.dvc("repro", check=False)
    assert done.returncode != 0
    assert "make restore" in done.stderr
    # What `make restore` does, without setting up an environment in the clone.
    clone.git("checkout", "--", "dvc.lock", "metrics", "models")
    clone.dvc("checkout", "--force", "prepare", "featurize", "train", "evaluate")
    assert (clone.path / "data/processed/Xtest.csv").read_bytes() == good
    assert clone.git("hash-object", "metrics/prepare.json") == committed
    assert raw.read_text() == "a,b\n1,2\n", "the file that was put in place stays for mending"
    clone.git("checkout", "--", ".")
    clone.dvc("checkout", "--force")
    assert "ran" not in clone.repro().values()


@pytest.mark.integration
def test_killed_at_any_moment(clone):
    clone.repro("--pull")
    clone.edit("params.yaml", "n_repeats: 3", "n_repeats: 1")
    moments = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--force"],
            cwd=clone.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )
        time.sleep(moments.uniform(1, 7))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # DVC does not write its own lock file atomically; killed in that moment it asks people to remove it.
        lock = clone.path / ".dvc/tmp/rwlock"
        with contextlib.suppress(FileNotFoundError):
            try:
                json.loads(lock.read_text(encoding="utf-8") or "{}")
            except ValueError:
                lock.unlink()
    clone.repro()
    assert clone.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    assert ".tmp" not in clone.git("status", "--short", "--untracked-files=all"), "what a killed writer left is ignored"
    # Outputs that were restored and not written anew left it there; who writes a file again removes it.
    clone.repro("--force")
    leftover = [path.name for path in clone.path.rglob(".*.tmp") if ".dvc" not in path.parts]
    assert leftover == []
