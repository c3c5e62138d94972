"""How often does `mlops-drift` alarm if nothing moved, and if something did?

The population is all applicants there are. In each round a reference and a window are drawn from it, with replacement, so that
the sampling error of the reference is in the figures. Scores are those of applicants whom the scoring model has not seen. Of
windows that moved only the tests of the feature that moved are counted. A missed bar is no failure by itself: the exit code is 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from common import print_table
from mlops_project.config import PREDICTIONS, PROCESSED, MonitoringParams, load_params
from mlops_project.files import read_table
from mlops_project.monitoring.drift import drift, feature_tests
from mlops_project.monitoring.statistics import p_value
from mlops_project.monitoring.windows import Rows, read_reference, rows_of
from mlops_project.schema import Contract, load_contract

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = ("window", "rows", "windows", "alarms", "95 % interval", "bar", "verdict")
NO_DRIFT = "none"
# At most this share of the windows without drift, and of those with drift at least that one, at this many rows.
MOST_FALSE, LEAST_POWER, POWER_ROWS = 0.07, 0.9, 1000
REFERENCE_ROWS = 673


def population(contract: Contract) -> Rows:
    development = read_reference(PROCESSED / "Xtraintest.csv", contract, PREDICTIONS / "out_of_fold.csv", None)
    held_out = rows_of(read_table(PROCESSED / "Xtest.csv", contract.text_columns), contract)
    scores = read_table(PREDICTIONS / "held_out.csv")["y_proba"].to_numpy()
    values = np.vstack([development.values, held_out.values])
    return development._replace(values=values, p_good=np.concatenate([development.p_good, scores]))


def drawn(everybody: Rows, n: int, rng: np.random.Generator) -> Rows:
    chosen = rng.integers(len(everybody.values), size=n)
    # Cells outside the contract as often as in the raw file: about one in a hundred.
    outside = rng.binomial(n, 0.01, everybody.values.shape[1])
    return everybody._replace(
        values=everybody.values[chosen], p_good=everybody.p_good[chosen], out_of_contract=outside, seen=n
    )  # fmt: skip


def shifts(contract: Contract, everybody: Rows) -> dict[str, tuple[str, Callable[[np.ndarray, np.random.Generator], None]]]:
    """What moves, by name: which feature, and a change of a window's values in place."""
    spread = np.nanstd(everybody.values, axis=0)
    places = {name: i for i, name in enumerate(contract.features)}
    numbers = contract.of_kind("numeric")

    def moved(name: str, by: float) -> Callable[[np.ndarray, np.random.Generator], None]:
        def change(values: np.ndarray, _: np.random.Generator) -> None:
            values[:, places[name]] += by * spread[places[name]]

        return change

    def recoded(name: str, sources: str, targets: str) -> Callable[[np.ndarray, np.random.Generator], None]:
        """Ten of a hundred rows change their code, out of these to those by their share: most, second, rare or rest."""
        codes, counts = np.unique(everybody.values[:, places[name]], return_counts=True)
        counts = counts * ~np.isnan(codes)
        most, second, *_ = order = np.argsort(-counts)
        there = {"most": [most], "second": [second], "rare": [order[(counts > 0).sum() - 1]]}
        rest = there[targets if sources == "rest" else sources]
        there["rest"] = [i for i in range(len(codes)) if i not in rest]
        chance = counts[there[targets]] / counts[there[targets]].sum()

        def change(values: np.ndarray, rng: np.random.Generator) -> None:
            column = values[:, places[name]]
            moved = np.flatnonzero(np.isin(column, codes[there[sources]]))
            chosen = rng.choice(moved, len(values) // 10, replace=False)
            column[chosen] = rng.choice(codes[there[targets]], len(chosen), p=chance)

        return change

    def lost(values: np.ndarray, rng: np.random.Generator) -> None:
        values[rng.random(len(values)) < 0.05, places[numbers[0]]] = np.nan

    found = {f"{name} + {by} sd": (name, moved(name, by)) for by in (0.3, 0.5) for name in numbers}
    for name in contract.of_kind("nominal", "ordinal"):
        counts = np.unique_counts(everybody.values[:, places[name]]).counts
        most = f"{counts.max() / len(everybody.values):.0%}"
        found[f"{name}: 10 points of {most} become the second code"] = name, recoded(name, "most", "second")
        found[f"{name}: 10 points of {most} become all others"] = name, recoded(name, "most", "rest")
        found[f"{name}: 10 points of all others become the rarest code"] = name, recoded(name, "rest", "rare")
    found[f"{numbers[0]}: 5 points go missing"] = (numbers[0], lost)
    return found


def without_drift(everybody: Rows, contract: Contract, params: MonitoringParams, rows: int, windows: int) -> int:
    """Return in how many windows there was an alarm."""
    alarms = 0
    for seed in range(windows):
        rng = np.random.default_rng([rows, seed])
        window, reference = drawn(everybody, rows, rng), drawn(everybody, REFERENCE_ROWS, rng)
        alarms += drift(reference, window, contract, msgspec.structs.replace(params, seed=seed))["drift"]
        if (seed + 1) % 100 == 0:
            print(f"{rows} rows: {alarms} of {seed + 1} windows alarm", file=sys.stderr)
    return alarms


def with_drift(
    everybody: Rows, contract: Contract, params: MonitoringParams, windows: int,
    feature: str, change: Callable[[np.ndarray, np.random.Generator], None], limit: float,
) -> int:  # fmt: skip
    """Return in how many windows a test of the feature that moved alarms; ``limit`` is the p-value from which on one does."""
    alarms = 0
    for seed in range(windows):
        rng = np.random.default_rng([POWER_ROWS, seed])
        window, reference = drawn(everybody, POWER_ROWS, rng), drawn(everybody, REFERENCE_ROWS, rng)
        change(window.values, rng)
        tests, _ = feature_tests(feature, reference, window, contract, params, rng)
        alarms += min(map(p_value, tests.values())) <= limit
    return alarms


def p_limit(everybody: Rows, contract: Contract, params: MonitoringParams, runs: int = 11) -> float:
    """Return the p-value from which on a test alone alarms, the median of some windows: it varies little."""
    rng = np.random.default_rng(0)
    pairs = [(drawn(everybody, REFERENCE_ROWS, rng), drawn(everybody, POWER_ROWS, rng)) for _ in range(runs)]
    return statistics.median(drift(*pair, contract, params)["p_threshold"] for pair in pairs)


def wilson(hits: int, n: int) -> tuple[float, float]:
    z, share = 1.96, hits / n
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=2000, help="without drift, per size (default: %(default)s)")
    parser.add_argument("--shifted", type=int, default=400, help="windows per kind of drift (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000, 10_000], help="of a window without drift")
    parser.add_argument("--simulations", type=int, help="per window (default: monitoring.simulations)")
    args = parser.parse_args()
    if not Path("params.yaml").is_file():
        parser.error("run it in the folder that holds params.yaml, after `dvc pull`")
    whole = load_params()
    contract = load_contract(whole.data.contract)
    params = whole.monitoring
    if args.simulations:
        params = msgspec.structs.replace(params, simulations=args.simulations)
    everybody = population(contract)
    table: list[tuple[str, ...]] = []

    def line(name: str, rows: int, windows: int, alarms: int, bar: float | None) -> None:
        share = alarms / windows
        passed = bar is None or (share <= bar if name == NO_DRIFT else share >= bar)
        low, high = wilson(alarms, windows)
        words = ("", "") if bar is None else (f"{'≤' if name == NO_DRIFT else '≥'} {bar:.0%}", "pass" if passed else "FAIL")
        table.append((name, str(rows), str(windows), f"{share:.1%}", f"{low:.1%} to {high:.1%}", *words))

    if args.windows:
        for rows in args.rows:
            line(NO_DRIFT, rows, args.windows, without_drift(everybody, contract, params, rows, args.windows), MOST_FALSE)
    if args.shifted:
        limit = p_limit(everybody, contract, params)
        for name, (feature, change) in shifts(contract, everybody).items():
            bar = LEAST_POWER if "0.5 sd" in name or "10 points" in name else None
            found = with_drift(everybody, contract, params, args.shifted, feature, change, limit)
            line(name, POWER_ROWS, args.shifted, found, bar)
    print_table(HEADER, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
