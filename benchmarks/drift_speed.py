"""What does `mlops-drift` cost on 100,000 rows, beside evidently and nannyml in environments of their own?

The window is dirty, as files are; the others, which know no contract, are given clean numbers of the same rows. They do not score
either: of the ways here, the one without scores compares with theirs. Machines differ, and a busy one differs from itself: read
the ratios, which compare neighbours within each round. A missed bar is no failure by itself, so the exit code is 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, print_table, run, write_rows
from mlops_project.monitoring.scoring import PLANS

PYTHON = sys.executable
ROWS = 100_000
DRIFT = "import sys; from mlops_project.monitoring.command import main; sys.exit(main())"
OURS, WITHOUT = "mlops-drift", "mlops-drift --no-scores"
OTHERS = ("evidently", "nannyml")
MOST_CPU, LEAST_RATIO = 2.5, 2.5
# Neither may report who uses it.
QUIET = {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}


def clean(contract_file: str, pairs: list[tuple[Path, Path]]) -> str:
    """Write parsed tables, and return the names of coded columns."""
    import pandas as pd

    from mlops_project.monitoring.windows import read_window
    from mlops_project.schema import load_contract

    contract = load_contract(contract_file)
    for source, target in pairs:
        pd.DataFrame(read_window(source, contract).values, columns=contract.features).to_csv(target, index=False)
    return ",".join(contract.of_kind("nominal", "ordinal"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    os.environ.update(QUIET)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        window, page = folder / "window.csv", str(folder / "page.html")
        os.chdir(ROOT)
        write_rows(window, ROWS)
        reference, numbers = folder / "clean_reference.csv", folder / "clean_window.csv"
        coded = clean("data/schema.yaml", [(ROOT / "data/processed/Xtraintest.csv", reference), (window, numbers)])
        shutil.rmtree(PLANS, ignore_errors=True)
        drift = [PYTHON, "-c", DRIFT, str(window), "--html", page]
        first = run(drift, ROOT, ROOT, codes=(0, 3))[0]
        ways = {OURS: drift, WITHOUT: [*drift, "--no-scores"]}
        for name in OTHERS:
            python = ROOT / f".venv/{name}/bin/python"
            if not python.exists():
                parser.error(f"{python}: not found; run `make benchmark-drift`")
            script = str(ROOT / f"benchmarks/drifters/with_{name}.py")
            ways[name] = [str(python), script, str(reference), str(numbers), coded, page]
        used = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, command in ways.items():
                # The tree is only looked at for its package: 0 no drift, 3 drift.
                used[name].append(run(command, ROOT, ROOT, codes=(0, 3))[0])
    rows = []
    for name, found in used.items():
        cpu, wall, peak = (statistics.median(values) for values in zip(*found, strict=True))
        ratios = [
            f"{statistics.median(b.cpu / a.cpu for a, b in zip(used[way], found, strict=True)):.1f} x" for way in (OURS, WITHOUT)
        ]
        rows.append([name, f"{cpu:.2f}", f"{min(one.cpu for one in found):.2f}", f"{wall:.1f}", f"{peak:.0f}", *ratios])
    print_table(("what", "CPU s", "least", "s", "peak MB", "to mlops-drift", "without scores"), rows)
    least = min(statistics.median(b.cpu / a.cpu for a, b in zip(used[OURS], used[name], strict=True)) for name in OTHERS)
    cpu = max(first.cpu, statistics.median(one.cpu for one in used[OURS]))
    print(f"{OURS}, first run, which makes the model's plan: {first.cpu:.2f} CPU s")
    print(f"CPU seconds ≤ {MOST_CPU}: {'pass' if cpu <= MOST_CPU else 'FAIL'}")
    print(f"others cost ≥ {LEAST_RATIO} times as much: {'pass' if least >= LEAST_RATIO else 'FAIL'}")
    for name in OTHERS:
        print(version_of(ROOT / f".venv/{name}/bin/python", name))
    return 0


def version_of(python: Path, name: str) -> str:
    asked = f"from importlib.metadata import version as v; print('{name}', v('{name}'), 'with pandas', v('pandas'))"
    return subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
