"""Fitting XGBoost on a Dask cluster: every worker reads and transforms its own share of the rows, which no process holds whole.

Workers add up histograms over bins that each found in its own rows, and draw their own subsamples. So the model is not that of
one process to the last bit: it depends on how many workers there are, though on nothing else of them.
"""

from __future__ import annotations

import logging
import time
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import clone

from mlops_project.errors import DataError, PipelineError
from mlops_project.files import APPLICANT_ID
from mlops_project.parallel import ATTEMPTS, OFFER, VARIABLE, WORKER_SECONDS, asked, connect, identity, run_task

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from distributed import Client, Future
    from sklearn.pipeline import Pipeline
    from xgboost import Booster, XGBClassifier

    from mlops_project.config import TrainParams
    from mlops_project.modeling.models import Model
    from mlops_project.schema import Contract

logger = logging.getLogger(__name__)

# With fewer rows one process is done in half a minute, and its model is the same everywhere.
MIN_ROWS = 1_000_000
CHECK_SECONDS = 2
# Until all workers have joined. They hold their rows by then; without an end they would wait for one that has just died.
JOIN_SECONDS = 60


class Tables(NamedTuple):
    """Parquet files of features and outcomes, of the same rows in the same row groups; on storage that workers share."""

    X: Path
    y: Path


class Share(NamedTuple):
    """What every worker needs to read its rows: the preprocessing is fitted, ``class_weight`` holds a factor per class."""

    tables: Tables
    to_view: Pipeline
    contract: Contract
    class_weight: np.ndarray | None


def is_distributed(model: Model, params: TrainParams, n_rows: int, tables: Tables | None) -> bool:
    """Say whether `fit_xgboost` shall fit a model: XGBoost alone, many rows in Parquet, and nothing that needs them together."""
    return (
        bool(asked())
        and tables is not None
        and tables.X.suffix == tables.y.suffix == ".parquet"
        and n_rows >= MIN_ROWS
        and len(model) == 1
        and type(model[0].classifier).__name__ == "XGBClassifier"
        and params.calibration == "none"
        and params.imbalance in ("none", "class_weight")
    )


def fit_xgboost(classifier: XGBClassifier, share: Share) -> tuple[XGBClassifier, int]:
    """Fit a classifier on the cluster that ``MLOPS_DASK`` names. If a worker dies, all starts again on those that are left.

    Parameters
    ----------
    classifier : XGBClassifier
        Cloned, not changed.
    share : Share

    Returns
    -------
    classifier : XGBClassifier
        Fitted.
    n_workers : int
        How many workers held rows.

    Raises
    ------
    DataError
        If the tables are not of the same rows, or a worker does not see them.
    PipelineError
        As `parallel.pool`, or if workers keep dying, or the scheduler goes away.
    """
    share = share._replace(tables=Tables(*(path.absolute() for path in share.tables)))
    sizes, client = row_groups(share.tables), connect(asked())
    for attempt in range(ATTEMPTS):
        workers: list[str] = []
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
            workers = _ranked(client)[: len(sizes)]
            booster = _fit(classifier, share, sizes, client, workers)
        except PipelineError:
            raise
        except Exception as error:
            # A death looks like an error of XGBoost, of Dask or of the network, whoever notices first.
            if client.status != "running":
                raise PipelineError(f"{VARIABLE}={asked()}: the scheduler went away; start it again, or {OFFER}") from error
            if workers and not _lost(client, workers):
                raise
            logger.warning("a Dask worker died; fitting starts again on those that are left")
            time.sleep(attempt)
            continue
        fitted = clone(classifier)
        fitted.load_model(booster.save_raw("ubj"))
        logger.info("XGBoost was fitted by %d Dask workers on %d rows in %d row groups", len(workers), sum(sizes), len(sizes))
        return fitted, len(workers)
    raise PipelineError(f"{VARIABLE}={asked()}: workers died in {ATTEMPTS} attempts to fit; give them more memory, or {OFFER}")


