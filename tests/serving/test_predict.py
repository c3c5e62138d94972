"""POST /v1/predict in this process: the model's own answers, strict reading, and nothing answered that is not logged."""

import contextlib
import csv
import io
import json
import re
import sqlite3

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_project.cells import INVALID, MISSING, TOKEN
from mlops_project.files import APPLICANT_ID
from mlops_project.modeling.policy import Policy
from mlops_project.serving.applicants import ARROW, CSV, PARQUET
from mlops_project.serving.records import decoded, read_results
from mlops_project.serving.stores import LogError, open_store

MODELS = ["scorecard", "logistic_regression", "xgboost", "svm"]
COUNT = 120


@pytest.fixture
def dirty(raw_table: pd.DataFrame) -> pd.DataFrame:
    """Raw rows as text, dirt and all."""
    return raw_table.iloc[300 : 300 + COUNT]


def records(table: pd.DataFrame) -> list[dict]:
    return table.astype(object).where(table.notna(), None).to_dict("records")


def policy_of(client) -> Policy:
    return client.service.models.current.scorer.policy


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_models_own(clients, trained, contract, dirty, name):
    client, model = clients(name), trained(name).model
    answer = client.predict(records(dirty))
    assert answer.status == 200, answer.body
    found = answer.json["predictions"]

    p_good = model.predict_proba(dirty)[:, 1]
    assert [row["p_good"] for row in found] == pytest.approx(p_good, abs=1e-9 if name != "xgboost" else 1e-6)
    policy = policy_of(client)
    exact = np.array([row["p_good"] for row in found])
    assert [row["decision"] == "approve" for row in found] == policy.approved(exact).tolist()
    assert [row["probability_of_default"] for row in found] == pytest.approx(1 - policy.correct(exact), abs=1e-12)
    assert [row["score"] for row in found] == pytest.approx(model.score(dirty), abs=1e-3)
    good, bad = policy.conformal_sets(exact)
    assert [row["conformal_set"] for row in found] == [
        ["good"] * g + ["bad"] * b for g, b in zip(good.tolist(), bad.tolist(), strict=True)
    ]

    status = contract.parse_features(dirty).status
    names = np.array(contract.features)
    assert [row["treated_as_missing"] for row in found] == [names[np.isin(row, [TOKEN, INVALID])].tolist() for row in status]
    assert [row["missing"] for row in found] == [names[row == MISSING].tolist() for row in status]
    assert answer.json["model_version"] == client.service.models.current.pointer.model_version


@pytest.mark.parametrize("name", MODELS)
def test_one_by_one_and_all_at_once_say_the_same(clients, dirty, name):
    client, rows = clients(name), records(dirty.iloc[:15])
    together = client.predict(rows, 3).json["predictions"]
    for row, expected in zip(rows, together, strict=True):
        (found,) = client.predict(row, 3).json["predictions"]
        assert found["p_good"] == pytest.approx(expected["p_good"], abs=1e-6)
        assert found["decision"] == expected["decision"]
        assert [reason["column"] for reason in found["reasons"]] == [reason["column"] for reason in expected["reasons"]]


