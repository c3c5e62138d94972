"""mlops-retrain on real repositories: what is promoted, what is refused, and that a killed run leaves everything as it was."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from mlops_project.manifest import write_keys
from mlops_project.monitoring.retrain_cli import main

COMMAND = (sys.executable, "-c", "import sys; from mlops_project.monitoring.retrain_cli import main; sys.exit(main())")
PACKAGE = str(Path(__file__).parents[2] / "src")
NAME = "credit-risk-model"


def retrain(clone, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    done = clone.run(*COMMAND, *arguments, check=False, env={"PYTHONPATH": PACKAGE} | (env or {}))
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def step(folder: Path, script: str, tmp_path, **variables: str) -> str:
    """Run a step of CI, in whose environment the package is installed."""
    command = tmp_path / "bin/mlops-retrain"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlops_project.monitoring.retrain_cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    outputs = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "GITHUB_OUTPUT": str(tmp_path / "output")}
    environment = os.environ | {"PYTHONPATH": PACKAGE, "PATH": path} | outputs | variables
    done = subprocess.run(
        ["bash", f"scripts/ci/{script}"], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state(clone) -> tuple[str, ...]:
    """What a run that fails must leave as it was: references, what is checked out, the working tree, what is served."""
    served = clone.path / "var/served"
    return (
        clone.git("for-each-ref"),
        clone.git("rev-parse", "HEAD"),
        clone.git("status", "--porcelain"),
        os.readlink(served) if served.is_symlink() else "",
    )


def audit(clone) -> list[dict]:
    text = (clone.path / "var/retraining.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def batch(new_rows, tmp_path):
    def write(n: int, seed: int, **options) -> str:
        path = tmp_path / f"batch {seed}.csv"
        new_rows(n, seed, **options).to_csv(path, index=False)
        return str(path)

    return write


# --- wrong input: the champion stays, and the message says what is wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:0], "a header and no rows"),
        (lambda rows: rows.rename(columns={"alter": "age"}), "column(s) alter of the contract missing"),
        (lambda rows: rows.assign(kredit=1), "all 60 outcomes are good"),
        (lambda rows: rows.assign(kredit="later"), "none of 60 rows has an outcome"),
        (lambda rows: rows.assign(laufkont="x", laufzeit="y", moral="z"), "180 of 1260 cells break the contract"),
    ],
)
def test_bad_files_are_refused_and_the_champion_stays(clone, new_rows, tmp_path, monkeypatch, capsys, change, message):
    change(new_rows(60, 1)).to_csv(tmp_path / "new.csv", index=False)
    before = state(clone)
    monkeypatch.chdir(clone.path)
    assert main([str(tmp_path / "new.csv"), "--no-push"]) == 1
    assert message in capsys.readouterr().err
    assert state(clone) == before
    assert [record["event"] for record in audit(clone)[-2:]] == ["begun", "failed"]
    assert message in audit(clone)[-1]["reasons"][0]


def test_no_remote_a_broken_log_and_an_empty_log_are_told_before_anything_is_done(clone, tmp_path, monkeypatch, capsys):
    before = state(clone)
    monkeypatch.chdir(clone.path)
    assert main(["new.csv"]) == 1
    assert "no Git remote 'origin' (found: none)" in capsys.readouterr().err
    (tmp_path / "broken.db").write_bytes(b"this is no database " * 100)
    assert main(["--from-log", "--log-url", f"sqlite:///{tmp_path}/broken.db", "--no-push"]) == 1
    assert "error: " in (told := capsys.readouterr().err)
    assert "unexpected" not in told, told
    assert main(["--from-log", "--log-url", f"sqlite:///{tmp_path}/absent.db", "--no-push"]) == 1
    assert "unexpected" not in capsys.readouterr().err
    assert main(["new.csv", "--no-push", "--drift", "absent.json"]) == 1
    assert "absent.json: cannot be read" in capsys.readouterr().err
    (tmp_path / "drift.json").write_text('{"drift": false}', encoding="utf-8")
    assert main(["new.csv", "--no-push", "--drift", str(tmp_path / "drift.json"), "--only-if-drift"]) == 0
    assert "no drift reported: nothing to do" in capsys.readouterr().out
    assert main(["approve", "20260101-aa", "--no-push"]) == 1
    assert main(["rollback", "--no-push"]) == 1
    assert "there is no champion before" in capsys.readouterr().err
    assert state(clone) == before


# --- the loop


@pytest.fixture(scope="module")
def base(clone):
    """The clone with quick settings, reproduced and committed."""
    clone.edit("params.yaml", "n_repeats: 3", "n_repeats: 1")
    clone.edit("params.yaml", "bootstrap_samples: 2000", "bootstrap_samples: 400")
    clone.edit("params.yaml", "importance_repeats: 5", "importance_repeats: 1")
    clone.repro()
    clone.commit("quick")
    return clone


@pytest.fixture
def fresh(base, tmp_path):
    """The base with an empty Git remote and an empty DVC remote of its own."""
    base.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "origin.git"))
    base.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    base.git("push", "--quiet", "origin", "main")
    (tmp_path / "team").mkdir()
    base.dvc("remote", "add", "--quiet", "--local", "--force", "--default", "team", str(tmp_path / "team"))
    yield base
    base.git("remote", "remove", "origin")
    base.dvc("remote", "remove", "--quiet", "--local", "team")
    for ref in base.git("for-each-ref", "--format=%(refname)", "refs/tags", "refs/heads/retrain").split():
        base.git("update-ref", "-d", ref)
    shutil.rmtree(base.path / "var", ignore_errors=True)


@pytest.mark.integration
def test_what_learnt_the_new_behaviour_is_promoted_pushed_served_and_taken_back(fresh, batch, tmp_path):
    new = batch(1500, 2, drift=True)
    main_before, head = fresh.git("status", "--porcelain"), fresh.git("rev-parse", "HEAD").strip()
    printed = retrain(fresh, new, "--concept-drift", "--serve", "var/served", "--into", "main", "--trigger", "test")
    assert "evaluate.roc_auc is better" in printed
    assert fresh.git("status", "--porcelain") == main_before, "the checkout is left alone"
    champion = fresh.git("rev-parse", f"{NAME}#champion#2^{{commit}}").strip()
    assert fresh.git("rev-parse", f"{NAME}#champion#1^{{commit}}").strip() == head
    assert fresh.git("rev-parse", f"{NAME}@v0.0.2^{{commit}}").strip() == champion
    assert fresh.git("rev-parse", f"{champion}^").strip() == head
    message = fresh.git("log", "-1", "--format=%B", champion)
    assert message.startswith("Retrain on 1")
    assert "old_approved" in message
    assert f"Champion: {head}" in message
    # Out of the house: commit, tags, the branch that moves forward, and the data.
    remote = fresh.git("ls-remote", "origin")
    for ref in ("refs/heads/main", f"refs/tags/{NAME}@v0.0.2^{{}}", f"refs/tags/{NAME}#champion#2^{{}}"):
        assert f"{champion}\t{ref}\n" in remote
    fresh.run("git", "clone", "--quiet", str(tmp_path / "origin.git"), str(tmp_path / "elsewhere"))
    for revision, rows in ((champion, 2400), (head, 1020)):
        table = tmp_path / f"{revision}.csv"
        fresh.dvc("get", "--quiet", ".", "data/raw/german_credit_modified.csv", "--rev", revision, "--out", str(table))
        assert len(table.read_text(encoding="utf-8").splitlines()) > rows, "both versions can be had"
    # What is served is what was committed.
    served = fresh.path / "var/served"
    manifest = fresh.git("show", f"{champion}:models/best_model.joblib.manifest.json")
    assert (served / "best_model.joblib.manifest.json").read_text(encoding="utf-8") == manifest
    record = audit(fresh)[-1]
    assert (record["event"], record["version"], record["commit"], record["trigger"]) == ("promoted", "v0.0.2", champion, "test")
    accepted = next(record for record in audit(fresh) if record["event"] == "accepted")
    assert accepted["data"]["md5"] in fresh.git("show", f"{champion}:data/raw/german_credit_modified.csv.dvc")
    assert accepted["challenger"]["model"] in manifest
    # The same rows once more are nothing new, and the new champion is what they are compared with.
    before = state(fresh)
    assert "are in german_credit_modified.csv already" in retrain(fresh, new, "--no-push", code=1)
    assert state(fresh) == before
    # And back.
    assert "rolled back; champion is v0.0.1" in retrain(fresh, "rollback", "--serve", "var/served")
    assert fresh.git("rev-parse", f"{NAME}#champion#3^{{commit}}").strip() == head
    assert f"{head}\trefs/tags/{NAME}#champion#3" in fresh.git("ls-remote", "origin")
    manifest = (served / "best_model.joblib.manifest.json").read_text(encoding="utf-8")
    assert manifest == fresh.git("show", f"{head}:models/best_model.joblib.manifest.json")
    assert audit(fresh)[-1]["event"] == "rolled_back"
    assert "v0.0.1" in fresh.run("gto", "show", f"{NAME}#champion").stdout


@pytest.mark.integration
def test_noise_is_rejected_with_and_without_drift_and_leaves_everything_as_it_was(fresh, batch, tmp_path):
    before = state(fresh)
    for drift in ("false", "true"):
        # As CI runs it, for which a rejection is no failure.
        printed = step(fresh.path, "retrain.sh", tmp_path, ROWS=batch(700, 3, noise=True), CONCEPT_DRIFT=drift)
        assert "rejected; champion is" in printed
        assert "rejected; champion is" in (tmp_path / "summary").read_text(encoding="utf-8")
        assert (tmp_path / "output").read_text(encoding="utf-8") == ""
        assert state(fresh) == before
        record = audit(fresh)[-1]
        assert (record["event"], record["decision"]) == ("rejected", "reject")
        assert record["reasons"]
        assert record["report"]["populations"]["new"]["rows"] > 100


@pytest.mark.integration
def test_a_challenger_waits_for_approval_in_shadow_and_is_promoted_by_another_job(fresh, batch, new_rows, tmp_path):
    fill_log(fresh, new_rows, tmp_path)
    fresh.edit("params.yaml", "reject_inference: none", "reject_inference: fuzzy")
    url = ("--log-url", f"sqlite:///{tmp_path}/log.db")
    head = fresh.git("rev-parse", "HEAD").strip()
    try:
        printed = retrain(fresh, batch(1500, 2, drift=True), "--concept-drift", "--shadow", *url)
    finally:
        fresh.git("checkout", "--quiet", "params.yaml")
    run = audit(fresh)[-1]["run"]
    assert f"{run}: awaiting approval; champion is {head[:10]}" in printed
    assert "Reject inference (fuzzy augmentation with 40 refused applicants; not what is promoted)" in printed
    assert "In shadow: 200 predictions of the log" in printed
    scores = (fresh.path / f"var/shadow/{run}.csv").read_text(encoding="utf-8").splitlines()
    assert len(scores) == 201
    assert fresh.git("tag") == ""
    assert [line.split("\t")[1] for line in fresh.git("ls-remote", "--heads", "origin").splitlines()] == [
        "refs/heads/main", f"refs/heads/retrain/{run}",
    ]  # fmt: skip
    # Another machine, as a job of CI.
    place = tmp_path / "job"
    fresh.run("git", "clone", "--quiet", str(tmp_path / "origin.git"), str(place))
    shutil.copy(fresh.path / ".dvc/config.local", place / ".dvc/config.local")
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    printed = step(place, "approve.sh", tmp_path, RUN=run, TARGET="main", **nobody)
    assert f"{run}: promoted; champion is v0.0.2" in printed
    fresh.git("fetch", "--quiet", "--tags", "origin")
    assert fresh.git("rev-parse", "origin/main").strip() == fresh.git("rev-parse", f"{NAME}#champion#2^{{commit}}").strip()
    assert "but champion is v0.0.2" in retrain(fresh, "approve", run, code=1), "it was compared with another"


def fill_log(clone, new_rows, tmp_path) -> None:
    import asyncio

    from mlops_project.serving.log import PredictionLog
    from mlops_project.serving.records import Record, new_request_id, results

    rows = json.loads(new_rows(200, 8).drop(columns="kredit").to_json(orient="records"))

    async def fill() -> None:
        log = PredictionLog.open(f"sqlite:///{tmp_path}/log.db")
        answers = results([0.9] * 200, [0.1] * 200, [500.0] * 200, ["approve"] * 160 + ["refuse"] * 40)
        await log.append([Record(new_request_id(), time.time(), "m", json.dumps(rows).encode(), answers, rows=200)])
        await log.close()

    asyncio.run(fill())


def content(path: Path) -> str:
    """Of a file that may go at any moment."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def has(path: Path, text: str) -> bool:
    return text in content(path)


