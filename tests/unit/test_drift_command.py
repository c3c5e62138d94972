"""`mlops-drift` on files: exports of a real prediction log and tables, what moved and what did not, and what it writes."""

import asyncio
import contextlib
import copy
import json
import re
import sqlite3
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from msgspec import structs

from mlops_project.files import read_table, write_table
from mlops_project.manifest import dump, write_manifest
from mlops_project.modeling.train import fit
from mlops_project.monitoring.command import main
from mlops_project.monitoring.scoring import p_good
from mlops_project.monitoring.windows import _shown, moment, read_log, read_window
from mlops_project.preprocessing import build_preprocessor
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


LOG = "sqlite:///log.db"


@pytest.fixture
def logged(place) -> list[dict]:
    """A prediction log: single applicants, a list and columns, two models, two days; returns the applicants."""
    from mlops_project.serving.log import PredictionLog
    from mlops_project.serving.records import Record, new_request_id, results

    table = pd.read_csv("window.csv", index_col=0).astype(object)
    rows = [{name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in table.to_dict("records")]
    answers = score(pd.read_csv("window.csv", index_col=0))

    def record(places: range, day: int, model: str, content: object) -> Record:
        p_good = [float(answers[i]) for i in places]
        when = datetime(2026, 3, day, tzinfo=UTC).timestamp()
        answer = results(p_good, p_good, p_good, ["approve"] * len(p_good))
        return Record(new_request_id(), when, model, json.dumps(content).encode(), answer, len(p_good))

    async def fill() -> None:
        log = PredictionLog.open(LOG)
        half, last = len(rows) // 2, range(len(rows) - 100, len(rows))
        records = [record(range(i, i + 1), 1, "a" * 64, rows[i]) for i in range(30)]
        records.append(record(range(30, half), 1, "a" * 64, rows[30:half]))
        records.append(record(range(half, last.start), 2, "b" * 64, rows[half : last.start]))
        records.append(record(last, 2, "b" * 64, {name: [rows[i][name] for i in last] for name in rows[0]}))
        await log.append(records)
        await log.close()

    asyncio.run(fill())
    return rows


@pytest.fixture
def exported(place, logged) -> Path:
    """What `mlops-predictions export` writes of it."""
    from mlops_project.serving.predictions import export
    from mlops_project.serving.stores import open_store

    store = open_store(LOG)
    export(store, Path("export.csv"))
    store.close()
    return place / "export.csv"


def in_order(rows: np.ndarray) -> list:
    return sorted(map(tuple, np.nan_to_num(rows, nan=-1.0).tolist()))


@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"last": 40},
        {"last": 150},
        {"since": moment("2026-03-02")},
        {"until": moment("2026-03-02"), "model_version": "aaa"},
        {"since": moment("2026-03-01"), "until": moment("2026-03-02"), "last": 9},
    ],
)
def test_the_log_is_read_as_its_export_is(exported, contract, cut):
    log, export = read_log(LOG, contract, **cut), read_window(exported, contract, **cut)
    assert log.facts | {"source": ""} == export.facts | {"source": ""}
    assert len(log.values) == min(cut.get("last", 1000), len(export.values))
    if "last" not in cut:  # of a request that goes over the edge any applicants are the newest
        assert in_order(log.values) == in_order(export.values)
        np.testing.assert_array_equal(log.out_of_contract, export.out_of_contract)
        np.testing.assert_array_equal(np.sort(log.p_good), np.sort(export.p_good))


def test_a_log_without_drift_passes(logged, monkeypatch, capsys):
    found = report("--log-url", LOG, code=0)
    assert found["window"]["rows"] == len(logged)
    assert found["window"]["source"] == "log.db"
    assert found["score"] is not None
    monkeypatch.setenv("MLOPS_LOG_URL", LOG)
    assert report("--last", "120", code=0)["window"]["rows"] == 120


