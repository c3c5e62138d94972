"""review.yaml, its rules in words, and how a report reads."""

import re
import xml.dom.minidom
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.errors import PipelineError
from mlops_project.review.curves import draw, write_images
from mlops_project.review.gate import broken_rules
from mlops_project.review.reexecution import _metric_differences, copy_local_config
from mlops_project.review.report import _escape, as_markdown, as_text
from mlops_project.review.settings import FairnessRule, LeakAlarm, Rule, parse_review

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "review.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("metric: roc_auc\n", "metric: gini\n", "verdict.metric: found 'gini'; allowed: roc_auc, brier, log_loss"),
        ("confidence: 0.95", "confidence: 95", "verdict.confidence: found 95"),
        ("refuse_worse: true", "refuse_worse: 'yes'", "gate.refuse_worse: found 'yes'"),
        ("refuse_worse: true", "refuse_wrose: true", "unknown key 'gate.refuse_wrose'; did you mean 'refuse_worse'?"),
        ("better: higher, tolerance: 0.03", "better: up, tolerance: 0.03", "found 'up'; allowed: higher, lower"),
        ("tolerance: 0.03", "tolerance: -1", "found -1"),
        ("metric: evaluate.roc_auc,", "metric: roc_auc,", "found 'roc_auc'"),
        ("tolerance: 0.03, ", "", "'gate.rules.0.tolerance' is missing"),
        ("verdict:", "verdict: [", "found no YAML"),
    ],
)
def test_a_bad_review_yaml_is_refused(old, new, expected):
    assert old in TEXT
    with pytest.raises(PipelineError, match=re.escape(expected)):
        parse_review(TEXT.replace(old, new, 1), "review.yaml")


def test_an_absent_review_yaml_is_refused():
    with pytest.raises(PipelineError, match="not found"):
        parse_review(None, "review.yaml of main")


def report(verdict="within noise", **metrics):
    part = {"base": 0.8, "head": 0.7, "difference": -0.1, "standard_error": 0.02, "rows": 300}
    found = {"metric": "roc_auc", "verdict": verdict, "difference": -0.1, "low": -0.2, "high": -0.05, "confidence": 0.95}
    return {
        "base": {"label": "main"},
        "head": {"label": "workspace"},
        "verdict": found | {"paired": True, "why": "so", "held_out": part, "out_of_fold": part},
        "metrics": {name: {"base": base, "head": head, "difference": 0.0} for name, (base, head) in metrics.items()},
        "params": [{"key": "a|b", "base": 1, "head": None, "stages": ["train"]}],
        "data": {"raw": {}, "counts": {}},
        "code": [],
        "stages": [],
        "notes": [],
    }


ROC = "evaluate.roc_auc"
QUIET = msgspec.structs.replace(
    parse_review(TEXT, "").gate, rules=[], leak_alarm=None, fairness=FairnessRule(tolerance=None, floor=None)
)


@pytest.mark.parametrize(
    ("better", "tolerance", "limit", "base", "head", "words"),
    [
        ("higher", 0.02, None, 0.80, 0.77, "evaluate.roc_auc fell from 0.8000 to 0.7700, by more than the 0.02"),
        ("higher", 0.02, None, 0.80, 0.79, None),
        ("higher", 0.02, 0.75, None, 0.80, None),
        ("higher", None, 0.75, 0.90, 0.74, "below the floor of 0.75"),
        ("lower", 0.02, None, 0.20, 0.23, "rose from 0.2000 to 0.2300"),
        ("lower", 0.02, None, 0.20, 0.10, None),
        ("lower", None, 0.2, 0.10, 0.21, "above the ceiling of 0.2"),
        ("higher", None, None, 0.8, None, "is not in the metrics of the head"),
    ],
)
def test_a_rule_says_what_it_found(better, tolerance, limit, base, head, words):
    rule = Rule(metric=ROC, better=better, tolerance=tolerance, limit=limit)
    broken = broken_rules(report(**{ROC: (base, head)}), msgspec.structs.replace(QUIET, rules=[rule]))
    assert len(broken) == (words is not None)
    assert words is None or words in broken[0]


def test_worse_is_refused_unless_it_is_allowed():
    assert "roc_auc is worse than the base: -0.1000" in broken_rules(report("worse"), QUIET)[0]
    assert not broken_rules(report("worse"), msgspec.structs.replace(QUIET, refuse_worse=False))


