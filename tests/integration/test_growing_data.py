"""A raw table that grows by months, on a real S3 server: what travels, what is kept, and what clones share."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from dvc_servers import BIN, ROOT, Project, Remote, environment, s3, unavailable

pytestmark = pytest.mark.integration

FOLDER = "data/raw/applications"
LIST = (
    "import botocore.session, json, os\n"
    "client = botocore.session.get_session().create_client('s3', endpoint_url=os.environ['DVC_REMOTE_ENDPOINT'])\n"
    "pages = client.get_paginator('list_objects_v2').paginate(Bucket='team', Prefix='credit risk/')\n"
    "print(json.dumps({o['Key'].rpartition('md5/')[2]: o['Size'] for page in pages for o in page.get('Contents', [])}))"
)


class Clone:
    """A clone in which stages run by the Python of the tests, and DVC with the S3 client."""

    def __init__(self, path: Path, home: Path, remote: Remote) -> None:
        self.path, self.remote = path, remote
        self.environment = environment(home, **remote.address)
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.environment['PATH']}"

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.path, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=300
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        return self.run(str(BIN / "python"), "-m", "dvc", *arguments, check=check, **variables)

    def gc(self, *, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        path = f"{BIN}{os.pathsep}{self.environment['PATH']}"
        return self.run("sh", "scripts/collect_garbage.sh", check=check, PATH=path, **variables)

    def stored(self) -> dict[str, int]:
        """Bytes of each object on the server."""
        return json.loads(self.run(str(BIN / "python"), "-c", LIST).stdout)

    def cached(self) -> set[str]:
        cache = self.path / ".dvc/cache/files/md5"
        return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}

    def months(self) -> list[str]:
        return sorted(path.name for path in (self.path / FOLDER).glob("*.csv"))

    def edit(self, old: str, new: str) -> None:
        params = self.path / "params.yaml"
        text = params.read_text(encoding="utf-8")
        assert old in text, old
        params.write_text(text.replace(old, new, 1), encoding="utf-8")

    def commit(self, message: str, **variables: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message, **variables)

    def sides(self) -> dict[str, str]:
        """Side of the split of each applicant."""
        tables = {side: self.path / f"data/processed/y{side}.csv" for side in ("traintest", "test")}
        return {
            line.split(",")[0]: side
            for side, table in tables.items()
            for line in table.read_text(encoding="utf-8").splitlines()[1:]
        }


class Grown(NamedTuple):
    origin: Clone
    """Five months, reproduced, pushed and tagged `five`; other params, untagged; then a sixth month."""
    stored: list[dict[str, int]]
    """Objects on the server: before the sixth month, with it, and with what the pipeline made of it."""
    sides: list[dict[str, str]]
    """Sides of the split with five and with six months."""


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Iterator[Grown]:
    if not (BIN / "dvc").exists():
        unavailable("no DVC in .venv/remotes; `make test-integration` makes it")
    home = tmp_path_factory.mktemp("home")
    with s3(tmp_path_factory.mktemp("s3")) as remote:
        origin = Clone(Project(tmp_path_factory.mktemp("an origin"), home, remote).path, home, remote)
        for old, new in (("n_repeats: 3", "n_repeats: 1"), ("bootstrap_samples: 2000", "bootstrap_samples: 200")):
            origin.edit(old, new)
        origin.edit("importance_repeats: 5", "importance_repeats: 1")
        origin.edit("raw: data/raw/german_credit_modified.csv", f"raw: {FOLDER}")
        header, *rows = (origin.path / "data/raw/german_credit_modified.csv").read_bytes().splitlines(keepends=True)
        (origin.path / FOLDER).mkdir()
        months = {f"2026-{i + 1:02d}.csv": header + b"".join(rows[170 * i : 170 * (i + 1)]) for i in range(6)}
        *first, last = months
        for name in first:
            (origin.path / FOLDER / name).write_bytes(months[name])
        origin.dvc("add", "-q", FOLDER)
        origin.dvc("repro", "-q")
        long_ago = {"GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z"}
        origin.commit("five months", **long_ago)
        origin.run("git", "tag", "five")
        sides = [origin.sides()]
        origin.dvc("push", "-q", FOLDER, "prepare", "featurize", "train", "evaluate")
        origin.edit("test_size: 0.3", "test_size: 0.25")
        origin.dvc("repro", "-q", "prepare")
        origin.commit("another share", **long_ago)
        origin.dvc("push", "-q", "prepare")
        origin.edit("test_size: 0.25", "test_size: 0.3")

        stored = [origin.stored()]
        (origin.path / FOLDER / last).write_bytes(months[last])
        origin.dvc("add", "-q", f"{FOLDER}/{last}")
        origin.dvc("push", "-q", FOLDER)
        stored.append(origin.stored())
        origin.dvc("repro", "-q")
        origin.commit("six months")
        origin.dvc("push", "-q", FOLDER, "prepare", "featurize", "train", "evaluate")
        stored.append(origin.stored())
        sides.append(origin.sides())
        yield Grown(origin, stored, sides)


@pytest.fixture
def fresh(grown, tmp_path) -> Clone:
    """A new clone, with no data."""
    return clone_of(grown, tmp_path / "fresh")


def clone_of(grown: Grown, path: Path) -> Clone:
    grown.origin.run("git", "clone", "-q", ".", str(path))
    shutil.copy(grown.origin.path / ".dvc/config.local", path / ".dvc/config.local")
    return Clone(path, Path(grown.origin.environment["HOME"]), grown.origin.remote)


def test_only_the_new_month_and_the_listing_travel(grown):
    before, month, _ = grown.stored
    new = {name: size for name, size in month.items() if name not in before}
    assert len(new) == 2
    assert before.items() <= month.items()
    (listing,) = (name for name in new if name.endswith(".dir"))
    (rows,) = (name for name in new if not name.endswith(".dir"))
    assert new[rows] == (grown.origin.path / FOLDER / "2026-06.csv").stat().st_size
    assert new[listing] < 100 * 6
    assert listing.replace("/", "") in (grown.origin.path / f"{FOLDER}.dvc").read_text(encoding="utf-8")


def test_nobody_of_earlier_months_changes_sides(grown):
    five, six = grown.sides
    assert len(five) > 800
    assert len(six) > len(five)
    assert five.items() <= six.items()
    rows = json.loads((grown.origin.path / "metrics/prepare.json").read_text(encoding="utf-8"))["rows"]
    assert rows["read"] == 1020


def test_one_month_is_pulled_and_a_month_is_added_without_the_others(fresh):
    fresh.dvc("pull", "-q", f"{FOLDER}/2026-06.csv")
    assert fresh.months() == ["2026-06.csv"]
    assert len(fresh.cached()) == 2, "the month and the listing"
    shutil.copy(fresh.path / FOLDER / "2026-06.csv", fresh.path / FOLDER / "2026-07.csv")
    fresh.dvc("add", "-q", f"{FOLDER}/2026-07.csv")
    assert "nfiles: 7" in (fresh.path / f"{FOLDER}.dvc").read_text(encoding="utf-8")
    fresh.dvc("pull", "-q", FOLDER)
    assert fresh.months() == [f"2026-{i:02d}.csv" for i in range(1, 8)]


def test_adding_the_folder_where_months_are_absent_is_the_mistake_that_the_guide_warns_of(fresh):
    fresh.dvc("pull", "-q", f"{FOLDER}/2026-06.csv")
    fresh.dvc("add", "-q", FOLDER)
    assert "nfiles: 1\n" in (fresh.path / f"{FOLDER}.dvc").read_text(encoding="utf-8")
    fresh.run("git", "checkout", "-q", "--", f"{FOLDER}.dvc")
    fresh.dvc("pull", "-q", FOLDER)
    assert len(fresh.months()) == 6


def test_a_month_of_an_earlier_state_is_had_without_touching_the_workspace(fresh):
    fresh.dvc("get", "-q", ".", f"{FOLDER}/2026-01.csv", "--rev", "five", "--out", "january.csv")
    assert len((fresh.path / "january.csv").read_bytes().splitlines()) == 171
    assert fresh.cached() == set()


def test_what_does_not_read_the_raw_table_runs_without_it(fresh):
    assert "Data and pipelines are up to date" in fresh.dvc("repro", "--allow-missing").stdout
    assert fresh.cached() <= {name for name in fresh.cached() if name.endswith(".dir")}, "nothing but listings was downloaded"
    fresh.edit("n_splits: 5", "n_splits: 4")
    printed = fresh.dvc("repro", "--pull", "--allow-missing").stdout
    assert "Running stage 'train'" in printed
    assert "Running stage 'prepare'" not in printed
    assert not (fresh.path / FOLDER).exists()


def test_a_stage_that_reads_the_raw_table_has_it_pulled(fresh, grown):
    fresh.edit("test_size: 0.3", "test_size: 0.2")
    printed = fresh.dvc("repro", "--pull", "--allow-missing", "prepare").stdout
    assert "Running stage 'prepare'" in printed
    assert fresh.months() == grown.origin.months()
    assert fresh.sides().keys() == grown.sides[1].keys()


# --- garbage


def test_garbage_is_refused_where_the_listing_of_a_folder_is_absent(fresh):
    fresh.dvc("remote", "add", "-q", "--local", "-d", "-f", "team", "s3://team/nothing here")
    fresh.dvc("remote", "modify", "-q", "--local", "team", "endpointurl", fresh.remote.address["DVC_REMOTE_ENDPOINT"])
    before = fresh.stored()
    done = fresh.gc(check=False, FORCE="1")
    assert done.returncode == 1
    assert "not all that is in use can be found" in done.stderr
    assert fresh.stored() == before
    wrong = fresh.gc(check=False, FORCE="1", AWS_SECRET_ACCESS_KEY="another")
    assert wrong.returncode == 1
    assert fresh.stored() == before


def test_garbage_goes_and_what_a_tag_or_a_commit_needs_stays(fresh, grown, tmp_path):
    kept = fresh.stored()
    (fresh.path / FOLDER).mkdir()
    (fresh.path / FOLDER / "2026-07.csv").write_text("never committed\n", encoding="utf-8")
    fresh.dvc("add", "-q", f"{FOLDER}/2026-07.csv")
    fresh.dvc("push", "-q", FOLDER)
    fresh.run("git", "checkout", "-q", ".")
    garbage = fresh.stored().keys() - kept.keys()
    assert len(garbage) == 2
    listed = fresh.gc(DRY="1").stdout
    assert "4 objects would be removed" in listed, "from the cache, and from the server"
    assert all(name in listed for name in garbage)
    assert fresh.stored().keys() == kept.keys() | garbage, "a look removes nothing"
    fresh.gc(FORCE="1")
    assert fresh.stored() == kept

    # With a day, an older commit that no tag names loses what it alone used.
    fresh.gc(FORCE="1", SINCE="2021-01-01")
    left = fresh.stored()
    assert left.items() < kept.items()
    assert fresh.run("git", "status", "--porcelain").stdout == ""
    months = {f"{digest[:2]}/{digest[2:]}" for digest in hashes(grown.origin)}
    assert months <= left.keys()
    for revision in ("five", "main"):
        another = clone_of(grown, tmp_path / revision)
        another.run("git", "checkout", "-q", revision)
        another.dvc("pull", "-q", FOLDER, "prepare", "featurize", "train", "evaluate")
        assert "Data and pipelines are up to date" in another.dvc("repro").stdout
        before = another.sides()
        another.dvc("repro", "-q", "--force", "prepare")
        assert another.sides() == before
        assert another.run("git", "status", "--porcelain").stdout == ""


def hashes(clone: Clone) -> list[str]:
    done = clone.run("md5sum", *[f"{FOLDER}/{name}" for name in clone.months()])
    return [line.split()[0].lstrip("\\") for line in done.stdout.splitlines()]


# --- one cache for several clones


def blocks(*folders: Path) -> int:
    """Bytes on the disk below folders; a file that stands there several times is counted once, as `du` does."""
    files = {path.lstat().st_ino: path.lstat().st_blocks for folder in folders for path in folder.rglob("*") if not path.is_dir()}
    return 512 * sum(files.values())


def written(file: Path) -> bool:
    """Whether somebody who is not root may append to a file of his own; root may write anything, unless it gives that up."""
    command = ["sh", "-c", 'echo x >> "$1"', "sh", str(file)]
    if os.getuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_two_clones_share_a_cache_and_nobody_writes_through_a_link(link, grown, tmp_path):
    cache = tmp_path / "cache"
    clones = [clone_of(grown, tmp_path / name) for name in ("one", "two")]
    for clone in clones:
        clone.dvc("cache", "dir", "--local", str(cache))
        clone.dvc("config", "--local", "cache.shared", "group")
        clone.dvc("config", "--local", "cache.type", link)
    one, two = clones
    one.dvc("pull", "-q", FOLDER)
    raw = [clone.path / FOLDER for clone in clones]
    alone = blocks(cache, raw[0])
    # Nothing is downloaded: no key is needed.
    two.dvc("checkout", "-q", f"{FOLDER}.dvc", AWS_SECRET_ACCESS_KEY="none")
    assert blocks(cache, *raw) - alone <= 6 * 4096 if link == "symlink" else blocks(cache, *raw) == alone
    month = raw[1] / "2026-01.csv"
    assert month.stat().st_ino == (raw[0] / "2026-01.csv").stat().st_ino
    assert month.is_symlink() == (link == "symlink")

    assert stat.S_IMODE(month.stat().st_mode) == 0o444
    folders = [path for path in (cache / "files").rglob("*") if path.is_dir()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o2775 for path in folders), "the group may add"
    before = month.read_bytes()
    assert not written(month)
    assert (raw[0] / "2026-01.csv").read_bytes() == before

    two.dvc("unprotect", FOLDER)
    assert not month.is_symlink()
    assert written(month)
    assert month.read_bytes() == before + b"x\n"
    assert (raw[0] / "2026-01.csv").read_bytes() == before, "the others' file and the cache are as they were"


def test_the_commands_of_the_guide_work_as_written(grown, tmp_path):
    guide = (ROOT / "docs/growing-data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", guide, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    home = Path(grown.origin.environment["HOME"])
    address = grown.origin.remote.address | {"DVC_REMOTE_URL": "s3://team/guide"}
    (tmp_path / "a clone").mkdir()
    clone = Clone(
        Project(tmp_path / "a clone", home, grown.origin.remote._replace(address=address)).path, home, grown.origin.remote
    )
    clone.edit("n_repeats: 3", "n_repeats: 1")
    # `dvc` with the S3 client, as `make remote` would have installed it, beside the `python` of the stages.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dvc").write_text(f'#!/bin/sh\nexec "{BIN}/python" -m dvc "$@"\n', encoding="utf-8")
    (tmp_path / "bin/dvc").chmod(0o755)
    here = f"{tmp_path}/bin{os.pathsep}{clone.environment['PATH']}"
    printed = []
    for block in blocks:
        collect = block.replace("make gc", f'PATH="{BIN}:$PATH" sh scripts/collect_garbage.sh')
        printed.append(
            clone.run("sh", "-e", "-c", collect, PATH=here, SHARED_CACHE=str(tmp_path / "shared"), PROJECTS="none").stdout
        )
    assert "2 files pushed" in printed[1]
    assert "Running stage 'evaluate'" in printed[2]
    assert "Stage 'evaluate' didn't change" in printed[3]
    assert (clone.path / FOLDER / "2026-01.csv").stat().st_nlink in (1, 2), "a reflink or a hard link"
    assert "objects would be removed" in printed[5]
    assert clone.run("git", "status", "--porcelain").stdout == ""
