"""Fuzzy augmentation: what the refused do to a fit, and who of them may not be in it."""

import msgspec
import numpy as np
import pytest

from mlops_project.modeling.train import fit
from mlops_project.monitoring.rejects import fuzzy_augmentation
from mlops_project.preprocessing import build_preprocessor


@pytest.fixture
def setting(applicants, contract, params, new_rows):
    quick = msgspec.structs.replace(params, train=msgspec.structs.replace(params.train, model="logistic_regression"))
    X, y = applicants.table[:300], applicants.target[:300]
    preprocessor = build_preprocessor(contract, quick.featurize)
    model = fit(X, y, preprocessor, contract, quick.train, quick.models)
    return X, y, new_rows(80, 4).drop(columns=contract.target.name), model, preprocessor, contract, quick


def test_without_refused_applicants_nothing_changes(setting):
    X, y, refused, model, *rest = setting
    found, used = fuzzy_augmentation(X, y, refused[:0], model, *rest, X.index[:0])
    assert used == 0
    np.testing.assert_allclose(found.predict_proba(X), model.predict_proba(X), atol=1e-6)


def test_the_refused_enter_with_the_champions_own_opinion(setting):
    X, y, refused, model, *rest = setting
    found, used = fuzzy_augmentation(X, y, refused, model, *rest, X.index[:0])
    assert used == len(refused)
    change = np.abs(found.predict_proba(X) - model.predict_proba(X))
    assert 1e-6 < change.mean() < 0.1, "it is heard, and says what the model says"


def test_who_is_held_out_is_not_trained_on_though_he_was_refused(setting, applicants, contract):
    X, y, _, model, *rest = setting
    held_out = applicants.table[300:360]
    _, used = fuzzy_augmentation(X, y, held_out[contract.features], model, *rest, held_out.index)
    assert used == 0
