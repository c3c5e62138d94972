"""Who is champion, and what is left of a promotion that a killed process had begun; the lock and the audit log."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mlops_project.errors import PipelineError
from mlops_project.monitoring import promotion
from mlops_project.monitoring.audit import AuditLog
from mlops_project.monitoring.isolated import LOCK, PLACE, locked
from mlops_project.monitoring.promotion import Target
from mlops_project.monitoring.retrain_cli import main
from mlops_project.monitoring.retraining import candidate, read_reports
from mlops_project.serving.stores import open_store


def tag(name: str, commit: str) -> None:
    subprocess.run(["git", "update-ref", f"refs/tags/{name}", commit], check=True)


def test_until_somebody_is_promoted_the_champion_is_what_is_checked_out(repository):
    head = repository()
    assert promotion.artifact() == "risk"
    assert promotion.champion("risk") == promotion.Champion(head, None, 0)
    tag("risk@v1.2.0", head)
    tag("risk@v1.10.0", head)
    assert promotion.champion("risk").version == "v1.10.0"


def test_the_way_back_leads_over_those_that_were_not_taken_back(repository):
    commits = [repository() for _ in range(4)]
    for number, commit in enumerate([0, 1, 2, 1], 1):
        tag(f"risk#champion#{number}", commits[commit])
    assert promotion.champion("risk").commit == commits[1]
    assert promotion.predecessor("risk").commit == commits[0]
    tag("risk#champion#5", commits[0])
    with pytest.raises(PipelineError, match="no champion before"):
        promotion.predecessor("risk")
    tag("risk#champion#10", commits[3])
    assert promotion.champion("risk").commit == commits[3], "ten comes after five"


def test_a_promotion_that_had_not_come_to_pass_is_cleared_away(repository, workdir):
    commit, audit = repository(), AuditLog("audit.jsonl", "t")
    refs = ["refs/heads/retrain/x", "refs/tags/risk@v0.0.2", "refs/tags/risk#champion#2"]
    audit.append("promoting", "x", {
        "kind": "promotion", "commit": commit, "version": "v0.0.2", "number": 2, "refs": refs, "target": Target()._asdict(),
    })  # fmt: skip
    tag("risk@v0.0.2", commit)
    promotion.settle(audit)
    assert audit.read()[-1]["event"] == "abandoned"
    assert subprocess.run(["git", "tag"], check=True, capture_output=True, text=True).stdout == ""
    promotion.settle(audit)
    assert len(audit.read()) == 2, "once is enough"


def test_a_promotion_that_had_come_to_pass_is_finished(repository, workdir):
    commit, audit = repository(), AuditLog("audit.jsonl", "t")
    subprocess.run(["git", "init", "-q", "--bare", "remote.git"], check=True)
    subprocess.run(["git", "remote", "add", "origin", "remote.git"], check=True)
    refs = ["refs/tags/risk@v0.0.2", "refs/tags/risk#champion#2"]
    for ref in refs:
        tag(ref.removeprefix("refs/tags/"), commit)
    record = {"kind": "promotion", "commit": commit, "version": "v0.0.2", "number": 2, "refs": refs}
    audit.append("promoting", "x", record | {"target": Target("origin", "main")._asdict()})
    promotion.settle(audit)
    assert audit.read()[-1]["event"] == "promoted"
    pushed = subprocess.run(["git", "ls-remote", "remote.git"], check=True, capture_output=True, text=True).stdout
    assert {line.split("\t")[1] for line in pushed.splitlines()} - {"HEAD"} == {"refs/heads/main", *refs}


def test_a_link_is_exchanged_at_once_and_a_folder_is_not_touched(workdir):
    for name in ("one", "two"):
        (workdir / "served.d" / name).mkdir(parents=True)
        promotion.link(workdir / "served.d" / name, "served")
        assert (workdir / "served").resolve() == workdir / "served.d" / name
    (workdir / "folder").mkdir()
    with pytest.raises(PipelineError, match="is no link"):
        promotion.check_target(Target(serve="folder"))


def test_a_remote_that_is_not_there_is_named_before_anything_is_done(repository):
    with pytest.raises(PipelineError, match=r"no Git remote 'origin' \(found: none\).*--no-push"):
        promotion.check_target(Target("origin"))


def test_who_is_not_waiting_cannot_be_approved(repository):
    commit = repository()
    subprocess.run(["git", "branch", "retrain/20260101-abc", commit], check=True)
    with pytest.raises(PipelineError, match=r"no branch retrain/20260101-abc with a challenger .* found: 20260101-abc"):
        candidate("20260101-abc")


def test_runs_exclude_each_other_and_the_message_names_the_holder(workdir):
    (workdir / ".dvc").mkdir()
    with locked("first"):
        other = [sys.executable, "-c", "from mlops_project.monitoring.isolated import locked\nwith locked('second'): pass"]
        done = subprocess.run(other, check=False, capture_output=True, text=True)
        assert f"another retraining is at work here: process {os.getpid()} on " in done.stderr
        assert "(first, since " in done.stderr
    with locked("third"):
        pass


def test_the_lock_goes_with_a_killed_process_and_so_does_its_copy(workdir):
    (workdir / ".dvc").mkdir()
    code = (
        "import time\nfrom mlops_project.monitoring.isolated import PLACE, locked\n"
        "with locked('x'):\n    (PLACE / 'tree').mkdir(parents=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (PLACE / "tree").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(LOCK.read_text(encoding="utf-8"))["what"] == "x"
    with locked("y"):
        assert not PLACE.exists()


def test_the_audit_log_only_grows_and_survives_a_torn_line(workdir):
    audit = AuditLog("logs/a.jsonl", "who")
    audit.append("begun", "1", {"x": 0.123456789})
    with open("logs/a.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"event": "pro')
    audit.append("rejected", "1", {})
    found = audit.read()
    assert [record["event"] for record in found] == ["begun", "rejected"]
    assert found[0] == {"time": found[0]["time"], "event": "begun", "run": "1", "trigger": "who", "x": 0.123457}


def test_an_audit_log_that_cannot_be_written_is_an_error(workdir):
    (workdir / "file").write_text("", encoding="utf-8")
    with pytest.raises(PipelineError, match="the audit log cannot be written"):
        AuditLog("file/a.jsonl").append("begun", "1", {})


def test_drift_is_read_from_reports(workdir):
    (workdir / "drift.json").write_text('{"drift": true, "features": {}}', encoding="utf-8")
    (workdir / "quality.json").write_text('{"concept_drift": false}', encoding="utf-8")
    assert read_reports(["drift.json", "quality.json"], "off") == {"drift": True, "concept_drift": False}
    for text in ("no", "[]", "{}", '{"drift": "yes"}'):
        (workdir / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(PipelineError, match=r"bad\.json: "):
            read_reports(["bad.json"], "off")


def test_drift_is_read_from_the_log(workdir):
    with contextlib.closing(open_store("sqlite:///log.db")) as store:
        with pytest.raises(PipelineError, match="keeps no report"):
            read_reports(["log"], "sqlite:///log.db")
        store.put_report("drift", b'{"drift": true}')
        store.put_report("quality", b'{"concept_drift": true}')
    assert read_reports(["log"], "sqlite:///log.db") == {"drift": True, "concept_drift": True}
    with pytest.raises(PipelineError):
        read_reports(["log"], "sqlite:///absent.db")


def test_the_command_tells_how_it_is_used(workdir, capsys):
    for arguments in (["--help"], ["run", "--help"], ["approve", "--help"], ["rollback", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    assert "mlops-retrain rollback" in capsys.readouterr().out
    for arguments in (["run"], ["run", "a.csv", "--from-log"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2


def test_the_log_is_printed_in_words_and_as_it_is(workdir, capsys):
    AuditLog("a.jsonl", "me").append("rejected", "7", {"reasons": ["worse", "slower"]})
    assert main(["log", "--audit", "a.jsonl"]) == 0
    assert "7  rejected  worse; slower  by me" in capsys.readouterr().out
    assert main(["log", "--audit", "a.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == ["worse", "slower"]
