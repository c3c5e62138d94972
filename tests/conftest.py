"""What the tests share: the default contract, parameters and a dirty table that no team's own raw file can change."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import settings

from build_raw_data import make_dirty
from mlops_project.config import Params, load_params
from mlops_project.dataset import Applicants, DataCleaner
from mlops_project.schema import Contract, load_contract

ROOT = Path(__file__).parents[1]
CLEAN_FILE = ROOT / "data/raw/german_credit_original.csv"

# The same examples in every run: a red test stays red until somebody mends it. Times vary on busy machines.
settings.register_profile("project", derandomize=True, deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of dvc.yaml."""
    return ROOT


@pytest.fixture(scope="session")
def contract() -> Contract:
    return load_contract(ROOT / "data/schema.yaml")


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def clean_table() -> pd.DataFrame:
    """The clean original: 1000 rows of integers, the target last."""
    if not CLEAN_FILE.exists():
        pytest.fail(f"{CLEAN_FILE.relative_to(ROOT)} is absent; `make test` fetches it, as does `dvc pull`", pytrace=False)
    return pd.read_csv(CLEAN_FILE)


@pytest.fixture(scope="session")
def _raw_table(clean_table: pd.DataFrame) -> pd.DataFrame:
    return make_dirty(clean_table, seed=7)


@pytest.fixture(scope="session")
def _applicants(_raw_table: pd.DataFrame, contract: Contract) -> Applicants:
    return DataCleaner(contract).clean(_raw_table)


@pytest.fixture
def raw_table(_raw_table: pd.DataFrame) -> pd.DataFrame:
    """Default data with dirt of its own seed, all text: 1020 rows, 22 columns."""
    return _raw_table.copy()


@pytest.fixture
def applicants(_applicants: Applicants) -> Applicants:
    """`raw_table`, cleaned and merged."""
    return _applicants._replace(table=_applicants.table.copy(), target=_applicants.target.copy())


@pytest.fixture
def write_contract(tmp_path: Path) -> Callable[[str], Contract]:
    """Return a function that loads a contract from YAML text."""

    def write(text: str) -> Contract:
        (tmp_path / "contract.yaml").write_text(text, encoding="utf-8")
        return load_contract(tmp_path / "contract.yaml")

    return write


@pytest.fixture
def buffered() -> dict[str, str]:
    """Environment in which Python keeps its output in a buffer, as it does unless told otherwise."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run in an empty folder, and leave no log handler behind: for what writes logs and relative paths."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("mlops_project")
    before = logger.level, list(logger.handlers)
    yield tmp_path
    for handler in set(logger.handlers).difference(before[1]):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(before[0])
