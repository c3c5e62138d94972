"""What the stages wrote, read for a report, and how its figures are put into words."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_project.config import METRICS, PLOTS, Params, load_params
from mlops_project.errors import PipelineError
from mlops_project.modeling.folds import PARTS
from mlops_project.schema import Contract, load_contract

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

TABLES = (
    "calibration", "cost_curve", "fairness", "importance", "precision_recall", "roc", "scores", "stability", "strategy"
)  # fmt: skip
NAMES = {
    "roc_auc": "ROC-AUC",
    "gini": "Gini",
    "ks": "KS",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "ece": "Calibration error",
    "expected_cost": "Expected cost per applicant",
    "f1": "F1 of the good",
    "precision": "Precision of the good",
    "recall": "Good approved",
    "f1_bad": "F1 of the bad",
    "precision_bad": "Precision of the bad",
    "recall_bad": "Bad refused",
    "bad_rate_approved": "Bad among the approved",
    "duplicates_merged": "Merged as duplicates",
    "bad_share_development": "Bad among development",
    "bad_share_held_out": "Bad among held out",
    "class_share_z": "z of the difference in bad",
}
# Shares of applicants are shown in percent, measures of quality with three digits.
SHARES = {"approval_rate", "bad_rate_approved", "recall", "recall_bad", "bad_share_development", "bad_share_held_out"}


class Results(NamedTuple):
    """Params, contract and everything in metrics/: what Git holds, no model and no rows.

    ``prepare``, ``train``, ``board`` (the leaderboard) and ``held_out`` are the JSON files, ``tables`` those of
    metrics/plots by name, ``data_md5`` what DVC says of the raw table, None if it does not track it.
    """

    params: Params
    contract: Contract
    prepare: dict[str, Any]
    train: dict[str, Any]
    board: dict[str, Any]
    held_out: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    data_md5: str | None

    @property
    def prior(self) -> dict[str, Any] | None:
        """The held-out figures at the prior default rate, if one is set."""
        return self.held_out.get("at_prior")

    @property
    def threshold(self) -> float:
        """Probability of default, at the prior if there is one, from which on the policy refuses."""
        return (self.prior or self.held_out)["threshold"]

    @property
    def folds(self) -> str:
        """Over what models were compared, in words."""
        train = self.params.train
        one = self.prepare["split"]["development"] > train.one_split_above
        return f"{PARTS} parts of one held-out fold" if one else f"{train.n_repeats} × {train.n_splits} folds"

    @property
    def reduced(self) -> str:
        """What evaluate did with less than all rows, as a sentence behind others; empty if nothing."""
        found = self.held_out.get("reduced")
        if found is None:
            return ""
        return (
            f" Intervals come from the counts of good and bad in {count(found['interval_score_bins'])} steps of the score;"
            f" the importance is that of {count(found['importance_rows'])} applicants drawn at random."
        )

    def column(self, name: str) -> str:
        """A column's name, with the English one behind it where the contract has one."""
        column = self.contract.columns.get(name)
        return f"{name} ({column.english.replace('_', ' ')})" if column and column.english else name


def read_results() -> Results:
    """Read params.yaml, the contract and metrics/ in the working directory.

    Raises
    ------
    PipelineError
        If a file is absent or cannot be read.
    """
    params = load_params()
    contract = load_contract(params.data.contract)
    content = {name: _json(METRICS / f"{name}.json") for name in ("prepare", "train", "leaderboard", "evaluate")}
    # Whatever else evaluate writes is of some models only.
    names = [*TABLES, *sorted({path.stem for path in PLOTS.glob("*.csv")} - set(TABLES))]
    tables = {name: read_plot_table(PLOTS / f"{name}.csv") for name in names}
    return Results(
        params, contract, content["prepare"], content["train"], content["leaderboard"], content["evaluate"], tables,
        tracked_md5(params.data.raw),
    )  # fmt: skip


def tracked_md5(path: str) -> str | None:
    """Return the hash in the table's .dvc file; None if it has none."""
    from mlops_project.files import read_yaml

    try:
        return read_yaml(f"{path}.dvc")["outs"][0]["md5"]
    except (PipelineError, KeyError, IndexError, TypeError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; run `dvc repro` first") from None
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read as JSON ({error}); run `dvc repro` to write it anew") from error


def read_plot_table(path: Path) -> pd.DataFrame:
    """Read a table of metrics/plots. A group may be called "none" or "NA": only empty cells are missing."""
    import pandas as pd

    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; run `dvc repro` first") from None
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); run `dvc repro` to write it anew") from error


def title(name: str) -> str:
    """A metric's name for people."""
    return NAMES.get(name) or name.replace("_", " ").capitalize()


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: float | None, digits: int = 3) -> str:
    return "–" if absent(value) else f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or absent(value) else f"{100 * value:.{digits}f} %".replace("-", "−")


def count(value: float) -> str:
    """A number of rows; with weights it need not be whole."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def show(name: str, value: float | None) -> str:
    """A metric's value: shares of applicants in percent, the rest with three digits."""
    return percent(value) if name in SHARES else number(value)


def interval(name: str, found: Mapping[str, Any]) -> str:
    """A metric's interval, empty if it has none. ``found`` is the mapping that holds ``interval``."""
    ends = found["interval"].get(name)
    return f"{show(name, ends['low']).removesuffix(' %')} to {show(name, ends['high'])}" if ends else ""
