"""Every model and every setting of the preprocessor: the plan answers as the model does, dirty rows included."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sklearn.naive_bayes import GaussianNB

from mlops_project.config import Params, Ratio
from mlops_project.dataset import Applicants, DataCleaner
from mlops_project.modeling import forms
from mlops_project.modeling.compiled import CompiledScorer
from mlops_project.modeling.compiling import NotCompilable, compile_model, parity, reference_rows, tolerance
from mlops_project.modeling.forms import ROWS_IN_NUMPY, ROWS_TO_SEARCH
from mlops_project.modeling.model import RiskModel
from mlops_project.modeling.train import fit
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Column, Contract, Target

MODELS = ["scorecard", "logistic_regression", "decision_tree", "xgboost_monotone", "svm", "random_forest", "xgboost", "blend"]
EXPLAINED = ("scorecard", "logistic_regression", "xgboost_monotone", "xgboost")
VIEWS = st.fixed_dictionaries({
    "ratios": st.sampled_from([[], [Ratio("per_month", "hoehe", "laufzeit"), Ratio("one", "laufzeit", "laufzeit")]]),
    "log": st.sampled_from([[], ["laufzeit"], ["hoehe", "laufzeit"]]),
    "numeric_imputation": st.sampled_from(["median", "mean"]),
    "missing_indicators": st.booleans(),
    "outliers": st.sampled_from(["none", "iqr", "percentiles"]),
    "scale": st.sampled_from(["standard", "robust", "none"]),
    "ordinals": st.sampled_from(["rank", "one_hot"]),
    "without_protected": st.booleans(),
})  # fmt: skip


def fit_few(
    model: str, table: pd.DataFrame, target: pd.Series, contract: Contract, params: Params, view: dict, calibration: str = "none"
) -> RiskModel:
    """Fit with few trees."""
    few = {
        name: replace(getattr(params.models, name), n_estimators=12) for name in ("xgboost_monotone", "random_forest", "xgboost")
    }
    blend = replace(params.models.blend, xgboost=few["xgboost"], random_forest=few["random_forest"])
    featurize = replace(params.featurize, **view)
    seen = contract.without(contract.protected) if featurize.without_protected else contract
    train = replace(params.train, model=model, calibration=calibration)
    preprocessor = build_preprocessor(seen, featurize)
    return fit(table, target, preprocessor, contract, train, replace(params.models, **few, blend=blend))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # unscaled, which is no matter here
@settings(max_examples=4, phases=(Phase.generate,))
@given(
    view=VIEWS,
    calibration=st.sampled_from(["none", "sigmoid", "isotonic"]),
    start=st.integers(0, 500),
    n_rows=st.integers(150, 300),
    empty=st.none() | st.integers(0, 19),
)
def test_plan_and_model_agree(
    model: str,
    view: dict,
    calibration: str,
    start: int,
    n_rows: int,
    empty: int | None,
    _applicants: Applicants,  # noqa: PT019 - hypothesis wants one that lasts
    contract: Contract,
    params: Params,
) -> None:
    table, target = _applicants.table.iloc[start : start + n_rows].copy(), _applicants.target.iloc[start : start + n_rows]
    if empty is not None:
        table[contract.features[empty]] = None  # a column without any value
    fitted = fit_few(model, table, target, contract, params, view, calibration)
    scorer = compile_model(fitted)
    reference = reference_rows(contract).sample(400, random_state=start)
    assert parity(fitted, scorer, reference) <= tolerance(scorer)
    assert scorer.can_explain == (model in EXPLAINED)
    assert tolerance(scorer) == (1e-9 if model in ("scorecard", "logistic_regression", "svm") else 1e-6)


@pytest.mark.parametrize("model", ["scorecard", "logistic_regression", "xgboost", "blend"])
def test_the_answer_does_not_depend_on_who_else_is_asked(
    model: str, applicants: Applicants, contract: Contract, params: Params
) -> None:
    fitted = fit_few(model, applicants.table[:300], applicants.target[:300], contract, params, {"log": ["hoehe"]})
    scorer = compile_model(fitted)
    records = reference_rows(contract).sample(150, random_state=1).to_dict("records")
    whole = scorer.p_good(scorer.parse(records).values)
    for size in (1, 4, 5, ROWS_IN_NUMPY, ROWS_IN_NUMPY + 1, ROWS_TO_SEARCH - 1, ROWS_TO_SEARCH):
        parts = [scorer.p_good(scorer.parse(records[i : i + size]).values) for i in range(0, len(records), size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-7 if model in ("xgboost", "blend") else 1e-14)


def test_tables_of_many_trees_say_what_xgboost_says(
    applicants: Applicants, contract: Contract, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than two bytes count, for few rows, for many and in parts; some cells are missing."""
    models = replace(params.models, xgboost_monotone=replace(params.models.xgboost_monotone, n_estimators=600))
    train, preprocessor = replace(params.train, model="xgboost_monotone"), build_preprocessor(contract, params.featurize)
    fitted = fit(applicants.table[:300], applicants.target[:300], preprocessor, contract, train, models)
    scorer = compile_model(fitted)
    form = scorer._members[0].form
    assert form.tables.value.size > 2**16 < form.tables.part.size
    values = contract.parse_features(applicants.table[300:]).values
    assert np.isnan(values).any()
    base, expected = fitted.contributions(applicants.table[300:])
    margin = form.booster.inplace_predict(values, predict_type="margin")
    for n in (1, ROWS_IN_NUMPY + 1, ROWS_TO_SEARCH, len(values)):
        compared = form.tables.compare(values[:n])
        np.testing.assert_array_equal(form.tables.margin(form.start, compared), margin[:n])
        p_good, _ = scorer.explain(values[:n])
        np.testing.assert_array_equal(p_good, scorer.p_good(values[:n]))
        found_base, found = scorer.contributions(values[:n])
        assert found_base == pytest.approx(base, abs=1e-6)
        np.testing.assert_allclose(found, expected[:n], atol=1e-6)
    monkeypatch.setattr(forms, "MAX_CELLS", 2_000)
    np.testing.assert_array_equal(scorer.p_good(values), p_good)
    np.testing.assert_allclose(scorer.contributions(values)[1], found, atol=1e-6)


