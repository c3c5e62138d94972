"""Another table works by another contract, raw file and params: no code knows a column name."""

import copy
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mlops_project.config import load_params
from mlops_project.dataset import DataLoader
from mlops_project.drafting import draft
from mlops_project.errors import DataError
from mlops_project.files import read_table, read_yaml
from mlops_project.modeling.model import load_model
from mlops_project.modeling.policy import Policy
from mlops_project.schema import load_contract

ROOT = Path(__file__).resolve().parents[2]
PARAMS = read_yaml(ROOT / "params.yaml")
STAGES = ("prepare", "featurize", "train", "evaluate")


class Workspace:
    """A folder with a raw table, a contract and params, in which the four stages run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.params = copy.deepcopy(PARAMS)
        self.params["data"] = {"raw": "raw.csv", "contract": "contract.yaml", "tables": "csv"}
        # Small and quick: what is tested is that it works.
        self.params["train"] |= {"n_splits": 3, "n_repeats": 1}
        self.params["evaluate"] |= {"bootstrap_samples": 100, "importance_repeats": 1}

    def run(self, *stages: str, **overrides) -> None:
        for key, value in overrides.items():
            section, name = key.split("__")
            self.params[section][name] = value
        (self.path / "params.yaml").write_text(yaml.safe_dump(self.params), encoding="utf-8")
        for stage in stages or STAGES:
            runpy.run_path(str(ROOT / "src" / f"{stage}.py"), run_name="not_main")["main"]()

    def metrics(self, name: str) -> dict:
        return json.loads((self.path / "metrics" / f"{name}.json").read_text(encoding="utf-8"))

    def table(self, name: str) -> pd.DataFrame:
        return read_table(self.path / "data" / f"{name}.csv")


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


# The default table under other names


def _other_names(names: list[str]) -> dict[str, str]:
    """Names in another order of the alphabet, with all that YAML and CSV find difficult."""
    odd = ["on", "1e5", "null", "größe, in m²", 'the "rate"', "a: b", " #"]
    return {name: (odd[i].strip() if i < len(odd) else f"v{99 - i}") for i, name in enumerate(names)}


def test_every_column_renamed_gives_the_same_figures(workspace, raw_table):
    content = read_yaml(ROOT / "data/schema.yaml")
    raw_table.to_csv("raw.csv", index=False)
    Path("contract.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    workspace.run()
    expected = {name: workspace.metrics(name) for name in STAGES if name != "featurize"}
    ids = workspace.table("predictions/held_out").index

    names = _other_names(list(raw_table.columns))
    raw_table.rename(columns=names).to_csv("raw.csv", index=False)
    content["columns"] = {names[name]: column for name, column in content["columns"].items()}
    for column in content["columns"].values():
        if "codes" in column:
            column["codes"] = list(column["codes"])
    content["target"]["name"] = names[content["target"]["name"]]
    content["drop"] = [names[name] for name in content["drop"]]
    # JSON is YAML: nothing is left to what a YAML writer thinks needs quotes.
    Path("contract.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert set(load_contract("contract.yaml").columns).isdisjoint(raw_table.columns)
    workspace.run()

    assert workspace.metrics("train") == expected["train"]
    found, before = workspace.metrics("evaluate"), expected["evaluate"]
    before["fairness"] = {names[name]: group for name, group in before["fairness"].items()}
    before["psi"]["largest"]["feature"] = names[before["psi"]["largest"]["feature"]]
    for groups in (*found["fairness"].values(), *before["fairness"].values()):
        del groups["lowest"], groups["reference"]  # the words are now the codes
    assert found == before
    expected["prepare"]["columns"] = {names[name]: counts for name, counts in expected["prepare"]["columns"].items()}
    assert workspace.metrics("prepare") == expected["prepare"]
    assert list(workspace.table("predictions/held_out").index) == list(ids)


# A table of another shape

CONTRACT = """
decimal: ","
missing_tokens: [k.A., "-1"]
applicant_id: Antrag
target: {name: Status, good: good, bad: bad}
drop: [Bemerkung]
columns:
  Antrag: {kind: identifier}
  Kunde: {kind: identifier}
  Eröffnet am: {kind: date, format: "%d.%m.%Y"}
  Betrag (EUR): {kind: numeric, range: [0, 1000000]}
  Einkommen: {kind: numeric, range: [0, 100000]}
  Laufzeit: {kind: numeric, range: [1, 120]}
  Rating: {kind: ordinal, codes: [AAA, A, B, C]}
  Filiale: {kind: nominal, codes: ["01", "02", "10"]}
  Sicherheit: {kind: nominal, codes: ["yes", "no", none]}
  Beruf: {kind: nominal, codes: [Angestellte, Selbständige, im Ruhestand]}
