"""Who is who: the agreement rule that finds duplicated applicants, and ids that never change."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from msgspec.structs import replace

from build_raw_data import make_dirty
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


def quadratic(values: np.ndarray, min_cells: int) -> list[int]:
    """Follow the definition, pair by pair."""
    leaders: list[int] = []
    for row in range(len(values)):
        leader = row
        for earlier in range(row) if min_cells else ():
            both = ~np.isnan(values[row]) & ~np.isnan(values[earlier])
            if both.sum() >= min_cells and (values[row][both] == values[earlier][both]).all():
                leader = leaders[earlier]
                break
        leaders.append(leader)
    return leaders


tables = st_numpy.arrays(
    float, st.tuples(st.integers(0, 14), st.integers(1, 5)), elements=st.sampled_from([0.0, 1.0, 2.0, math.nan, math.nan])
)


@settings(max_examples=150)
@given(tables, st.integers(0, 6))
def test_duplicates_are_those_of_the_definition(values: np.ndarray, min_cells: int) -> None:
    leaders = first_occurrences(values, min_cells)
    assert leaders.tolist() == quadratic(values, min_cells)
    for end in range(len(values)):
        assert first_occurrences(values[:end], min_cells).tolist() == leaders[:end].tolist()
    chosen = values[np.unique(leaders)]
    assert first_occurrences(chosen, min_cells).tolist() == list(range(len(chosen)))


def test_agreement_is_passed_on() -> None:
    nan = math.nan
    chain = np.array([[1, 1, 1, nan, nan], [nan, 1, 1, 1, nan], [nan, nan, 1, 1, 1], [2, nan, 1, 1, 1], [nan, nan, nan, 1, 1]])
    assert first_occurrences(chain, 2).tolist() == [0, 0, 0, 0, 0]
    assert first_occurrences(chain, 3).tolist() == [0, 1, 2, 2, 4]
    assert first_occurrences(chain, 0).tolist() == [0, 1, 2, 3, 4]


def test_of_two_rows_to_join_the_earlier_counts_whatever_is_compared_first() -> None:
    nan = math.nan
    # The first column, the most distinct, is the one that rows are looked up by; the first row lacks it.
    rows = np.array([[nan, 1, 1, 1], [5, 2, 1, 1], [5, nan, 1, 1], [6, 9, 9, 9], [7, 9, 9, 9], [8, 9, 9, 9]])
    assert first_occurrences(rows, 2).tolist() == [0, 1, 0, 3, 4, 5]


@pytest.mark.parametrize("seed", [7, 42])
def test_the_duplicates_of_a_dirty_file_are_found_without_a_false_pair(seed: int, clean_table, contract: Contract) -> None:
    dirty = make_dirty(clean_table, seed)
    original = make_dirty(clean_table, seed, altered=0, missing=0, tokens=0, case=0).drop(columns="mixed_type_col")
    values = np.column_stack([contract.parse_features(dirty).values, contract.parse("kredit", dirty["kredit"]).values])
    leaders = first_occurrences(values, 12)
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
