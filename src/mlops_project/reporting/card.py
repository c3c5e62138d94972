"""The model card, docs/model-card.md: templates/model-card.md with the figures of metrics, params and contract (`make figures`).

It names no commit and no time, neither of which could be right in the commit that holds it.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mlops_project.modeling.fairness import FOUR_FIFTHS
from mlops_project.reporting.results import absent, count, interval, number, percent, show, title

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlops_project.reporting.results import Results

QUALITY = ("roc_auc", "gini", "ks", "average_precision", "brier", "log_loss", "ece")
DECISIONS = ("approval_rate", "bad_rate_approved", "recall", "recall_bad", "expected_cost")


def model_card(results: Results) -> str:
    """Return the model card of these results as Markdown."""
    template = (files("mlops_project.reporting") / "templates" / "model-card.md").read_text(encoding="utf-8")
    return template.format_map(_data(results) | _model(results) | _policy(results) | _rest(results))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    # A bar in a cell's text would end the cell.
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def _data(results: Results) -> dict[str, str]:
    params, contract, split = results.params, results.contract, results.prepare["split"]
    rows, columns = results.prepare["rows"], results.prepare["columns"]
    dirt = {kind: sum(found[kind] for found in columns.values()) for kind in ("missing", "tokens", "out_of_contract")}
    cells = rows["read"] * len(columns)
    card = _data_card(results)
    return {
        "raw": params.data.raw,
        "tracked": f"MD5 `{results.data_md5}`" if results.data_md5 else "not tracked by DVC",
        "contract": params.data.contract,
        "data_card": f" Source, licence and codes: the [data card](../{card})." if card.exists() else "",
        "read": count(rows["read"]),
        "applicants": count(rows["applicants"]),
        "dropped": ", ".join(
            f"{title(name).lower()} {count(n)}" for name, n in rows.items() if name not in ("read", "applicants")
        ),
        "made_missing": count(sum(dirt.values())),
        "cells": count(cells),
        "made_missing_share": percent(sum(dirt.values()) / cells),
        **{kind: count(n) for kind, n in dirt.items()},
        "development": count(split["development"]),
        "held_out": count(split["held_out"]),
        "bad_development": percent(split["bad_share_development"]),
        "bad_held_out": percent(split["bad_share_held_out"]),
        "split": params.prepare.split,
        "outcome": contract.target.meaning or contract.target.name,
        "columns": str(len(contract.features)),
        "protected": ", ".join(results.column(name) for name in contract.protected) or "none",
        "data_limits": _data_limits(card),
    }


def _model(results: Results) -> dict[str, str]:
    params, train, board = results.params, results.params.train, results.board
    sections = params.models.best if train.model == "best" else params.models
    settings = msgspec.to_builtins(getattr(sections, board["picked"]))
    found, folds = results.held_out, results.train
    return {
        "name": board["picked"].replace("_", " "),
        "picked": board["picked"],
        "why": board["why"],
        "settings": "; ".join(f"`{name}` {value}" for name, value in settings.items() if value is not None),
        "imbalance": train.imbalance,
        "calibration": train.calibration,
        "visible": "hidden from" if params.featurize.without_protected else "visible to",
        "base_score": f"{train.base_score:g}",
        "base_odds": f"{train.base_odds:g}",
        "points_to_double": f"{train.points_to_double:g}",
        "leaderboard": _leaderboard(results),
        "confidence": f"{100 * params.evaluate.confidence:g} %",
        "resamples": count(params.evaluate.bootstrap_samples),
        "folds": results.folds,
        "reduced": results.reduced,
        "performance": markdown_table(
            ["metric", "held out", "interval", "cross-validated"],
            (
                [title(name), show(name, found[name]), interval(name, found), mean_and_deviation(folds.get(name))]
                for name in QUALITY
            ),
        ),
    }


def mean_and_deviation(summary: dict[str, float] | None) -> str:
    return f"{number(summary['mean'])} ± {number(summary['std'])}" if summary else ""


def _leaderboard(results: Results) -> str:
    board = results.board
    if len(board["models"]) == 1:
        return ""
    rows = []
    for name, entry in board["models"].items():
        difference = f"{number(entry['difference'], 4)} ± {number(entry['standard_error'], 4)}", number(entry["p_value"])
        rows.append([name, mean_and_deviation(entry), *(("–", "–") if entry["rank"] == 1 else difference)])
    return f"\n{markdown_table([title(board['metric']), 'mean ± s.d.', 'to the best ± s.e.', 'p'], rows)}\n"


def _policy(results: Results) -> dict[str, str]:
    found, prior, params = results.held_out, results.prior, results.params.evaluate
    end = "_at_prior" if prior else ""
    if prior:
        assumed = f"Probabilities are moved to a prior default rate of {percent(prior['default_rate'])}."
    else:
        rate = percent(results.prepare["split"]["bad_share_development"])
        assumed = f"No prior default rate is set: probabilities assume the sample's {rate}."
    head, decisions = ["", "sample", "interval"], []
    for name in DECISIONS:
        decisions.append([title(name), show(name, found[name]), interval(name, found)])
        if prior:
            decisions[-1] += [show(name, prior[name]), interval(name, prior)] if name in prior else ["", ""]
    strategies = [
        [
            f"{percent(row['threshold'])}{' (policy)' if row[f'chosen{end}'] == 1 else ''}",
            *(percent(row[f"{name}{end}"]) for name in ("approval_rate", "bad_rate_approved", "bad_caught")),
            number(row[f"expected_cost{end}"]),
        ]
        for row in results.tables["strategy"].dropna(subset=[f"chosen{end}"]).to_dict("records")
    ]
    words = {"costs": "which these costs imply", "tuned": "tuned on out-of-fold predictions"}
    return {
        "cost_bad": f"{params.cost_bad_approved:g}",
        "cost_good": f"{params.cost_good_refused:g}",
        "threshold": percent(results.threshold),
        "threshold_from": words.get(str(params.threshold), "set in params.yaml"),
        "prior": assumed,
        "at_prior": ", at the prior" if prior else "",
        "decisions": markdown_table(head + (["at the prior", "interval"] if prior else []), decisions),
        "strategy": markdown_table(
            ["refused from", "approved", "bad among the approved", "bad refused", "cost per applicant"], strategies
        ),
    }


def _rest(results: Results) -> dict[str, str]:
    found, top = results.held_out, results.params.evaluate.reasons
    reasons = f"`data/predictions/held_out.{results.params.data.tables}` names up to {top} per applicant."
    if top == 0:
        reasons = "`evaluate.reasons` is 0: none were made."
    elif "reduced" in found:
        reasons = "For so many held-out applicants none were made; `mlops-predict --reasons` makes those of any."
    conformal, ends = found["conformal"], found["interval"]["roc_auc"]
    stability = results.tables["stability"].to_dict("records")
    moved = [f"{results.column(row['name'])} {number(row['psi'])}" for row in stability[1:] if row["reading"] != "stable"]
    return {
        "conformal_level": percent(conformal["level"], 0),
        **{name: percent(conformal[name]) for name in ("coverage_good", "coverage_bad", "approved", "rejected", "referred")},
        "fairness": _fairness(results),
        "psi": number(found["psi"]["score"]),
        "psi_by_chance": number(stability[0]["by_chance"]),
        "moved": ", ".join(moved) or "none of the columns",
        "reasons": reasons,
        "width": number(ends["high"] - ends["low"]),
    }


def _fairness(results: Results) -> str:
    found = results.held_out["fairness"]
    if not found:
        return "The contract names no protected column; nothing was compared."
    words = {True: "yes", False: "no", None: "not compared"}
    ratios = [
        [
            results.column(name),
            number(entry["disparity_ratio"], 2),
            "–" if absent(entry["low"]) else f"{number(entry['low'], 2)} to {number(entry['high'], 2)}",
            words[entry["passes_four_fifths"]],
            f"{entry['lowest']} to {entry['reference']}" if entry["lowest"] else "–",
        ]
        for name, entry in found.items()
    ]
    rates = ("approval_rate", "bad_rate", "false_refusal_rate", "missed_bad_rate")
    groups = [
        [row["label"], count(row["rows"]), *(percent(row[name]) for name in rates)]
        for row in results.tables["fairness"].to_dict("records")
    ]
    intro = (
        f"Lowest approval rate over the highest; the four-fifths rule asks for {FOUR_FIFTHS:g}. Groups under"
        f" {results.params.evaluate.fairness_min_rows} rows\nare not compared."
    )
    return "\n\n".join((
        intro,
        markdown_table(["column", "ratio", "interval", "passes", "lowest to highest"], ratios),
        markdown_table(["group", "rows", "approved", "bad", "good refused", "bad approved"], groups),
    ))  # fmt: skip


def _data_card(results: Results) -> Path:
    return Path(results.params.data.raw).parent / "README.md"


def _data_limits(card: Path) -> str:
    """What the data card says under "Before you use it": limits of the data are written there, and only there."""
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    found = re.search(r"^## Before you use it\n+(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return f"\nOf the data, from its card:\n\n{found[1].strip()}\n" if found else ""
