"""The report and the model card say what metrics/ says, of any model, and need no network to be read."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from figures import CARD
from mlops_project.cli import report
from mlops_project.files import read_yaml
from mlops_project.modeling.model import load_model
from mlops_project.modeling.policy import Policy
from mlops_project.reporting import lineage
from mlops_project.reporting import page as reporting
from mlops_project.reporting.card import model_card
from mlops_project.reporting.figures import figures
from mlops_project.reporting.results import read_results

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "link", "br", "path", "use"}


class Page(HTMLParser):
    """Tags that close in order, attributes by tag, and tables: caption → rows of cell texts, the head first."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words = ""
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("caption", "th", "td"):
            self.words = ""
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "caption":
            self.caption = self.words
        if tag in ("th", "td"):
            self.rows[-1].append(self.words)
        if tag == "table":
            assert self.caption not in self.tables
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        self.words += data.replace("\u00a0", " ")

    def table(self, start: str) -> pd.DataFrame:
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(start))
        return pd.DataFrame(rows[1:], columns=rows[0])


@pytest.fixture(scope="module", params=["default", "other"])
def page(request, reports) -> tuple[str, Page]:
    text = reports[request.param].read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def other(reports, clone, monkeypatch) -> Page:
    """The page of the state in which the clone is."""
    monkeypatch.chdir(clone.path)
    return Page(reports["other"].read_text(encoding="utf-8"))


