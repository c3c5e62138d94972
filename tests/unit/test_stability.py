"""The population stability index: zero where nothing moved, the formula where something did."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.modeling.stability import (
    SMALLEST_SHARE,
    Population,
    bin_edges,
    bin_shares,
    population_stability_index,
    stability,
)
from mlops_project.schema import Column, Contract, Target

shares = st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(any).map(lambda counts: np.array(counts) / sum(counts))


def test_the_index_by_hand() -> None:
    found = population_stability_index(np.array([0.5, 0.5]), np.array([0.6, 0.4]))
    assert found == pytest.approx(0.1 * np.log(1.2) - 0.1 * np.log(0.8))
    new = population_stability_index(np.array([1.0, 0.0]), np.array([0.9, 0.1]))
    assert new == pytest.approx(-0.1 * np.log(0.9) + (0.1 - SMALLEST_SHARE) * np.log(0.1 / SMALLEST_SHARE))


@given(shares, st.data())
def test_the_index_is_zero_for_equal_shares_symmetric_and_never_negative(before: np.ndarray, data: st.DataObject) -> None:
    after = np.array(data.draw(st.permutations(before.tolist())))
    assert population_stability_index(before, before) == 0
    found = population_stability_index(before, after)
    assert found >= 0
    assert found == pytest.approx(population_stability_index(after, before))


def test_numbers_are_binned_by_deciles_and_missing_ones_apart() -> None:
    values = np.r_[np.arange(100.0), np.full(25, np.nan)]
    edges = bin_edges(values, np.ones(125))
    assert edges.tolist() == [9, 19, 29, 39, 49, 59, 69, 79, 89]
    assert bin_shares(values, np.ones(125), edges).tolist() == pytest.approx([0.08] * 10 + [0.2])
    assert bin_edges(np.full(3, np.nan), np.ones(3)).tolist() == []
    assert bin_edges(np.array([1.0, 1.0, 2.0]), np.ones(3)).tolist() == [1, 2]


def test_weights_are_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=80), rng.integers(1, 5, 80)
    edges = bin_edges(values, weights)
    np.testing.assert_array_equal(edges, bin_edges(np.repeat(values, weights), np.ones(weights.sum())))
    np.testing.assert_allclose(
        bin_shares(values, weights, edges), bin_shares(np.repeat(values, weights), np.ones(weights.sum()), edges)
    )


CONTRACT = Contract(
    target=Target(name="y", good=1, bad=0),
    columns={
        "amount": Column(kind="numeric", range=[0, 1000]),
        "home": Column(kind="nominal", codes=["own", "rent"]),
        "job": Column(kind="ordinal", codes=[1, 2, 3]),
    },
)


def population(n: int, seed: int, **changes: object) -> Population:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"amount": rng.uniform(0, 1000, n), "home": rng.choice(["own", "rent"], n), "job": rng.integers(1, 4, n)}
    )
    return Population(table.assign(**changes), rng.beta(3, 1, n), np.ones(n))


def test_the_same_rows_are_stable() -> None:
    rows = population(300, seed=0)
    metrics, table = stability(rows, rows, CONTRACT)
    assert (table["psi"] == 0).all()
    assert table["name"].tolist() == ["score", "amount", "home", "job"]
    assert (table["reading"] == "stable").all()
    assert metrics == {"score": 0, "largest": {"feature": "amount", "value": 0}}


def test_what_moved_is_named() -> None:
    before = population(4000, seed=0)
    metrics, table = stability(before, population(4000, seed=1, home="own", amount="?"), CONTRACT)
    assert table["name"].tolist()[0] == "score"
    assert set(table["name"][1:3]) == {"home", "amount"}
    assert table["reading"].tolist() == ["stable", "moved", "moved", "stable"]
    assert metrics["largest"]["feature"] == table["name"][1]
    assert metrics["largest"]["value"] == table["psi"][1] > 0.25
    assert metrics["score"] < 0.1


def test_chance_alone_gives_on_average_what_the_table_says() -> None:
    found = [stability(population(400, seed), population(200, 1000 + seed), CONTRACT)[1].set_index("name") for seed in range(60)]
    for name in ("score", "amount", "job"):
        mean = np.mean([table.loc[name, "psi"] for table in found])
        assert mean == pytest.approx(found[0].loc[name, "by_chance"], rel=0.3)
