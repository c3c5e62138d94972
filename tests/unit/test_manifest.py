"""Nothing is loaded on trust: the file by its manifest, the manifest by the commit or a signature."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import joblib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlops_project import cli, manifest
from mlops_project.errors import PipelineError
from mlops_project.manifest import dump, load, manifest_path, read_verified, sign, signature_path, verify
from mlops_project.modeling.model import RiskModel, load_model
from mlops_project.modeling.train import fit
from mlops_project.preprocessing import build_preprocessor


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (manifest.PUBLIC_KEY, manifest.SIGNING_KEY):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, contract, params) -> Path:
    """A folder with a model, a policy and their manifests."""
    from build_raw_data import make_dirty
    from mlops_project.dataset import DataCleaner

    folder = tmp_path_factory.mktemp("trained")
    clean = pytest.importorskip("pandas").read_csv(Path(__file__).parents[2] / "data/raw/german_credit_original.csv")
    rows = DataCleaner(contract).clean(make_dirty(clean, seed=7))
    settings = replace(params.train, model="decision_tree")
    preprocessor = build_preprocessor(contract, params.featurize)
    model = fit(rows.table[:200], rows.target[:200], preprocessor, contract, settings, params.models)
    dump(model, folder / "best_model.joblib")
    (folder / "policy.json").write_text("{}\n")
    manifest.write_manifest(folder / "policy.json", made_with=[folder / "best_model.joblib"])
    return folder


def git(folder: Path, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@example.org"}
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=environment)


@pytest.fixture
def model(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a folder without Git, started from there."""
    shutil.copytree(trained, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models/best_model.joblib"


@pytest.fixture
def committed(model: Path) -> Path:
    """A model whose manifest is in HEAD; the model itself is not in Git, as with DVC."""
    folder = model.parent.parent
    git(folder, "init", "-q")
    git(folder, "add", "models/*.manifest.json")
    git(folder, "commit", "-q", "-m", "model")
    return model


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """A secret and a public key."""
    manifest.write_keys(tmp_path / "key.pem")
    return (tmp_path / "key.pem").read_text(), (tmp_path / "key.pem.pub").read_text()


def tamper(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def match_manifest(path: Path) -> None:
    """What an attacker does who can write in the folder: a manifest that fits the other file."""
    manifest.write_manifest(path)


def test_a_committed_model_loads_with_the_hash_of_its_bytes(committed: Path) -> None:
    content, sha256 = read_verified(committed)
    assert content == committed.read_bytes()
    assert sha256 == hashlib.sha256(committed.read_bytes()).hexdigest() == verify(committed)


def test_nothing_in_a_refused_file_is_run(committed: Path) -> None:
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(committed.parent / "owned"),)

    joblib.dump(Attack(), committed)
    with pytest.raises(PipelineError, match=r"best_model.joblib: not loaded: found SHA-256 .* expects"):
        read_verified(committed)
    with pytest.raises(PipelineError, match=r"best_model.joblib: not loaded: found SHA-256 .* expects"):
        load_model(committed)
    match_manifest(committed)
    with pytest.raises(PipelineError, match=r"not covered by the commit \(it differs from HEAD's\); commit it"):
        read_verified(committed)
    assert not (committed.parent / "owned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tamper, "not loaded: found SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"not loaded: found SHA-256 .* \(\d+ bytes\)"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), r"not loaded: found SHA-256 .* \(more than \d+ bytes\)"),
        (lambda path: path.write_bytes(b""), r"not loaded: found SHA-256 .* \(0 bytes\)"),
        (lambda path: path.unlink(), "best_model.joblib: not found; run `dvc repro`"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "found no plain file"),
        (lambda path: (path.unlink(), path.mkdir()), "found no plain file|Is a directory"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "found no plain file"),
        (lambda path: tamper(manifest_path(path)), "not covered by the commit"),
        (lambda path: manifest_path(path).unlink(), r"manifest.json: not found; .*dvc repro"),
        (lambda path: (tamper(path), match_manifest(path)), "not covered by the commit"),
        (
            lambda path: shutil.copy(manifest_path(path.with_name("policy.json")), manifest_path(path)),
            "not covered by the commit",
        ),
    ],
)
def test_what_does_not_fit_its_manifest_or_the_commit_is_refused(committed: Path, change, message: str) -> None:
    change(committed)
    with pytest.raises(PipelineError, match=message):
        read_verified(committed)


