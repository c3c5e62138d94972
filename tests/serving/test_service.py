"""The rest of the service in this process: who may call, exchange of models, lineage, documentation, figures."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from mlops_project.errors import PipelineError
from mlops_project.files import read_yaml
from mlops_project.manifest import write_manifest
from mlops_project.modeling.compiled import CompiledScorer
from mlops_project.serving import keys, loading, metrics, models, schema
from mlops_project.serving.loading import load
from mlops_project.serving.settings import read_settings
from mlops_project.serving.state import Files, read_events
from mlops_project.serving.stores import open_store


@pytest.fixture
def copied(trained, tmp_path):
    """Return a function that puts a trained model and its policy in place of those that a service looks at."""
    files = Files(str(tmp_path / "model.joblib"), str(tmp_path / "policy.json"), str(tmp_path / "state"), uncommitted=True)

    def copy(name: str) -> Files:
        source = Path(trained(name).files.model).parent
        for path in source.glob("*.j*"):
            shutil.copy(path, tmp_path / f"{path.name}.new")
            os.replace(tmp_path / f"{path.name}.new", tmp_path / path.name)
        return files

    return copy


# --- loading


def test_a_model_is_compared_once_and_then_known(copied):
    files = copied("scorecard")
    first = load(files)
    assert (first.outcome, first.difference <= 1e-9) == ("loaded", True)
    assert load(files).outcome == "unchanged"
    load(copied("logistic_regression"))
    again = load(copied("scorecard"))
    assert (again.outcome, again.detail) == ("loaded", "verified before")
    assert again.model_version == first.model_version
    assert read_events(Path(files.state)) == {"loaded": 3}


def test_a_plan_that_other_code_made_is_made_anew(copied, monkeypatch):
    files = copied("scorecard")
    load(files)
    for code in "abc":
        monkeypatch.setattr(loading, "_code", lambda code=code: code)
        # The same bytes in another file: the one that was pointed to is removed in time.
        assert load(files).outcome == "loaded"
        assert models.load_served(Path(files.state)).scorer.model_version
    assert len(list(Path(files.state).glob("*.npz"))) == loading.KEPT_PLANS


def test_a_plan_that_was_tampered_with_is_not_used(copied, tmp_path):
    files = copied("scorecard")
    load(files)
    (plan,) = (tmp_path / "state").glob("*.npz")
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    with pytest.raises(PipelineError, match="was changed since it passed"):
        models.load_served(tmp_path / "state")
    load(files)
    assert models.load_served(tmp_path / "state").scorer.model_version


@pytest.mark.parametrize("what", ["model.joblib", "policy.json", "model.joblib.manifest.json"])
def test_a_tampered_file_is_refused(copied, tmp_path, what):
    files = copied("scorecard")
    path = tmp_path / what
    path.write_bytes(path.read_bytes().replace(b"0", b"1").replace(b"a", b"b") + b" ")
    outcome = load(files)
    assert outcome.outcome == "refused"
    assert outcome.detail.startswith(str(tmp_path))
    assert not (tmp_path / "state/current.json").exists()


def test_a_policy_of_another_model_is_refused(copied, trained, tmp_path):
    files = copied("scorecard")
    other = Path(trained("logistic_regression").files.model).parent
    for name in ("model.joblib", "model.joblib.manifest.json"):
        shutil.copy(other / name, tmp_path / name)
    assert "belongs to another model" in load(files).detail


def test_a_file_that_is_no_model_is_refused(copied, tmp_path):
    files = copied("scorecard")
    for content in (b"nonsense", b"\x80\x04K\x01."):  # the second is a pickle of the number 1
        Path(files.model).write_bytes(content)
        write_manifest(files.model)
        write_manifest(files.policy, [files.model])
        assert load(files).outcome == "refused"


def test_a_plan_that_differs_from_its_model_is_refused(copied, monkeypatch):
    """The gate is asked, not passed by: shift what the plan says by more than is allowed."""
    exact = CompiledScorer.p_good
    monkeypatch.setattr(CompiledScorer, "p_good", lambda self, *args: exact(self, *args) + 2e-9)
    outcome = load(copied("scorecard"))
    assert outcome.outcome == "refused"
    assert "differs from the pipeline by 2" in outcome.detail


def test_a_model_without_a_compiled_form_answers_through_its_pipeline(copied, trained, raw_table, monkeypatch):
    from mlops_project.modeling import compiling

    def none(*_):
        raise compiling.NotCompilable("Strange: has no compiled form")

    monkeypatch.setattr(compiling, "compile_model", none)
    files = copied("scorecard")
    assert load(files).outcome == "loaded"
    served = models.load_served(Path(files.state))
    assert served.pointer.plan == ""
    table = raw_table.iloc[:30]
    parsed = served.scorer.parse(table.to_dict("records"))
    model = trained().model
    p_good, reasons = served.explain(parsed, 2)
    assert p_good == pytest.approx(model.predict_proba(table)[:, 1], abs=1e-12)
    assert reasons == model.reasons(table, 2)


# --- exchange


def test_a_new_model_takes_over_and_a_bad_one_does_not(copied, opened, good):
    files = copied("scorecard")
    load(files)
    client = opened(files)
    old = client.predict(good).json
    for path in (files.model, files.policy):
        Path(path).write_bytes(b"bad")
    answer = client.request("POST", "/v1/admin/reload")
    assert answer.status == 409
    assert "not loaded" in answer.json["detail"]
    assert client.predict(good).json["predictions"] == old["predictions"]

    copied("logistic_regression")
    answer = client.request("POST", "/v1/admin/reload")
    assert (answer.status, answer.json["outcome"]) == (200, "loaded"), answer.body
    new = client.predict(good).json
    assert new["model_version"] == answer.json["model_version"] != old["model_version"]
    assert new["predictions"][0]["p_good"] != old["predictions"][0]["p_good"]
    assert client.request("GET", "/v1/model").json["name"] == "logistic_regression"
    figures = client.request("GET", "/metrics").body.decode()
    assert 'mlops_model_loads_total{outcome="refused"} 1.0' in figures
    assert f'mlops_model_info{{model_version="{new["model_version"]}",name="logistic_regression"}} 1.0' in figures


def test_workers_find_a_new_model_by_themselves(copied, opened, good):
    files = copied("scorecard")
    load(files)
    client = opened(files)
    old = client.predict(good).json["model_version"]
    version = load(copied("logistic_regression")).model_version
    end = time.monotonic() + 10
    while client.predict(good).json["model_version"] == old and time.monotonic() < end:
        time.sleep(0.02)
    assert client.predict(good).json["model_version"] == version != old


def test_answers_during_exchanges_are_whole(copied, opened, good):
    """The probability is always that of the model whose version stands beside it."""
    expected = {}
    for name in ("scorecard", "logistic_regression"):
        files = copied(name)
        load(files)
        served = models.load_served(Path(files.state))
        expected[served.scorer.model_version] = float(served.scorer.p_good(served.scorer.parse([good]).values)[0])
    client = opened(files)
    seen = set()
    for i in range(6):
        load(copied("scorecard" if i % 2 == 0 else "logistic_regression"))
        body = json.dumps([good] * 200).encode()
        waiting = [client.submit("POST", "/v1/predict", body) for _ in range(10)]
        client.loop.call_soon_threadsafe(client.service.models.look)
        waiting += [client.submit("POST", "/v1/predict", body) for _ in range(10)]
        for future in waiting:
            answer = future.result(60).json
            seen.add(answer["model_version"])
            (p_good,) = {row["p_good"] for row in answer["predictions"]}
            assert p_good == pytest.approx(expected[answer["model_version"]], abs=1e-12)
    assert seen == set(expected)


# --- who may call


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "keys.json"


def test_keys_and_scopes(clients, good, key_file):
    _, caller = keys.create(key_file, "caller", "predict")
    _, admin = keys.create(key_file, "admin", "admin")
    client = clients(keys=str(key_file))
    bearer = {"authorization": f"Bearer {caller}"}

    assert client.predict(good).status == 401
    assert client.predict(good).headers["www-authenticate"].startswith("Bearer")
    assert client.predict(good, headers={"authorization": f"Bearer {caller[:-1]}x"}).status == 401
    assert client.predict(good, headers=bearer).status == 200
    assert client.predict(good, headers={"x-api-key": caller}).status == 200
    for path in ("/v1/model",):
        assert client.request("GET", path).status == 401
        assert client.request("GET", path, headers=bearer).status == 200
    assert client.request("POST", "/v1/outcomes", b"[]").status == 401
    assert client.request("POST", "/v1/admin/reload", headers=bearer).status == 403
    assert client.request("POST", "/v1/admin/reload", headers={"x-api-key": admin}).status == 200
    assert client.request("POST", f"/v1/predict?api_key={caller}", b"{}", headers=bearer).status == 400
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"):
        assert client.request("GET", path).status == 200

    keys.revoke(key_file, "caller")
    assert client.predict(good, headers=bearer).status == 401


def test_a_refused_caller_learns_nothing_of_the_body(clients, key_file):
    keys.create(key_file, "x", "predict")
    client = clients(keys=str(key_file), max_rows=9)
    assert client.predict(b"nonsense").status == 401


def test_the_rate_limit_holds_and_is_told(clients, good):
    client = clients(rate_limit="3/hour")
    answers = [client.predict(good) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
    assert int(answers[3].headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/model", "/nothing", "/v1/predict", "/static/page.js"])
def test_every_answer_is_hardened(client, path):
    answer = client.request("GET", path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/predict", 405), ("PUT", "/v1/model", 405), ("GET", "/nothing", 404), ("GET", "/static/../app.py", 404),
     ("GET", "/static/%2e%2e%2fapp.py", 404), ("GET", "/static/page.html", 404), ("POST", "/", 405)],
)  # fmt: skip
def test_other_paths_and_methods_are_problems(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert ("allow" in answer.headers) == (status == 405)


# --- what it tells


def test_the_model_is_described(client, trained, contract):
    found = client.request("GET", "/v1/model").json
    model = trained().model
    assert found["params"] == model.params
    assert found["training_data_hash"] == model.training_data_hash
    assert [feature["name"] for feature in found["features"]] == list(model.feature_names_in_)
    assert found["threshold"] == pytest.approx(1 / 6)
    assert found["compiled"] is True
    # This model was not made by the pipeline: nothing vouches for a commit, and no figures are those of another model.
    assert (found["commit"], found["data"], found["metrics"]) == (None, None, None)


def test_the_lineage_of_the_pipelines_own_model(root, monkeypatch):
    from mlops_project.serving.lineage import lineage

    outs = read_yaml(root / "dvc.lock")["stages"]["train"]["outs"]
    (md5,) = (out["md5"] for out in outs if out["path"] == "models/best_model.joblib")
    model = root / ".dvc/store/files/md5" / md5[:2] / md5[2:]  # in Git, so that nothing need be pulled
    if not model.exists():  # while code is under change, before `make embed`
        model = root / "models/best_model.joblib"
    monkeypatch.chdir(root)
    found = lineage(model.read_bytes())
    assert "data/schema.yaml" in found["data"]
    assert lineage(b"another") == {"commit": None, "data": None, "metrics": None}
    monkeypatch.setenv("MLOPS_COMMIT", "abc")
    assert lineage(model.read_bytes())["commit"] == "abc"


def test_the_document_is_made_of_the_contract(client, contract):
    document = client.request("GET", "/openapi.json").json
    applicant = document["components"]["schemas"]["Applicant"]
    assert applicant["additionalProperties"] is False
    cells = applicant["properties"]
    assert [name for name in cells if "x-kind" in cells[name]] == contract.features
    for name in contract.features:
        column = contract.columns[name]
        assert cells[name]["x-domain"] == column.domain
        assert cells[name].get("x-unit") == column.unit
        # Annotations, not constraints: what is out of contract is accepted.
        assert not {"enum", "minimum", "maximum", "const"} & cells[name].keys()
        if column.codes:
            assert [entry["code"] for entry in cells[name]["x-codes"]] == column.code_list
    assert client.predict(applicant["examples"][0]).json["predictions"][0]["treated_as_missing"] == []
    assert {"/v1/predict", "/v1/model", "/v1/outcomes", "/v1/admin/reload", "/healthz", "/readyz", "/metrics"} == set(
        document["paths"]
    )


def test_another_contract_makes_another_document(client, contract):
    served = client.service.models.current
    columns = {**contract.columns, "new": msgspec.structs.replace(contract.columns["alter"], unit="furlongs")}
    other = msgspec.structs.replace(contract, columns=columns)

    class Scorer:
        contract = other
        columns = other.features

    names = models.Names.of(Scorer)
    cells = schema.applicant(served._replace(scorer=Scorer, names=names))["properties"]
    assert cells["new"]["x-unit"] == "furlongs"


def test_every_reference_of_the_document_leads_somewhere(client):
    text = client.request("GET", "/openapi.json").body.decode()
    document = json.loads(text)

    def references(value):
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    for reference in set(references(document)):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def figures_of(client) -> dict[str, float]:
    """Return samples by name and labels."""
    lines = client.request("GET", "/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_figures_are_counted(clients, good):
    client = clients(max_rows=77)
    before = figures_of(client)
    # What alerts ask for is there before anything happens.
    assert before['mlops_http_requests_total{route="/v1/predict",status="200"}'] == 0
    column = next(iter(good))
    assert before[f'mlops_cells_missing_total{{feature="{column}",reason="treated"}}'] == 0
    client.predict([good] * 5)
    answers = client.predict([good, {**good, column: "no such code"}, {}]).json["predictions"]
    client.predict(b"x")
    client.request("GET", "/some/path/of/an/attacker")
    found = figures_of(client)
    assert found['mlops_http_requests_total{route="/v1/predict",status="200"}'] == 2
    assert found['mlops_http_requests_total{route="/v1/predict",status="400"}'] == 1
    assert found['mlops_http_requests_total{route="other",status="404"}'] == 1
    assert found['mlops_http_request_seconds_count{route="/v1/predict"}'] == 3
    assert found['mlops_http_request_seconds_bucket{le="+Inf",route="/v1/predict"}'] == 3
    decisions = {name: found[f'mlops_predictions_total{{decision="{name}"}}'] for name in ("approve", "refuse")}
    assert sum(decisions.values()) == found["mlops_probability_of_default_count"] == 8
    of_five = client.predict(good).json["predictions"][0]
    expected = [*[of_five] * 5, *answers]
    assert decisions["approve"] == [answer["decision"] for answer in expected].count("approve")
    p = [answer["probability_of_default"] for answer in expected]
    assert found["mlops_probability_of_default_sum"] == pytest.approx(sum(p))
    for bound in (0.05, 0.3, 0.5, 1.0):
        assert found[f'mlops_probability_of_default_bucket{{le="{bound}"}}'] == sum(value <= bound for value in p)
    assert found[f'mlops_cells_missing_total{{feature="{column}",reason="treated"}}'] == 1
    assert found[f'mlops_cells_missing_total{{feature="{column}",reason="absent"}}'] == 1
    assert found["mlops_log_commit_seconds_count"] == 2
    assert found["mlops_log_waiting_records"] == found["mlops_log_oldest_waiting_seconds"] == 0
    assert found["mlops_log_usable"] == found["mlops_workers"] == 1
    assert found["mlops_model_first_served_seconds"] <= time.time()
    assert not any("attacker" in name for name in found)


def test_a_log_that_cannot_be_written_shows_in_the_figures(clients, good, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "READ_EVERY", 0.0)
    path = tmp_path / "log.db"
    client = clients(log=f"sqlite:///{path}")
    assert client.predict(good).status == 200
    path.rename(tmp_path / "elsewhere.db")
    assert client.predict(good).status == 503
    found = figures_of(client)
    assert found["mlops_log_failures_total"] == 1
    assert found["mlops_log_usable"] == 0
    (tmp_path / "elsewhere.db").rename(path)
    assert figures_of(client)["mlops_log_usable"] == 1


def test_reports_of_the_log_become_figures_and_a_broken_one_is_said(clients, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "READ_EVERY", 0.0)
    client = clients(log=f"sqlite:///{tmp_path}/log.db")
    drift = {
        "drift": True, "reference": {"rows": 700}, "window": {"rows": 90},
        "classifier": {"roc_auc": 0.6, "low": 0.5, "high": 0.7},
        "tests": [
            {"feature": "a", "check": "psi", "value": 0.2, "threshold": 0.1, "p_value": 0.01, "drift": True},
            {"feature": None, "check": "score_ks", "value": 0.1, "threshold": None, "p_value": 0.4, "drift": False},
        ],
        "features": [{"name": "a", **{key: {"reference": 0.1, "window": 0.2} for key in ("missing", "out_of_contract")}}],
        "score": {"bins": [{"label": "up to 0.5", "reference": 0.5, "window": 0.9}]},
    }  # fmt: skip
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/log.db")) as store:
        store.put_report("drift", json.dumps(drift).encode())
        store.put_report("quality", b'{"figures": "nonsense"}')
        store.put_report("of a later version", b"\xff")
    found = figures_of(client)
    assert found["mlops_drift_detected"] == found['mlops_report_readable{report="drift"}'] == 1
    assert found['mlops_drift_statistic{check="psi",feature="a"}'] == 0.2
    assert found['mlops_drift_cell_share{feature="a",kind="missing",side="window"}'] == 0.2
    assert 'mlops_drift_threshold{check="score_ks",feature=""}' not in found
    assert found['mlops_report_readable{report="quality"}'] == 0
    assert time.time() - found['mlops_report_timestamp_seconds{report="drift"}'] < 60


def test_without_a_model_it_is_not_ready(trained, opened, tmp_path, good):
    files = msgspec.structs.replace(trained().files, state=str(tmp_path))
    client = opened(files)
    assert client.request("GET", "/healthz").status == 200
    assert client.request("GET", "/readyz").status == 503
    assert client.predict(good).status == 503
    assert client.request("GET", "/v1/model").status == 503
    assert client.request("GET", "/openapi.json").status == 200


# --- settings


def test_settings_come_from_flags_environment_and_files(key_file, monkeypatch, tmp_path):
    keys.create(key_file, "x", "predict")
    secret = tmp_path / "url"
    secret.write_text("postgresql://me:word@host/db\n")
    monkeypatch.setenv("MLOPS_KEYS_FILE", str(key_file))
    monkeypatch.setenv("MLOPS_LOG_URL_FILE", str(secret))
    monkeypatch.setenv("MLOPS_PORT", "9000")
    monkeypatch.setenv("MLOPS_RATE_LIMIT", "off")
    settings, host, port, workers = read_settings(["--port", "9001", "--workers", "3", "--retention", "30d"])
    assert (host, port, workers) == ("127.0.0.1", 9001, 3)
    assert settings.log == "postgresql://me:word@host/db"
    assert (settings.keys, settings.rate_limit, settings.retention) == (str(key_file), None, 30 * 86400)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--insecure", "--host", "0.0.0.0"], "others can reach it"),  # noqa: S104
        (["--insecure", "--host", "example.org"], "others can reach it"),
        (["--keys-file", "absent.json"], "mlops-keys create"),
        (["--insecure", "--rate-limit", "many"], "rate limit"),
        (["--insecure", "--rate-storage", "http://x"], "rate limit"),
    ],
)
def test_settings_that_do_not_fit_are_refused(workdir, argv, said):
    with pytest.raises(PipelineError, match=said):
        read_settings(argv)


def test_a_file_without_a_valid_key_is_refused(key_file):
    keys.create(key_file, "x", "predict")
    keys.revoke(key_file, "x")
    with pytest.raises(PipelineError, match="holds no valid key"):
        read_settings(["--keys-file", str(key_file)])


def test_insecure_is_allowed_on_this_machine_only():
    for host in ("127.0.0.1", "::1", "localhost"):
        assert read_settings(["--insecure", "--host", host])[0].keys is None


def test_a_bad_value_of_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("MLOPS_PORT", "many")
    with pytest.raises(PipelineError, match="MLOPS_PORT: 'many'"):
        read_settings(["--insecure"])


def test_the_outcome_of_loading_is_one_line_of_json(copied, capsys):
    files = copied("scorecard")
    arguments = ["--model", files.model, "--policy", files.policy, "--state", files.state]
    assert loading.main([*arguments, "--uncommitted"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "loaded"
    # Without a commit or a signature nothing vouches for the manifest.
    assert loading.main(arguments) == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "refused"
