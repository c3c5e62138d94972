"""dvc.yaml, params.yaml and the code say the same: deps against imports, params against what is read, both ways."""

import ast
import contextlib
import copy
import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from mlops_project import config
from mlops_project.errors import PipelineError

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("prepare", "featurize", "train", "evaluate")
DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def module_file(name: str) -> Path | None:
    path = ROOT / "src" / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_files(script: Path) -> set[str]:
    """Files of the package that a script imports, directly or not, at any depth; imports for type checkers do not count."""
    found: set[Path] = set()
    todo = [script]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            parts = name.split(".")
            ends = range(1, len(parts) + 1) if parts[0] == "mlops_project" else ()
            todo += [file for end in ends if (file := module_file(".".join(parts[:end])))]
    return {str(path.relative_to(ROOT)) for path in found}


def imported_names(node: ast.AST) -> set[str]:
    names: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            names |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            names |= {f"{child.module}.{alias.name}" for alias in child.names}
        names |= imported_names(child)
    return names


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_imported_files(stage):
    declared = {dep for dep in DVC_YAML["stages"][stage]["deps"] if dep.startswith("src/")}
    imported = imported_files(ROOT / "src" / f"{stage}.py")
    assert imported - declared == set(), "imported but not declared: an edit would not rerun the stage"
    assert declared - imported == set(), "declared but not imported: an edit would rerun the stage for nothing"


@pytest.fixture(scope="module")
def ran(clone):
    """A clone in which every stage has run in a process of its own that noted which modules it held at the end."""
    for stage in STAGES:
        code = (
            "import json, runpy, sys; sys.argv = ['x']\n"
            f"try: runpy.run_path('src/{stage}.py', run_name='__main__')\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "files = [getattr(m, '__file__', None) for m in list(sys.modules.values())]\n"
            f"json.dump([f for f in files if f and 'mlops_project' in f], open('modules-{stage}.json', 'w'))"
        )
        clone.run(sys.executable, "-c", code, env={"PYTHONPATH": str(clone.path / "src")})
    return clone


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_what_is_loaded_at_run_time(ran, stage):
    # Catches what no syntax tree shows, such as a class that is imported because a pickle asks for it.
    loaded = json.loads((ran.path / f"modules-{stage}.json").read_text(encoding="utf-8"))
    files = {str(Path(file).relative_to(ran.path)) for file in loaded}
    assert files, "the run-time check sees no module at all"
    declared = {dep for dep in DVC_YAML["stages"][stage]["deps"] if dep.startswith("src/mlops_project")}
    assert files == declared


def leaves(content: dict, prefix: str = "") -> set[str]:
    found = set()
    for key, value in content.items():
        name = f"{prefix}.{key}".lstrip(".")
        found |= leaves(value, name) if value and isinstance(value, dict) else {name}
    return found


def declared_params(stage: str, params: dict) -> set[str]:
    """The leaves of params.yaml that a stage declares."""
    resolved = [name.replace("${train.model}", params["train"]["model"]) for name in DVC_YAML["stages"][stage]["params"]]
    return {leaf for leaf in leaves(params) if any(leaf == name or leaf.startswith(f"{name}.") for name in resolved)}


def recording(struct: msgspec.Struct, prefix: str, seen: set[str]):
    """A stand-in for a section that notes which leaves are read. The stage runs for real on the values in it."""

    class Recorder:
        def __getattr__(self, key):
            value = getattr(struct, key)
            name = f"{prefix}.{key}".lstrip(".")
            if isinstance(value, msgspec.Struct):
                return recording(value, name, seen)
            # A model that the blend does not have is a section that params.yaml does not have; a property is no key.
            absent = value is None and isinstance(struct, config.BlendParams)
            if not absent and key in struct.__struct_fields__:
                seen.add(name)
            return value

    return Recorder()


def run_main(stage: str) -> None:
    runpy.run_path(str(ROOT / "src" / f"{stage}.py"), run_name="not_main")["main"]()


@pytest.fixture
def workspace(ran, monkeypatch):
    monkeypatch.chdir(ran.path)
    monkeypatch.syspath_prepend(str(ROOT / "src"))
    return ran.path


BEST = {"train.model": "best", "train.n_splits": 2, "train.n_repeats": 1}
# Configurations that together read every key; those that the default data cannot carry end in an error after reading.
CONFIGURATIONS = {
    "prepare": [
        {},
        {"prepare.split": "by_group", "prepare.group_column": "g"},
        {"prepare.split": "by_time", "prepare.date_column": "d"},
    ],
    "featurize": [{}, {"featurize.outliers": "iqr"}],
    "train": [{}, {"prepare.split": "by_group", "prepare.group_column": "g"}, BEST, {"train.calibration": "sigmoid"}],
    "evaluate": [{}],
}


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_are_the_ones_read(workspace, monkeypatch, stage):
    content = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    seen: set[str] = set()
    declared: set[str] = set()
    # The model file takes sections as a whole; their keys must be read one by one all the same.
    monkeypatch.setattr(msgspec, "to_builtins", lambda recorder: {})
    for overrides in CONFIGURATIONS[stage]:
        changed = copy.deepcopy(content)
        for name, value in overrides.items():
            section, key = name.split(".")
            changed[section][key] = value
        declared |= declared_params(stage, changed)
        params = config.check_params(changed)
        monkeypatch.setattr(config, "load_params", lambda params=params: recording(params, "", seen))
        with contextlib.suppress(PipelineError, KeyError) if overrides else contextlib.nullcontext():
            run_main(stage)
    assert seen - declared == set(), "read but not declared: a change would not rerun the stage"
    assert declared - seen == set(), "declared but not read: a change would rerun the stage for nothing"


def test_a_stage_script_does_not_need_the_installed_package(ran):
    """Python finds the package beside the script, so an experiment's copy of the code is the code that runs."""
    assert importlib.util.find_spec("mlops_project") is not None
    code = "import sys; sys.argv=['src/prepare.py']; sys.path[0]='src'; import mlops_project; print(mlops_project.__file__)"
    printed = ran.run(sys.executable, "-c", code).stdout
    assert Path(printed.strip()).is_relative_to(ran.path)


def test_stages_are_described():
    assert all(len(stage["desc"]) > 40 for stage in DVC_YAML["stages"].values())


def test_core_imports_no_edge():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
