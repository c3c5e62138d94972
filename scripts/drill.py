"""From drift to a new model, for real and in a few minutes: `make drill`.

In a copy of this repository with a bare Git remote and a folder as DVC remote run `mlops-serve` (keys, prediction log, signed
models), Prometheus and Alertmanager with the shipped rules made short (`watching.py`), and a webhook. Applicants and their
outcomes come from `simulator.py`. All the while a client asks, and counts what fails.

1. Applicants as those of the training rows: mlops-drift and mlops-monitor find nothing, no alert.
2. Other applicants who behave in other ways: mlops-drift exits with 3, its record raises the alert Drift at the webhook. Outcomes
   of the approved arrive, mlops-monitor finds the quality worse, and the alert QualityWorse starts mlops-retrain.
3. The challenger is judged on the held-out share of the new rows, promoted, pushed and served, without a failed request.
4. A second retraining gets outcomes that are coins. It is rejected; the champion stays.

Two things are not as in life. A year passes in a moment, twice: times in the prediction log are set back by 370 days, so that
outcomes are older than `quality.outcome_days`, which stays as it is. And the copy's params.yaml has a rate of false alarms of
0.01 in `monitoring` and `quality`: a drill that fails one time in twenty by design would be none.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd

from simulator import Simulator
from watching import Watching, absent

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator import Applicants

ROOT = Path(__file__).resolve().parents[1]
CLEAN_FILE = ROOT / "data/raw/german_credit_original.csv"
RATE = "false_alarm_rate: 0.05"
USUAL, CHANGED, SPOILT = 1000, 6000, 1500
PER_REQUEST = 100
# All workers answer with a new model within half a second; the machine may be busy.
TURN_SECONDS = 3.0
YEAR = 370 * 86400
LINK, LOG = "var/served", "var/predictions.db"
# Of the machine that the drill shares with everything else.
OF_THE_MACHINE = {"LatencyBudgetFast", "LatencyBudgetSlow"}
FOUND, REJECTED = 3, 3


class DrillError(Exception):
    """Something did not hold; the message says what."""


class Step(NamedTuple):
    """A line of the summary: seconds since the start, what was to hold, and what was found."""

    seconds: float
    what: str
    found: str
    held: bool


class Steps:
    """What happened, told as it happens."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.steps: list[Step] = []

    def check(self, what: str, found: object, *, held: bool = True) -> None:
        """Note a step. Raises DrillError if it did not hold."""
        self.steps.append(Step(time.monotonic() - self.start, what, str(found), held))
        print(f"{self.steps[-1].seconds:7.1f} s  {'  ' if held else '! '}{what}: {found}", flush=True)
        if not held:
            raise DrillError(f"{what}: {found}")

    def table(self) -> str:
        """The summary."""
        width = max(len(step.what) for step in self.steps)
        lines = [f"| {'seconds':>7} | {'step':<{width}} | held | found", f"| {'-' * 6}: | {'-' * width} | ---- | -----"]
        lines += [
            f"| {step.seconds:7.1f} | {step.what:<{width}} | {'yes' if step.held else 'NO':<4} | {step.found}"
            for step in self.steps
        ]
        return "\n".join(lines)