@pytest.mark.parametrize("model", ["random_forest", "svm"])
def test_parts_change_nothing(
    model: str, applicants: Applicants, contract: Contract, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = compile_model(fit_few(model, applicants.table[:300], applicants.target[:300], contract, params, {}))
    values = contract.parse_features(applicants.table[300:]).values
    whole = scorer.p_good(values)
    monkeypatch.setattr(forms, "MAX_CELLS", 1_000)
    np.testing.assert_allclose(scorer.p_good(values), whole, atol=1e-14)


@pytest.mark.parametrize("model", ["scorecard", "logistic_regression", "xgboost_monotone", "decision_tree"])
def test_text_codes_decimal_commas_and_open_ranges_agree(model: str, params: Params) -> None:
    contract = Contract(
        target=Target(name="paid", good="yes", bad="no"),
        decimal=",",
        missing_tokens=["-999", "N/A"],
        columns={
            "id": Column(kind="identifier"),
            "amount": Column(kind="numeric", monotone="decreasing"),
            "grade": Column(kind="ordinal", codes=["low", "middle", "high"]),
            "region": Column(kind="nominal", codes={"N": "north", "S": "south", "W": "never seen"}),
            "children": Column(kind="ordinal", codes=[0, 1, 2]),
            "opened": Column(kind="date"),
        },
    )
    rng = np.random.default_rng(5)
    n = 400
    amounts = rng.lognormal(8, 1, n)
    raw = pd.DataFrame({
        "id": [f"a{i}" for i in range(n)],
        "amount": [f"{amount:.2f}".replace(".", ",") for amount in amounts],
        "grade": rng.choice(["low", "MIDDLE", " high ", "?"], n),
        "region": rng.choice(["n", "S", "N/A"], n),
        "children": rng.choice(["0", "1", "2,0", "3"], n),
        "opened": "2020-02-03",
        "paid": np.where(rng.random(n) < 1 / (1 + amounts / 3000), "yes", "no"),
    })  # fmt: skip
    cleaned = DataCleaner(contract, 0).clean(raw)
    fitted = fit_few(model, cleaned.table, cleaned.target, contract, params, {"log": ["amount"]})
    scorer = compile_model(fitted)
    assert scorer.columns == ["amount", "grade", "region", "children"]
    assert parity(fitted, scorer, reference_rows(contract)) <= tolerance(scorer)
    assert parity(fitted, scorer, raw) <= tolerance(scorer)


def test_monstrous_numbers_have_an_answer(params: Params) -> None:
    contract = Contract(
        target=Target(name="paid", good=1, bad=0),
        columns={"a": Column(kind="numeric"), "b": Column(kind="numeric")},
    )
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=200), "b": rng.normal(size=200)})
    target = pd.Series((table["a"] - table["b"] + rng.normal(size=200) > 0).astype(int))
    fitted = fit_few("logistic_regression", table, target, contract, params, {"ratios": [Ratio("q", "a", "b")]})
    scorer = compile_model(fitted)
    for cells in ((1.7e308, 1.7e308), (-1.7e308, 1.7e308), (1e308, 5e-324), (0, 0)):
        for n in (1, ROWS_TO_SEARCH):
            p_good = scorer.p_good(scorer.parse([dict(zip("ab", cells, strict=True))] * n).values)
            assert ((p_good >= 0) & (p_good <= 1)).all()


