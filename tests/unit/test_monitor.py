"""`mlops-monitor`: quality of what was decided, counts of what comes in, and what becomes of wrong input."""

import contextlib
import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from mlops_project.modeling.policy import make_policy
from mlops_project.monitoring.incoming import incoming
from mlops_project.monitoring.monitor import main
from mlops_project.monitoring.quality import Decided, Window, _p_values, quality, read_window, reference_of
from mlops_project.serving.records import Judged, Record, new_request_id, results
from mlops_project.serving.stores import open_store
from mlops_project.validation import validate_table

DAY = 86_400.0


def applicants(n: int, rng: np.random.Generator, *, slope: float = 1.0, shift: float = 0.0) -> Decided:
    """Approved applicants; with other ``slope`` or ``shift`` what the model says is no longer true."""
    z = rng.normal(2.3, 0.8, n)
    truth = 1 / (1 + np.exp(-(2.3 + slope * (z - 2.3) - shift)))
    return Decided((rng.random(n) < truth).astype(int), 1 / (1 + np.exp(-z)), np.ones(n))


def window(rows: Decided, **changed) -> Window:
    found = {"predictions": 3 * len(rows.y), "approved": len(rows.y) + 5, "model_versions": {"a": len(rows.y) + 5}} | changed
    return Window(rows, **found)


@pytest.fixture
def settings(params):
    return msgspec.structs.replace(params.quality, permutations=400)


def test_without_change_a_run_is_worse_as_rarely_as_params_say(settings):
    rng = np.random.default_rng(1)
    found = [
        min(
            _p_values(
                applicants(200, rng), applicants(200, rng), msgspec.structs.replace(settings, permutations=100, seed=i)
            ).values()
        )
        for i in range(300)
    ]
    # 5 % of 300 is 15 ± 4.
    assert 4 <= sum(p <= 0.05 for p in found) <= 27


@pytest.mark.parametrize(
    ("change", "name"), [({"slope": -0.5}, "roc_auc"), ({"shift": 1.5}, "default_rate"), ({"shift": 1.5}, "brier")]
)
def test_a_change_is_found_and_named(settings, params, change, name):
    rng = np.random.default_rng(2)
    reference = applicants(300, rng)
    report = quality(window(applicants(400, rng, **change)), reference, settings, params.evaluate, time.time())
    assert report["concept_drift"]
    assert report["figures"][name]["worse"]
    figure = report["figures"][name]
    assert figure["low"] < figure["value"] < figure["high"]
    assert figure["reference_low"] < figure["reference"] < figure["reference_high"]
    json.dumps(report, allow_nan=False)


def test_a_better_window_is_no_drift(settings, params):
    rng = np.random.default_rng(3)
    report = quality(
        window(applicants(400, rng, slope=3, shift=-1)), applicants(300, rng), settings, params.evaluate, time.time()
    )
    assert report["judged"]
    assert not report["concept_drift"]


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        (Decided(np.array([], dtype=int), np.array([]), np.array([])), "no outcome yet of 5 approved applicants"),
        (Decided(np.ones(500, dtype=int), np.full(500, 0.9), np.ones(500)), "500 outcomes, 0 of them bad"),
        (Decided(np.array([1, 0] * 49), np.full(98, 0.9), np.ones(98)), "98 outcomes, 49 of them bad"),
    ],
)
def test_too_few_outcomes_or_one_class_are_not_judged(settings, params, rows, note):
    report = quality(window(rows), applicants(300, np.random.default_rng(4)), settings, params.evaluate, time.time())
    assert not report["judged"]
    assert not report["concept_drift"]
    assert note in report["notes"][0]
    json.dumps(report, allow_nan=False)


def test_equal_scores_of_all_are_a_roc_auc_of_a_half(settings, params):
    rows = Decided(np.array([1, 1, 1, 0] * 50), np.full(200, 0.9), np.ones(200))
    report = quality(window(rows), rows, settings, params.evaluate, time.time())
    assert report["figures"]["roc_auc"]["value"] == 0.5
    assert not report["concept_drift"]