def kill_when(process, has_come) -> bool:
    """Kill a run with all that it started when it has come so far; return whether it was still at work."""
    try:
        while process.poll() is None and not has_come():
            time.sleep(0.001)
        return process.poll() is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def moments(clone):
    """When to kill: each function says whether a run has come so far."""
    copies = clone.path / ".dvc/tmp/retraining"
    log = clone.path / "var/retraining.jsonl"

    def any_of(pattern: str, check=lambda path: True):
        def has_come() -> bool:
            with contextlib.suppress(FileNotFoundError):  # folders come and go
                return any(check(path) for path in copies.glob(f"*/tree/{pattern}"))
            return False

        return has_come

    champion = clone.git("show", "HEAD:models/policy.json.manifest.json")
    data = clone.git("show", "HEAD:data/raw/german_credit_modified.csv.dvc")
    return {
        "begun": lambda: has(log, '"begun"'),
        "the copy is there": any_of("dvc.yaml"),
        "data is added": any_of("data/raw/german_credit_modified.csv.dvc", lambda path: content(path) not in ("", data)),
        "the pipeline runs": any_of(".dvc/tmp/rwlock", lambda path: has(path, "write")),
        "the challenger is there": any_of("models/policy.json.manifest.json", lambda path: content(path) not in ("", champion)),
        "its commit is there": any_of(".git/refs/heads/retrain/*"),
        "decided": lambda: has(log, '"accepted"'),
    }


