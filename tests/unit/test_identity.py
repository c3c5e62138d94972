"""Who is who: the agreement rule that finds duplicated applicants, and ids that never change."""

import math
import tracemalloc
from itertools import cycle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from msgspec.structs import replace

from build_raw_data import make_dirty
from mlops_project import identity
from mlops_project.identity import Ids, first_occurrences, hash_rows
from mlops_project.schema import Column, Contract, Target

SMALL = Contract(
    target=Target(name="y", good="paid", bad="lost"),
    missing_tokens=["?"],
    columns={
        "amount": Column(kind="numeric", range=[0.0, 1000.0]),
        "home": Column(kind="nominal", codes=["own", "rent"]),
        "grade": Column(kind="ordinal", codes=[1, 2, 3]),
    },
)


# --- first_occurrences


def quadratic(values: np.ndarray, min_cells: int, strict_after: int | None = None) -> list[int]:
    """Follow the definition: compare each row with every earlier one."""
    leaders: list[int] = []
    valid = ~np.isnan(values)
    required = np.zeros(values.shape[1], bool)
    if strict_after is not None:
        for i, cells in enumerate(values[:strict_after].T):
            distinct = set(cells[~np.isnan(cells)].tolist())
            required[i] = len(distinct) > identity.MANY_VALUES and np.isnan(cells).sum() <= len(cells) / 10
        required |= not required.any()
    for row in range(len(values)):
        both = valid[:row] & valid[row]
        agree = ((values[:row] == values[row]) | ~both).all(axis=1) & (both.sum(axis=1) >= min_cells)
        if strict_after is not None and row >= strict_after:
            agree &= both[:, required].all(axis=1)
        leaders.append(leaders[np.argmax(agree)] if agree.any() and min_cells else row)
    return leaders


tables = st_numpy.arrays(
    float, st.tuples(st.integers(0, 40), st.integers(1, 6)), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0, math.nan, math.nan])
)


# Small tables are divided to the end only if few pairs are too many, and fall into blocks only if these are small.
@settings(max_examples=200)
@given(tables, st.integers(0, 7), st.one_of(st.none(), st.integers(1, 40)), st.integers(0, 3), st.booleans())
def test_duplicates_are_those_of_the_definition(
    values: np.ndarray, min_cells: int, strict_after: int | None, many: int, small: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "MANY_VALUES", many)
        if small:
            for name, least in (("BLOCK", 4), ("CHUNK", 3), ("PAIRS_PER_ROW", 1), ("FEW_PAIRS", 0)):
                patch.setattr(identity, name, least)
        leaders = first_occurrences(values.T, min_cells, strict_after=strict_after)
        assert leaders.tolist() == quadratic(values, min_cells, strict_after)
        for end in range(0, len(values), 5):
            part = first_occurrences(values[:end].T, min_cells, strict_after=strict_after)
            assert part.tolist() == leaders[:end].tolist()