def row_groups(tables: Tables) -> list[int]:
    """Return the number of rows in each row group. Raises DataError if the tables do not have the same."""
    from pyarrow.parquet import ParquetFile

    found = []
    for path in tables:
        with ParquetFile(path) as file:
            found.append([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
    if found[0] != found[1]:
        raise DataError(f"{tables.y}: found other row groups than in {tables.X}, expected the same; rerun `dvc repro prepare`")
    return found[0]


def _fit(classifier: XGBClassifier, share: Share, sizes: list[int], client: Client, workers: list[str]) -> Booster:
    import dask.array as da
    from xgboost import dask as xgboost_dask
    from xgboost.collective import Config

    with client.as_current():
        # A fixed share each, in the order of XGBoost's ranks: the same number of workers gives the same model.
        where = [workers[group * len(workers) // len(sizes)] for group in range(len(sizes))]
        parts: list[Future] = [
            client.submit(run_task, read_part, identity(), share, group, workers=[at], pure=False)
            for group, at in enumerate(where)
        ]
        _wait(client, parts, workers)
        n_features = client.submit(_n_features, parts[0], workers=[where[0]], pure=False).result()

        def column(position: int, *more: int) -> da.Array:
            arrays = [
                client.submit(itemgetter(position), part, workers=[at], pure=False) for part, at in zip(parts, where, strict=True)
            ]
            shaped = zip(arrays, sizes, strict=True)
            return da.concatenate([da.from_delayed(one, (rows, *more), np.float32) for one, rows in shaped])

        matrix = xgboost_dask.DaskQuantileDMatrix(client, column(0, n_features), column(1), weight=column(2))
        found = xgboost_dask.train(
            client,
            classifier.get_xgb_params(),
            matrix,
            num_boost_round=classifier.get_num_boosting_rounds(),
            coll_cfg=Config(tracker_timeout=JOIN_SECONDS),
        )
        return found["booster"]


def read_part(share: Share, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a row group and return features as the model sees them, outcomes and weights, in XGBoost's own precision."""
    X, y = (_read(path, group) for path in share.tables)
    if not X.index.equals(y.index):
        raise DataError(
            f"{share.tables.y}: row group {group} holds other applicants than {share.tables.X}, expected the same in the same"
            " order; rerun `dvc repro prepare`"
        )
    outcome = y[share.contract.target.name].to_numpy(dtype=int)
    weight = share.contract.row_weights(X) if share.contract.weight else np.ones(len(X))
    if share.class_weight is not None:
        weight = weight * share.class_weight[outcome]
    return share.to_view.transform(X).astype(np.float32), outcome.astype(np.float32), weight.astype(np.float32)


def _n_features(part: tuple[np.ndarray, ...]) -> int:
    return part[0].shape[1]


def _read(path: Path, group: int) -> pd.DataFrame:
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            table = file.read_row_group(group).to_pandas()
    except OSError as error:
        raise DataError(
            f"{path}: a Dask worker cannot read it ({error}); give workers the same storage at the same path, or {OFFER}"
        ) from error
    return table if table.index.name == APPLICANT_ID else table.set_index(APPLICANT_ID)


def _ranked(client: Client) -> list[str]:
    """Return the addresses of the workers in the order in which XGBoost ranks them."""
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return sorted(found, key=lambda address: f"[xgboost.dask-{found[address]['name']}]:{address}")


def _lost(client: Client, workers: list[str]) -> bool:
    return not set(workers) <= set(client.nthreads())


def _wait(client: Client, futures: list[Future], workers: list[str]) -> None:
    """Wait for futures that only these workers can finish, as long as they are there."""
    from distributed import wait

    while True:
        try:
            wait(futures, timeout=CHECK_SECONDS)
        except TimeoutError:
            if _lost(client, workers):
                raise
        else:
            for failed in (one for one in futures if one.status == "error"):
                failed.result()
            return