@pytest.mark.integration
def test_of_a_folder_of_months_a_batch_becomes_one_more_file(fresh, batch):
    head = fresh.git("rev-parse", "HEAD").strip()
    table, folder = fresh.path / "data/raw/german_credit_modified.csv", fresh.path / "data/raw/applications"
    header, *rows = table.read_bytes().splitlines(keepends=True)
    folder.mkdir()
    for name, part in (("2026-01.csv", rows[:500]), ("2026-02.csv", rows[500:])):
        (folder / name).write_bytes(header + b"".join(part))
    fresh.edit("params.yaml", "raw: data/raw/german_credit_modified.csv", "raw: data/raw/applications")
    fresh.dvc("add", "--quiet", "data/raw/applications")
    fresh.repro()
    fresh.commit("months")
    try:
        printed = retrain(fresh, batch(1500, 2, drift=True), "--concept-drift", "--no-push")
        assert "evaluate.roc_auc is better" in printed
        tracked = fresh.git("show", f"{NAME}#champion#2:data/raw/applications.dvc")
        assert "nfiles: 3" in tracked
        accepted = next(record for record in audit(fresh) if record["event"] == "accepted")
        assert f"md5: {accepted['data']['md5']}\n" in tracked, "the hash by which DVC knows the folder"
        names = fresh.dvc("list", ".", "data/raw/applications", "--rev", f"{NAME}#champion#2").stdout.split()
        assert names == ["2026-01.csv", "2026-02.csv", "2026-02_batch001.csv"]
    finally:
        fresh.git("reset", "--quiet", "--hard", head)
        shutil.rmtree(folder)
        fresh.dvc("checkout", "--quiet", "--force")