def test_a_manifest_that_was_never_committed_needs_a_flag_and_still_vouches(model: Path) -> None:
    git(model.parent.parent, "init", "-q")
    with pytest.raises(PipelineError, match=r"not covered by the commit .*pass --uncommitted"):
        verify(model)
    assert read_verified(model, allow_uncommitted=True)[1] == verify(model, allow_uncommitted=True)
    tamper(model)
    with pytest.raises(PipelineError, match="not loaded"):
        read_verified(model, allow_uncommitted=True)


def test_git_variables_of_another_repository_do_not_matter(committed: Path, tmp_path_factory, monkeypatch) -> None:
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    verify(committed)


def commit_all(folder: Path) -> None:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "not yours")


def make_folder_a_repository(folder: Path) -> None:
    commit_all(folder)


def make_folder_a_bare_repository(folder: Path) -> None:
    commit_all(folder)
    for file in (folder / ".git").iterdir():
        file.rename(folder / file.name)
    (folder / ".git").rmdir()
    git(folder.parent, "config", "-f", str(folder / "config"), "core.bare", "false")
    git(folder.parent, "config", "-f", str(folder / "config"), "core.worktree", str(folder))


def make_folder_a_link(folder: Path) -> None:
    other = folder.parent.with_name("other")
    folder.rename(other)
    commit_all(other)
    folder.symlink_to(other)


def make_git_fetch_by_a_command(folder: Path) -> None:
    commit_all(folder)
    content = manifest_path(folder / "best_model.joblib").read_bytes()
    found = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
    (folder / ".git/objects" / found[:2] / found[2:]).unlink()
    command = f"touch '{folder.parent / 'owned'}'; false"
    settings = {"remote.o.url": str(folder), "remote.o.promisor": "true", "remote.o.uploadpack": command}
    for key, value in {"core.repositoryformatversion": "1", "extensions.partialClone": "o", **settings}.items():
        git(folder, "config", key, value)


@pytest.mark.parametrize(
    "attack",
    [make_folder_a_repository, make_folder_a_bare_repository, make_folder_a_link, make_git_fetch_by_a_command],
)
def test_a_repository_that_somebody_made_around_the_model_vouches_for_nothing(committed: Path, attack) -> None:
    """Whoever can write in the model's folder can do that, too."""
    tamper(committed)
    match_manifest(committed)
    attack(committed.parent)
    with pytest.raises(PipelineError, match="not covered by the commit"):
        verify(committed)
    assert not (committed.parents[1] / "owned").exists()


