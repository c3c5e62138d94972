"""A comparison as text for the terminal and as Markdown for a pull request."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HELD_OUT = "evaluate."
FOLDS = ("train.", ".mean")
MAX_FILES = 8


class Section(NamedTuple):
    """``rows`` under ``header``, sentences before them; ``folded`` sections are shut at first in Markdown, and not printed."""

    title: str
    sentences: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    folded: bool = False


def headline(report: Mapping[str, Any]) -> str:
    """Return the verdict in one line."""
    if "verdict" not in report:
        return "nothing to compare: the head's predictions are nowhere"
    found = report["verdict"]
    if found["verdict"] == "no change":
        return f"{found['metric']}: no change; {found['why']}"
    bounds = f"{found['confidence']:.0%} interval {found['low']:+.4f} to {found['high']:+.4f}"
    return f"{found['metric']}: {found['verdict']}; difference {found['difference']:+.4f}, {bounds}"


def as_text(report: Mapping[str, Any]) -> str:
    """Return the report as aligned lines."""
    lines = [f"{report['base']['label']} -> {report['head']['label']}", headline(report)]
    for section in _sections(report):
        if section.folded:
            continue
        lines += ["", section.title, *(f"  {sentence}" for sentence in section.sentences)]
        widths = [max(map(len, column)) for column in zip(section.header, *section.rows, strict=True)]
        for row in [section.header, *section.rows] if section.rows else []:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            lines.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join(lines) + "\n"


def as_markdown(report: Mapping[str, Any], images: Sequence[Path] = (), beside: Path | None = None) -> str:
    """Return the report as Markdown; ``images`` are linked from a file in the folder ``beside``."""
    lines = [f"## Review: {report['base']['label']} → {report['head']['label']}", "", f"**{_escape(headline(report))}**"]
    for section in _sections(report):
        title = f"### {section.title}"
        lines += ["", f"<details><summary>{section.title}</summary>" if section.folded else title]
        lines += ["", *(f"- {_escape(sentence)}" for sentence in section.sentences)] if section.sentences else []
        if section.rows:
            rule = ["---", *["--:"] * (len(section.header) - 1)]
            table = [section.header, rule, *section.rows]
            lines += ["", *("| " + " | ".join(map(_escape, row)) + " |" for row in table)]
        lines += ["", "</details>"] if section.folded else []
    if images:
        links = [os.path.relpath(path, beside or ".").replace(os.sep, "/") for path in images]
        lines += ["", " ".join(f"![{path.stem}]({link})" for path, link in zip(images, links, strict=True))]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Keep names of files, branches and keys from becoming markup, or lines of their own."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return text.replace("`", "'") if text.count("`") % 2 else text


def _sections(report: Mapping[str, Any]) -> list[Section]:
    sections = []
    if gate := report.get("gate"):
        sections.append(Section("Gate: " + ("passed" if gate["passed"] else "refused"), [*gate["broken"], *gate["notes"]]))
    elif report["notes"]:
        sections.append(Section("Notes", report["notes"]))
    if "verdict" not in report:
        return sections
    metrics = report["metrics"]
    sections += [_evidence(report["verdict"]), *_changes(report)]
    changed = [name for name, entry in metrics.items() if entry["base"] != entry["head"]]
    shown = [name for name in metrics if name.startswith(HELD_OUT) and name.count(".") == 1 and "low" in metrics[name]]
    shown += [name for name in metrics if name.startswith(FOLDS[0]) and name.endswith(FOLDS[1])]
    if not changed:
        return [*sections, Section("Metrics", [f"all {len(metrics)} are the same"])]
    paired = "over the same applicants" if report["verdict"]["paired"] else "unpaired"
    note = (
        f"evaluate: held-out applicants, intervals of the difference by bootstrap {paired} (without training variation);"
        " train: mean over the folds"
    )
    header = ("metric", "base", "head", "difference", f"{report['verdict']['confidence']:.0%} interval")
    sections.append(Section("Metrics", [note], header, [_metric(name, metrics[name]) for name in shown]))
    rest = [_metric(name, metrics[name]) for name in changed if name not in shown]
    return [*sections, *([Section("Other metrics that differ", [], header, rest, folded=True)] if rest else [])]


def _evidence(found: Mapping[str, Any]) -> Section:
    header = (found["metric"], "applicants", "base", "head", "difference", "s.e. (rows only)")
    rows = [
        [
            name.replace("_", " "),
            str(part["rows"]),
            *(f"{part[key]:.4f}" for key in ("base", "head")),
            f"{part['difference']:+.4f}",
            f"{part['standard_error']:.4f}",
        ]
        for name in ("held_out", "out_of_fold")
        for part in [found[name]]
    ]
    pairing = (
        "paired: the same applicants in both, outcomes of the base"
        if found["paired"]
        else "unpaired: the held-out applicants differ, so each side stands on its own rows; only large differences show"
    )
    return Section(f"Verdict: {found['verdict']}", [found["why"], pairing], header, rows)


def _changes(report: Mapping[str, Any]) -> list[Section]:
    sections = []
    if report["params"]:
        rows = [[e["key"], _value(e["base"]), _value(e["head"]), ", ".join(e["stages"]) or "none"] for e in report["params"]]
        sections.append(Section("Params", [], ("key", "base", "head", "read by"), rows))
    raw, counts = report["data"]["raw"], report["data"]["counts"]
    sentences = []
    for path, entry in raw.items():
        if entry["base"] == entry["head"]:
            sentences.append(f"{path}: unchanged, md5 {entry['head']}")
        else:
            old, new = (
                f"md5 {entry[side]}, {entry[f'{side}_size']} bytes" if entry[side] else "absent" for side in ("base", "head")
            )
            sentences.append(f"{path}: {old} -> {new}")
    rows = [
        [name, _value(entry["base"]), _value(entry["head"]), f"{entry['difference']:+g}" if "difference" in entry else ""]
        for name, entry in counts.items()
        if entry["base"] != entry["head"]
    ]
    if not rows:
        known = {name: entry["head"] for name, entry in counts.items()}
        sentences.append(
            f"{known.get('rows.read')} rows read, {known.get('rows.applicants')} applicants,"
            f" {known.get('split.held_out')} held out; all {len(known)} counts are the same"
        )
    sections.append(Section("Data", sentences, ("count", "base", "head", "difference"), rows))
    rows = [[entry["file"], entry["state"], ", ".join(entry["stages"])] for entry in report["code"] if entry["stages"]]
    sentences = [f"stages that this reaches: {', '.join(report['stages']) or 'none'}"]
    if others := [entry["file"] for entry in report["code"] if not entry["stages"]]:
        more = f" and {len(others) - MAX_FILES} more" if len(others) > MAX_FILES else ""
        sentences.append(f"read by no stage: {', '.join(others[:MAX_FILES])}{more}")
    sections.append(Section("Files", sentences, ("file", "change", "stages that read it"), rows))
    return sections


def _metric(name: str, entry: Mapping[str, Any]) -> list[str]:
    difference = ""
    if "difference" in entry:
        difference = f"{entry['difference']:+.4f}" if isinstance(entry["difference"], float) else f"{entry['difference']:+d}"
    spread = f"{entry['low']:+.4f} to {entry['high']:+.4f}" if "low" in entry and entry["base"] != entry["head"] else ""
    return [name, _number(entry["base"]), _number(entry["head"]), difference, spread]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else _value(value)


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
