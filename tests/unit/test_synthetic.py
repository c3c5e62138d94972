"""Synthetic applications: as the real ones column by column, as dirty as they, and with the copies that were planted."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import synthetic
from mlops_project.cells import INVALID, VALID
from mlops_project.config import load_params
from mlops_project.modeling.train import fit
from mlops_project.preprocessing import build_preprocessor

ROWS = 20_000


@pytest.fixture(scope="module")
def population(clean_table):
    return synthetic.Population(clean_table)


@pytest.fixture(scope="module")
def pairs():
    return synthetic.plant(ROWS, 0.02, np.random.default_rng([1, 0]))


@pytest.fixture(scope="module")
def drawn(population):
    return population.draw(ROWS, np.random.default_rng(3))


@pytest.fixture(scope="module")
def table(population, pairs):
    """Two chunks, so that copies stand in another chunk than their originals, too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(synthetic, "CHUNK", 15_000)
        return pd.concat(synthetic.applications(population, ROWS, 1, pairs), ignore_index=True)


@pytest.fixture(scope="module")
def cells(table, contract):
    return contract.parse_features(table)


def test_each_column_is_distributed_as_among_the_clean_rows(drawn, clean_table):
    assert list(drawn) == list(clean_table)
    for name in clean_table:
        ours, theirs = (column[name].value_counts(normalize=True).sort_index().cumsum() for column in (drawn, clean_table))
        steps = sorted({*ours.index, *theirs.index})
        gap = (ours.reindex(steps).ffill().fillna(0) - theirs.reindex(steps).ffill().fillna(0)).abs().max()
        assert gap < 0.02, f"{name}: distribution functions differ by {gap:.3f}"


def test_amounts_take_thousands_of_values_and_nobody_is_met_twice(drawn):
    assert drawn["hoehe"].nunique() > 5_000
    assert drawn.duplicated().sum() == 0


def test_columns_hang_together_as_among_the_clean_rows(drawn, clean_table):
    names = ["laufzeit", "hoehe", "alter"]
    assert np.abs(drawn[names].corr("spearman") - clean_table[names].corr("spearman")).to_numpy().max() < 0.05


def test_the_default_model_ranks_new_applicants_about_as_well_as_real_ones(table, cells, contract, root):
    params = load_params(root / "params.yaml")
    target = contract.parse("kredit", table["kredit"])
    known = np.flatnonzero(target.status == VALID)
    X = pd.DataFrame({name: contract.labels(name, cells.values[known, i]) for i, name in enumerate(contract.features)})
    y = pd.Series(target.values[known].astype(int))
    train = params.train
    model = fit(X[:8000], y[:8000], build_preprocessor(contract, params.featurize), contract, train, params.models)
    assert 0.75 < roc_auc_score(y[8000:], model.predict_proba(X[8000:])[:, 1]) < 0.80
    assert y.mean() == pytest.approx(0.7, abs=0.015)


def test_planted_copies_agree_with_their_originals_but_for_dirt_of_their_own(cells, pairs):
    assert len(pairs) == round(ROWS * 0.02 / 1.02)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs)) == pairs.size, "nobody is copied twice, no copy is copied"
    assert ((pairs[:, 0] < 15_000) & (pairs[:, 1] >= 15_000)).any()
    one, two = cells.values[pairs[:, 0]], cells.values[pairs[:, 1]]
    differ = (one != two) & ~np.isnan(one) & ~np.isnan(two)
    # Only where a changed value happens to be an allowed one.
    assert 0 < differ.mean() < 0.01
    chance = cells.values[pairs[:, 0]] != cells.values[np.roll(pairs[:, 1], 1)]
    assert chance.mean() > 0.4
    assert (pairs[:, 1] - pairs[:, 0]).mean() == pytest.approx(ROWS / 3, rel=0.1), "places are uniform"


def test_cells_are_as_dirty_as_those_of_the_raw_table(table, cells, raw_table, contract):
    ours, theirs = (
        np.bincount(one.status.ravel(), minlength=4) / one.status.size for one in (cells, contract.parse_features(raw_table))
    )
    assert ours == pytest.approx(theirs, abs=0.003)
    assert ours[INVALID] > 0.005
    padded = table.drop(columns="mixed_type_col").apply(lambda column: column.str.startswith(" ")).to_numpy().mean()
    assert padded == pytest.approx(0.05, abs=0.003)


def test_the_same_seed_gives_the_same_file_in_any_number_of_parts(population, pairs, tmp_path):
    def written(name, seed, parts):
        tables = synthetic.applications(population, 300, seed, synthetic.plant(300, 0.02, np.random.default_rng(seed)))
        return [path.read_text("utf-8") for path in synthetic.write(str(tmp_path / name), tables, 300, parts)]

    (one,), (same,), (other,) = written("a.csv", 1, 1), written("b.csv", 1, 1), written("c.csv", 2, 1)
    assert one == same
    assert one != other
    parts = written("part-{}.csv", 1, 7)
    header, body = one.split("\n", 1)
    assert [part.count("\n") - 1 for part in parts] == [42, 43, 43, 43, 43, 43, 43]
    assert all(part.startswith(header + "\n") for part in parts)
    assert "".join(part.split("\n", 1)[1] for part in parts) == body


def test_parquet_holds_the_same_text(population, pairs, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra [parquet]")
    tables = list(synthetic.applications(population, 300, 1, synthetic.plant(300, 0.02, np.random.default_rng(1))))
    (path,) = synthetic.write(str(tmp_path / "a.parquet"), iter(tables), 300)
    assert pq.read_table(path).to_pydict() == tables[0].to_dict("list")