def by_column(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("rows", [3, COUNT])
@pytest.mark.parametrize("name", ["scorecard", "svm"])
def test_columns_are_answered_by_columns(clients, dirty, name, rows):
    client = clients(name)
    applicants = [{"applicant_id": f"A-{i}"} | row for i, row in enumerate(records(dirty.iloc[:rows]))]
    expected = client.predict(applicants, 2).json["predictions"]
    answer = client.predict(by_column(applicants), 2)
    assert answer.status == 200, answer.body
    assert answer.json["predictions"] == by_column(expected)
    with sqlite3.connect(client.service.settings.log.removeprefix("sqlite:///")) as log:
        (named,) = log.execute("SELECT count(*) FROM applicants WHERE request_id = ?", (answer.json["request_id"],)).fetchone()
    assert named == rows


def test_columns_that_do_not_fit_are_refused(client, good):
    columns = by_column([good] * 40)
    for change, said in [
        ({"alter": 30}, "field alter: found a number, expected an array"),
        ({"alter": [30]}, "field alter: found 1 cells, expected 40 as in"),
        ({"alter": [30] * 39 + [[30]]}, "row 39, field alter: found an array, expected a text"),
        ({"nobody": [1] * 40}, "field nobody: unknown column"),
        ({name: [] for name in columns}, "found no applicant"),
    ]:
        answer = client.predict(columns | change)
        assert answer.status == 422, answer.body
        assert said in answer.json["detail"]
    answer = client.predict({name: cells for name, cells in columns.items() if name != "alter"})
    assert "field alter: the column is absent" in answer.json["detail"]
    assert client.predict(json.dumps(columns).encode()[:-1] + b', "alter": [1]}').status == 400
    few = {name: [True, *cells[:2]] for name, cells in columns.items()}
    assert client.predict(few).json["predictions"]["treated_as_missing"][0] == list(good)


@pytest.mark.parametrize("name", ["scorecard", "svm"])
def test_reasons_are_the_models_own(clients, trained, dirty, name):
    found = clients(name).predict(records(dirty.iloc[:10]), 4).json["predictions"]
    expected = trained(name).model.reasons(dirty.iloc[:10], 4)
    assert [[reason["text"] for reason in row["reasons"]] for row in found] == [
        [reason.text for reason in row] for row in expected
    ]


def test_reasons_come_when_asked_for(client, good):
    assert "reasons" not in client.predict(good).json["predictions"][0]
    assert client.predict(good, 0).json["predictions"][0].keys() == client.predict(good).json["predictions"][0].keys()
    assert len(client.predict({}, 20).json["predictions"][0]["reasons"]) <= 20


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_is_read_as_the_pipeline_reads_it(client, trained, contract, dirty, delimiter):
    text = dirty.to_csv(index=False, sep=delimiter)
    answer = client.predict(text.encode(), 2, kind="text/csv; charset=utf-8")
    assert (answer.status, answer.headers["content-type"]) == (200, CSV), answer.body
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert [float(row["p_good"]) for row in rows] == pytest.approx(trained().model.predict_proba(dirty)[:, 1], abs=1e-9)
    assert {"reason_1", "decision", "conformal_set", "treated_as_missing"} <= rows[0].keys()

    as_json = client.predict(text.encode(), kind=CSV, headers={"accept": "application/json"})
    assert [row["decision"] for row in as_json.json["predictions"]] == [row["decision"] for row in rows]


@pytest.mark.parametrize("kind", [ARROW, PARQUET])
def test_arrow_and_parquet(client, trained, contract, dirty, kind):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    numbers = dirty.apply(pd.to_numeric, errors="coerce")[contract.features].iloc[:40]
    for table in (dirty.iloc[:40].drop(columns=contract.drop), numbers):
        sink = pa.BufferOutputStream()
        sent = pa.Table.from_pandas(table, preserve_index=False)
        if kind == PARQUET:
            parquet.write_table(sent, sink)
        else:
            with pa.ipc.new_stream(sink, sent.schema) as writer:
                writer.write_table(sent)
        answer = client.predict(sink.getvalue().to_pybytes(), 1, kind=kind)
        assert answer.status == 200, answer.body
        reader = pa.BufferReader(answer.body)
        got = parquet.read_table(reader) if kind == PARQUET else pa.ipc.open_stream(reader).read_all()
        assert got["p_good"].to_pylist() == pytest.approx(trained().model.predict_proba(table)[:, 1], abs=1e-9)
        assert got.schema.metadata[b"model_version"].decode() == answer.headers["x-model-version"]


@pytest.mark.parametrize("kind", [ARROW, PARQUET])
@pytest.mark.parametrize("body", [b"", b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b"\xff\xff\xff\xff" + bytes(60), b"{}"])
def test_what_is_no_arrow_and_no_parquet_is_refused(client, kind, body):
    pytest.importorskip("pyarrow")
    assert client.predict(body, kind=kind).status in (400, 422)


BIG = b"9" * 5000
REFUSED = [
    (400, b""), (400, b"{"), (400, b"nonsense"), (400, b"{} {}"), (400, b'{"laufkont": NaN}'), (400, b'{"laufkont": Infinity}'),
    (400, b'{"laufkont": -Infinity}'), (400, b'{"laufkont": 1, "laufkont": 2}'), (400, b'[{"alter": 20, "alter": 30}]'),
    (400, b'{"laufkont": 1, "\\u006caufkont": 2}'), (400, b'{"alter": "\\ud800"}'), (400, b'{"alter": "\xff"}'),
    (400, b"\xef\xbb\xbf{}"), (400, b"[" * 100_000), (400, b'{"alter":' * 50_000), (400, b'{"alter": 01}'),
    (400, b"{'alter': 1}"),
    (422, b"[]"), (422, b"3"), (422, b"null"), (422, b'"x"'), (422, b"[1]"), (422, b"[[{}]]"), (422, b'{"alter": []}'),
    (422, b'{"alter": {"x": 1}}'), (422, b'{"__proto__": 1}'), (422, b'[{}, {"nobody": 1}]'),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), REFUSED)