def test_only_approved_applicants_with_an_outcome_count():
    decisions = ["approve", "approve", "approve", "refuse", None]
    answers = results([0.9] * 5, [0.1, 0.1, 0.1, 0.8, 0.1], [500.0] * 5, decisions)
    part = Judged("v", answers, {0: "good", 1: "bad", 3: "bad"})
    found = read_window([part])
    assert found.rows.y.tolist() == [1, 0]
    assert found.rows.p_good.tolist() == [0.9, 0.9]
    assert (found.predictions, found.approved, found.model_versions) == (4, 3, {"v": 3})


@pytest.mark.parametrize("prior", [None, 0.05])
def test_the_reference_is_of_those_who_would_have_been_approved(params, prior):
    rng = np.random.default_rng(5)
    p_good = rng.random(2000)
    y = (rng.random(2000) < p_good).astype(int)
    table = pd.DataFrame({"repeat": [0, 1] * 1000, "y_true": y, "y_proba": p_good})
    evaluate = msgspec.structs.replace(params.evaluate, prior_default_rate=prior)
    policy = make_policy(y, p_good, np.ones(2000), evaluate, prior=prior)
    found = reference_of(table, policy)
    approved = policy.approved(p_good) & (table["repeat"] == 0).to_numpy()
    assert len(found.y) == approved.sum()
    assert found.y.tolist() == y[approved].tolist()
    assert found.p_good.tolist() == policy.correct(p_good[approved]).tolist()


# --- incoming files


@pytest.fixture
def counts(tmp_path, contract) -> Path:
    path = tmp_path / "prepare.json"
    columns = {name: {"missing": 20, "tokens": 10, "out_of_contract": 10} for name in contract.features}
    path.write_text(json.dumps({"rows": {"read": 1000}, "columns": columns}))
    return path


def test_a_jump_is_found_only_where_it_is_more_than_chance_and_tolerance(contract, counts, raw_table, settings):
    table = raw_table.head(300).copy()
    assert not incoming(validate_table(table, contract), counts, settings)["jump"]
    name, other = contract.features[:2]
    table.loc[table.index[:45], name] = "no such code"
    table.loc[table.index[:60], other] = None
    report = incoming(validate_table(table, contract), counts, settings)
    jumps = {(column, kind) for column, kinds in report["columns"].items() for kind, part in kinds.items() if part["jump"]}
    assert jumps == {(name, "out_of_contract"), (other, "missing")}
    assert report["columns"][name]["out_of_contract"]["share"] >= 45 / 300
    # The same shares in ten rows are chance.
    assert not incoming(validate_table(table.iloc[[0, *range(100, 109)]], contract), counts, settings)["jump"]


# --- the command


