"""Console commands and package API beside the DVC stages: the same files with the same bytes, the same figures."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from mlops_project import cli, config

ROOT = Path(__file__).resolve().parents[2]
ENV = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "PIPELINE_"))},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
COMMANDS = ("prepare_data", "prepare_features", "train", "predict")
QUICK = (
    ("  n_splits: 5", "  n_splits: 2"),
    ("  n_repeats: 3", "  n_repeats: 1"),
    ("  bootstrap_samples: 2000", "  bootstrap_samples: 100"),
)


def command(clone, name, *arguments, check=True, **options):
    """A console command by the clone's own code, whatever is installed."""
    code = f"import sys; sys.path.insert(0, 'src'); from mlops_project.cli import {name}; sys.exit({name}())"
    return clone.run(sys.executable, "-c", code, *arguments, check=check, **options)


def script(clone, text):
    return clone.run(sys.executable, "-c", f"import sys; sys.path.insert(0, 'src')\n{text}").stdout


def results(clone):
    return json.loads((clone.path / "models/model_results.json").read_text(encoding="utf-8"))


def p_good(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["applicant_id"]: float(row["y_proba"]) for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def quick(clone):
    """A clone with few folds in which the pipeline has run."""
    for old, new in QUICK:
        clone.edit("params.yaml", old, new)
    clone.repro("--pull")
    clone.commit("quick")
    return clone


def status(clone):
    return json.loads(clone.dvc("status", "--json").stdout)


def test_commands_write_what_the_stages_write(quick):
    for name in ("data/processed", "data/features", "models"):  # none may pass because the file was there
        shutil.rmtree(quick.path / name)
    quick.git("checkout", "-q", "data", "models")
    command(quick, "prepare_data", "--save")
    command(quick, "prepare_features", "--save-preprocessor")
    trained = command(quick, "train")
    assert "tracked by DVC" not in trained.stderr.replace("policy.json: tracked by DVC", "")
    quick.dvc("checkout", "models/policy.json")
    assert status(quick) == {}
    assert quick.git("status", "--porcelain") == ""


def test_other_options_show_in_dvc_status_and_are_told(quick):
    done = command(quick, "train", "--model", "logistic_regression", "--smote")
    changed = {name for part in status(quick)["train"] if isinstance(part, dict) for name in part.get("changed outs", {})}
    told = {line.split(":")[0] for line in done.stderr.splitlines() if "tracked by DVC" in line}
    assert told == changed >= {"models/best_model.joblib", "models/model_results.json", "metrics/train.json"}
    by_command = results(quick)
    assert by_command["params"]["train"]["imbalance"] == "BorderlineSMOTE"

    quick.dvc("repro", "train")
    assert status(quick).keys() <= {"evaluate"}


@pytest.mark.integration
@pytest.mark.parametrize("sampler", ["none", "BorderlineSMOTE"])
def test_command_api_and_stage_find_the_same(quick, sampler):
    smote = sampler != "none"
    command(quick, "train", "--model", "logistic_regression", "--smote" if smote else "--no-smote")
    command(quick, "predict", "--save")
    predicted = (quick.path / "predictions/predictions.csv").read_bytes()
    by_command = results(quick)
    printed = script(
        quick,
        "import json, pandas as pd\n"
        "from mlops_project.dataset import load_and_prepare_data\n"
        "from mlops_project.features import prepare_features\n"
        "from mlops_project.modeling.train import train_model\n"
        "from mlops_project.modeling.predict import predict_and_evaluate\n"
        "X, X_test, y, y_test = load_and_prepare_data('data/raw/german_credit_modified.csv')\n"
        "X_t, X_test_t, preprocessor = prepare_features(X, X_test)\n"
        "assert len(X_t) == len(X) and len(X_test_t) == len(X_test)\n"
        f"model, results = train_model(X, y, preprocessor, use_smote={smote})\n"
        "y_pred, y_proba, metrics = predict_and_evaluate(model, X_test, y_test)\n"
        "assert {*map(type, metrics.values())} == {float} and len(y_pred) == len(y_proba) == len(y_test)\n"
        "print(json.dumps(results))",
    )
    assert results(quick) == by_command, "package API and command"
    assert (quick.path / "predictions/predictions.csv").read_bytes() == predicted
    assert {name: {k: round(v, 6) for k, v in entry.items()} for name, entry in json.loads(printed).items()} == by_command[
        "results"
    ]
    entries = {"test_mean", "test_std", "train_mean", "train_std"}
    names = {"accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "geometric_mean"}
    assert json.loads(printed).keys() == names
    assert all(entry.keys() == entries for entry in json.loads(printed).values())

    quick.edit("params.yaml", "  model: scorecard", "  model: logistic_regression")
    quick.edit("params.yaml", "  imbalance: none", f"  imbalance: {sampler}")
    quick.dvc("repro")
    assert results(quick) == by_command, "DVC stage and command"
    assert p_good(quick.path / "data/predictions/held_out.csv") == p_good(quick.path / "predictions/predictions.csv")
    quick.git("checkout", "-q", "params.yaml", "dvc.lock", "metrics", "models")
    quick.dvc("checkout", "--force")


def test_predictions_of_training_rows_carry_a_warning_and_leave_metrics_alone(quick):
    before = (quick.path / "metrics/evaluate.json").read_bytes()
    seen = ("--X-test", "data/processed/Xtraintest.csv", "--y-test", "data/processed/ytraintest.csv")
    done = command(quick, "predict", *seen, "--save", "--batch-size", "100")
    assert "rows were used to train this model: the figures below are optimistic" in done.stderr
    assert (quick.path / "predictions/predictions.csv").exists()
    figures = json.loads((quick.path / "predictions/evaluation_metrics.json").read_text(encoding="utf-8"))
    assert figures["roc_auc"] > json.loads(before)["roc_auc"]
    assert (quick.path / "metrics/evaluate.json").read_bytes() == before

    fresh = command(quick, "predict", "--save")
    assert "optimistic" not in fresh.stderr
    figures = json.loads((quick.path / "predictions/evaluation_metrics.json").read_text(encoding="utf-8"))
    assert figures["roc_auc"] == json.loads(before)["roc_auc"]


def test_a_versioned_model_is_registered_and_predicts(quick):
    before = status(quick), quick.git("status", "--porcelain")  # of what other tests left
    command(quick, "train", "--output", "models/model_20250101.joblib")
    line = json.loads((quick.path / "models/registry.jsonl").read_text(encoding="utf-8"))
    assert (line["path"], line["model"]) == ("models/model_20250101.joblib", "scorecard")
    assert line["metrics"]["roc_auc"] == results(quick)["results"]["roc_auc"]["test_mean"]
    assert (status(quick), quick.git("status", "--porcelain")) == before, "the pipeline's own model is left alone"
    rows = (quick.path / "data/processed/Xtest.csv").read_text(encoding="utf-8")
    options = ("--model", "models/model_20250101.joblib", "--X-test", "-", "--proba", "--reasons", "--output", "-")
    printed = command(quick, "predict", *options, input=rows).stdout.splitlines()
    assert printed[0] == "applicant_id,y_pred,y_proba,probability_of_default,score,reason_1,reason_2,reason_3"
    assert len(printed) == len(rows.splitlines())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("prepare_data", ["--input", "absent.csv"], "error: absent.csv: no such file"),
        ("prepare_features", ["--train", "absent.csv"], "error: absent.csv: not found"),
        ("train", ["--preprocessor", "models/best_model.joblib"], "expected a preprocessor of the featurize stage"),
        ("train", ["--X-train", "data/processed/Xtest.csv"], "data/processed/ytraintest.csv: lacks the outcome of"),
        ("train", ["--no-smote", "--smote-method", "SMOTE"], "--no-smote contradicts --smote-method"),
        ("train", ["--model", "best", "--no-evaluate", "--output", "x.joblib"], "best compares by cross-validation"),
        ("train", ["--output", ""], "--output: found nothing, expected a value"),
        ("train", ["--output", "-"], "--output: found -, expected a file"),
        ("train", ["--X-train", "-", "--y-train", "-"], "--X-train and --y-train: standard input can be read once"),
        ("prepare_data", ["--output-dir", "x"], "--output-dir: needs --save"),
        ("prepare_features", ["--test", "x", "--output-train", "-", "--output-test", "-"], "both are -; choose another output"),
        ("prepare_features", ["--train", "data/processed/ytraintest.csv"], "error: data/processed/ytraintest.csv: column(s)"),
        ("train", ["--X-train", "data/processed/ytraintest.csv"], "error: data/processed/ytraintest.csv: column(s)"),
        ("predict", ["--X-test", "data/processed/ytest.csv"], "error: data/processed/ytest.csv: column(s)"),
        ("predict", ["--X-test", "a.csv", "--output", "./a.csv"], "--output and --X-test: both are ./a.csv"),
        ("predict", ["--X-test", "data", "--output", "a.csv"], "error: data: is a folder"),
        ("predict", ["--X-test", "data/processed/Xtest.csv", "--output", "data"], "error: data: is a folder"),
        ("predict", ["--batch-size", "0"], "--batch-size: found 0, expected 1 or more"),
        ("predict", ["--model", "models/preprocessor.joblib"], "expected a RiskModel of the train stage"),
    ],
)
def test_what_cannot_be_done_is_one_line(quick, workdir, monkeypatch, capsys, name, arguments, message):
    monkeypatch.chdir(quick.path)
    try:
        code = getattr(cli, name)(arguments)
    except SystemExit as end:  # argparse
        code = end.code
    assert code != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("prepare_features", ["--output-train", "-", "--train"]),
        ("train", ["--output", "x.joblib", "--y-train", "data/processed/ytest.csv", "--X-train"]),
        ("predict", ["--y-test", "data/processed/ytest.csv", "--X-test"]),
        ("predict", ["--output", "x.csv", "--X-test"]),
    ],
)
def test_rows_that_are_shorter_than_the_header_are_refused(quick, workdir, monkeypatch, capsys, name, arguments):
    monkeypatch.chdir(quick.path)
    rows = Path("data/processed/Xtest.csv").read_text(encoding="utf-8").splitlines()
    rows[4] = ",".join(rows[4].split(",")[:3])
    (workdir / "X.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert getattr(cli, name)([*arguments, f"{workdir}/X.csv"]) == 1
    expected = f"error: {workdir}/X.csv: line 5 has 3 cells, expected {len(rows[0].split(','))} as in the header"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[1]], "' twice, expected it once"),
        (lambda rows: [rows[0], rows[1][:-1], *rows[2:]], "found an empty cell, expected 1 (good) or 0 (bad)"),
        (lambda rows: [rows[0], rows[1] + "x", *rows[2:]], "x', expected 1 (good) or 0 (bad)"),
    ],
)
def test_outcomes_that_are_none_are_refused(quick, workdir, monkeypatch, capsys, change, message):
    monkeypatch.chdir(quick.path)
    rows = Path("data/processed/ytest.csv").read_text(encoding="utf-8").splitlines()
    (workdir / "y.csv").write_text("\n".join(change(rows)) + "\n", encoding="utf-8")
    assert cli.predict(["--X-test", "data/processed/Xtest.csv", "--y-test", f"{workdir}/y.csv"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["data/processed/Xtest.csv", "-"])
def test_figures_of_other_predictions_do_not_stay_beside_new_ones(quick, rows):
    command(quick, "predict", "--save")
    text = (quick.path / "data/processed/Xtest.csv").read_text(encoding="utf-8")
    command(quick, "predict", "--X-test", rows, "--save", input=text)
    assert [path.name for path in (quick.path / "predictions").iterdir()] == ["predictions.csv"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("model", "sampler"),
    [(model, ("--smote", "--no-smote")[number % 2]) for number, model in enumerate(config.AVAILABLE_MODELS)],
)
def test_every_model_trains_and_predicts_in_command_and_api(quick, model, sampler):
    command(quick, "train", "--model", model, sampler, "--output", f"models/model_{model}.joblib")
    by_command = results(quick)
    command(quick, "predict", "--model", f"models/model_{model}.joblib", "--save")
    script(
        quick,
        "import pandas as pd\n"
        "from mlops_project.dataset import load_and_prepare_data\n"
        "from mlops_project.features import prepare_features\n"
        "from mlops_project.modeling.train import train_model\n"
        "X, _, y, _ = load_and_prepare_data('data/raw/german_credit_modified.csv', save_processed=False)\n"
        f"train_model(X, y, prepare_features(X)[2], {model!r}, use_smote={sampler == '--smote'})",
    )
    assert results(quick) == by_command


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_importing_has_no_side_effect(name, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from mlops_project.cli import {name}; sys.exit({name}())"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"mlops-{name.replace('_', '-')} " in done.stdout.split("examples:")[1]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def installed(quick):
    """The clone with console commands that run its own code, where the scripts look first."""
    folder = quick.path / ".venv/bin"
    folder.mkdir(parents=True)
    for name in COMMANDS:
        shim = folder / f"mlops-{name.replace('_', '-')}"
        code = f"import sys; sys.argv[0] = '{shim.name}'; from mlops_project.cli import {name}; sys.exit({name}())"
        shim.write_text(f'#!/bin/sh\nexec python -c "{code}" "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
    return quick


def run_script(clone, *arguments, elsewhere, check=True, **env):
    """Run a script of the clone from another folder."""
    environment = {**ENV, "PYTHONPATH": str(clone.path / "src"), **env}
    command = [str(clone.path / "scripts" / arguments[0]), *arguments[1:]]
    if command[0].endswith(".py"):
        command.insert(0, sys.executable)
    done = subprocess.run(command, cwd=elsewhere, env=environment, check=False, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.integration
def test_run_pipeline_logs_every_step(installed, tmp_path):
    done = run_script(installed, "run_pipeline.sh", elsewhere=tmp_path, PIPELINE_ON_SUCCESS='echo "told: $PIPELINE_MESSAGE"')
    assert [line for line in done.stdout.splitlines() if line.startswith("[")] == [
        f"[{i}/4] {s}" for i, s in enumerate(COMMANDS, 1)
    ]
    assert "told: pipeline with logistic_regression done" in done.stdout
    for name in COMMANDS:
        (log,) = (installed.path / "logs").glob(f"{name}_[0-9]*.log")
        assert log.stat().st_size > 0
    assert results(installed)["params"]["train"]["imbalance"] == "BorderlineSMOTE"
    assert results(installed)["model"] == "logistic_regression"


def test_a_failing_step_stops_the_robust_script_and_keeps_its_exit_code(installed, tmp_path):
    hook = f'echo "$PIPELINE_MESSAGE" > "{tmp_path}/told"'
    done = run_script(installed, "run_pipeline_robust.sh", "bogus", elsewhere=tmp_path, check=False, PIPELINE_ON_FAILURE=hook)
    assert done.returncode == 2, "that of argparse"
    (log,) = (installed.path / "logs").glob("*/pipeline.log")
    text = log.read_text(encoding="utf-8")
    assert "[INFO] ✓ prepare_data" in text
    assert "[ERROR] ✗ train: mlops-train: error: argument --model: invalid choice: 'bogus'" in text
    assert sorted(path.name for path in log.parent.glob("step*")) == [
        f"step{i}_{name}.log" for i, name in enumerate(COMMANDS[:3], 1)
    ]
    assert "pipeline with bogus failed with exit code 2" in (tmp_path / "told").read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "step"), [("run_pipeline.sh", "train_[0-9]*.log"), ("run_pipeline_robust.sh", "*/step3_train.log")]
)
def test_a_stopped_script_stops_its_step_and_says_so(installed, tmp_path, name, step):
    environment = {**ENV, "PYTHONPATH": str(installed.path / "src"), "PIPELINE_ON_FAILURE": f'touch "{tmp_path}/told"'}
    before = {*(installed.path / "logs").glob(step)}
    with subprocess.Popen([str(installed.path / "scripts" / name), "svm"], cwd=tmp_path, env=environment) as script:
        deadline = time.monotonic() + 120
        while not (logs := {*(installed.path / "logs").glob(step)} - before):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        steps = psutil.Process(script.pid).children(recursive=True)
        script.send_signal(signal.SIGTERM)
        assert script.wait(20) == 143
    assert steps
    assert psutil.wait_procs(steps, timeout=20)[1] == []
    assert (tmp_path / "told").exists()
    if "robust" in name:
        text = (logs.pop().parent / "pipeline.log").read_text(encoding="utf-8")
        assert "[ERROR] failed with exit code 143" in text


@pytest.mark.parametrize("name", ["run_pipeline.sh", "run_pipeline_robust.sh"])
@pytest.mark.parametrize("arguments", [["--model", "svm"], ["svm", "xgboost"]])
def test_a_script_takes_one_model_and_nothing_else(installed, tmp_path, name, arguments):
    done = run_script(installed, name, *arguments, elsewhere=tmp_path, check=False)
    told = f"error: found {' '.join(arguments)}, expected the name of one model; see scripts/{name} --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_a_notice_goes_to_the_webhook(installed):
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hook = {"PIPELINE_WEBHOOK": f"http://127.0.0.1:{server.server_port}/hook"}
        ask = 'set -euo pipefail; source scripts/notify.sh; notify failure "it said \\"no\\""'
        installed.run("bash", "-c", ask, env=hook)
        server.shutdown()
    assert posted == [{"status": "failure", "text": 'it said "no"'}]
    away = installed.run("bash", "-c", ask, env=hook)
    assert "could not be reached" in away.stderr, "a failing notice fails nothing"


@pytest.mark.integration
def test_a_failing_step_stops_run_pipeline_in_spite_of_the_pipe(installed, tmp_path):
    done = run_script(installed, "run_pipeline.sh", "bogus", elsewhere=tmp_path, check=False)
    assert done.returncode == 2
    assert "[4/4]" not in done.stdout


@pytest.mark.integration
def test_all_ways_give_the_same_figures(installed, tmp_path):
    found = []
    for way in (["run_pipeline.sh", "svm"], ["run_pipeline_robust.sh", "svm"], ["run_pipeline.py", "--model", "svm"]):
        run_script(installed, *way, elsewhere=tmp_path)
        predicted = (installed.path / "predictions/predictions.csv").read_bytes()
        found.append((results(installed), predicted, (installed.path / "models/best_model.joblib").read_bytes()))
        (installed.path / "models/best_model.joblib").unlink()
    assert found[0] == found[1]
    # In one process the parts of a model share objects, which a pickle shows; figures and predictions are the same.
    assert found[0][:2] == found[2][:2]
    assert "mlops_project" in (installed.path / "logs/mlops_pipeline.log").read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["run_pipeline_robust.sh", "run_pipeline.py"])
def test_a_missing_raw_file_is_named(installed, tmp_path, name):
    raw = installed.path / "data/raw/german_credit_modified.csv"
    raw.rename(tmp_path / "away.csv")
    try:
        done = run_script(installed, name, elsewhere=tmp_path, check=False)
    finally:
        (tmp_path / "away.csv").rename(raw)
    assert done.returncode == 1
    assert "missing in" in done.stdout + done.stderr
    assert "data/raw/german_credit_modified.csv" in done.stdout + done.stderr


def test_every_command_is_completed():
    with (ROOT / "pyproject.toml").open("rb") as stream:
        commands = tomllib.load(stream)["project"]["scripts"]
    text = (ROOT / "scripts/completion.bash").read_text(encoding="utf-8")
    assert {*re.findall(r"mlops-[a-z-]+", text.split("complete -F")[1])} == commands.keys()


def test_completion_knows_options_and_models(installed):
    ask = 'source scripts/completion.bash; COMP_WORDS=({0}); COMP_CWORD={1}; _mlops mlops-train; echo "${{COMPREPLY[@]}}"'
    env = {"PATH": f"{installed.path}/.venv/bin:{ENV['PATH']}", "PYTHONPATH": str(installed.path / "src")}
    for words, position, expected in (("mlops-train --X", 1, "--X-train"), ("mlops-train --model sv", 2, "svm")):
        done = installed.run("bash", "-c", ask.format(words, position), env=env)
        assert done.stdout.split() == [expected]