class Place:
    """The copy in which all happens, and its environment."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.origin, self.team = folder / "tree", folder / "origin.git", folder / "team"
        who = {f"GIT_{role}_{part}": "drill" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "MLOPS_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self.environment = kept | who | {
            "PATH": path, "PYTHONPATH": str(self.tree / "src"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "MLOPS_SIGNING_KEY_FILE": str(folder / "signing.pem"), "MLOPS_LOG_URL": f"sqlite:///{self.tree / LOG}",
        }  # fmt: skip
        self.keys = {"predict": "", "admin": ""}

    def run(self, *command: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy. Raises DrillError if its exit code is none of ``codes``."""
        done = subprocess.run(command, cwd=self.tree, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode not in codes:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise DrillError(f"{' '.join(command)}: exit code {done.returncode}\n{last}")
        return done

    def make(self) -> None:
        """Copy the working tree as it is, uncommitted changes too, with its data; commit, and push all to new remotes."""
        listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
        params = self.tree / "params.yaml"
        text = params.read_text(encoding="utf-8")
        if text.count(RATE) != 2:
            raise DrillError(f"params.yaml: expected {RATE!r} twice, in monitoring and quality")
        params.write_text(text.replace(RATE, "false_alarm_rate: 0.01"), encoding="utf-8")
        self.run("git", "init", "--quiet", "--initial-branch", "main")
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "What is in use")
        # What the remote in Git lacks of a working tree under change, its cache has.
        if (cache := ROOT / ".dvc/cache").exists():
            self.run("dvc", "remote", "add", "--quiet", "--local", "workspace", str(cache))
            self.run("dvc", "fetch", "--quiet", "--remote", "workspace", codes=(0, 1))
        self.run("dvc", "pull", "--quiet", "--allow-missing")
        self.run("git", "init", "--quiet", "--bare", str(self.origin))
        self.run("git", "remote", "add", "origin", str(self.origin))
        self.run("git", "push", "--quiet", "origin", "main")
        self.team.mkdir()
        self.run("dvc", "remote", "add", "--quiet", "--local", "--default", "team", str(self.team))
        self.run("dvc", "push", "--quiet")
        self.run("mlops-manifest", "keygen", "--output", self.environment["MLOPS_SIGNING_KEY_FILE"])
        for scope in self.keys:
            self.keys[scope] = self.run("mlops-keys", "create", "--name", scope, "--scope", scope).stdout.strip()
        self.environment["MLOPS_ADMIN_KEY"] = self.keys["admin"]
        self.run("mlops-retrain", "place", "--serve", LINK, "--no-push")

    def champion(self) -> tuple[str, str]:
        """Commit that the remote's highest champion tag names (main, if there is none), and SHA-256 of its model."""
        tags = self.run("git", "ls-remote", str(self.origin)).stdout.splitlines()
        numbered = {int(found[1]): line.split()[0] for line in tags if (found := re.search(r"#champion#(\d+)\^\{\}$", line))}
        commit = numbered[max(numbered)] if numbered else self.run("git", "rev-parse", "HEAD").stdout.strip()
        manifest = json.loads(self.run("git", "show", f"{commit}:models/best_model.joblib.manifest.json").stdout)
        return commit, next(entry["sha256"] for entry in manifest["files"] if entry["name"] == "best_model.joblib")

    def pass_a_year(self) -> None:
        """Set the times of all predictions back, so that outcomes are due."""
        with contextlib.closing(sqlite3.connect(self.tree / LOG, timeout=30)) as log, log:
            log.execute("UPDATE requests SET time = time - ?", (YEAR,))

    def audit(self) -> list[dict[str, Any]]:
        """Records of the audit log."""
        return [json.loads(line) for line in (self.tree / "var/retraining.jsonl").read_text(encoding="utf-8").splitlines()]