def test_a_log_whose_newest_predictions_moved_is_found(logged, contract):
    from mlops_project.serving.records import Record, new_request_id, results
    from mlops_project.serving.stores import open_store

    name = first_of(contract, "numeric")
    moved = [row | {name: None if row[name] is None else row[name] * 1.8} for row in logged]
    answers = [0.5] * len(moved)
    when = datetime(2026, 3, 3, tzinfo=UTC).timestamp()
    inputs, given = json.dumps(moved).encode(), results(answers, answers, answers, ["refuse"] * len(moved))
    store = open_store(LOG)
    store.append([Record(new_request_id(), when, "b" * 64, inputs, given, len(moved))])
    store.close()
    assert (name, "ks") in alarms(report("--log-url", LOG, "--since", "2026-03-03", "--no-scores", code=3))
    assert alarms(report("--log-url", LOG, "--until", "2026-03-03", "--no-scores", code=0)) == set()


def test_what_was_deleted_since_is_not_in_the_window(logged, contract):
    from mlops_project.serving.stores import open_store

    store = open_store(LOG)
    longer = [record.request_id for record in store.recent() if record.rows > 1]
    deleted = store.delete_positions({request_id: {0, 3} for request_id in longer})
    store.close()
    assert deleted == 6
    assert len(read_log(LOG, contract).values) == len(logged) - 6


def test_any_cell_that_can_be_sent_can_be_read(place, contract):
    from mlops_project.serving.records import Record, new_request_id, results
    from mlops_project.serving.stores import open_store

    cells = [True, False, "", "x", -1, 10**30, 1.5, 1e300, None, "1e400", "\x00", "True", 1, "1", 1.0]
    names = contract.features
    rows = [dict.fromkeys(names, cell) for cell in cells] + [{}, {"unknown": 1}]
    good = [0.5] * len(rows)
    given = results(good, good, good, ["approve"] * len(rows))
    store = open_store(LOG)
    store.append([Record(new_request_id(), 1.0, "a", json.dumps(rows).encode(), given, len(rows))])
    store.append(
        [Record(new_request_id(), 2.0, "a", b'{"%s": 1e999}' % names[0].encode(), results([0.5], [0.5], [1.0], ["approve"]))]
    )
    store.close()
    found = read_log(LOG, contract)
    table = pd.DataFrame(
        [{}, *rows], columns=names, dtype=object
    )  # 1e999 is out of contract, as is what is sent too seldom to tell
    assert len(found.values) == len(rows) + 1
    np.testing.assert_array_equal(found.values[1:], contract.parse_features(table[1:]).values)
    assert found.out_of_contract[0] > 0


def test_a_log_in_postgresql_is_named_without_its_password():
    assert _shown("postgresql://me:secret@host:5432/log") == "host/log"
    assert _shown("sqlite:////var/log.db") == "/var/log.db"


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


# --- scores of a table


@pytest.fixture(scope="module")
def model(_applicants, contract, params):
    preprocessor = build_preprocessor(contract, params.featurize)
    return fit(_applicants.table[:300], _applicants.target[:300], preprocessor, contract, params.train, params.models)


@pytest.fixture
def scored(place, model) -> Path:
    """The folder with a model and its predictions of the reference."""
    dump(model, place / "models/best_model.joblib")
    reference = read_table("data/processed/Xtraintest.csv")
    predictions = pd.DataFrame({"y_proba": model.predict_proba(reference)[:, 1]}, index=reference.index)
    write_table(predictions, "data/predictions/out_of_fold.csv")
    return place


def test_the_model_scores_a_table_by_a_plan_that_is_kept(scored, model, contract):
    found = report("window.csv", code=0)
    assert sum(row["window"] for row in found["score"]["bins"]) == pytest.approx(1, abs=1e-4)
    (plan,) = Path("var/drift").glob("*.npz")
    table = pd.read_csv("window.csv", dtype=str, keep_default_na=False)
    values = contract.parse_features(table).values
    expected = model.predict_proba(table)[:, 1]
    # Read, damaged and made anew.
    for content in (plan.read_bytes(), b"damaged"):
        plan.write_bytes(content)
        np.testing.assert_allclose(p_good(Path("models/best_model.joblib"), values, table, contract), expected, atol=1e-9)
    assert plan.read_bytes() != b"damaged"
    assert report("window.csv", code=0) == found


