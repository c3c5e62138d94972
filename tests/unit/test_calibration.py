"""Calibration: fitted on rows that the scoring model has not seen, it makes probabilities true and keeps their order."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from mlops_project.modeling.calibration import Calibrated, Sigmoid, fit_calibrator, margin
from mlops_project.modeling.scale import LARGEST_LOG_ODDS, log_odds


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Margins that are twice too bold and off by one, and the outcomes of the true probabilities."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0.8, 1, 20_000)
    return 2 * truth + 1, (rng.random(20_000) < expit(truth)).astype(int)


def test_sigmoid_finds_slope_and_intercept(drawn) -> None:
    found = Sigmoid().fit(*drawn)
    assert found.slope_ == pytest.approx(0.5, abs=0.02)
    assert found.intercept_ == pytest.approx(-0.5, abs=0.05)
    huge = Sigmoid().fit(drawn[0] * 1e6, drawn[1])
    np.testing.assert_allclose(huge.predict(drawn[0] * 1e6), found.predict(drawn[0]), atol=1e-6)
    constant = Sigmoid().fit(np.zeros(100), np.repeat([0, 1], [30, 70]))
    np.testing.assert_allclose(constant.predict(np.zeros(1)), 0.7, atol=1e-3)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_the_observed_share_is_the_predicted_one(method: str, drawn) -> None:
    margins, y = drawn
    p_good = fit_calibrator(method, margins[:10_000], y[:10_000]).predict(margins[10_000:])
    assert ((p_good > 0) & (p_good < 1)).all()
    for part in np.array_split(np.argsort(p_good), 5):
        assert p_good[part].mean() == pytest.approx(y[10_000:][part].mean(), abs=0.04)  # 2,000 rows: s.e. 0.011
    order = np.argsort(margins[10_000:])
    assert (np.diff(p_good[order]) >= 0).all()


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_weights_are_rows_counted_several_times(method: str, drawn) -> None:
    margins, y = drawn[0][:300], drawn[1][:300]
    weight = np.random.default_rng(1).integers(1, 4, 300)
    one = fit_calibrator(method, margins, y, weight.astype(float))
    other = fit_calibrator(method, np.repeat(margins, weight), np.repeat(y, weight))
    tolerance = 1e-3 if method == "sigmoid" else 0.01  # the spread, and the least step, are those of the rows
    np.testing.assert_allclose(one.predict(margins), other.predict(margins), atol=tolerance)


def test_log_odds_stay_finite_and_turn_back(drawn) -> None:
    p_good = expit(np.linspace(-10, 10, 50))
    np.testing.assert_allclose(expit(log_odds(p_good)), p_good)
    np.testing.assert_array_equal(log_odds(np.array([0.0, 1.0])), [-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS])


def test_a_calibrated_classifier_maps_the_margins_of_its_own() -> None:
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(200, 2)), rng.integers(0, 2, 200)
    for classifier in (SVC().fit(X, y), LogisticRegression().fit(X, y)):
        calibrator = Sigmoid().fit(classifier.decision_function(X), y)
        p = Calibrated(classifier, calibrator).predict_proba(X)
        np.testing.assert_allclose(p.sum(axis=1), 1)
        np.testing.assert_allclose(p[:, 1], calibrator.predict(margin(classifier, X)))