"""
FEATURES = ["Betrag (EUR)", "Einkommen", "Laufzeit", "Rating", "Filiale", "Sicherheit", "Beruf"]


def strangers_table(rows: int = 500) -> pd.DataFrame:
    """Text cells of a bank with other columns: a tenth is bad, missing values, an application number, customers with several."""
    rng = np.random.default_rng(5)
    rating, job = rng.integers(0, 4, rows), rng.integers(0, 3, rows)
    amount, income = rng.lognormal(9, 0.7, rows), rng.lognormal(8, 0.4, rows)
    risk = rating + 0.5 * (job == 1) + 0.7 * np.log(amount / income) + rng.logistic(0, 0.7, rows)
    table = pd.DataFrame(
        {
            "Bemerkung": [f"Anruf am {day}. um {minute} nach" for day, minute in rng.integers(1, 60, (rows, 2))],
            "Rating": np.array(["AAA", "A", "B", "C"])[rating],
            "Antrag": [f"A-{number}" for number in rng.permutation(10 * rows)[:rows]],
            "Status": np.where(risk > np.quantile(risk, 0.9), "bad", "good"),
            "Kunde": [f"K{number:05d}" for number in rng.integers(0, rows // 2, rows)],
            "Eröffnet am": (pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 900, rows), unit="D")).strftime(
                "%d.%m.%Y"
            ),
            "Betrag (EUR)": [f"{value:.2f}".replace(".", ",") for value in amount],
            "Einkommen": [f"{value:.1f}".replace(".", ",") for value in income],
            "Laufzeit": rng.choice(["12", "24", "36", "48", "60"], rows),
            "Filiale": rng.choice(["01", "02", "10"], rows),
            "Sicherheit": rng.choice(["yes", "no", "none"], rows),
            "Beruf": np.array(["Angestellte", "Selbständige", "im Ruhestand"])[job],
        }
    )
    table.loc[rng.random(rows) < 0.2, "Einkommen"] = ""
    table.loc[rng.random(rows) < 0.1, "Beruf"] = "k.A."
    table.loc[rng.random(rows) < 0.05, "Laufzeit"] = "-1"
    return table


@pytest.fixture
def stranger(workspace) -> Workspace:
    strangers_table().to_csv("raw.csv", index=False, sep=";")
    Path("contract.yaml").write_text(CONTRACT, encoding="utf-8")
    return workspace


def _check_predictions(workspace: Workspace) -> None:
    """Predictions bear the bank's own ids, and the saved model gives them from the raw rows."""
    held_out, out_of_fold = workspace.table("predictions/held_out"), workspace.table("predictions/out_of_fold")
    raw = strangers_table().set_index("Antrag")
    assert set(held_out.index).isdisjoint(out_of_fold.index)
    assert set(held_out.index) | set(out_of_fold.index) == set(raw.index)
    assert (held_out["y_true"] == (raw.loc[held_out.index, "Status"] == "good")).all()

    model = load_model("models/best_model.joblib")
    assert sorted(model.feature_names_in_) == sorted(FEATURES)
    rows = DataLoader(load_contract("contract.yaml")).load("raw.csv").set_index("Antrag", drop=False)
    assert model.predict_proba(rows.loc[held_out.index])[:, 1] == pytest.approx(held_out["y_proba"], abs=1e-6)
    assert workspace.metrics("evaluate")["roc_auc"] > 0.6
    assert workspace.metrics("train")["roc_auc"]["mean"] > 0.6