def test_another_model_gets_another_plan(scored, model, contract):
    report("window.csv", code=0)
    before = list(Path("var/drift").glob("*.npz"))
    other = copy.copy(model)
    other.name = "other"
    dump(other, "models/best_model.joblib")
    report("window.csv", code=0)
    assert len(before) == len(list(Path("var/drift").glob("*.npz"))) == 1
    assert before != list(Path("var/drift").glob("*.npz"))


def test_a_model_of_another_contract_reads_the_cells_itself(scored, model, contract):
    """Its contract allows what this one forbids, or the other way round."""
    name = first_of(contract, "numeric")
    narrow = structs.replace(contract.columns[name], range=[0, 20])
    other = structs.replace(contract, columns=contract.columns | {name: narrow})
    table = pd.read_csv("window.csv", dtype=str, keep_default_na=False)
    values = other.parse_features(table).values
    found = p_good(Path("models/best_model.joblib"), values, table, other)
    np.testing.assert_allclose(found, model.predict_proba(table)[:, 1], atol=1e-9)


def test_scores_are_left_out_where_nobody_asks_for_them(scored):
    assert report("window.csv", "--no-scores", code=0)["score"] is None
    assert not Path("var").exists()


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


def test_the_report_is_kept_in_the_log_for_the_service(logged, capsys):
    from mlops_project.serving.stores import open_store

    for window in (["--last", "100"], ["window.csv"]):
        found = report(*window, "--log-url", LOG, "--record", code=0)
        with contextlib.closing(open_store(LOG)) as store:
            assert json.loads(store.reports()["drift"].content) == found
    assert main(["window.csv", "--record", "--log-url", "sqlite:///absent.db"]) == 1
    assert "there is no prediction log" in capsys.readouterr().err


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


def test_a_file_that_is_no_database_is_refused(place, capsys):
    Path("log.db").write_bytes(b"no database, but long enough to be read as the header of one" * 20)
    assert main(["--log-url", LOG]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "log.db: the prediction log cannot be used" in error
    assert error.count("\n") == 1


def test_a_database_that_is_damaged_inside_is_refused(logged, capsys):
    connection = sqlite3.connect("log.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(Path("log.db").read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    Path("log.db").write_bytes(content)
    assert main(["--log-url", LOG]) == 1
    assert "log.db" in capsys.readouterr().err


@pytest.mark.parametrize("inputs", [b"{", b"[1, 2]", b"3", b"x\x9c no zlib", b'{"a": [[1]]}'])
def test_a_record_that_the_service_did_not_write_is_refused(place, capsys, contract, inputs):
    from mlops_project.serving.records import results
    from mlops_project.serving.stores import open_store

    inputs = inputs.replace(b'"a"', json.dumps(contract.features[0]).encode())
    store = open_store(LOG)
    values = ("of-another", 1.0, "a", 2, inputs, results([0.5] * 2, [0.5] * 2, [1.0] * 2, ["approve"] * 2))
    store.attempt(
        lambda _: store.execute(
            "INSERT INTO requests (request_id, time, model_version, row_count, deleted, inputs, results)"
            " VALUES (?, ?, ?, ?, 0, ?, ?)",
            values,
        )
    )
    store.close()
    assert main(["--log-url", LOG]) == 1
    error = capsys.readouterr().err
    assert "cannot be read" in error
    assert "expected what the service writes" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--log-url", "sqlite:///absent.db"], "there is no prediction log"),
        (["--log-url", "mysql://me:secret@host/log"], "expected sqlite:///path or postgresql://"),
        ([], "var/predictions.db: there is no prediction log"),
        (["--log-url", LOG, "--since", "2026-04-01"], "log.db: holds no prediction of this time and model"),
        (["--log-url", LOG, "--model-version", "c"], "log.db: holds no prediction of this time and model"),
        (["--log-url", LOG, "--last", "20"], "the window has 20 rows, expected 50 or more"),
    ],
)
def test_a_log_without_a_window_is_refused(logged, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("MLOPS_LOG_URL", raising=False)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error


def test_an_empty_log_is_refused(place, capsys):
    from mlops_project.serving.stores import open_store

    open_store(LOG).close()
    assert main(["--log-url", LOG]) == 1
    assert "log.db: holds no prediction" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["window.csv", "--log-url", LOG], ["--last", "0"], ["--last", "many"], ["--since", "soon"]])
