"""Simulated applicants: like the real ones, or changed in the ways that are said."""

import numpy as np
import pytest

from mlops_project.dataset import DataCleaner
from simulator import REVERSED, SHIFT, Simulator

N = 4000


@pytest.fixture(scope="module")
def simulator(clean_table, contract):
    return Simulator(clean_table, contract)


@pytest.fixture(scope="module")
def populations(simulator):
    return simulator.draw(N, 1), simulator.draw(N, 1, shifted=True)


@pytest.fixture(scope="module")
def values(populations, contract):
    return [contract.parse_features(one.cells).values for one in populations]


def test_the_same_seed_gives_the_same_applicants_and_another_seed_others(simulator):
    first, same, other = (simulator.draw(50, seed) for seed in (1, 1, 2))
    assert first.cells.equals(same.cells)
    assert (first.good == same.good).all()
    assert not first.cells.equals(other.cells)


def test_applicants_are_as_the_contract_has_them_and_as_dirty_as_the_raw_table(populations, contract, raw_table):
    cells = populations[0].cells
    assert list(cells) == contract.features
    assert [contract.parse_features(table).status.mean() for table in (cells, raw_table)] == pytest.approx([0.0, 0.0], abs=0.1)
    target = contract.target
    rows = cells.assign(**{target.name: np.where(populations[0].good, str(target.good), str(target.bad))})
    assert len(DataCleaner(contract).clean(rows).table) > 0.97 * N, "hardly anybody is met twice"


def test_the_default_population_is_distributed_as_the_clean_table(values, clean_table, contract):
    clean = clean_table[[*contract.features]].to_numpy(dtype=float)
    moved = (np.nanmean(values[0], axis=0) - clean.mean(axis=0)) / clean.std(axis=0)
    assert np.abs(moved).max() < 0.12


def test_outcomes_are_as_frequent_as_in_the_clean_table_and_follow_the_truth(simulator, populations, clean_table, contract):
    bad = (clean_table[contract.target.name] == contract.target.bad).mean()
    assert 1 - populations[0].good.mean() == pytest.approx(bad, abs=0.04)
    assert simulator.default_probability(simulator.rows).mean() == pytest.approx(bad, abs=0.04)


def test_the_shifted_population_moves_one_number_by_what_is_said(simulator, values, contract):
    at = contract.features.index(simulator.numbers[0])
    moved = (np.nanmean(values[1][:, at]) - np.nanmean(values[0][:, at])) / np.nanstd(values[0][:, at])
    assert moved == pytest.approx(SHIFT, abs=0.2)


def test_in_the_shifted_population_the_named_columns_work_the_other_way_round(simulator):
    assert len(simulator.reversed) == REVERSED
    effects = simulator.effects(simulator.rows)
    before, after = (
        np.log(p / (1 - p)) for p in (simulator.default_probability(simulator.rows, shifted=changed) for changed in (False, True))
    )
    turned = effects[simulator.reversed].sum(axis=1)
    np.testing.assert_allclose(after - before, -2 * (turned - turned.mean()), atol=1e-9)
    assert abs((after - before).mean()) < 1e-9, "nobody's chances changed on average"