@pytest.fixture
def project(root, workdir, monkeypatch, params, contract, counts) -> Path:
    """A folder with params, contract, policy and out-of-fold predictions of simulated applicants."""
    for file in ("params.yaml", "data/schema.yaml"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text((root / file).read_text(encoding="utf-8"), encoding="utf-8")
    for folder in ("models", "data/predictions", "metrics"):
        Path(folder).mkdir()
    counts.rename("metrics/prepare.json")
    rows = applicants(700, np.random.default_rng(6))
    pd.DataFrame(
        {"repeat": 0, "fold": 0, "y_true": rows.y, "y_proba": rows.p_good}, index=pd.Index(range(700), name="applicant_id")
    ).to_csv("data/predictions/out_of_fold.csv")
    Path("models/policy.json").write_text(make_policy(rows.y, rows.p_good, rows.weights, params.evaluate).to_json())
    monkeypatch.setenv("MLOPS_LOG_URL", f"sqlite:///{workdir}/log.db")
    open_store(f"sqlite:///{workdir}/log.db").close()
    return workdir


@contextlib.contextmanager
def store_of(project: Path):
    with contextlib.closing(open_store(f"sqlite:///{project}/log.db")) as store:
        yield store


def decide(project: Path, rows: Decided, age: float, *, outcomes: bool = True) -> None:
    """Log predictions of an age in days, approved at 1/6, with what became of the approved."""
    p = 1 - rows.p_good
    decisions = np.where(p < 1 / 6, "approve", "refuse")
    record = Record(
        new_request_id(), time.time() - age * DAY, "v" * 64, b"[]",
        results(rows.p_good.tolist(), p.tolist(), [500.0] * len(p), decisions.tolist()), len(p),
    )  # fmt: skip
    with store_of(project) as store:
        store.append([record])
        if outcomes:
            known = [(record.request_id, int(i), "good" if rows.y[i] else "bad") for i in np.flatnonzero(decisions == "approve")]
            assert store.outcomes(known) == []


def test_a_run_waits_for_outcomes_and_then_judges(project, capsys):
    rng = np.random.default_rng(7)
    assert main(["run"]) == 0
    assert "no outcome yet of 0 approved applicants" in capsys.readouterr().out
    # Outcomes of the young are of those who failed early: they do not count.
    decide(project, applicants(600, rng, shift=3), age=30)
    assert main(["run"]) == 0
    assert "600 later ones wait" in capsys.readouterr().out
    decide(project, applicants(600, rng), age=400)
    decide(project, applicants(600, rng, shift=3), age=500)  # before the window
    assert main(["run", "--json", "quality.json"]) == 0
    assert "not worse than the reference" in capsys.readouterr().out
    decide(project, applicants(600, rng, shift=1.2), age=380)
    assert main(["run"]) == 3
    out = capsys.readouterr().out
    assert "default_rate" in out
    assert out.endswith("worse than the reference\n")
    with store_of(project) as store:
        report = json.loads(store.reports()["quality"].content)
    assert report["concept_drift"]
    assert report["rows"]["waiting"] == 600
    assert not json.loads(Path("quality.json").read_text())["concept_drift"]


def test_an_incoming_file_is_counted_into_the_log(project, raw_table, contract, capsys):
    raw_table.head(200).to_csv("good.csv", index=False)
    assert main(["data", "good.csv"]) == 0
    assert "good.csv: 200 rows" in capsys.readouterr().out
    name = contract.features[0]
    raw_table.head(200).assign(**{name: "no such code"}).to_csv("bad.csv", index=False)
    assert main(["data", "bad.csv", "--json", "data.json"]) == 3
    assert f"{name}: 100.0% out of contract, 1.0% in the raw table" in capsys.readouterr().out
    assert json.loads(Path("data.json").read_text())["jump"]
    with store_of(project) as store:
        assert json.loads(store.reports()["data"].content)["jump"]
        store.put_report("data", b"before")
    assert main(["data", "good.csv", "--no-record"]) == 0
    assert "no share jumped" in capsys.readouterr().out
    with store_of(project) as store:
        assert store.reports()["data"].content == b"before"


@pytest.mark.parametrize(
    ("arguments", "spoil", "message"),
    [
        (["run"], ("models/policy.json", None), "models/policy.json: cannot be read"),
        (["run"], ("models/policy.json", "{}"), "models/policy.json"),
        (["run"], ("data/predictions/out_of_fold.csv", "applicant_id,a\n1,2\n"), "lacks repeat, y_true or y_proba"),
        (["run"], ("log.db", None), "there is no prediction log"),
        (["run"], ("log.db", "not a database, but a text that is long enough" * 99), "not a database"),
        (["run", "--log-url", "mysql://u:secret@h/d"], None, "expected sqlite:///path or postgresql"),
        (["data", "absent.csv"], None, "absent.csv"),
        (["data", "other.csv"], ("other.csv", "a,b\n1,2\n"), "other.csv"),
        (["data", "new.csv"], ("metrics/prepare.json", "{}"), "metrics/prepare.json: holds no counts"),
    ],
)  # fmt: skip
def test_wrong_input_ends_in_one_line(project, raw_table, capsys, arguments, spoil, message):
    raw_table.head(60).to_csv("new.csv", index=False)
    if spoil:
        for path in Path().glob(f"{spoil[0]}*"):
            path.unlink()
        if spoil[1] is not None:
            Path(spoil[0]).write_text(spoil[1])
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error
    assert error.count("\n") == 1
    assert error.startswith("error: ")