def test_a_checkout_that_it_was_not_started_in_vouches_for_nothing(committed: Path, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(PipelineError, match="start in the checkout that holds it"):
        verify(committed)


def test_a_model_below_a_link_is_known_by_its_content(committed: Path) -> None:
    committed.parent.rename(committed.parents[1] / "store")
    committed.parent.symlink_to("store")
    verify(committed)
    verify("models/best_model.joblib")


def test_a_model_that_is_a_link_is_read_once(committed: Path, monkeypatch) -> None:
    """DVC may link to its cache. Whoever moves the link between check and use changes nothing: there is one read."""
    good, bad = committed.with_name("good"), committed.with_name("bad")
    committed.rename(good)
    bad.write_bytes(b"evil")
    committed.symlink_to(good)
    hashed = manifest._vouched

    def swap(*arguments):
        found = hashed(*arguments)
        committed.unlink()
        committed.symlink_to(bad)
        return found

    monkeypatch.setattr(manifest, "_vouched", swap)
    content, sha256 = read_verified(committed)
    assert content == good.read_bytes()
    assert sha256 == hashlib.sha256(good.read_bytes()).hexdigest()
    with pytest.raises(PipelineError, match="not loaded"):
        read_verified(committed)


# --- the one door


def test_what_unpickles_stands_in_one_place() -> None:
    source = Path(manifest.__file__).parent
    found = [
        file
        for file in source.rglob("*.py")
        if re.search(r"(joblib|pickle|dill|torch|pd)\.(load|loads|read_pickle|Unpickler)\b", file.read_text())
    ]
    assert found == [source / "manifest.py"]


def test_a_model_is_loaded_by_its_manifest_committed_or_not(model: Path) -> None:
    assert isinstance(load_model(model), RiskModel)
    assert isinstance(load_model(str(model)), RiskModel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tamper, r"best_model.joblib: not loaded: found SHA-256 \w{64} \(\d+ bytes\), best_model.joblib.manifest.json expects"),
        (lambda path: path.unlink(), "best_model.joblib: not found; run `dvc repro` to make it, or `dvc pull` to fetch it"),
        (lambda path: path.write_bytes(b""), r"not loaded: found SHA-256 .* \(0 bytes\)"),
        (
            lambda path: manifest_path(path).unlink(),
            r"manifest.json: not found; .*`dvc repro`.*`mlops-manifest write .*model.joblib`.*--trust-file \(trust_file=True\)",
        ),
        (lambda path: shutil.copy(manifest_path(path.with_name("policy.json")), manifest_path(path)), "another file's manifest"),
        (lambda path: manifest_path(path).write_text("{"), "is no manifest"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "found no plain file"),
    ],
)
def test_a_model_that_does_not_fit_its_manifest_is_not_unpickled(model: Path, change, message: str) -> None:
    change(model)
    with pytest.raises(PipelineError, match=message):
        load_model(model)


def test_a_file_without_a_manifest_needs_trust_or_a_manifest_of_whoever_knows_it(model: Path, capsys) -> None:
    manifest_path(model).unlink()
    assert isinstance(load_model(model, trust_file=True), RiskModel)
    assert not manifest_path(model).exists(), "trust is for once"
    assert cli.manifest(["write", str(model)]) == 0
    assert capsys.readouterr().out == f"{manifest_path(model)}\n"
    assert isinstance(load_model(model), RiskModel)
    assert cli.manifest(["write", "absent.joblib"]) == 1
    assert "absent.joblib: not found" in capsys.readouterr().err


def test_what_is_unpickled_are_the_bytes_that_were_hashed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(model.parent / "owned"),)

    hashed = manifest._vouched

    def swap(*arguments):
        found = hashed(*arguments)
        joblib.dump(Attack(), model)
        return found

    monkeypatch.setattr(manifest, "_vouched", swap)
    assert isinstance(load_model(model), RiskModel)
    assert not (model.parent / "owned").exists()


def test_objects_are_written_byte_for_byte_alike_and_checked_when_read(tmp_path: Path) -> None:
    content = {"weights": list(range(1000)), "name": "x"}
    for name in ("one", "two"):
        dump(content, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert load(tmp_path / "one", dict, "a dict") == content
    with pytest.raises(PipelineError, match=r"one: found a dict, expected a list of things"):
        load(tmp_path / "one", list, "a list of things")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"text", lambda b: b"", lambda b: gzip.compress(b"x")])
def test_damaged_objects_are_refused_with_trust_as_well(damage, tmp_path: Path) -> None:
    dump(list(range(1000)), tmp_path / "object")
    (tmp_path / "object").write_bytes(damage((tmp_path / "object").read_bytes()))
    with pytest.raises(PipelineError, match="not loaded"):
        load(tmp_path / "object", list, "a list")
    with pytest.raises(PipelineError, match=r"object: cannot be loaded \(\w+\); run `dvc repro` to write it anew"):
        load(tmp_path / "object", list, "a list", trust_file=True)
    with pytest.raises(PipelineError, match=r"absent: not found"):
        load(tmp_path / "absent", list, "a list", trust_file=True)