def test_what_cannot_be_understood_is_refused(client, status, body):
    answer = client.predict(body)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["detail"]


ACCEPTED = [
    b'{"alter": 1e400}', b'{"alter": -1e400}', b'{"alter": ' + BIG + b"}", b'{"alter": "' + BIG + b'"}', b'{"alter": 1e-400}',
    b'{"alter": 99999999999999999999999}', b'{"alter": -3}', b'{"alter": "\\u0000"}', b'{"alter": true}', b'{"alter": "1:2"}',
    b'{"alter": "\'; DROP TABLE requests; --"}', b'{"alter": "../../etc/passwd"}', b'{"alter": "line\\nbreak"}',
    b'{"alter": 1.5e300}',
]  # fmt: skip


@pytest.mark.parametrize("body", ACCEPTED)
def test_what_the_contract_does_not_allow_is_treated_as_missing(client, body):
    answer = client.predict(body)
    assert answer.status == 200, answer.body
    (found,) = answer.json["predictions"]
    assert found["treated_as_missing"] == ["alter"]
    assert found["p_good"] == client.predict({}).json["predictions"][0]["p_good"]


def test_errors_name_row_and_field(client, good):
    answer = client.predict([good, {"laufzet": 1}, {"alter": [1]}])
    assert answer.json["errors"] == [
        {"row": 2, "field": "alter", "detail": "found an array, expected a text, a number, true, false or null"}
    ]
    answer = client.predict([good, {"laufzet": 1}, good | {"x": 1}])
    assert answer.json["errors"] == [
        {"row": 1, "field": "laufzet", "detail": "unknown column; did you mean laufzeit?"},
        {"row": 2, "field": "x", "detail": "unknown column"},
    ]
    assert answer.json["detail"] == "row 1, field laufzet: unknown column; did you mean laufzeit? (and 1 more)"


def test_columns_of_the_table_that_no_model_reads_are_ignored(client, contract, good):
    more = dict.fromkeys([contract.target.name, *contract.drop], 1)
    assert client.predict(good | more).json["predictions"] == client.predict(good).json["predictions"]


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("", 400, "empty"),
        ("alter\n30\n", 422, "absent"),
        ("alter,alter\n", 422, "twice"),
        ("nobody\n1\n", 422, "unknown column"),
        ("{header},nobody\n", 422, "nobody"),
        ("{header}\n", 422, "no applicant"),
        ("{header}\n1,2\n", 422, "row 0: found 2 cells"),
        ('{header}\n"' + "1" * 200_000, 400, "CSV"),
    ],
)
def test_csv_that_does_not_fit_is_refused(client, contract, text, status, said):
    answer = client.predict(text.replace("{header}", ",".join(contract.features)).encode(), kind=CSV)
    assert answer.status == status
    assert said in answer.json["detail"]


