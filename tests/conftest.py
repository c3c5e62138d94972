"""What the tests share: the default contract, parameters and a dirty table that no team's own raw file can change."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="session")
def new_rows(clean_table: pd.DataFrame) -> Callable[..., pd.DataFrame]:
    """Return a function that draws applicants like the clean ones: amounts and ages vary, the outcome is that of the source.

    ``drift``: two purposes fail twice in three, the others rarely; ``noise``: outcomes are coins.
    """

    def draw(n: int, seed: int, *, drift: bool = False, noise: bool = False) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        rows = clean_table.iloc[rng.integers(0, len(clean_table), n)].reset_index(drop=True)
        rows["hoehe"] = (rows["hoehe"] * rng.uniform(0.9, 1.1, n)).round().clip(250, 18000).astype(int)
        rows["alter"] = (rows["alter"] + rng.integers(-2, 3, n)).clip(19, 75)
        coin = rng.uniform(size=n)
        if drift:
            usual = np.where(coin < 0.5, rows["kredit"], 1)
            rows["kredit"] = np.where(rows["verw"].isin([1, 3]), coin > 0.65, usual).astype(int)
        if noise:
            rows["kredit"] = (coin < 0.5).astype(int)
        return rows

    return draw