@pytest.mark.integration
def test_a_run_that_is_killed_leaves_champion_service_and_repository_as_they_were(fresh, batch):
    new = batch(1500, 2, drift=True)
    retrain(fresh, "place", "--serve", "var/served")
    before = state(fresh)
    reached = []
    for moment, has_come in moments(fresh).items():
        (fresh.path / "var/retraining.jsonl").unlink(missing_ok=True)
        arguments = (*COMMAND, new, "--concept-drift", "--serve", "var/served")
        process = fresh.start(*arguments, env={"PYTHONPATH": PACKAGE})
        if kill_when(process, has_come):
            reached.append(moment)
        assert state(fresh) == before, moment
    assert len(reached) >= 6, reached
    # And at last it is let go on.
    retrain(fresh, new, "--concept-drift", "--serve", "var/served")
    assert state(fresh) != before
    assert not (fresh.path / ".dvc/tmp/retraining").exists() or not list((fresh.path / ".dvc/tmp/retraining").iterdir())


@pytest.mark.integration
def test_a_promotion_that_is_killed_in_its_last_step_is_done_or_not_done(fresh, batch):
    new = batch(1500, 2, drift=True)
    retrain(fresh, "place", "--serve", "var/served")
    log = fresh.path / "var/retraining.jsonl"
    before = state(fresh)
    for pause in (0.0, 0.02, 0.05):
        log.unlink(missing_ok=True)
        process = fresh.start(*COMMAND, new, "--concept-drift", "--serve", "var/served", env={"PYTHONPATH": PACKAGE})
        kill_when(process, lambda pause=pause: has(log, '"promoting"') and not time.sleep(pause))
        for lock in (fresh.path / ".git").rglob("*.lock"):  # `make doctor FIX=1` does so
            lock.unlink()
        done = f"{NAME}#champion#2" in fresh.git("tag")
        # Any next command finishes it or clears it away.
        retrain(fresh, "place", "--serve", "var/served")
        if done:
            assert audit(fresh)[-1]["event"] == "promoted"
            commit = fresh.git("rev-parse", f"{NAME}#champion#2^{{commit}}").strip()
            assert os.readlink(fresh.path / "var/served").endswith(commit[:12])
            assert f"{commit}\trefs/tags/{NAME}#champion#2^{{}}" in fresh.git("ls-remote", "origin")
            return
        assert audit(fresh)[-1]["event"] in {"abandoned", "accepted"}
        assert state(fresh) == before