def share(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def test_the_page_needs_nothing_else(page):
    text, parsed = page
    assert len(text.encode()) < 1.5e6
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert [a["href"] for tag, a in parsed.tags if tag == "link"] == ["data:,"]


def test_the_page_is_sound(page):
    _, parsed = page
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.tags:
        if tag in ("a", "use"):
            assert attributes["href"].removeprefix("#") in ids
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-labelledby"]
    assert len(parsed.tables) == sum(tag == "table" for tag, _ in parsed.tags), "every table has a caption of its own"
    clips = set(re.findall(r"url\(#([^)]+)\)", page[0]))
    assert clips <= set(ids)


def test_same_inputs_same_bytes(other):
    assert reporting.report() == reporting.report()


def test_figures_are_those_of_the_metrics(other, clone):
    found = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    folds = json.loads(Path("metrics/train.json").read_text(encoding="utf-8"))

    table = other.table("308 held-out applicants").set_index("metric")
    row = table.loc["ROC-AUC"]
    assert row["held out"] == f"{found['roc_auc']:.3f}"
    assert row["95 % interval"] == "{low:.3f} to {high:.3f}".format(**found["interval"]["roc_auc"])
    assert row["cross-validated"] == "{mean:.3f} ± {std:.3f}".format(**folds["roc_auc"])
    assert row["on training rows"] == f"{folds['roc_auc']['train_mean']:.3f}"
    assert table.loc["Approval rate", "held out"] == share(found["approval_rate"])
    # All of them in their order; the threshold stands elsewhere.
    shares = ("approval_rate", "bad_rate_approved", "recall", "recall_bad")
    values = {name: value for name, value in found.items() if isinstance(value, float) and name != "threshold"}
    assert list(table["held out"]) == [share(value) if name in shares else f"{value:.3f}" for name, value in values.items()]

    confusion = other.table("Outcome and decision").set_index("outcome")
    assert confusion.loc["good", "approved"].startswith(f"{found['good_approved']} (")
    assert confusion.loc["bad", "refused"].startswith(f"{found['bad_refused']} (")

    prior = found["at_prior"]
    at_prior = other.tables["What depends on the share of bad, at a default rate of 5.0 %"]
    assert ["Bad among the approved", share(found["bad_rate_approved"])] == at_prior[5][:2]
    assert at_prior[5][3] == share(prior["bad_rate_approved"])

    conformal = other.table("Conformal sets").set_index("share")["measured"]
    assert conformal["referred"] == share(found["conformal"]["referred"])
    assert conformal["bad applicants whose set holds “bad”"] == share(found["conformal"]["coverage_bad"])

    ratios = other.table("Disparity ratios").set_index("column")
    assert ratios.loc["alter (age years)", "ratio"] == f"{found['fairness']['alter']['disparity_ratio']:.2f}"


def test_tables_are_those_of_the_plots(other):
    tables = read_results().tables
    strategy = tables["strategy"].dropna(subset=["chosen_at_prior"])
    shown = other.table("What other thresholds would do")
    assert list(shown["approved"]) == [share(value) for value in strategy["approval_rate_at_prior"]]
    assert list(shown["cost per applicant"]) == [f"{value:.3f}" for value in strategy["expected_cost_at_prior"]]
    assert sum("policy" in text for text in shown["refused from"]) == 1
    groups = other.table("Groups of the protected columns")
    assert list(groups["approved"]) == [share(value) for value in tables["fairness"]["approval_rate"]]
    assert list(groups["rows"].astype(int)) == list(tables["fairness"]["rows"])
    psi = other.table("Population stability")
    assert list(psi["PSI"]) == [f"{value:.3f}" for value in tables["stability"]["psi"]]
    bins = other.table("Probabilities of default")
    assert list(bins["observed"]) == [share(value) for value in tables["calibration"]["observed_at_prior"]]
    board = json.loads(Path("metrics/leaderboard.json").read_text(encoding="utf-8"))
    assert list(other.table("Models by")["model"].str.removesuffix(" (picked)")) == list(board["models"])
    columns = json.loads(Path("metrics/prepare.json").read_text(encoding="utf-8"))["columns"]
    cells = other.table("Cells of the 1,020 rows read")
    assert list(cells["out of contract"].astype(int)) == [found["out_of_contract"] for found in columns.values()]


def test_a_scorecard_has_its_tables_and_another_model_has_none(reports, clone):
    scorecard, another = (Page(reports[name].read_text(encoding="utf-8")) for name in ("default", "other"))
    assert "Information values" not in another.tables
    assert scorecard.table("Information values").shape[0] == 20
    committed = pd.read_csv(ROOT / "metrics/plots/scorecard.csv", keep_default_na=False)
    points = scorecard.table("laufzeit (duration months)")
    assert list(points["points"].astype(int)) == list(committed.loc[committed["attribute"] == "laufzeit", "rounded"])
    assert "leaderboard" not in str(scorecard.tags)
    assert "leaderboard-title" in str(another.tags)


def test_the_riskiest_applicants_come_with_their_reasons(other):
    predictions = pd.read_csv("data/predictions/held_out.csv", index_col=0)
    riskiest = predictions.nlargest(5, "probability_of_default")
    shown = [caption for caption in other.tables if "turned out" in caption]
    assert [caption.split(":")[0] for caption in shown] == list(riskiest.index)
    for caption, (_, row) in zip(shown, riskiest.iterrows(), strict=True):
        assert share(row["probability_of_default_at_prior"]) in caption
        assert [cells[1] for cells in other.tables[caption][1:]] == list(row.filter(like="reason_").dropna())


def test_lineage(other, clone):
    text = reporting.report()
    assert clone.git("rev-parse", "HEAD").strip() in text
    assert "the tree is dirty" in text
    assert "every file and parameter is as recorded" in text
    assert read_yaml("data/raw/german_credit_modified.csv.dvc")["outs"][0]["md5"] in text
    assert load_model("models/best_model.joblib").training_data_hash in text
    assert "scikit-learn 1." in text


def test_what_dvc_did_not_record_is_said(other, clone):
    before = Path("params.yaml").read_text(encoding="utf-8")
    metrics = Path("metrics/evaluate.json").read_text(encoding="utf-8")
    try:
        clone.edit("params.yaml", "  importance_repeats: 5", "  importance_repeats: 6")
        clone.edit("metrics/evaluate.json", '"roc_auc": 0.', '"roc_auc": 0.9')
        assert lineage.unrecorded() == ["metrics/evaluate.json", "params.yaml: evaluate"]
        assert "These are not the recorded figures: 2" in reporting.report()
    finally:
        Path("params.yaml").write_text(before, encoding="utf-8")
        Path("metrics/evaluate.json").write_text(metrics, encoding="utf-8")
    assert lineage.unrecorded() == []


def test_outside_git_and_dvc(other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert lineage.lineage() == (None, None, [], None)
    # Nor is Git needed to be there.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lineage.lineage() == (None, None, [], None)


def test_without_protected_columns(other):
    results = read_results()
    results = results._replace(
        held_out=results.held_out | {"fairness": {}}, tables=results.tables | {"fairness": results.tables["fairness"].head(0)}
    )
    policy = Policy.from_json(Path("models/policy.json").read_text(encoding="utf-8"))
    text = reporting.render(results, load_model("models/best_model.joblib"), policy)
    assert "The contract names no protected column." in text
    assert "Disparity ratios" not in Page(text).tables
    assert "approval_rates" not in figures(results)
    assert "nothing was compared" in model_card(results)


def test_texts_of_the_contract_are_texts(other):
    """No markup, no formula: names and groups are what the team wrote."""
    results = read_results()
    odd = "<b>$100 & $200</b> | {x}"
    fairness = results.tables["fairness"].assign(group=odd, label=odd)
    results = results._replace(tables=results.tables | {"fairness": fairness})
    policy = Policy.from_json(Path("models/policy.json").read_text(encoding="utf-8"))
    text = reporting.render(results, load_model("models/best_model.joblib"), policy)
    assert set(Page(text).table("Groups of the protected columns")["group"]) == {odd}
    assert "<b>$100" not in text
    assert "$100 &amp; $200" in figures(results)["approval_rates"].svg
    assert "<b>$100 & $200</b> \\| {x}" in model_card(results)


def test_the_card_of_another_model(other):
    results = read_results()
    card = model_card(results)
    board = results.board
    assert board["why"] in card
    for name, entry in board["models"].items():
        assert f"| {name} | {entry['mean']:.3f} ± {entry['std']:.3f} |" in card
    assert "a prior default rate of 5.0 %" in card
    prior = results.prior
    assert f"| {share(prior['approval_rate'])} |" in card
    assert not re.search(r"[{}]|\bnan\b|None\b", card.replace("`bins` {}", ""))


def test_the_committed_card_is_generated(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Path(CARD).read_text(encoding="utf-8") == model_card(read_results()), "run `make figures`"


@pytest.mark.parametrize(
    "name", ["metrics/train.json", "metrics/plots/roc.csv", "models/policy.json", "models/best_model.joblib"]
)
def test_a_missing_file_is_named(other, capsys, name):
    path = Path(name)
    content = path.read_bytes()
    path.unlink()
    try:
        assert report(["--output", "x.html"]) == 1
    finally:
        path.write_bytes(content)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name}: not found; run `dvc repro`")
    assert not Path("x.html").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(clone, package):
    code = f"import sys; sys.modules['{package}'] = None; sys.path.insert(0, 'src'); from mlops_project.cli import report"
    done = clone.run(sys.executable, "-c", f"{code}; sys.exit(report([]))", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: the report needs {package}, which is not installed; `make report` installs it, as does the extra 'report'\n"
    )


def test_the_card_needs_no_extra(clone):
    code = "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None; sys.path[:0] = ['src', 'scripts']"
    clone.run(sys.executable, "-c", f"{code}; import runpy; runpy.run_path('scripts/figures.py', run_name='__main__')")


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        report(["--help"])
    assert "mlops-report --output /tmp/report.html" in capsys.readouterr().out
