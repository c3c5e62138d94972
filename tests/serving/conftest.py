"""Models, and the application in this process: a loop in a thread of its own, requests as ASGI has them."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from mlops_project.config import Params
from mlops_project.dataset import Applicants
from mlops_project.manifest import dump, write_manifest
from mlops_project.modeling.model import RiskModel
from mlops_project.modeling.policy import make_policy
from mlops_project.modeling.train import fit
from mlops_project.preprocessing import build_preprocessor
from mlops_project.schema import Contract
from mlops_project.serving.app import make_app
from mlops_project.serving.loading import load
from mlops_project.serving.service import Service
from mlops_project.serving.settings import Settings
from mlops_project.serving.state import Files

ROWS = 250


class Trained(NamedTuple):
    """A model and its policy in files of their own, with manifests."""

    model: RiskModel
    files: Files


@pytest.fixture(scope="session")
def trained(
    _applicants: Applicants, contract: Contract, params: Params, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Trained]:
    """Return a function that fits a model once and writes it where a service can load it."""
    found: dict[str, Trained] = {}

    def train(name: str = "scorecard") -> Trained:
        if name not in found:
            table, target = _applicants.table[:ROWS], _applicants.target[:ROWS]
            preprocessor = build_preprocessor(contract, params.featurize)
            few = {
                tree: msgspec.structs.replace(getattr(params.models, tree), n_estimators=8)
                for tree in ("xgboost", "random_forest")
            }
            chosen = msgspec.structs.replace(params.train, model=name)
            model = fit(table, target, preprocessor, contract, chosen, msgspec.structs.replace(params.models, **few))
            folder = tmp_path_factory.mktemp(name)
            write_files(model, folder, target.to_numpy(), params)
            files = Files(str(folder / "model.joblib"), str(folder / "policy.json"), str(folder / "state"), uncommitted=True)
            found[name] = Trained(model, files)
        return found[name]

    def write_files(model: RiskModel, folder: Path, y: np.ndarray, params: Params) -> None:
        dump(model, folder / "model.joblib")
        p_good = model.predict_proba(_applicants.table[:ROWS])[:, 1]
        policy = make_policy(y, p_good, np.ones(len(y)), params.evaluate, prior=0.1)
        (folder / "policy.json").write_text(policy.to_json(), encoding="utf-8")
        write_manifest(folder / "policy.json", [folder / "model.joblib"])

    return train


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks an application in its own event loop."""

    def __init__(self, settings: Settings) -> None:
        self.service = Service(settings)
        self.app = make_app(settings, self.service)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._running = self.service.running()
        self.run(self._running.__aenter__())

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self.ask(*args, **kwargs), self.loop)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
    ) -> Answer:
        path, _, query = path.partition("?")
        sent = (
            {"host": "test"}
            | ({} if body is None else {"content-type": kind, "content-length": str(len(body))})
            | (headers or {})
        )
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "scheme": "http", "state": {},
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        messages: list[Any] = []
        given = [{"type": "http.request", "body": body or b"", "more_body": False}]

        async def receive() -> Any:
            return given.pop() if given else await asyncio.sleep(3600)

        async def send(message: Any) -> None:
            messages.append(message)

        # As servers do it: a task per request.
        await asyncio.create_task(self.app(scope, receive, send))
        start = messages[0]
        found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], found, b"".join(message.get("body", b"") for message in messages[1:]))

    def request(self, *args: Any, **kwargs: Any) -> Answer:
        return self.submit(*args, **kwargs).result(60)

    def predict(self, applicants: Any, reasons: int | None = None, **kwargs: Any) -> Answer:
        body = applicants if isinstance(applicants, bytes) else json.dumps(applicants).encode()
        return self.request("POST", "/v1/predict" + (f"?reasons={reasons}" if reasons is not None else ""), body, **kwargs)

    def close(self) -> None:
        self.run(self._running.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="session")
def clients(trained: Callable[..., Trained], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Client]]:
    """Return a function that opens a service in this process; the same settings give the same one."""
    opened: dict[Any, Client] = {}

    def client(name: str = "scorecard", **settings: Any) -> Client:
        key = name, tuple(settings.items())
        if key not in opened:
            files = trained(name).files
            assert load(files).outcome != "refused"
            given = {
                "keys": None,
                "rate_limit": None,
                "log": f"sqlite:///{tmp_path_factory.mktemp('log')}/log.db",
                "durable": False,
            }
            opened[key] = Client(Settings(files=files, **given | settings))
        return opened[key]

    yield client
    for found in opened.values():
        found.close()


@pytest.fixture
def opened() -> Iterator[Callable[[Files], Client]]:
    """Return a function that opens a service on files of its own, without keys, limits and log."""
    found: list[Client] = []

    def client(files: Files) -> Client:
        found.append(Client(Settings(files=files, keys=None, rate_limit=None, log=None)))
        return found[-1]

    yield client
    for one in found:
        one.close()


@pytest.fixture
def client(clients: Callable[..., Client]) -> Client:
    """A service with the scorecard, without keys and limits."""
    return clients()


@pytest.fixture(scope="session")
def good(contract: Contract) -> dict[str, Any]:
    """An applicant whose cells are all valid."""
    columns = contract.columns
    return {name: columns[name].code_list[0] if columns[name].codes else columns[name].range[0] for name in contract.features}