def with_chains(n: int, n_columns: int, n_values: int, gaps: float, seed: int) -> np.ndarray:
    """Random cells of which one column tells most apart; a quarter of the rows are links of chains A, B, C.

    B lacks two cells that A has and C has with other values, so A agrees with B, B with C, but A not with C.
    """
    rng = np.random.default_rng(seed)
    values = rng.integers(0, n_values, (n, n_columns)).astype(float)
    values[:, 0] = rng.integers(0, 30 * n_values, n)
    values[rng.random(values.shape) < gaps] = math.nan
    a, b, c = rng.permutation(n)[: n // 12 * 3].reshape(3, -1)
    values[b] = values[c] = values[a]
    for link in zip(b, c, strict=True):
        lost = rng.permutation(n_columns)[:2]
        values[link[0], lost] = math.nan
        values[link[1], lost] += 1
    return values


@pytest.mark.parametrize(
    ("n", "n_columns", "n_values", "gaps", "min_cells", "strict_after"),
    [
        (5000, 21, 4, 0.02, 12, None),
        (5000, 21, 4, 0.03, 12, 2000),
        (5000, 21, 2, 0.3, 8, None),  # chance agrees in hundreds of rows
        (5000, 21, 1, 0.4, 12, 4000),  # all equal but for gaps, and no column is distinct
        (1000, 70, 1, 0.6, 14, None),  # more columns than a word has bits
    ],
)
def test_duplicates_of_large_tables_are_those_of_the_definition(
    n: int, n_columns: int, n_values: int, gaps: float, min_cells: int, strict_after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "BLOCK", 512)
    values = with_chains(n, n_columns, n_values, gaps, seed=n_columns + n_values)
    columns = [column.astype(dtype) for column, dtype in zip(values.T, cycle(["f2", "f4", "f8"]), strict=False)]
    leaders = first_occurrences(columns, min_cells, strict_after=strict_after)
    assert (leaders != np.arange(n)).sum() > 100
    assert leaders.tolist() == quadratic(values, min_cells, strict_after)
    end = n * 9 // 10
    assert (
        first_occurrences([column[:end] for column in columns], min_cells, strict_after=strict_after).tolist()
        == leaders[:end].tolist()
    )


def test_colliding_hashes_cost_time_and_not_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    mix = identity._mix
    monkeypatch.setattr(identity, "_mix", lambda keys, cells: mix(keys, cells) & np.uint64(3 << 62))
    monkeypatch.setattr(identity, "FEW_PAIRS", 0)
    values = with_chains(600, 4, 9, 0.1, seed=1)
    for strict_after in (None, 200):
        leaders = first_occurrences(values.T, 2, strict_after=strict_after)
        assert leaders.tolist() == quadratic(values, 2, strict_after)


def test_agreement_is_passed_on() -> None:
    nan = math.nan
    chain = np.array([[1, 1, 1, nan, nan], [nan, 1, 1, 1, nan], [nan, nan, 1, 1, 1], [2, nan, 1, 1, 1], [nan, nan, nan, 1, 1]])
    assert first_occurrences(chain.T, 2).tolist() == [0, 0, 0, 0, 0]
    assert first_occurrences(chain.T, 3).tolist() == [0, 1, 2, 2, 4]
    assert first_occurrences(chain.T, 0).tolist() == [0, 1, 2, 3, 4]


def test_of_two_rows_to_join_the_earlier_counts_whatever_is_compared_first() -> None:
    nan = math.nan
    # The first column, the most distinct, is the one that rows are looked up by; the first row lacks it.
    rows = np.array([[nan, 1, 1, 1], [5, 2, 1, 1], [5, nan, 1, 1], [6, 9, 9, 9], [7, 9, 9, 9], [8, 9, 9, 9]])
    assert first_occurrences(rows.T, 2).tolist() == [0, 1, 0, 3, 4, 5]


def test_late_rows_must_agree_in_every_distinct_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MANY_VALUES", 3)
    nan = math.nan
    amount, home, sparse = [1, 2, 3, 4, 1, 1, nan, 5, 1], [1] * 9, [1, 2, 3, 4, nan, 1, 1, 2, 5]
    columns = [np.array(cells, dtype="f4") for cells in (amount, home, home, sparse)]
    assert first_occurrences(columns, 2).tolist() == [0, 1, 2, 3, 0, 0, 0, 7, 0]
    # With sparse among the first rows' distinct columns, the fifth row is alone for lack of it; the seventh lacks the amount.
    assert first_occurrences(columns, 2, strict_after=4).tolist() == [0, 1, 2, 3, 4, 0, 6, 7, 8]
    # Among the first five rows sparse is valid in too few: it may be missing, but must not differ.
    assert first_occurrences(columns, 2, strict_after=5).tolist() == [0, 1, 2, 3, 0, 0, 6, 7, 0]
    # No column is distinct: then all must agree.
    assert first_occurrences(columns, 2, strict_after=3).tolist() == [0, 1, 2, 3, 4, 0, 6, 7, 8]


def test_memory_does_not_grow_with_the_pairs() -> None:
    """Of 10,000 rows that differ in their gaps alone, 50 million pairs are candidates."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random((21, 10_000)) < 0.3, math.nan, 1.0)
    tracemalloc.start()
    try:
        leaders = first_occurrences(values, 12)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (leaders != np.arange(10_000)).sum() > 8000
    assert peak < 16e6


@pytest.mark.parametrize("seed", [7, 42])
def test_the_duplicates_of_a_dirty_file_are_found_without_a_false_pair(seed: int, clean_table, contract: Contract) -> None:
    dirty = make_dirty(clean_table, seed)
    original = make_dirty(clean_table, seed, altered=0, missing=0, tokens=0, case=0).drop(columns="mixed_type_col")
    values = np.column_stack([contract.parse_features(dirty).values, contract.parse("kredit", dirty["kredit"]).values])
    leaders = first_occurrences(values.T, 12)
    merged = np.flatnonzero(leaders != np.arange(len(leaders)))
    assert 18 <= len(merged) <= 20
    assert (original.iloc[merged].to_numpy() == original.iloc[leaders[merged]].to_numpy()).all()


# --- hash_rows


def test_the_id_of_a_row_never_changes() -> None:
    """Another literal here means that every held-out applicant of every team changes sides."""
    values = np.array([[18.0, 1.0, 3.0], [math.nan, math.nan, 2.0], [0.0, 0.0, math.nan]])
    assert hash_rows(values, SMALL) == PINNED
    assert hash_rows(values[1:], SMALL) == PINNED[1:]


PINNED = ["d3798cf2b716f984", "beb96a47157b9a62", "9232766467c7e1dc"]


def test_the_id_depends_on_values_alone() -> None:
    texts = pd.DataFrame({"amount": [" 18 ", "-0", "?"], "home": ["RENT", "own", ""], "grade": ["3.0", "1e0", "9"]})
    typed = pd.DataFrame({"amount": [18.0, 0.0, math.nan], "home": ["rent", "own", None], "grade": [3, 1, 7]})
    small = typed.astype({"amount": "float32", "grade": "int8", "home": "category"})
    expected = hash_rows(SMALL.parse_features(texts).values, SMALL)
    assert len(set(expected)) == 3
    for table in (typed, small, small.iloc[:, ::-1]):
        assert hash_rows(SMALL.parse_features(table).values, SMALL) == expected
    negative_nan = np.array([[np.copysign(math.nan, -1)] * 3])
    assert hash_rows(negative_nan, SMALL) == hash_rows(np.full((1, 3), math.nan), SMALL)


def test_another_code_in_the_contract_moves_nobody() -> None:
    table = pd.DataFrame({"amount": ["1", "2"], "home": ["own", "rent"], "grade": ["1", "2"]})
    home, grade = Column(kind="nominal", codes=["free", "rent", "own"]), Column(kind="ordinal", codes=[0, 1, 2, 3])
    longer = replace(SMALL, columns=SMALL.columns | {"home": home, "grade": grade})
    assert hash_rows(longer.parse_features(table).values, longer) == hash_rows(SMALL.parse_features(table).values, SMALL)


# --- unique_ids


def test_ids_that_stand_more_than_once_are_numbered() -> None:
    assert Ids(np.array(["x", "y", "x", "x", "y"], dtype=object)).texts() == ["x", "y", "x-2", "x-3", "y-2"]
    assert Ids(np.array([], dtype=object)).texts() == []
