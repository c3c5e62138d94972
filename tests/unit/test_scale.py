"""What benchmarks/scale.py makes of its figures: medians, growth, bars, tables; and that it measures what a process took."""

import json
import re
import shutil
import subprocess
import sys

import pytest

import scale

SIZES = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
PACE = {"prepare": 5e-6, "featurize": 1e-6, "train": 3e-5, "evaluate": 4e-6}
START, BASE, PER_ROW = 0.9, 150.0, 80e-6


def results(exponent=1.0, slower=1.0):
    """Figures of a pipeline that is known: a start, then a power of the rows; memory a base and so much per row."""

    def usage(rows, pace):
        cpu = START + pace * slower * 1e6 * (rows / 1e6) ** exponent
        # Two odd rounds, which a median ignores.
        return [[cpu, 2 * cpu, BASE + PER_ROW * rows], [cpu * 3, 1, 9e9], [0.1 * cpu, 9e9, 1]]

    def lines(rows):
        return {line: usage(rows, PACE.get(line, 5e-5)) for line in scale.LINES}

    def entry(rows):
        return {"revision": "abc", "rounds": 3, "tables": "parquet", "bytes": 95 * rows, "copies": 1, "merged": 1, "roc_auc": 0.8,
                "usage": lines(rows), "written": dict.fromkeys(scale.STAGES, rows)}  # fmt: skip

    def scripts(cpu):
        return {stage: [[cpu, 1, 1]] * 3 for stage in scale.STAGES}

    facts = {"processor": "x", "cores": 2, "memory": 8, "load": 1, "disk": 100, "system": "Linux", "python": "3", "packages": {}}
    return {
        "machine": facts,
        "pipeline": {str(rows): entry(rows) for rows in SIZES},
        "plain": {"1000000": {"usage": {s: usage(1e6, 3e-5) for s in scale.STEPS}, "stages": lines(1e6), "roc_auc": 0.8}},
        "predict": {"10000000": {"usage": {"mlops-predict": usage(1e7, 1e-5)}}},
        "default_file": {"stages": {"before": "abc", "before_usage": scripts(2.0), "now_usage": scripts(2.2)}},
    }


def verdicts(figures):
    return {what: verdict for what, _, _, verdict in scale.bars(figures)}


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
def test_growth_net_of_the_start_is_the_exponent_of_the_work(exponent):
    figures = scale.Figures(results(exponent))
    assert figures.growth("train", "cpu", net=True) == pytest.approx(exponent, abs=0.02)
    assert figures.growth("train", "cpu") < figures.growth("train", "cpu", net=True)
    assert figures.median(1_000_000, "prepare", "cpu") == pytest.approx(START + 5)


def test_a_billion_rows_cost_at_least_their_share_of_time_and_the_memory_of_further_rows():
    for exponent, expected in ((0.8, 100), (1.0, 100), (1.3, 100**1.3)):
        figures = scale.Figures(results(exponent))
        cpu, peak = figures.at("train", scale.BILLION)
        assert cpu / figures.median(10_000_000, "train", "cpu") == pytest.approx(expected, rel=0.1)
        assert peak == pytest.approx(BASE + PER_ROW * 1e9)


def test_bars_are_kept_missed_or_not_measured():
    kept = verdicts(scale.Figures(results()))
    assert kept["`dvc repro`, 10⁶ rows"] == "kept"
    assert kept["growth of train, 10⁵ to 10⁷ rows"] == "kept"
    assert kept["CPU time, plain way to `dvc repro`, 10⁶ rows"] == "kept"
    assert kept["memory, plain way to `dvc repro`, 10⁶ rows"] == "MISSED", "both take the same"
    assert kept["prepare, default file, now to before"] == "MISSED", "a tenth slower"
    assert verdicts(scale.Figures(results(1.3)))["growth of train, 10⁵ to 10⁷ rows"] == "MISSED"
    assert verdicts(scale.Figures(results(slower=2)))["`dvc repro`, 10⁶ rows"] == "MISSED"
    assert set(verdicts(scale.Figures({})).values()) == {"-"}


def test_docs_hold_every_table_and_are_written_from_the_figures_alone(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page, plot = tmp_path / "scale.md", tmp_path / "scale.svg"
    shutil.copyfile(scale.PAGE, page)
    monkeypatch.setattr(scale, "PAGE", page)
    monkeypatch.setattr(scale, "PLOT", plot)
    scale.write_docs(results())
    first = page.read_text("utf-8"), plot.read_bytes()
    assert "| train | 0.930 | 1.20 | 3.90 | 30.9 | 301 |" in first[0]
    scale.write_docs(results())
    assert (page.read_text("utf-8"), plot.read_bytes()) == first
    page.write_text(first[0].replace("<!-- scale: cpu -->", ""), encoding="utf-8")
    with pytest.raises(SystemExit, match="found 0 places for the table cpu"):
        scale.write_docs(results())


def test_the_page_shows_the_figures_of_the_results_file(root):
    made = scale.tables(scale.Figures(scale.load(scale.RESULTS)))
    text = (root / "docs/scale.md").read_text(encoding="utf-8")
    for name, (header, rows) in made.items():
        assert f"<!-- scale: {name} -->\n{scale.markdown(header, rows)}<!-- end -->" in text, f"{name}: run scale.py --write-docs"
    assert re.findall(r"<!-- scale: (\w+) -->", text), "the page has tables"


PROGRAM = """
import subprocess, sys, time
memory = bytearray(10**8)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
"""


def test_a_stage_and_its_children_are_measured_and_whoever_runs_it_is_not(tmp_path, root):
    tree = tmp_path / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src/prepare.py").write_text(PROGRAM, encoding="utf-8")
    larger = bytearray(b"x" * 3 * 10**8)
    subprocess.run([sys.executable, root / "benchmarks/scale.py", "--child", "prepare"], cwd=tree, check=True)
    ((name, cpu, wall, peak),) = [json.loads(line) for line in (tmp_path / "stages.jsonl").read_text("utf-8").splitlines()]
    assert name == "prepare"
    assert 0.4 <= cpu < 5, "both processes"
    assert wall > 0.4
    assert 100 < peak < 200 < len(larger) / 1e6, "the larger of the two, and not this one"


def test_a_stage_that_fails_fails_for_dvc_too(tmp_path, root):
    (tmp_path / "tree/src").mkdir(parents=True)
    (tmp_path / "tree/src/train.py").write_text("raise SystemExit(66)", encoding="utf-8")
    command = [sys.executable, root / "benchmarks/scale.py", "--child", "train"]
    assert subprocess.run(command, cwd=tmp_path / "tree", check=False).returncode == 66


def test_results_of_another_call_stay_and_those_of_another_machine_go(tmp_path):
    bench = object.__new__(scale.Bench)
    bench.results, bench.machine, bench.revision, bench.rounds = tmp_path / "r.json", results()["machine"], "abc", 1
    bench.record("predict", "10000", {"usage": {}})
    bench.record("predict", "20000", {"usage": {}})
    assert set(json.loads(bench.results.read_text())["predict"]) == {"10000", "20000"}
    bench.machine = bench.machine | {"cores": 64}
    bench.record("predict", "30000", {"usage": {}})
    assert set(json.loads(bench.results.read_text())["predict"]) == {"30000"}