@pytest.mark.parametrize("model", PARAMS["models"])
def test_a_strangers_table_trains_every_model(stranger, model):
    stranger.params["models"]["random_forest"]["n_estimators"] = 40
    stranger.run(train__model=model)
    report = stranger.metrics("prepare")
    assert report["rows"] == {
        "read": 500,
        "dropped_target_missing": 0,
        "dropped_target_invalid": 0,
        "duplicates_merged": 0,
        "applicants": 500,
    }
    raw = strangers_table()
    assert report["columns"] == {
        name: {"missing": int((raw[name] == "").sum()), "tokens": int(raw[name].isin(["k.A.", "-1"]).sum()), "out_of_contract": 0}
        for name in FEATURES
    }
    _check_predictions(stranger)


def test_rows_count_as_often_as_the_weight_column_says(stranger):
    weights = np.random.default_rng(0).integers(1, 4, 500) / 2
    strangers_table().assign(Gewicht=[f"{value:.1f}".replace(".", ",") for value in weights]).to_csv(
        "raw.csv", index=False, sep=";"
    )
    Path("contract.yaml").write_text(CONTRACT + "  Gewicht: {kind: weight}\n", encoding="utf-8")
    stranger.run(evaluate__prior_default_rate=0.02)
    metrics = stranger.metrics("evaluate")
    weight = stranger.table("processed/Xtest")["Gewicht"]
    held_out = stranger.table("predictions/held_out")
    assert weight.nunique() == 3
    assert sum(metrics[name] for name in ("good_approved", "good_refused", "bad_approved", "bad_refused")) == weight.sum()
    assert metrics["rows"] == len(weight)
    referred = np.average(held_out["conformal"] == "refer", weights=weight.loc[held_out.index])
    assert metrics["conformal"]["referred"] == pytest.approx(referred, abs=1e-6)
    assert metrics["at_prior"]["approval_rate"] > metrics["approval_rate"]
    policy = Policy.from_json(Path("models/policy.json").read_text(encoding="utf-8"))
    development = stranger.table("processed/Xtraintest")
    known = stranger.table("predictions/out_of_fold")["y_true"].loc[development.index]
    assert policy.sample_default_rate == pytest.approx(np.average(known == 0, weights=development["Gewicht"]))
    assert policy.approved(held_out["y_proba"]).tolist() == (held_out["approved"] == 1).tolist()


def test_no_held_out_outcome_has_a_say_in_the_policy(stranger):
    stranger.run(evaluate__threshold="tuned")
    before, figures = Path("models/policy.json").read_bytes(), stranger.metrics("evaluate")
    y = stranger.table("processed/ytest")
    (1 - y).to_csv("data/processed/ytest.csv")
    stranger.run("evaluate")
    assert Path("models/policy.json").read_bytes() == before
    assert stranger.metrics("evaluate") != figures