@pytest.fixture
def service(fresh, tmp_path):
    """A service that reads the link, wants signatures, and is asked all the time; yields its address and what it answered."""
    write_keys(tmp_path / "key.pem")
    retrain(fresh, "place", "--serve", "var/served", env={"MLOPS_SIGNING_KEY_FILE": str(tmp_path / "key.pem")})
    command = [
        sys.executable, "-m", "mlops_project.serving.server", "--port", "0", "--workers", "1", "--insecure", "--log-url", "off",
        "--rate-limit", "off", "--model", "var/served/best_model.joblib", "--policy", "var/served/policy.json",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": PACKAGE, "MLOPS_MANIFEST_KEY_FILE": str(tmp_path / "key.pem.pub")}
    with subprocess.Popen(command, cwd=fresh.path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
        reader.start()
        while not (found := re.search(r"ready at (http://127\.0\.0\.1:\d+)", "".join(lines))):
            assert process.poll() is None, lines
            time.sleep(0.05)
        answers: list[str] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                request = urllib.request.Request(f"{found[1]}/v1/predict", b"{}", {"Content-Type": "application/json"})  # noqa: S310
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                        answers.append(json.loads(answer.read())["model_version"])
                except OSError as error:
                    answers.append(str(error))
                time.sleep(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        yield found[1], answers
        over.set()
        asking.join()
        process.terminate()
        process.wait(30)
        reader.join()


@pytest.mark.integration
def test_a_service_answers_by_the_new_champion_and_after_a_rollback_by_the_old_without_a_failed_request(
    fresh, service, batch, tmp_path
):
    address, answers = service
    arguments = ("--serve", "var/served", "--reload", address)
    signed = {"MLOPS_SIGNING_KEY_FILE": str(tmp_path / "key.pem")}
    retrain(fresh, batch(1500, 2, drift=True), "--concept-drift", *arguments, env=signed)
    time.sleep(1)
    promoted = next(record for record in audit(fresh) if record["event"] == "accepted")
    old, new = promoted["champion"]["model"], promoted["challenger"]["model"]
    assert answers[-1] == new
    retrain(fresh, "rollback", *arguments, env=signed)
    time.sleep(1)
    assert answers[-1] == old
    assert set(answers) == {old, new}, "no request failed"
    # A key that the service does not know: it refuses, and goes on.
    write_keys(tmp_path / "other.pem")
    shutil.rmtree(fresh.path / "var/served.d")
    told = retrain(fresh, "place", *arguments, env={"MLOPS_SIGNING_KEY_FILE": str(tmp_path / "other.pem")}, code=1)
    assert "the service answered 409" in told
    time.sleep(0.5)
    assert answers[-1] == old


@pytest.mark.integration
def test_two_runs_at_once_exclude_each_other(fresh, batch):
    new = batch(700, 3, noise=True)
    process = fresh.start(*COMMAND, new, env={"PYTHONPATH": PACKAGE})
    while not has(fresh.path / "var/retraining.jsonl", '"begun"'):
        time.sleep(0.01)
    printed = retrain(fresh, new, code=1)
    assert f"another retraining is at work here: process {process.pid} on " in printed
    assert process.wait() == 3


@pytest.mark.integration
def test_a_log_of_outcomes_that_is_none_is_refused(fresh, tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE x (y)")
    other.close()
    before = state(fresh)
    retrain(fresh, "--from-log", "--log-url", f"sqlite:///{tmp_path}/other.db", code=1)
    assert state(fresh) == before