def test_parity_sees_a_small_difference(applicants: Applicants, contract: Contract, params: Params) -> None:
    fitted = fit_few("scorecard", applicants.table[:300], applicants.target[:300], contract, params, {})
    scorer = compile_model(fitted)
    reference = reference_rows(contract)
    assert parity(fitted, scorer, reference) < 1e-12
    for name in ("member0.rise", "member0.missing", "reference.mean"):
        changed = dict(scorer.arrays)
        changed[name] = changed[name].copy()
        changed[name][3] += 1e-6
        assert parity(fitted, CompiledScorer(scorer.header, changed), reference) > tolerance(scorer)


def test_parity_sees_a_wrong_table_of_contributions(applicants: Applicants, contract: Contract, params: Params) -> None:
    fitted = fit_few("xgboost", applicants.table[:300], applicants.target[:300], contract, params, {})
    scorer = compile_model(fitted)
    reference = reference_rows(contract)
    assert parity(fitted, scorer, reference) <= tolerance(scorer)
    part = scorer.arrays["member0.tables.part"].copy()
    part[0] += 1e-3
    assert parity(fitted, CompiledScorer(scorer.header, scorer.arrays | {"member0.tables.part": part}), reference) > tolerance(
        scorer
    )


def test_xgboost_is_asked_for_contributions_that_it_computes_badly(
    applicants: Applicants, contract: Contract, params: Params
) -> None:
    """Trees that separate all rows have next to no weight left, by which single precision must divide."""
    models = replace(
        params.models, xgboost_monotone=replace(params.models.xgboost_monotone, n_estimators=1000, learning_rate=0.3)
    )
    preprocessor = build_preprocessor(contract, params.featurize)
    train = replace(params.train, model="xgboost_monotone")
    fitted = fit(applicants.table[:300], applicants.target[:300], preprocessor, contract, train, models)
    scorer = compile_model(fitted)
    assert scorer.can_explain
    assert not any(".tables." in name for name in scorer.arrays)
    assert parity(fitted, scorer, reference_rows(contract)) <= tolerance(scorer)


def test_reference_rows_hold_every_kind_of_dirt_in_every_column(contract: Contract) -> None:
    table = reference_rows(contract)
    cells = contract.parse_features(table)
    assert {0, 1, 2, 3} == set(cells.status[:, 0])
    for i, name in enumerate(contract.features):
        assert {*np.unique(cells.status[:, i])} == {0, 1, 2, 3}, name
        column = contract.columns[name]
        if column.codes:
            assert {*map(float, column.code_list)} <= {*cells.values[:, i]}
        else:
            assert {*column.range} <= {*cells.values[:, i]}
        numbers = [cell for cell in table[name] if isinstance(cell, (int, float)) and not isinstance(cell, bool)]
        assert min(numbers) == -np.inf
        assert max(numbers) == np.inf
        assert {bool, int, float, str, type(None)} <= {*map(type, table[name])}


def test_a_model_without_a_compiled_form_is_refused(applicants: Applicants, contract: Contract, params: Params) -> None:
    fitted = fit_few("logistic_regression", applicants.table[:300], applicants.target[:300], contract, params, {})
    fitted.pipeline.steps[-1] = ("model", GaussianNB())
    with pytest.raises(NotCompilable, match="GaussianNB: has no compiled form"):
        compile_model(fitted)