def test_too_good_is_a_leak():
    alarm = LeakAlarm(metric="train.roc_auc.mean", ceiling=0.82)
    settings = msgspec.structs.replace(QUIET, leak_alarm=alarm)
    assert "look for a leak" in broken_rules(report(**{"train.roc_auc.mean": (0.8, 0.83)}), settings)[0]
    assert not broken_rules(report(**{"train.roc_auc.mean": (0.8, 0.81)}), settings)
    assert "correct review.yaml" in broken_rules(report(), settings)[0]


@pytest.mark.parametrize(
    ("base", "head", "words"),
    [
        (0.7, 0.5, "the disparity ratio of age fell from 0.700 to 0.500"),
        (0.7, 0.65, None),
        (None, 0.3, "below the floor of 0.4"),
        (0.7, None, "has none now"),
        (None, None, None),
    ],
)
def test_fairness_may_not_fall(base, head, words):
    settings = msgspec.structs.replace(QUIET, fairness=FairnessRule(tolerance=0.1, floor=0.4))
    broken = broken_rules(report(**{"evaluate.fairness.age.disparity_ratio": (base, head)}), settings)
    assert len(broken) == (words is not None)
    assert words is None or words in broken[0]


def test_the_report_reads_alike_in_both_forms():
    found = report("worse", **{ROC: (0.8, 0.7), "evaluate.ks": (0.5, 0.5)})
    found["metrics"][ROC] |= {"low": -0.2, "high": -0.05}
    found["gate"] = {"passed": False, "broken": ["too low"], "notes": []}
    text, markdown = as_text(found), as_markdown(found, [Path("out/img/roc.svg")], Path("out"))
    for shown in (text, markdown):
        assert "roc_auc: worse; difference -0.1000, 95% interval -0.2000 to -0.0500" in shown
        assert "Gate: refused" in shown
        assert "too low" in shown
    assert "a\\|b" in markdown
    assert "![roc](img/roc.svg)" in markdown


@given(st.text())
def test_a_name_is_no_markup(name):
    escaped = _escape(name)
    assert "<" not in escaped
    assert re.search(r"(?<!\\)(\\\\)*\|", escaped) is None
    assert "\n" not in escaped


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cn"]), min_size=1))
def test_an_image_is_valid_whatever_a_branch_is_called(name):
    curve = np.array([0.0, 1.0]), np.array([0.0, 1.0])
    xml.dom.minidom.parseString(draw("t", "x", "y", {name: curve}))  # noqa: S318 - our own


def test_images_show_both_curves(tmp_path):
    rng = np.random.default_rng(0)
    tables = [pd.DataFrame({"y_true": [0, 1] * 50, "y_proba": rng.random(100)}) for _ in range(2)]
    paths = write_images(tmp_path / "new", (tables[0], tables[1]), ("old", "new"))
    assert [path.name for path in paths] == ["roc.svg", "calibration.svg"]
    for path in paths:
        assert len(xml.dom.minidom.parse(str(path)).getElementsByTagName("polyline")) == 2  # noqa: S318 - our own


def test_metrics_are_compared_to_six_digits():
    committed = {"a.json": {"x": 0.5, "y": "high"}, "b.csv": {"row 1": "0.123456"}}
    assert not _metric_differences(committed, {"a.json": {"x": 0.500001, "y": "high"}, "b.csv": {"row 1": "0.123457"}})
    (problem,) = _metric_differences(committed, {"a.json": {"x": 0.50001, "y": "high"}, "b.csv": {"row 1": "0.123457"}})
    assert "a.json: x is 0.5, running the pipeline gives 0.50001" in problem
    assert len(_metric_differences(committed, {})) == 2


def test_local_remotes_stay_where_they_are(tmp_path):
    source, target = tmp_path / "here/.dvc", tmp_path / "there/.dvc"
    for folder in (source, target):
        folder.mkdir(parents=True)
    (source / "config.local").write_text(
        "[core]\n    remote = team\n['remote \"team\"']\n    url = ../../store\n['remote \"s3\"']\n    url = s3://bucket/x\n"
        "[cache]\n    dir = /big/cache\n"
    )
    copy_local_config(source, target)
    copied = (target / "config.local").read_text()
    assert f"url = {(tmp_path / 'store').resolve()}" in copied
    assert "s3://bucket/x" in copied
    assert "/big/cache" not in copied
