"""The report: one HTML page with all that the stages wrote, which needs no network to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import yaml

from mlops_project.config import MODELS, PREDICTIONS, PROCESSED, table_path
from mlops_project.errors import PipelineError
from mlops_project.files import read_ids, read_table
from mlops_project.modeling.model import load_model
from mlops_project.modeling.policy import Policy
from mlops_project.reporting.lineage import lineage
from mlops_project.reporting.results import Results, count, interval, number, percent, read_results, show, title
from mlops_project.reporting.tables import page_tables

try:
    import jinja2

    from mlops_project.reporting.figures import figures
except ModuleNotFoundError as missing:
    raise PipelineError(
        f"the report needs {missing.name}, which is not installed; `make report` installs it, as does the extra 'report'"
    ) from missing

if TYPE_CHECKING:
    from mlops_project.modeling.model import RiskModel

EXAMPLES = 5
HEADLINES = ("roc_auc", "ks", "brier", "ece", "approval_rate", "bad_rate_approved", "expected_cost")


def report() -> str:
    """Return the page for the working directory's state of the pipeline. The same inputs give the same text.

    Raises
    ------
    PipelineError
        If the pipeline has not run, or one of its files cannot be read.
    """
    path = MODELS / "policy.json"
    try:
        policy = Policy.from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError:
        raise PipelineError(f"{path}: not found; run `dvc repro` first") from None
    return render(read_results(), load_model(MODELS / "best_model.joblib"), policy)


def render(results: Results, model: RiskModel, policy: Policy) -> str:
    """Return the page for these results; rows and lineage are those of the working directory."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlops_project.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"percent": percent, "number": number, "count": count, "title": title}
    text = environment.get_template("report.html.j2").render(
        results=results,
        held_out=results.held_out,
        prior=results.prior,
        policy=policy,
        model=model,
        figures=figures(results),
        headlines=headlines(results),
        examples=examples(results, model, policy),
        params=settings(results),
        lineage=lineage(),
        **page_tables(results),
    )
    # A sign of percent stays with its number.
    return text.replace(" %", "\u00a0%")


def headlines(results: Results) -> list[dict[str, str]]:
    """The figures to look at first: at the prior where there is one and they depend on it."""
    found, prior = results.held_out, results.prior or {}
    tiles = [
        {
            "name": title(name),
            "value": show(name, prior.get(name, found[name])),
            "interval": interval(name, prior if name in prior else found),
            "note": f"at the prior; sample {show(name, found[name])}" if name in prior else "",
        }
        for name in HEADLINES
    ]
    referred = {"name": "Referred to people", "value": percent(found["conformal"]["referred"]), "interval": "", "note": ""}
    return [*tiles, referred]


def examples(results: Results, model: RiskModel, policy: Policy) -> list[dict[str, Any]]:
    """The held-out applicants with the highest risk, and what lowers their scores most."""
    top = results.params.evaluate.reasons
    if not top:
        return []
    columns, data = results.contract.text_columns, results.params.data
    held_out = table_path(PROCESSED, "Xtest", data)
    # Predictions and rows are in one order; ids are read for those who are shown only.
    predictions = read_table(table_path(PREDICTIONS, "held_out", data), ids=False)
    places = np.argsort(-predictions["probability_of_default"].to_numpy(), kind="stable")[:EXAMPLES]
    riskiest = predictions.iloc[places]
    X = read_table(held_out, columns, ids=False).iloc[places]
    ids = read_ids(held_out).iloc[places]
    chance = 1 - policy.correct(riskiest["y_proba"].to_numpy())
    return [
        {
            "id": str(applicant),
            "probability": percent(probability),
            "score": number(score, 0),
            "outcome": "good" if row["y_true"] == 1 else "bad",
            "reasons": [(reason.text, reason.code) for reason in reasons],
        }
        for applicant, (_, row), probability, score, reasons in zip(
            ids, riskiest.iterrows(), chance, model.score(X), model.reasons(X, top), strict=True
        )
    ]


def settings(results: Results) -> str:
    """params.yaml as it was read, without the models that are not in use."""
    params = msgspec.to_builtins(results.params)
    params["models"] = {results.params.train.model: params["models"][results.params.train.model]}
    return yaml.safe_dump(params, sort_keys=False, allow_unicode=True)