@pytest.mark.parametrize(
    "query", ["reasons=21", "reasons=-1", "reasons=x", "reasons=1&reasons=2", "reasons=", "reasons=1.0", "x=1"]
)
def test_a_query_that_does_not_fit_is_refused(client, query):
    answer = client.request("POST", f"/v1/predict?{query}", b"{}")
    assert answer.status == 422
    assert answer.json["errors"][0]["field"]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/xml", "application/json; charset=latin-1", "multipart/form-data"]
)
def test_other_types_are_refused(client, kind):
    answer = client.predict(b"{}", kind=kind)
    assert answer.status == 415
    assert "application/json" in answer.headers["accept"]


def test_compressed_bodies_are_refused(client):
    assert client.predict(b"{}", headers={"content-encoding": "gzip"}).status == 415


def test_too_many_applicants_and_too_large_bodies_are_refused(clients, good):
    client = clients(max_rows=3, max_body=2000)
    assert client.predict([{}] * 3).status == 200
    assert client.predict([{}] * 4).status == 413
    assert client.predict([good] * 20).status == 413


def logged(client) -> list[tuple]:
    connection = sqlite3.connect(client.service.settings.log.removeprefix("sqlite:///"))
    try:
        return connection.execute("SELECT request_id, model_version, row_count FROM requests ORDER BY id").fetchall()
    finally:
        connection.close()


def test_every_answer_is_in_the_log(client, good):
    before = len(logged(client))
    answers = [client.predict(good), client.predict([good, {}]), client.predict([good] * 400)]
    client.predict(b"nonsense")
    assert logged(client)[before:] == [
        (answer.json["request_id"], answer.json["model_version"], len(answer.json["predictions"])) for answer in answers
    ]


SENT = [1, 1.0, None, "1", " n/a ", "", -0.0, 0, 0.1, 1e-320, 2**63, 2**64, -(2**70), True, "\0", "\U0001f600"]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_was_sent_is_in_the_log_to_the_last_digit(clients, contract, data):
    """1.0 is not 1, numbers have any size, some columns are read by no model, and some applicants have a reference."""
    client = clients("scorecard", rate_fail_closed=True)  # its own: what others ask is not in its log
    few = data.draw(st.lists(st.sampled_from(SENT), min_size=1, max_size=5))
    moved = data.draw(st.sets(st.sampled_from([*contract.features[:3], contract.target.name, APPLICANT_ID])))
    columns = {name: [i] * 70 for i, name in enumerate(contract.features)} | dict.fromkeys(moved, (few * 70)[:70])
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    by_column = data.draw(st.booleans())
    answer = client.predict(columns if by_column else rows)
    assert answer.status == 200, answer.body
    with contextlib.closing(open_store(client.service.settings.log, create=False)) as store:
        logged = next(found for found in store.recent() if found.request_id == answer.json["request_id"])
    found = decoded(logged.inputs)
    kept = found if isinstance(found, list) else [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    assert json.dumps(kept, sort_keys=True) == json.dumps(rows, sort_keys=True)
    given = answer.json["predictions"]
    given = given if by_column else {name: [row[name] for row in given] for name in given[0]}
    assert msgspec.to_builtins(read_results(logged.results)).items() <= given.items()


def test_nothing_is_answered_that_cannot_be_logged(clients, good, monkeypatch):
    client = clients(max_rows=7)
    assert client.predict(good).status == 200

    def full(_):
        raise LogError("disk full at /secret/path")

    monkeypatch.setattr(client.service.log._store, "append", full)
    answer = client.predict(good)
    assert answer.status == 503
    assert b"p_good" not in answer.body
    assert b"secret" not in answer.body


def test_outcomes_join_by_request_id(client, good):
    request = client.predict([good, good]).json["request_id"]
    labels = [{"request_id": request, "position": 1, "outcome": "bad"}, {"request_id": "0" * 32, "outcome": "good"}]
    answer = client.request("POST", "/v1/outcomes", json.dumps(labels).encode())
    assert (answer.status, answer.json) == (200, {"recorded": 1, "unknown": [{"request_id": "0" * 32, "position": 0}]})


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"[]", 422, None),
        (b"{}", 422, None),
        (b'[{"request_id": "x", "outcome": "good"}]', 422, "request_id"),
        (b'[{"request_id": "00000000000000000000000000000000", "outcome": "maybe"}]', 422, "outcome"),
        (b'[{"request_id": "00000000000000000000000000000000", "outcome": "good", "position": -1}]', 422, "position"),
        (b'[{"request_id": "00000000000000000000000000000000", "outcome": "good", "position": 1e400}]', 422, "position"),
        (b'[{"request_id": NaN}]', 400, None),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(client, body, status, field):
    answer = client.request("POST", "/v1/outcomes", body)
    assert answer.status == status, answer.body
    if field:
        assert answer.json["errors"][0]["field"] == field