class Service:
    """`mlops-serve` in the copy; it ends with the block."""

    def __init__(self, place: Place) -> None:
        self.log, public = place.tree / "var/service.log", f"{place.environment['MLOPS_SIGNING_KEY_FILE']}.pub"
        command = [
            "mlops-serve", "--port", "0", "--workers", "2", "--rate-limit", "off",
            "--model", f"{LINK}/best_model.joblib", "--policy", f"{LINK}/policy.json",
        ]  # fmt: skip
        with self.log.open("wb") as stream:
            environment = place.environment | {"MLOPS_MANIFEST_KEY_FILE": public}
            self.process = subprocess.Popen(command, cwd=place.tree, env=environment, stderr=stream)

    def __enter__(self) -> Self:
        end = time.monotonic() + 60
        while not (found := re.search(r"ready at http://127\.0\.0\.1:(\d+)", self.text())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise DrillError(f"mlops-serve did not start:\n{self.text()}")
            time.sleep(0.1)
        self.port = int(found[1])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Traffic:
    """Callers of the service: one that never ceases, and crowds on demand.

    Parameters
    ----------
    port : int
    key : str
    """

    def __init__(self, port: int, key: str) -> None:
        self.port, self.headers = port, {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self.asked = 0
        self.failures: list[str] = []
        self.versions: list[str] = []
        """Models that answered the one that never ceases, in their order; while workers change, two may take turns."""
        self.seen: dict[str, tuple[float, float]] = {}
        """When each answered first and last."""
        self.applicants: list[Any] = []
        """Whom it asks about, over and over."""
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._ask_on)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """Return the answer; {} if the request failed, which is counted."""
        problem, answer = "", {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, json.dumps(body), self.headers)
            found = connection.getresponse()
            content = found.read()
            if found.status == 200:
                answer = json.loads(content)
            else:
                problem = f"{path}: {found.status} {content[:200]!r}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{path}: {type(error).__name__}: {error}"
        finally:
            connection.close()
        with self._lock:
            self.asked += 1
            self.failures += [problem] if problem else []
        return answer

    def _ask_on(self) -> None:
        at = 0
        while not self._ending.wait(0.05):
            if self.applicants:
                at += 1
                version = self.post("/v1/predict", self.applicants[at % len(self.applicants)]).get("model_version")
                if version:
                    now = time.monotonic()
                    self.seen[version] = self.seen.get(version, (now, now))[0], now
                    if self.versions[-1:] != [version]:
                        self.versions.append(version)

    def crowd(self, crowd: Applicants) -> tuple[list[dict[str, Any]], Counter[str]]:
        """Ask about all, and return the outcomes of those who were approved, as they are posted, and the decisions."""
        rows = crowd.cells.to_dict("records")
        # From now on the one that never ceases asks about applicants of the same kind.
        self.applicants = rows[:500]
        outcomes, decisions = [], Counter[str]()
        for start in range(0, len(rows), PER_REQUEST):
            answer = self.post("/v1/predict", rows[start : start + PER_REQUEST])
            for i, prediction in enumerate(answer.get("predictions", [])):
                decisions[prediction["decision"]] += 1
                if prediction["decision"] == "approve":
                    word = "good" if crowd.good[start + i] else "bad"
                    outcomes.append({"request_id": answer["request_id"], "position": i, "outcome": word})
        return outcomes, decisions

    def tell(self, outcomes: list[dict[str, Any]]) -> None:
        """Post outcomes."""
        for start in range(0, len(outcomes), 1000):
            self.post("/v1/outcomes", outcomes[start : start + 1000])


class Drill:
    """One drill in a folder of its own.

    Parameters
    ----------
    folder : Path
    seed : int
        Of the simulated applicants.
    drifts : bool
        Whether the second crowd is of the shifted population. Without that the drill must fail.
    """

    def __init__(self, folder: Path, seed: int, *, drifts: bool = True) -> None:
        from mlops_project.schema import load_contract

        self.contract = load_contract(ROOT / "data/schema.yaml")
        self.simulator = Simulator(pd.read_csv(CLEAN_FILE), self.contract)
        self.folder, self.seed, self.drifts = folder, seed, drifts
        self.place, self.steps = Place(folder), Steps()
        self.retraining: subprocess.Popen[bytes] | None = None

    def run(self) -> bool:
        """Run it; return whether all held."""
        try:
            with contextlib.ExitStack() as stack:
                self._run(stack)
        except (DrillError, RuntimeError) as error:
            print(f"\nthe drill failed: {error}\n", file=sys.stderr, flush=True)
        else:
            print("\nall held\n", flush=True)
        print(self.steps.table(), flush=True)
        return all(step.held for step in self.steps.steps) and self.steps.steps[-1].what == LAST

    def _run(self, stack: contextlib.ExitStack) -> None:
        steps, place = self.steps, self.place
        place.make()
        before = place.champion()
        steps.check("repository, remotes, keys", f"champion is {before[0][:10]}")
        service = stack.enter_context(Service(place))
        self.address = f"http://127.0.0.1:{service.port}"
        self.watching = stack.enter_context(Watching(self.folder / "watching", service.port, self._told))
        stack.callback(self._end_retraining)
        traffic = stack.enter_context(Traffic(service.port, place.keys["predict"]))
        steps.check("service, Prometheus, Alertmanager and webhook run", f"model {before[1][:10]}")

        self._nothing_is_found(traffic)
        after = self._drift_becomes_a_model(traffic, before)
        self._noise_is_rejected(traffic, after)
        both = traffic.seen[before[1]][1] - traffic.seen[after[1]][0]
        found = f"{', '.join(version[:10] for version in traffic.seen)}; both for {max(0.0, both):.1f} s"
        held = [*traffic.seen] == [before[1], after[1]] and both < TURN_SECONDS
        steps.check("models that answered, in their order", found, held=held)
        told = "; ".join([f"{len(traffic.failures)} of {traffic.asked} requests failed", *traffic.failures[:3]])
        steps.check(LAST, told, held=not traffic.failures)

    # --- the webhook

    def _told(self, alert: dict[str, Any]) -> None:
        """What the webhook does: QualityWorse starts a retraining, one."""
        name = alert["labels"]["alertname"]
        if (name, alert["status"]) != ("QualityWorse", "firing") or self.retraining is not None:
            return
        command = [
            "mlops-retrain", "run", "--from-log", "--drift", "drift.json", "--drift", "quality.json", "--serve", LINK,
            "--into", "main", "--reload", self.address, "--trigger", f"alert {name}",
        ]  # fmt: skip
        with (self.folder / "retraining.log").open("wb") as stream:
            self.retraining = subprocess.Popen(
                command, cwd=self.place.tree, env=self.place.environment, stdout=stream, stderr=stream, start_new_session=True
            )

    def _end_retraining(self) -> None:
        if self.retraining is not None and self.retraining.poll() is None:
            os.killpg(self.retraining.pid, signal.SIGTERM)
            self.retraining.wait(30)

    # --- the steps

    def _nothing_is_found(self, traffic: Traffic) -> None:
        up = 'up{job="credit-risk"} == 1'
        _until(lambda: bool(self.watching.query(up)) and not self.watching.firing(), "Prometheus scrapes", 60)
        start = _now()
        outcomes, decisions = traffic.crowd(self.simulator.draw(USUAL, self.seed))
        self.steps.check("1. usual applicants", _counted(decisions), held=decisions.total() == USUAL)
        self._drift("1. mlops-drift", start, expected=0)
        self.place.pass_a_year()
        traffic.tell(outcomes)
        self._quality("1. mlops-monitor, a year later", expected=0)
        # Alerts take a moment: the service reads reports every ten seconds.
        both = 'count(mlops_report_timestamp_seconds{report=~"drift|quality"}) == 2'
        _until(lambda: bool(self.watching.query(both)), "Prometheus knows both reports", 30)
        time.sleep(3)
        # What Prometheus said in its first moments, when it knew no service yet, may be told late.
        alerts = self.watching.firing() | {
            alert["labels"]["alertname"]
            for alert in self.watching.told
            if datetime.fromisoformat(alert["startsAt"]) > datetime.fromisoformat(start)
        }
        self.steps.check("1. no alert", ", ".join(sorted(alerts)) or "none", held=not alerts - OF_THE_MACHINE)

    def _drift_becomes_a_model(self, traffic: Traffic, before: tuple[str, str]) -> tuple[str, str]:
        start, told = _now(), len(self.watching.told)
        outcomes, decisions = traffic.crowd(self.simulator.draw(CHANGED, self.seed + 1, shifted=self.drifts))
        self.steps.check("2. other applicants", _counted(decisions), held=decisions.total() == CHANGED)
        self._drift("2. mlops-drift", start, expected=FOUND)
        self._alert("2. alert", "Drift", told)
        self.place.pass_a_year()
        traffic.tell(outcomes)
        self._quality("2. mlops-monitor, a year later", expected=FOUND)
        self._alert("2. alert", "QualityWorse", told)
        _until(lambda: self.retraining is not None, "the webhook starts mlops-retrain", 10)
        self.steps.check("3. the webhook starts mlops-retrain", "by alert QualityWorse")
        assert self.retraining is not None
        try:
            code = self.retraining.wait(240)
        except subprocess.TimeoutExpired:
            raise DrillError("mlops-retrain: not ended within 240 s") from None
        log = (self.folder / "retraining.log").read_text(encoding="utf-8")
        records = [record for record in self.place.audit() if record["event"] in {"accepted", "rejected", "failed"}]
        reasons = _reasons(records[-1]["reasons"]) if records else log[-2000:]
        self.steps.check("3. the challenger is judged", reasons, held=code == 0 and records[-1]["event"] == "accepted")
        after = self.place.champion()
        main = self.place.run("git", "ls-remote", str(self.place.origin), "refs/heads/main").stdout.split()[0]
        self.steps.check("3. it is champion, in the remote too", after[0][:10], held=after[0] != before[0] and main == after[0])
        _until(lambda: traffic.versions[-1] == after[1], "the new model answers", 30)
        self.steps.check("3. it answers", f"model {after[1][:10]}")
        return after

    def _noise_is_rejected(self, traffic: Traffic, champion: tuple[str, str]) -> None:
        rows, target = self.simulator.draw(SPOILT, self.seed + 2, shifted=self.drifts).cells, self.contract.target
        coins = np.random.default_rng(self.seed).random(len(rows)) < 0.5
        rows.assign(**{target.name: np.where(coins, target.good, target.bad)}).to_csv(self.folder / "coins.csv", index=False)
        command = ("mlops-retrain", "run", str(self.folder / "coins.csv"), "--drift", "quality.json", "--serve", LINK,
                   "--into", "main", "--reload", self.address, "--trigger", "sabotage")  # fmt: skip
        done = self.place.run(*command, codes=(0, REJECTED))
        record = self.place.audit()[-1]
        found = _reasons(record.get("reasons", [record["event"]]))
        self.steps.check("4. outcomes that are coins are rejected", found, held=done.returncode == REJECTED)
        now = self.place.champion()
        held = now == champion and traffic.versions[-1] == champion[1]
        self.steps.check("4. the champion stays", f"{now[0][:10]}, model {traffic.versions[-1][:10]}", held=held)

    def _drift(self, what: str, start: str, *, expected: int) -> None:
        done = self.place.run("mlops-drift", "--since", start, "--record", "--json", "drift.json", codes=(0, FOUND))
        report = json.loads((self.place.tree / "drift.json").read_text(encoding="utf-8"))
        names = dict.fromkeys(str(test["feature"] or test["check"]) for test in report["tests"] if test["drift"])
        found = f"exit code {done.returncode}" + f" ({', '.join(names)})" * bool(names)
        self.steps.check(what, found, held=done.returncode == expected)

    def _quality(self, what: str, *, expected: int) -> None:
        done = self.place.run("mlops-monitor", "run", "--json", "quality.json", codes=(0, FOUND))
        report = json.loads((self.place.tree / "quality.json").read_text(encoding="utf-8"))
        figure = report["figures"]["default_rate"]
        found = f"exit code {done.returncode}; {report['rows']['with_outcome']} outcomes"
        if report["judged"]:
            found += f", default rate {figure['value']:.3f}, reference {figure['reference']:.3f} among approved"
        self.steps.check(what, found, held=report["judged"] and done.returncode == expected)

    def _alert(self, what: str, name: str, told: int) -> None:
        alert = self.watching.wait_told(name, "firing", seconds=60, since=told)
        self.steps.check(f"{what} {name} at the webhook", alert["annotations"]["summary"])


LAST = "no request failed"


def _counted(decisions: Counter[str]) -> str:
    return ", ".join(f"{n} {word}" for word, n in sorted(decisions.items())) or "no answer"


def _reasons(reasons: list[str]) -> str:
    return reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise DrillError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


def main(argv: list[str] | None = None) -> int:
    """Run drills; 0 if all held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=42, help="of the simulated applicants (default: %(default)s)")
    parser.add_argument("--without-drift", action="store_true", help="the second crowd is like the first; this must fail")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="N drills in a row, each with the next seed")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave it (default: a temporary folder)")
    args = parser.parse_args(argv)
    if missing := absent():
        parser.error(f"{', '.join(missing)} needed (Debian: apt install prometheus prometheus-alertmanager)")
    found = []
    for i in range(args.repeat):
        with tempfile.TemporaryDirectory(prefix="drill ", ignore_cleanup_errors=True) as temporary:
            folder = (args.keep or Path(temporary)).resolve() / f"{i + 1}"
            drill = Drill(folder, args.seed + 10 * i, drifts=not args.without_drift)
            held = drill.run()
            found.append((drill.seed, held, time.monotonic() - drill.steps.start))
    if args.repeat > 1:
        print("\n" + "\n".join(f"seed {seed}: {'held' if held else 'FAILED'}, {seconds:.0f} s" for seed, held, seconds in found))
    return 0 if all(held for _, held, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