def test_options_that_mean_nothing_are_usage_errors(place, options):
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2


def test_other_columns_are_refused_by_name(place, contract, capsys):
    name = first_of(contract, "ordinal")
    pd.read_csv("window.csv").rename(columns={name: "other"}).to_csv("other.csv", index=False)
    assert main(["other.csv"]) == 1
    assert f"column(s) {name} of the contract missing" in capsys.readouterr().err


def test_a_damaged_model_is_refused(place, capsys):
    Path("models").mkdir()
    Path("models/best_model.joblib").write_bytes(b"x")
    assert main(["window.csv"]) == 1
    assert "best_model.joblib.manifest.json: not found" in capsys.readouterr().err
    write_manifest("models/best_model.joblib")
    assert main(["window.csv"]) == 1
    assert "best_model.joblib: cannot be loaded" in capsys.readouterr().err


# --- windows and references with nothing in them


def test_a_window_of_one_applicant_over_and_over_is_drift(place):
    pd.read_csv("window.csv")[:1].loc[[0] * 300].to_csv("same.csv", index=False)
    found = report("same.csv", code=3)
    assert 0.4 < found["classifier"]["roc_auc"] <= 1


def test_a_window_without_any_value_is_drift(place, contract):
    table = pd.read_csv("window.csv", dtype=str)
    table[contract.features] = ""
    table.to_csv("empty.csv", index=False)
    assert {(name, "missing") for name in contract.features} <= alarms(report("empty.csv", code=3))


def test_unknown_codes_are_out_of_contract(place, contract):
    name = first_of(contract, "nominal")
    found = report(altered(place, **{name: lambda cells: cells.where(cells.index.str[0] > "3", 99)}), code=3)
    assert {(name, "out_of_contract"), (name, "missing")} <= alarms(found)


@pytest.mark.parametrize("value", ["", "constant"])
def test_a_reference_that_never_varies_alarms_if_the_window_does(place, contract, value):
    """A feature that is constant or missing on both sides is no drift; one that begins to vary is."""
    still, begins = contract.of_kind("nominal")[:2]
    for file in ("data/processed/Xtraintest.csv", "window.csv"):
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        for name in (still, begins) if file != "window.csv" else (still,):
            table[name] = contract.columns[name].code_list[0] if value else ""
        table.to_csv(file, index=False)
    found = report("window.csv", code=3)
    assert {feature for feature, _ in alarms(found)} <= {begins, None}
    assert begins in {feature for feature, _ in alarms(found)}


def test_both_sides_the_same_row_are_no_drift(place):
    first = pd.read_csv("window.csv", dtype=str, keep_default_na=False).drop(columns="applicant_id")[:1]
    for file in ("data/processed/Xtraintest.csv", "window.csv"):
        ids = pd.read_csv(file, dtype=str)["applicant_id"]
        first.loc[[0] * len(ids)].set_axis(ids).to_csv(file)
    found = report("window.csv", "--html", "drift.html", "--prometheus", "drift.prom", code=0)
    assert found["classifier"]["roc_auc"] == 0.5


def test_scores_of_one_class_only_are_drift(exported):
    """Everybody as good as certain."""
    table = pd.read_csv("export.csv", dtype=str, keep_default_na=False)
    table.assign(p_good="1.0").to_csv("export.csv", index=False)
    assert {(None, "score_psi"), (None, "score_ks")} <= alarms(report("export.csv", code=3))
