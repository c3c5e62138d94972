"""`mlops-drift` on files: exports of a real prediction log and tables, what moved and what did not, and what it writes."""

import asyncio
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mlops_project.files import write_table
from mlops_project.monitoring.command import main
from mlops_project.monitoring.windows import moment, read_window
from mlops_project.schema import Contract

REFERENCE_ROWS = 500


@pytest.fixture
def place(workdir: Path, root: Path, applicants, params) -> Path:
    """A folder with contract, params, reference, scores and cleaning counts, as the pipeline leaves them; few simulations."""
    content = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    content["monitoring"] |= {"simulations": 400, "classifier_rows": 200}
    (workdir / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (workdir / "data").mkdir()
    (workdir / "data/schema.yaml").write_bytes((root / "data/schema.yaml").read_bytes())
    table = applicants.table.sample(frac=1, random_state=1)
    reference = table[:REFERENCE_ROWS]
    write_table(reference, workdir / "data/processed/Xtraintest.csv")
    scores = pd.DataFrame({"repeat": 0, "y_proba": score(reference)}, index=reference.index)
    write_table(pd.concat([scores, scores.assign(repeat=1, y_proba=0.5)]), workdir / "data/predictions/out_of_fold.csv")
    (workdir / "metrics").mkdir()
    (workdir / "metrics/prepare.json").write_text(json.dumps(applicants.report), encoding="utf-8")
    write_table(table[REFERENCE_ROWS:], workdir / "window.csv")
    return workdir


def score(table: pd.DataFrame) -> np.ndarray:
    """A score that new rows have as the reference has it; where it depends on the first number, for no reason but that."""
    ranks = table.select_dtypes("number").iloc[:, 0].fillna(20).to_numpy(dtype=float)
    return 1 / (1 + np.exp(ranks / 40))


def altered(place: Path, **columns) -> str:
    table = pd.read_csv(place / "window.csv", index_col=0)
    for name, change in columns.items():
        table[name] = change(table[name])
    table.to_csv(place / "altered.csv")
    return "altered.csv"


def report(*arguments: str, code: int) -> dict:
    assert main([*arguments, "--json", "drift.json"]) == code
    return json.loads(Path("drift.json").read_text(encoding="utf-8"))


def alarms(found: dict) -> set:
    return {(test["feature"], test["check"]) for test in found["tests"] if test["drift"]}


def first_of(contract: Contract, kind: str) -> str:
    return contract.of_kind(kind)[0]


def test_held_out_rows_are_no_drift(place, capsys):
    found = report("window.csv", code=0)
    assert not found["drift"]
    assert alarms(found) == set()
    assert capsys.readouterr().out.endswith("no drift\n")
    assert found["window"]["rows"] > 200
    assert found["reference"]["rows"] == REFERENCE_ROWS
    assert any("best_model.joblib: not found" in note for note in found["notes"])


def test_a_shifted_number_is_named(place, contract):
    name = first_of(contract, "numeric")
    found = report(altered(place, **{name: lambda cells: cells + cells.std() * 0.5}), code=3)
    assert (name, "ks") in alarms(found)
    assert {feature for feature, _ in alarms(found)} <= {name, None}


def test_missing_cells_and_forbidden_ones_are_two_things(place, contract):
    one, two = contract.of_kind("numeric")[:2]
    kept = {one: np.nan, two: -7}
    changes = {name: lambda cells, other=other: cells.where(cells.index.str[0] > "3", other) for name, other in kept.items()}
    found = report(altered(place, **changes), code=3)
    assert {(one, "missing"), (two, "missing"), (two, "out_of_contract")} <= alarms(found)
    assert (one, "out_of_contract") not in alarms(found)
    shares = {feature["name"]: feature for feature in found["features"]}
    assert shares[two]["out_of_contract"]["window"] > 0.1 > shares[two]["out_of_contract"]["reference"] > 0


def test_forbidden_cells_as_often_as_in_the_raw_file_are_no_drift(place, raw_table):
    """The reference is clean, but its window is not: what cleaning found is what to compare with."""
    raw_table.drop_duplicates().to_csv("raw.csv", index=False)
    assert not any(check == "out_of_contract" for _, check in alarms(report("raw.csv", code=0)))


@pytest.mark.parametrize("value", [np.nan, "never heard of"])
def test_a_column_without_any_value_is_drift_and_no_crash(place, contract, value):
    name = first_of(contract, "nominal")
    found = report(altered(place, **{name: lambda cells: pd.Series(value, cells.index, dtype=object)}), code=3)
    assert (name, "missing") in alarms(found)


def test_a_constant_column_is_drift_and_no_crash(place, contract):
    name = first_of(contract, "ordinal")
    found = report(altered(place, **{name: lambda cells: 2}), code=3)
    assert {(name, "psi"), (name, "ks")} <= alarms(found)


def test_the_same_input_gives_the_same_report(place):
    assert report("window.csv", code=0) == report("window.csv", code=0)


def test_rows_of_any_reference_can_be_compared(place):
    found = report("window.csv", "--reference", "window.csv", code=0)
    assert found["score"] is None
    assert all(test["value"] == 0 for test in found["tests"] if test["check"] in ("ks", "chi_square", "missing"))


def test_a_reference_that_is_not_what_the_lock_records_is_said(place):
    lock = {"stages": {"prepare": {"outs": [{"path": "data/processed/Xtraintest.csv", "md5": "0" * 32}]}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    found = report("window.csv", code=0)
    assert found["reference"]["recorded"] is False
    assert any("is not what dvc.lock records" in note for note in found["notes"])


# --- the prediction log


@pytest.fixture
def exported(place) -> Path:
    """What `mlops-predictions export` writes of a log: single applicants, lists and columns, two models, two days."""
    from mlops_project.serving.log import PredictionLog, Record, new_request_id, open_store, results
    from mlops_project.serving.predictions import export

    table = pd.read_csv("window.csv", index_col=0).astype(object)
    rows = [{name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in table.to_dict("records")]
    answers = score(pd.read_csv("window.csv", index_col=0))

    def record(places: range, day: int, model: str) -> Record:
        given = [rows[i] for i in places]
        p_good = [float(answers[i]) for i in places]
        when = datetime(2026, 3, day, tzinfo=UTC).timestamp()
        answer = results(p_good, p_good, p_good, ["approve"] * len(given))
        return Record(new_request_id(), when, model, json.dumps(given).encode(), answer, len(given))

    async def fill() -> None:
        log = PredictionLog.open("sqlite:///log.db")
        half = len(rows) // 2
        await log.append([record(range(half), 1, "a" * 64), record(range(half, len(rows)), 2, "b" * 64)])
        await log.close()

    asyncio.run(fill())
    store = open_store("sqlite:///log.db")
    export(store, Path("export.csv"))
    store.close()
    return place / "export.csv"


def test_an_export_holds_the_rows_as_they_were_sent(exported, place, contract):
    table, log = read_window("window.csv", contract), read_window(exported, contract)
    np.testing.assert_array_equal(log.values, table.values)
    assert log.p_good is not None
    assert log.facts["model_versions"] == {"a" * 64: len(log.values) // 2, "b" * 64: len(log.values) - len(log.values) // 2}


def test_an_export_without_drift_passes_with_its_scores(exported):
    found = report("export.csv", code=0)
    assert found["score"] is not None
    assert {"score_psi", "score_ks"} <= {test["check"] for test in found["tests"]}


def test_scores_that_moved_are_found_and_can_be_left_out(exported):
    table = pd.read_csv("export.csv", dtype=str, keep_default_na=False)
    table["p_good"] = table["p_good"].astype(float) - 0.08
    table.to_csv("export.csv", index=False)
    assert alarms(report("export.csv", code=3)) == {(None, "score_psi"), (None, "score_ks")}
    assert report("export.csv", "--no-scores", code=0)["score"] is None


def test_an_export_is_cut_by_time_and_model(exported, contract):
    everything = read_window(exported, contract)
    second = read_window(exported, contract, since=moment("2026-03-02"))
    first = read_window(exported, contract, until=moment("2026-03-02"))
    assert len(first.values) + len(second.values) == len(everything.values)
    assert second.facts["from"].startswith("2026-03-02")
    of_a = read_window(exported, contract, model_version="aaaa")
    np.testing.assert_array_equal(of_a.values, first.values)


def test_a_column_that_no_caller_sent_is_missing(exported, contract):
    name = first_of(contract, "nominal")
    pd.read_csv("export.csv", dtype=str, keep_default_na=False).drop(columns=f"input_{name}").to_csv("export.csv", index=False)
    assert (name, "missing") in alarms(report("export.csv", code=3))


def test_parquet_and_csv_are_read_alike(exported, contract):
    pytest.importorskip("pyarrow", reason="the extra `parquet`")
    pd.read_csv("export.csv", dtype={"request_id": str}).to_parquet("export.parquet")
    np.testing.assert_array_equal(read_window("export.parquet", contract).values, read_window("export.csv", contract).values)


def test_times_are_dates_or_spans():
    now = datetime(2026, 3, 8, tzinfo=UTC)
    assert moment("7d", now) == moment("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)
    assert moment("90m", now) == moment("2026-03-07T22:30:00+00:00")
    with pytest.raises(ValueError, match="yesterday"):
        moment("yesterday")


# --- what it writes


def test_metrics_are_in_the_text_format(place):
    assert main(["window.csv", "--prometheus", "drift.prom"]) == 0
    text = Path("drift.prom").read_text(encoding="utf-8")
    assert text.endswith("\n")
    sample = re.compile(r'mlops_drift_[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [-+.e0-9]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in text.splitlines())
    assert "mlops_drift_detected 0.0" in text
    assert 'mlops_drift_rows{side="reference"} 500' in text
    assert 'mlops_drift_statistic{feature="",check="classifier_roc_auc"}' in text


def test_metrics_are_what_prometheus_reads(place):
    from prometheus_client import parser

    assert main(["window.csv", "--prometheus", "drift.prom"]) == 0
    families = list(parser.text_string_to_metric_families(Path("drift.prom").read_text(encoding="utf-8")))
    assert {family.type for family in families} == {"gauge"}
    tests = {family.name: len(family.samples) for family in families}
    assert tests["mlops_drift_statistic"] == tests["mlops_drift_p_value"] == tests["mlops_drift_alarm"] > 60


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_shows_every_feature(place, contract):
    name = first_of(contract, "numeric")
    window = altered(place, **{name: lambda cells: cells * 1.6})
    assert main([window, "--html", "drift.html"]) == 3
    page = Tags()
    page.feed(Path("drift.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert not [tag for tag, attributes in page.seen if tag == "script" or "src" in attributes or "on" in attributes]
    assert [attributes["href"] for tag, attributes in page.seen if "href" in attributes] == ["data:,"]
    assert sum(tag == "svg" for tag, _ in page.seen) == len(contract.features)
    assert "Drift: " in page.text
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(feature in page.text for feature in contract.features)


def test_json_on_standard_output_is_only_that(place, capsys):
    assert main(["window.csv", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["drift"] is False


# --- what it refuses


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("a,b\n1,2\n", "of the contract missing"),
        ("a,b\n", "of the contract missing"),
        ("\0\0", "binary"),
    ],
)
def test_what_is_no_window_is_refused_in_one_line(place, capsys, content, message):
    if content is not None:
        Path("bad.csv").write_text(content, encoding="utf-8")
    assert main(["bad.csv"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: bad.csv")
    assert error.count("\n") == 1


def test_too_few_rows_are_refused(place, capsys):
    pd.read_csv("window.csv")[:49].to_csv("few.csv", index=False)
    assert main(["few.csv"]) == 1
    assert "the window has 49 rows, expected 50 or more (monitoring.min_rows)" in capsys.readouterr().err


def test_a_header_without_rows_is_refused(place, capsys):
    pd.read_csv("window.csv")[:0].to_csv("none.csv", index=False)
    assert main(["none.csv"]) == 1
    assert "a header and no rows" in capsys.readouterr().err


def test_a_table_cannot_be_cut_by_time(place, capsys):
    assert main(["window.csv", "--since", "7d"]) == 1
    assert "is no export of the prediction log" in capsys.readouterr().err


def test_a_time_without_predictions_is_refused(exported, capsys):
    assert main(["export.csv", "--since", "2026-04-01"]) == 1
    assert re.search(r"none of \d+ predictions is of this time and model", capsys.readouterr().err)


def test_scores_of_other_rows_are_refused(place, capsys):
    assert main(["window.csv", "--reference", "window.csv", "--scores", "data/predictions/out_of_fold.csv"]) == 1
    assert "lacks predictions of rows in window.csv" in capsys.readouterr().err


def test_counts_that_are_not_there_are_refused(place, capsys):
    Path("metrics/prepare.json").write_text('{"columns": {}}', encoding="utf-8")
    assert main(["window.csv"]) == 1
    assert "metrics/prepare.json: holds no counts" in capsys.readouterr().err


def test_no_pipeline_has_run(workdir, root, capsys):
    for name in ("params.yaml", "data/schema.yaml"):
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_bytes((root / name).read_bytes())
    assert main(["window.csv"]) == 1
    assert "data/processed/Xtraintest.csv: not found; run `dvc repro`" in capsys.readouterr().err
