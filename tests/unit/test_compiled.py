"""The compiled scorer: the same cells, decisions and words as the model, from a file that holds no code."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mlops_project.cells import INVALID, MISSING, TOKEN
from mlops_project.config import Params
from mlops_project.dataset import Applicants
from mlops_project.errors import DataError, PipelineError
from mlops_project.modeling import compiled
from mlops_project.modeling.compiled import CompiledScorer, contract_from_plan, contract_to_plan
from mlops_project.modeling.compiling import compile_model, reference_rows
from mlops_project.modeling.model import RiskModel
from mlops_project.modeling.policy import Policy
from mlops_project.modeling.train import fit
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Column, Contract, Target

POLICY = Policy(
    threshold=0.2,
    threshold_from="params",
    cost_bad_approved=5.0,
    cost_good_refused=1.0,
    sample_default_rate=0.3,
    prior_default_rate=0.1,
    conformal_level=0.9,
    conformal_cutoff_good=0.7,
    conformal_cutoff_bad=0.25,
)
# Every kind of column, with codes that a number could be taken for, and tokens that are numbers.
EVERY_KIND = Contract(
    target=Target(name="paid", good="yes", bad="no"),
    decimal=",",
    missing_tokens=["-999", "N/A", " Unknown "],
    columns={
        "amount": Column(kind="numeric", range=[0.0, 1e6]),
        "balance": Column(kind="numeric", unit="€", english="account_balance"),
        "grade": Column(kind="ordinal", codes={0: "none", 1: "some", 2: "all"}),
        "region": Column(kind="nominal", codes={"N": "north", "none": "nowhere", "1": "first", "1.0": "one", "Ñ": "new"}),
        "flag": Column(kind="nominal", codes=["true", "false"]),
        "day": Column(kind="date"),
    },
)
FEATURES = EVERY_KIND.features

TEXTS = [
    "", " ", "nan", "NaN", "<NA>", "None", "null", "true", "True", "N", " n ", "ñ", "1", "1.0", "1,0", " 1 ", "+1", "-1", "1e3",
    "1,5e2", "1.500", "1.500,5", "1_000", "0x10", "-999", "-999,0", "n/a", "UNKNOWN", "inf", "-Infinity", "1e400", "1" * 400, "١",
    ",5", "5,", "--1", "\x00", "2\n",
]  # fmt: skip
CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([10**22, 2**63, -(2**64), 10**400, 10**5000, -999, -999.0, 0.0, -0.0, 1e22]),
    st.floats(),
    st.sampled_from(TEXTS),
    st.floats(allow_nan=False).map(lambda x: str(x).replace(".", ",")),
    st.text(max_size=8),
)
RECORDS = st.lists(st.dictionaries(st.sampled_from([*FEATURES, "other"]), CELLS), min_size=1, max_size=12)


def scorer_of(contract: Contract) -> CompiledScorer:
    """Return a scorer that parses; its model adds up nothing."""
    n = len(contract.features)
    header = {
        "format": 1, "name": "scorecard", "model_version": "", "contract": contract_to_plan(contract), "policy": None,
        "scale": [600.0, 20.0, 20.0], "columns": contract.features, "value_columns": contract.features, "encoded": False,
        "can_explain": False, "members": [{"form": "sum", "view": "values", "calibration": "none"}],
    }  # fmt: skip
    arrays = {"view.lower": np.empty(0), "view.upper": np.empty(0)}
    arrays |= {f"view.{name}": np.empty(0, int) for name in ("numerators", "denominators", "logs")}
    arrays |= {"member0.column": np.arange(n), "member0.start": np.full(n, -np.inf), "member0.rise": np.zeros(n)}
    arrays |= {f"member0.{name}": np.zeros(n) for name in ("missing", "slope", "center")}
    return CompiledScorer(json.loads(json.dumps(header)), {**arrays, "member0.intercept": np.zeros(1)})


SCORER = scorer_of(EVERY_KIND)


@pytest.fixture(scope="module")
def model(_applicants: Applicants, contract: Contract, params: Params) -> RiskModel:
    preprocessor = build_preprocessor(contract, params.featurize)
    return fit(_applicants.table[:300], _applicants.target[:300], preprocessor, contract, params.train, params.models)


@pytest.fixture(scope="module")
def scorer(model: RiskModel) -> CompiledScorer:
    return compile_model(model, POLICY, "0" * 64)


# --- cells


@settings(max_examples=400)
@given(RECORDS)
def test_cells_are_parsed_as_the_contract_parses_a_table(records: list[dict]) -> None:
    table = pd.DataFrame([[record.get(name) for name in FEATURES] for record in records], columns=FEATURES, dtype=object)
    expected = EVERY_KIND.parse_features(table)
    one_by_one = [SCORER.parse([record]) for record in records]
    by_columns = SCORER.parse_columns({name: table[name].tolist() for name in FEATURES})
    for values in (SCORER.parse(records).values, by_columns.values, np.vstack([parsed.values for parsed in one_by_one])):
        np.testing.assert_array_equal(values, expected.values)
    treated = [[name for name, s in zip(FEATURES, row, strict=True) if s in (TOKEN, INVALID)] for row in expected.status]
    missing = [[name for name, s in zip(FEATURES, row, strict=True) if s == MISSING] for row in expected.status]
    for parsed in (SCORER.parse(records), by_columns):
        assert [[list(row) for row in rows] for rows in parsed.gaps()] == [treated, missing]
    assert [list(parsed.gaps()[0][0]) for parsed in one_by_one] == treated
    assert [list(parsed.gaps()[1][0]) for parsed in one_by_one] == missing


@given(st.lists(st.floats(width=32) | st.integers(-(2**31), 2**31).map(float), min_size=1, max_size=9))
def test_arrays_of_numbers_are_parsed_as_a_table_of_numbers(numbers: list[float]) -> None:
    table = pd.DataFrame(dict.fromkeys(FEATURES, np.array(numbers)))
    parsed = SCORER.parse_columns({name: table[name].to_numpy() for name in FEATURES})
    np.testing.assert_array_equal(parsed.values, EVERY_KIND.parse_features(table).values)


def test_a_truth_value_is_no_number_whoever_stands_beside_it() -> None:
    for cells in ([True, 1, False, 0], [1, True, 0, False]):
        expected = [math.nan if isinstance(cell, bool) else float(cell) for cell in cells]
        for records in ([{"grade": cell} for cell in cells], [{"grade": cell} for cell in cells] * 3):
            np.testing.assert_array_equal(SCORER.parse(records).values[:4, 2], expected)
        found = EVERY_KIND.parse("grade", pd.Series(cells, dtype=object)).values
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(EVERY_KIND.parse("flag", pd.Series([True, 1, False])).values, [0, math.nan, 1])
    # Nor its neighbour's type: 1 is another code than 1.0 here.
    np.testing.assert_array_equal(EVERY_KIND.parse("region", pd.Series([1, -999.0], dtype=object)).values, [2, math.nan])


@pytest.mark.parametrize("strange", [[], [1], {}, {"a": 1}, b"1", 1 + 0j])
def test_what_is_no_cell_is_out_of_contract(strange: object) -> None:
    for n in (1, 9):
        parsed = SCORER.parse([{"grade": strange, "amount": 5}] * n)
        np.testing.assert_array_equal(parsed.values[:, :3], [[5.0, math.nan, math.nan]] * n)
        assert parsed.gaps()[0] == [("grade",)] * n


def test_what_is_remembered_is_bounded() -> None:
    scorer = scorer_of(EVERY_KIND)
    for start in range(0, 30_000, 1000):
        scorer.parse([{"amount": str(i), "region": f"x{i}", "balance": i} for i in range(start, start + 1000)])
    scorer.parse([{"amount": "1" + " " * 100_000}])
    for reader in scorer._readers:
        assert len(reader.places) < compiled.REMEMBERED == len(reader.values)
        assert all(len(cell) <= compiled.LONGEST for cell in reader.places if isinstance(cell, str))
    with_more = [{"amount": amount} for amount in ("1", "29999", "x" * 30, None, "31000")] * 2
    np.testing.assert_array_equal(
        scorer.parse(with_more).values, EVERY_KIND.parse_features(pd.DataFrame(with_more).reindex(columns=FEATURES)).values
    )


def test_threads_share_what_is_remembered(request: pytest.FixtureRequest) -> None:
    """Each cell gets a place of its own, whoever reads it first."""
    interval = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(interval))
    sys.setswitchinterval(1e-6)
    for _ in range(5):
        scorer = scorer_of(EVERY_KIND)
        columns = {name: [str(i) for i in range(500)] for name in FEATURES}
        expected = scorer_of(EVERY_KIND).parse_columns(columns).values
        orders = [list(range(500)), list(range(499, -1, -1)), [*range(1, 500, 2), *range(0, 500, 2)]] * 2
        with ThreadPoolExecutor(len(orders)) as pool:
            shuffled = [{name: [cells[i] for i in order] for name, cells in columns.items()} for order in orders]
            for order, found in zip(orders, pool.map(scorer.parse_columns, shuffled), strict=True):
                np.testing.assert_array_equal(found.values, expected[order])
        assert all(len(set(reader.places.values())) == len(reader.places) for reader in scorer._readers)


def test_a_single_column_and_no_rows_are_parsed(scorer: CompiledScorer) -> None:
    one = scorer_of(replace(EVERY_KIND, columns={"grade": EVERY_KIND.columns["grade"]}))
    np.testing.assert_array_equal(one.parse([{"grade": 2}, {}]).values, [[2.0], [math.nan]])
    assert scorer.parse([]).values.shape == (0, len(scorer.columns))
    assert scorer.p_good(scorer.parse([]).values).shape == (0,)


def test_an_absent_column_of_a_table_is_refused(scorer: CompiledScorer) -> None:
    with pytest.raises(DataError, match=r"column\(s\) laufzeit of the contract missing"):
        scorer.parse_columns({name: [1] for name in scorer.columns if name != "laufzeit"})


# --- answers


def test_answers_are_those_of_model_and_policy(model: RiskModel, scorer: CompiledScorer, raw_table: pd.DataFrame) -> None:
    table = raw_table.iloc[300:420]
    values = scorer.parse(table.to_dict("records")).values
    p_good = scorer.p_good(values)
    np.testing.assert_allclose(p_good, model.predict_proba(table)[:, 1], atol=1e-12)
    np.testing.assert_allclose(scorer.score(p_good), model.score(table), atol=1e-9)
    assert [decision == "approve" for decision in scorer.decide(p_good)] == POLICY.approved(p_good).tolist()
    assert {*scorer.decide(p_good)} == {"approve", "refuse"}
    np.testing.assert_array_equal(scorer.default_probability(p_good), 1 - POLICY.correct(p_good))
    sets = scorer.conformal_sets(np.array([0.9, 0.72, 0.5, 0.1]))
    assert sets == [["good"], ["good", "bad"], ["bad"], ["bad"]]


def test_reasons_are_those_of_the_model(model: RiskModel, scorer: CompiledScorer, raw_table: pd.DataFrame) -> None:
    table = raw_table.iloc[300:340]
    values = scorer.parse(table.to_dict("records")).values
    for expected, found in zip(model.reasons(table, 5), scorer.reasons(values, 5), strict=True):
        assert [(r.column, r.code, r.text) for r in found] == [(r.column, r.code, r.text) for r in expected]
        np.testing.assert_allclose([r.points for r in found], [r.points for r in expected], atol=1e-9)


def test_what_remembered_cells_add_is_looked_up(
    model: RiskModel, raw_table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "REMEMBERED", 40)  # not all have room
    scorer = compile_model(model, POLICY, "0" * 64)
    for start in (0, 50, 0, 100):
        table = raw_table.iloc[start : start + 100]
        columns: dict[str, object] = {name: table[name].tolist() for name in scorer.columns}
        columns["alter"] = pd.to_numeric(table["alter"], errors="coerce").to_numpy()  # arrays are not remembered
        values, _, _, places = scorer.parse_columns(columns)
        assert places is not None
        assert (places > 0).mean() > 0.5
        np.testing.assert_allclose(scorer.p_good(values, places), scorer.p_good(values), atol=1e-14)
        assert scorer.reasons(values, 5, places) == scorer.reasons(values, 5)
        p_good, reasons = scorer.explain(values, 5, places)
        np.testing.assert_array_equal(p_good, scorer.p_good(values, places))
        assert reasons == scorer.reasons(values, 5)


def test_without_a_policy_nothing_is_decided(model: RiskModel) -> None:
    scorer = compile_model(model)
    for ask in (scorer.decide, scorer.default_probability, scorer.conformal_sets):
        with pytest.raises(ValueError, match="compiled without a policy"):
            ask(np.array([0.5]))


# --- plan files


def test_a_plan_file_brings_the_same_scorer_back_in_the_same_bytes(scorer: CompiledScorer, tmp_path: Path) -> None:
    scorer.save(tmp_path / "a.npz")
    again = CompiledScorer.load(tmp_path / "a.npz")
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (again.model_version, again.policy, again.contract) == ("0" * 64, POLICY, scorer.contract)
    records = reference_rows(scorer.contract).to_dict("records")
    values = again.parse(records).values
    np.testing.assert_array_equal(again.p_good(values), scorer.p_good(scorer.parse(records).values))
    assert again.reasons(values[:3]) == scorer.reasons(values[:3])


def test_codes_of_a_contract_keep_their_types() -> None:
    assert contract_from_plan(json.loads(json.dumps(contract_to_plan(EVERY_KIND)))) == EVERY_KIND


def test_what_is_no_plan_is_refused(scorer: CompiledScorer, tmp_path: Path) -> None:
    path = tmp_path / "plan.npz"
    with pytest.raises(PipelineError, match="not found"):
        CompiledScorer.load(path)
    scorer.save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:2000], whole[:-30], b"\x80\x04K\x01.", whole.replace(b"scorecard", b"scorecarf")):
        path.write_bytes(damaged)
        with pytest.raises(PipelineError, match="cannot be read as a plan"):
            CompiledScorer.load(path)
    header = np.frombuffer(json.dumps(scorer.header | {"format": 0}).encode(), dtype=np.uint8)
    np.savez(path, header=header, **dict(scorer.arrays))
    with pytest.raises(PipelineError, match="found plan format 0, expected 3"):
        CompiledScorer.load(path)
    np.savez(path, header=np.array([object()]))
    with pytest.raises(PipelineError, match="cannot be read as a plan"):
        CompiledScorer.load(path)


@pytest.mark.parametrize("name", ["scorecard", "xgboost"])
def test_a_process_that_scores_loads_neither_pandas_nor_scikit_learn(
    name: str, applicants: Applicants, contract: Contract, params: Params, tmp_path: Path
) -> None:
    models = replace(params.models, xgboost=replace(params.models.xgboost, n_estimators=5))
    preprocessor = build_preprocessor(contract, params.featurize)
    train = replace(params.train, model=name)
    compile_model(fit(applicants.table, applicants.target, preprocessor, contract, train, models), POLICY).save(tmp_path / "plan")
    code = (
        "import json, sys\n"
        "from mlops_project.modeling.compiled import CompiledScorer\n"
        "scorer = CompiledScorer.load(sys.argv[1], lean=True)\n"
        "for n in (1, 100):\n"
        "    values = scorer.parse([{'laufzeit': 24, 'moral': '9', 'alter': None}] * n).values\n"
        "    p = scorer.p_good(values); scorer.reasons(values, 2)\n"
        "scorer.score(p), scorer.decide(p), scorer.conformal_sets(p), scorer.default_probability(p)\n"
        "print(json.dumps([m for m in ('pandas', 'sklearn', 'joblib', 'imblearn', 'pyarrow', 'scipy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "plan")], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == (["scipy"] if name == "xgboost" else [])  # XGBoost needs sparse matrices