CELLS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["?", "1", "24", "1e5", ""])
)


@settings(max_examples=300)
@given(data=st.data())
def test_no_body_makes_a_fault(clients, contract, data):
    """Whatever comes is answered with predictions or a problem."""
    names = st.sampled_from([*contract.features, contract.target.name, "nobody"])
    rows = st.lists(st.dictionaries(names, CELLS, max_size=6), max_size=4)
    nested = st.recursive(
        CELLS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
    )
    body = data.draw(
        st.binary(max_size=60)
        | (rows | nested).map(lambda value: json.dumps(value).encode())
        | st.text(alphabet='{}[]":,0123456789.eE-+ \\ualteruf', max_size=40).map(str.encode)
    )
    answer = clients().predict(body)
    assert answer.status in (200, 400, 422), (body, answer.body)
    assert answer.json.keys() >= ({"predictions"} if answer.status == 200 else {"detail", "title"})
    if answer.status == 200:
        for row in answer.json["predictions"]:
            assert 0 <= row["p_good"] <= 1
            assert row["decision"] in ("approve", "refuse")


def test_request_ids_are_unique_and_made_here(client, good):
    answers = [client.predict(good, headers={"x-request-id": "mine"}) for _ in range(20)]
    ids = {answer.json["request_id"] for answer in answers}
    assert len(ids) == 20
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in ids)
    assert answers[0].headers["x-request-id"] == answers[0].json["request_id"]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: None,
        lambda rows: rows[3].update(applicant_id="A-7"),
        lambda rows: rows[3].pop("alter"),
        lambda rows: rows[3].update(alter=True),
        lambda rows: rows[3].update(alter="a: b"),
        lambda rows: rows[3].update(alter=None, laufzeit="invalid", hoehe=1e300, kredit=1),
    ],
    ids=["valid", "reference", "gap", "truth value", "colon in a text", "dirty"],
)
def test_many_applicants_are_read_as_one_is(client, good, change):
    rows = [dict(good) for _ in range(40)]
    change(rows)
    together = client.predict(rows).json["predictions"]
    alone = [client.predict(row).json["predictions"][0] for row in rows]
    for found, expected in zip(together, alone, strict=True):
        for name in ("p_good", "probability_of_default", "score"):  # sums of many rows differ in the last digit
            assert found.pop(name) == pytest.approx(expected.pop(name), rel=1e-12)
        assert found == expected


def test_a_key_twice_is_refused_among_many(client, good):
    body = json.dumps([good] * 40).encode()
    assert client.predict(body[:-2] + b', "alter": 30}]').status == 400