def test_an_object_that_cannot_be_pickled_leaves_the_old_file(tmp_path: Path) -> None:
    dump([1], tmp_path / "object")
    with pytest.raises(Exception, match="pickle"):
        dump(lambda: None, tmp_path / "object")
    assert load(tmp_path / "object", list, "the old one") == [1]
    assert len(list(tmp_path.iterdir())) == 2


# --- outside Git


def test_outside_git_a_signature_is_needed(model: Path, keys) -> None:
    with pytest.raises(PipelineError, match=r"outside a Git checkout a manifest must be signed.*MLOPS_MANIFEST_KEY_FILE"):
        verify(model)
    secret, public = keys
    with pytest.raises(PipelineError, match=r"manifest.json.sig: not found; sign the manifest"):
        verify(model, public_key=public)
    sign(model, secret, allow_uncommitted=True)
    assert len(signature_path(model).read_bytes()) == 64
    assert read_verified(model, public_key=public)[1] == verify(model, allow_uncommitted=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: tamper(signature_path(path)), "not a signature of"),
        (lambda path: signature_path(path).write_bytes(b"\0" * 64), "not a signature of"),
        (lambda path: signature_path(path).write_bytes(signature_path(path).read_bytes()[:63]), "not a signature of"),
        (lambda path: signature_path(path).write_bytes(signature_path(path).read_bytes() * 2), "not a signature of"),
        (lambda path: tamper(manifest_path(path)), "not a signature of"),
        (lambda path: (tamper(path), match_manifest(path)), "not a signature of"),
        (tamper, "not loaded: found SHA-256"),
    ],
)
def test_a_signature_vouches_for_its_own_manifest_only(model: Path, keys, change, message: str) -> None:
    secret, public = keys
    sign(model, secret, allow_uncommitted=True)
    change(model)
    with pytest.raises(PipelineError, match=message):
        read_verified(model, public_key=public)


def test_another_key_is_refused_and_a_key_is_asked_for_in_git_and_with_the_flag_too(committed: Path, keys, tmp_path) -> None:
    manifest.write_keys(tmp_path / "other.pem")
    sign(committed, (tmp_path / "other.pem").read_text())
    for flag in (False, True):
        with pytest.raises(PipelineError, match="not a signature of"):
            verify(committed, public_key=keys[1], allow_uncommitted=flag)


def test_the_signature_of_another_model_with_its_manifest_does_not_fit(model: Path, keys) -> None:
    secret, public = keys
    other = model.with_name("policy.json")
    sign(other, secret, allow_uncommitted=True)
    other.write_bytes(b"evil")
    shutil.copy(manifest_path(other), manifest_path(model))
    shutil.copy(signature_path(other), signature_path(model))
    shutil.copy(other, model)
    with pytest.raises(PipelineError, match="this is another file's manifest"):
        verify(model, public_key=public)


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_key_that_is_none_vouches_for_nothing(committed: Path, text: str) -> None:
    with pytest.raises(PipelineError, match="MLOPS_MANIFEST_KEY: expected the public half"):
        verify(committed, public_key=text)
    with pytest.raises(PipelineError, match="signing key: expected an Ed25519 key"):
        sign(committed, text)


def test_keys_come_from_the_environment_or_a_file(model: Path, keys, tmp_path: Path, monkeypatch) -> None:
    secret, public = keys
    sign(model, secret, allow_uncommitted=True)
    monkeypatch.setenv("MLOPS_MANIFEST_KEY_FILE", str(tmp_path / "key.pem.pub"))
    verify(model)
    monkeypatch.setenv("MLOPS_MANIFEST_KEY_FILE", str(tmp_path / "absent"))
    with pytest.raises(PipelineError, match=r"MLOPS_MANIFEST_KEY: .*absent cannot be read"):
        verify(model)
    monkeypatch.setenv("MLOPS_MANIFEST_KEY", public)
    with pytest.raises(PipelineError, match="expected one of them"):
        verify(model)
    monkeypatch.delenv("MLOPS_MANIFEST_KEY_FILE")
    verify(model)