def test_fairness_is_judged_of_a_model_that_may_not_see_the_protected_columns(workspace, raw_table):
    raw_table.to_csv("raw.csv", index=False)
    Path("contract.yaml").write_text((ROOT / "data/schema.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    workspace.run(featurize__without_protected=True)
    protected = load_contract("contract.yaml").protected
    importance = pd.read_csv("metrics/plots/importance.csv").set_index("feature")["importance"]
    assert (importance[importance.index.isin(protected)] == 0).all(), "the model sees a protected column"
    assert list(workspace.metrics("evaluate")["fairness"]) == protected
    assert set(pd.read_csv("metrics/plots/fairness.csv")["column"]) == set(protected)


def test_the_drafted_contract_says_what_the_written_one_says(stranger):
    written = load_contract("contract.yaml")
    Path("draft.yaml").write_text(draft("raw.csv"), encoding="utf-8")
    drafted = load_contract("draft.yaml")
    assert (drafted.target.name, drafted.target.good, drafted.target.bad) == ("Status", "good", "bad")
    assert (drafted.decimal, drafted.drop, drafted.applicant_id) == (",", ["Bemerkung"], "Antrag")
    assert set(drafted.columns) == set(written.columns)
    for name, column in written.columns.items():
        expected = "nominal" if column.kind == "ordinal" else column.kind
        assert drafted.columns[name].kind == expected, name
        assert sorted(drafted.columns[name].code_list) == sorted(column.code_list)
        assert drafted.columns[name].format == column.format
    assert "does -1 (" in Path("draft.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("split", ["hash", "stratified", "by_time", "by_group"])
def test_the_drafted_contract_runs_with_every_split(stranger, split):
    Path("contract.yaml").write_text(draft("raw.csv"), encoding="utf-8")
    stranger.run(prepare__split=split, prepare__group_column="Kunde", prepare__date_column="Eröffnet am", prepare__test_size=0.4)
    _check_predictions(stranger)
    held_out, development = stranger.table("processed/Xtest"), stranger.table("processed/Xtraintest")
    assert {"Kunde", "Eröffnet am"} <= set(held_out.columns)
    assert 0.3 < len(held_out) / 500 < 0.5
    newest = held_out["Eröffnet am"].min() > development["Eröffnet am"].max()
    assert newest == (split == "by_time")
    customers = set(held_out["Kunde"]).isdisjoint(development["Kunde"])
    assert customers == (split == "by_group")
    folds = stranger.table("predictions/out_of_fold")["fold"].groupby(development["Kunde"]).nunique()
    assert (folds.max() == 1) == (split == "by_group")
    shares = stranger.metrics("prepare")["split"]
    assert split != "stratified" or abs(shares["bad_share_held_out"] - shares["bad_share_development"]) < 0.005


def test_appended_applications_move_nobody(stranger):
    stranger.run("prepare")
    before = set(stranger.table("processed/Xtest").index)
    strangers_table(560).iloc[500:].assign(Antrag=[f"B-{i}" for i in range(60)]).to_csv(
        "raw.csv", index=False, sep=";", mode="a", header=False
    )
    stranger.run("prepare")
    after = set(stranger.table("processed/Xtest").index)
    assert before == {name for name in after if name.startswith("A-")}
    assert len(after) > len(before)


def test_rows_with_a_token_for_an_id_are_not_one_applicant(stranger):
    strangers_table().assign(Antrag=lambda t: t["Antrag"].where(t.index % 10 != 3, "k.A.")).to_csv(
        "raw.csv", index=False, sep=";"
    )
    stranger.run("prepare")
    assert stranger.metrics("prepare")["rows"]["applicants"] == 500


def test_a_token_is_no_group(stranger):
    strangers_table().assign(Kunde="k.A.").to_csv("raw.csv", index=False, sep=";")
    with pytest.raises(DataError, match="column 'Kunde' has no valid value in 500 row"):
        stranger.run("prepare", prepare__split="by_group", prepare__group_column="Kunde")


# The walk through docs/bring-your-data.md


def test_the_commands_of_the_guide_work_as_written(clone):
    guide = (ROOT / "docs/bring-your-data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", guide, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 9
    clone.edit("params.yaml", "n_repeats: 3", "n_repeats: 1")
    clone.commit("fewer repeats, to save time")
    printed = [clone.run("sh", "-e", "-c", block).stdout for block in blocks]

    contract, params = load_contract(clone.path / "data/schema.yaml"), load_params(clone.path / "params.yaml")
    assert {name: column.kind for name, column in contract.columns.items()} == {
        "loan_id": "identifier",
        "opened": "date",
        "amount": "numeric",
        "income": "numeric",
        "job": "nominal",
        "home": "nominal",
        "branch": "nominal",
    }
    assert (contract.drop, contract.applicant_id, contract.decimal) == (["remark"], "loan_id", ",")
    assert (params.prepare.split, params.prepare.date_column, params.data.raw) == ("by_time", "opened", "data/raw/loans.csv")
    assert "CHECK" in printed[2]
    assert "income: 'n/a': missing-value token" in printed[3]
    assert "metrics/evaluate.json" in printed[7]
    metrics = json.loads((clone.path / "metrics/evaluate.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == 270
    assert metrics["roc_auc"] > 0.55
    assert clone.git("status", "--porcelain") == ""
    assert clone.git("ls-files", "data/raw").split() == [
        *("data/raw/.gitignore", "data/raw/README.md", "data/raw/german_credit_modified.csv.dvc"),
        *("data/raw/german_credit_original.csv.dvc", "data/raw/loans.csv.dvc"),
    ]
    assert clone.dvc("status").stdout.strip() == "Data and pipelines are up to date."
