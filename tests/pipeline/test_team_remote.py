"""`make remote` and `make gc` without a server: folders as remotes, and what is refused."""

import os
import shutil
import sys

import pytest


def team_remote(clone, check: bool = True, **variables: str):
    # Only what is given here counts.
    absent = dict.fromkeys((*(name for name in os.environ if name.startswith("AWS_")), "CI"), "")
    return clone.run("sh", "scripts/team_remote.sh", check=check, env=absent | variables)


def test_a_folder_becomes_the_default_and_the_embedded_remote_still_serves(clone, tmp_path):
    team = tmp_path / "the team's"
    team.mkdir()
    assert "team remote" in team_remote(clone, DVC_REMOTE_URL=str(team)).stdout
    assert clone.dvc("config", "core.remote").stdout.strip() == "team"
    assert clone.git("status", "--porcelain") == "", "it is local to the clone"
    clone.dvc("push", "--quiet")
    assert any(team.rglob("*"))

    raw = clone.path / "data/raw/german_credit_modified.csv"
    content = raw.read_bytes()
    for options in ([], ["--remote", "embedded"]):
        raw.unlink()
        clone.run("rm", "-rf", ".dvc/cache")
        clone.dvc("pull", *options, "data/raw/german_credit_modified.csv.dvc")
        assert raw.read_bytes() == content
    clone.dvc("pull", "--quiet")
    assert "up to date" in clone.dvc("status").stdout


def test_garbage_is_not_collected_from_the_embedded_remote(clone):
    (clone.path / ".dvc/config.local").unlink(missing_ok=True)
    done = clone.run("sh", "scripts/collect_garbage.sh", check=False, env={"FORCE": "1"})
    assert done.returncode == 1
    assert "the default remote is the embedded one" in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [({}, "no address; expected: make remote"), ({"DVC_REMOTE_URL": "gs://team/folder"}, "gs://team/folder is not served here")],
)
def test_what_is_no_remote_is_refused(clone, variables, message):
    done = team_remote(clone, check=False, **variables)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [({}, "no team remote is configured"), ({"DVC_REMOTE_URL": "s3://team/folder"}, "no key for s3://team/folder")],
)
def test_a_ci_run_without_remote_or_key_uses_the_embedded_one(clone, variables, message):
    (clone.path / ".dvc/config.local").unlink(missing_ok=True)
    done = team_remote(clone, CI="true", **variables)
    assert message in done.stdout
    assert clone.dvc("config", "core.remote").stdout.strip() == "embedded"


def test_a_teams_own_data_and_much_of_anything_never_go_into_git(clone):
    def check():
        return clone.run(sys.executable, "scripts/check_embedded.py", check=False)

    assert check().returncode == 0, "what is released"
    (clone.path / "data/raw/applications").mkdir()
    (clone.path / "data/raw/applications/2026-01.csv").write_text("secret\n1\n", encoding="utf-8")
    clone.dvc("add", "--quiet", "data/raw/applications")
    tracked = clone.path / "data/raw/applications.dvc"
    refused = check()
    assert refused.returncode == 1
    assert "data/raw/applications.dvc: not pinned to the embedded remote" in refused.stderr
    assert "make remote DVC_REMOTE_URL=" in refused.stderr
    text = tracked.read_text(encoding="utf-8") + "  remote: embedded\n"
    tracked.write_text(text, encoding="utf-8")
    assert check().returncode == 0, "said by hand"
    size = next(line for line in text.splitlines() if "size:" in line)
    tracked.write_text(text.replace(size, "  size: 80000000"), encoding="utf-8")
    assert "MB (of it applications 80)" in check().stderr
    tracked.unlink()
    shutil.rmtree(clone.path / "data/raw/applications")
    clone.git("checkout", "-q", "--", "data/raw/.gitignore")


@pytest.mark.parametrize("target", ["embed", "push", "sync"])
def test_make_asks_before_the_remote_in_git_is_written(target, root):
    lines = (root / "Makefile").read_text(encoding="utf-8").split(f"\n{target}:")[1].split("\n\n")[0].splitlines()
    asked, written = (next(i for i, line in enumerate(lines) if text in line) for text in ("$(CHECK_EMBEDDED)", "$(DVC) push"))
    assert asked < written


def test_a_shared_cache_is_not_cleaned_without_a_word_on_who_else_uses_it(clone, tmp_path):
    team_remote(clone, DVC_REMOTE_URL=str(tmp_path))
    clone.dvc("cache", "dir", "--local", str(tmp_path / "cache"))
    done = clone.run("sh", "scripts/collect_garbage.sh", check=False, env={"FORCE": "1", "PROJECTS": ""})
    assert done.returncode == 1
    assert "the cache may be shared" in done.stderr
    (clone.path / ".dvc/config.local").unlink()