def test_a_manifest_that_does_not_fit_is_not_signed(model: Path, keys) -> None:
    tamper(model)
    with pytest.raises(PipelineError, match="not loaded"):
        sign(model, keys[0], allow_uncommitted=True)
    assert not signature_path(model).exists()


# --- the manifest's own content


def entry(name: str, **other: object) -> dict[str, object]:
    return {"name": name, "sha256": "0" * 64, "bytes": 1, **other}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"files": []}, "found no file, expected best_model.joblib"),
        ({"files": [entry("policy.json"), entry("best_model.joblib")]}, "this is another file's manifest"),
        ({"files": [entry("../../etc/passwd")]}, "expected names of files in its own folder"),
        ({"files": [entry("best_model.joblib"), entry("/etc/passwd")]}, "expected names of files in its own folder"),
        ({"files": [entry("..")]}, "expected names of files in its own folder"),
        ({"files": [entry("")]}, "expected names of files in its own folder"),
        ({"files": [entry("a\\b")]}, "expected names of files in its own folder"),
        ({"files": [entry("best_model.joblib", sha256="0" * 63)]}, "sha256"),
        ({"files": [entry("best_model.joblib", sha256="0" * 64 + "\n")]}, "sha256"),
        ({"files": [entry("best_model.joblib", bytes=-1)]}, "bytes"),
        ({"files": [entry("best_model.joblib", bytes=10**18)]}, "not loaded: found SHA-256"),
        ({"files": [entry("best_model.joblib", bytes=10**30)]}, "not loaded: found SHA-256"),
        ({"files": [{"name": "best_model.joblib", "sha256": "0" * 64}]}, "'files.0.bytes' is missing"),
        ({"files": {}}, "files: found"),
        ({"files": [], "more": 1}, "unknown key 'more'"),
        ([], "is no manifest"),
        ("x" * manifest.MANIFEST_BYTES, "is no manifest"),
        (b"[" * 60_000, "is no manifest"),
    ],
)
def test_a_manifest_in_another_form_is_refused(model: Path, content, message: str) -> None:
    manifest_path(model).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(PipelineError, match=message):
        verify(model, allow_uncommitted=True)


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_any_bytes_as_manifest_are_refused_in_one_line(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "best_model.joblib")
        path.write_bytes(b"")
        manifest_path(path).write_bytes(content)
        with pytest.raises(PipelineError) as caught:
            verify(path, allow_uncommitted=True)
        assert "\n" not in str(caught.value)


def test_a_policy_names_the_model_that_it_was_derived_for(committed: Path) -> None:
    policy, sha256 = committed.with_name("policy.json"), verify(committed)
    assert read_verified(policy, model=sha256)[0] == b"{}\n"
    with pytest.raises(PipelineError, match=r"policy.json: belongs to another model than 000"):
        read_verified(policy, model="0" * 64)


# --- the command


def test_the_command_makes_keys_signs_and_verifies(model: Path, workdir: Path, capsys) -> None:
    key, public = str(workdir / "signing.pem"), str(workdir / "signing.pem.pub")
    assert cli.manifest(["keygen", "--output", key]) == 0
    assert (workdir / "signing.pem").stat().st_mode & 0o077 == 0
    assert cli.manifest(["keygen", "--output", key]) == 1, "a key is never replaced"
    assert cli.manifest(["sign", "--key", key, str(model)]) == 1
    assert cli.manifest(["sign", "--uncommitted", str(model)]) == 1
    assert "no key to sign with" in capsys.readouterr().err
    assert cli.manifest(["sign", "--key", key, "--uncommitted", str(model)]) == 0
    assert cli.manifest(["verify", str(model)]) == 1
    capsys.readouterr()
    assert cli.manifest(["verify", "--key", public, str(model)]) == 0
    assert capsys.readouterr().out.split() == [hashlib.sha256(model.read_bytes()).hexdigest(), str(model)]
    tamper(model)
    assert cli.manifest(["verify", "--key", public, str(model)]) == 1
