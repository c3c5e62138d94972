"""The figures of the report: drawn by matplotlib, as SVG elements to put into an HTML page.

Text stays text. Colours become CSS variables of the page, so that a figure is readable on dark paper too.
"""

from __future__ import annotations

import io
import re
import textwrap
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlops_project.modeling.fairness import FOUR_FIFTHS
from mlops_project.reporting.results import number, percent, title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from matplotlib.axes import Axes

    from mlops_project.reporting.results import Results

INK, MUTED, GRID, ACCENT, PAPER = "#1c1d1f", "#6d7075", "#dcdde0", "#14558f", "#fefefe"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ACCENT: "--accent", PAPER: "--paper"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mlops-report",
    # A group may be called "$100 to $200".
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
WIDTH = 4.4  # inches: on a phone's width nine points are still readable
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ET.register_namespace("", SVG)


class Drawing(NamedTuple):
    """A figure: its place in the page, what it shows in words, and the SVG element."""

    name: str
    title: str
    description: str
    svg: str


def draw(name: str, heading: str, description: str, painter: Callable[[Axes], None], height: float = 3.3) -> Drawing:
    """Draw one figure: ``painter`` gets its axes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        painter(figure.subplots())
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(name, heading, description, _inline(stream.getvalue(), name, heading, description))


def _inline(drawn: bytes, name: str, heading: str, description: str) -> str:
    """Turn matplotlib's file into an element of an HTML page: ids of its own, a title, no fixed size, no addresses."""
    root = ET.fromstring(drawn)  # noqa: S314 - matplotlib wrote it a line above
    for part in (f"{{{SVG}}}metadata", f"{{{SVG}}}defs/{{{SVG}}}style/.."):
        for child in root.findall(part):
            root.remove(child)
    text = ET.tostring(root, encoding="unicode")
    used = {key for key in _ids(root) if f"#{key})" in text or f'"#{key}"' in text}
    for element in root.iter():
        if (key := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{key}")
        if reference := element.attrib.pop(f"{{{XLINK}}}href", None):
            element.set("href", f"#{name}-{reference[1:]}")
        for attribute, value in element.attrib.items():
            element.set(attribute, value.replace("url(#", f"url(#{name}-"))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for place, (tag, words) in enumerate((("title", heading), ("desc", description))):
        element = ET.Element(f"{{{SVG}}}{tag}", id=f"{name}-{tag}")
        element.text = words
        root.insert(place, element)
    # The page's font: what matplotlib measured with is wider, so nothing overlaps.
    text = re.sub(r"font-family: [^;\"]*; ?", "", ET.tostring(root, encoding="unicode").replace(f' xmlns="{SVG}"', ""))
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _ids(root: ET.Element) -> Iterable[str]:
    return (key for element in root.iter() if (key := element.get("id")))


def figures(results: Results) -> dict[str, Drawing]:
    """Draw everything there is to draw, by name."""
    drawn = [roc(results), precision_recall(results), scores(results), calibration(results), cost_curve(results)]
    drawn += [importance(results)]
    if len(results.board["models"]) > 1:
        drawn += [leaderboard(results), differences(results)]
    if len(results.tables["fairness"]):
        drawn.append(approval_rates(results))
    if any(found["disparity_ratio"] is not None for found in results.held_out["fairness"].values()):
        drawn.append(disparity(results))
    return {drawing.name: drawing for drawing in drawn}


def _percent_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _rows(ax: Axes, labels: Iterable[str]) -> np.ndarray:
    """Label horizontal rows from the top; return their places."""
    labels = [textwrap.fill(label, 26) for label in labels]
    places = np.arange(len(labels))
    ax.set_yticks(places, labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    return places


def operating_point(results: Results) -> tuple[float, float]:
    """Shares of the good and of the bad whom the policy approves; the prior moves the threshold, not these shares' meaning."""
    found, prior = results.held_out, results.prior
    if not prior:
        return found["recall"], 1 - found["recall_bad"]
    approved, bad, rate = prior["approval_rate"], prior["bad_rate_approved"], prior["default_rate"]
    return approved * (1 - bad) / (1 - rate), approved * bad / rate


def _mark_policy(ax: Axes, x: float, y: float) -> None:
    ax.plot([x], [y], "o", color=ACCENT, markeredgecolor=PAPER, markersize=7, label="policy")


def roc(results: Results) -> Drawing:
    table, area = results.tables["roc"], number(results.held_out["roc_auc"])
    good, bad = operating_point(results)

    def painter(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="--", label="chance")
        ax.plot(table["fpr"], table["tpr"], color=ACCENT, label=f"model, area {area}")
        _mark_policy(ax, bad, good)
        ax.set(xlabel="bad approved", ylabel="good approved", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        ax.legend(loc="lower right")
        for axis in (ax.xaxis, ax.yaxis):
            _percent_axis(axis)

    words = (
        f"Share of the good approved against share of the bad approved, for every threshold. The area is {area}; the policy"
        f" approves {percent(good)} of the good and {percent(bad)} of the bad."
    )
    return draw("roc", "ROC curve", words, painter)


def precision_recall(results: Results) -> Drawing:
    table, found = results.tables["precision_recall"], results.held_out
    all_good, all_bad = (found[f"{label}_approved"] + found[f"{label}_refused"] for label in ("good", "bad"))
    share, average = all_good / (all_good + all_bad), number(found["average_precision"])
    good, bad = operating_point(results)

    def painter(ax: Axes) -> None:
        ax.axhline(share, color=MUTED, linewidth=0.8, linestyle="--", label="approving all")
        ax.plot(table["recall"], table["precision"], color=ACCENT, label=f"model, average {average}")
        if good + bad > 0:
            _mark_policy(ax, good, good * all_good / (good * all_good + bad * all_bad))
        low = min(share, table["precision"].min())
        ax.set(xlabel="good approved", ylabel="good among the approved", xlim=(-0.01, 1.01), ylim=(max(low - 0.3, 0), 1.02))
        ax.legend(loc="lower left")
        for axis in (ax.xaxis, ax.yaxis):
            _percent_axis(axis)

    words = (
        f"Share of good among the approved against share of the good approved, on the sample. The average precision is {average};"
        f" approving everybody gives {percent(share)}."
    )
    return draw("precision_recall", "Precision and recall", words, painter)


def scores(results: Results) -> Drawing:
    table, threshold = results.tables["scores"], results.held_out["threshold"]
    middle = table["probability_of_default"].to_numpy()
    width = float(middle[1] - middle[0])
    end = ", before the prior is applied" if results.prior else ""

    def painter(ax: Axes) -> None:
        ax.bar(middle, table["good"], width=width * 0.94, color=MUTED, alpha=0.45, linewidth=0, label="good")
        edges = np.r_[middle - width / 2, middle[-1] + width / 2]
        ax.stairs(table["bad"].to_numpy(), edges, color=ACCENT, linewidth=1.6, label="bad")
        ax.axvline(threshold, color=INK, linewidth=0.8, linestyle="--", label=f"refused from {percent(threshold)} on")
        ax.set(xlabel="probability of default", ylabel="share of its class", xlim=(0, 1))
        ax.legend(loc="upper right")
        for axis in (ax.xaxis, ax.yaxis):
            _percent_axis(axis)

    words = f"Distribution of the probability of default of the good and of the bad; refused from {percent(threshold)} on{end}."
    return draw("scores", "Score distribution", words, painter)


def _views(results: Results) -> list[tuple[str, str]]:
    """The endings of the columns to draw, and what to call them."""
    return [("", "sample"), ("_at_prior", "at the prior")] if results.prior else [("", "held out")]


def calibration(results: Results) -> Drawing:
    table = results.tables["calibration"]
    end, label = _views(results)[-1]
    found = table[[f"{name}{end}" for name in ("predicted", "observed", "low", "high")]].dropna().to_numpy().T
    predicted, observed, low, high = found

    def painter(ax: Axes) -> None:
        top = min(1.0, 1.05 * max(high.max(), predicted.max()))
        ax.plot([0, top], [0, top], color=MUTED, linewidth=0.8, linestyle="--", label="as predicted")
        spread = np.maximum([observed - low, high - observed], 0)
        ax.errorbar(
            predicted, observed, spread, fmt="o", color=ACCENT, markersize=5, elinewidth=1.1, label=f"{label}, 95 % interval"
        )
        ax.set(xlabel="predicted probability of default", ylabel="observed share of bad", xlim=(0, top), ylim=(-0.01 * top, top))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
        for axis in (ax.xaxis, ax.yaxis):
            _percent_axis(axis)

    error = (results.prior or results.held_out)["ece"]
    words = (
        f"Observed share of bad against predicted probability of default, {len(predicted)} bins of equal weight, Wilson's 95 %"
        f" intervals. The calibration error is {number(error)}."
    )
    return draw("calibration", "Calibration", words, painter)


def cost_curve(results: Results) -> Drawing:
    table = results.tables["cost_curve"]
    end, label = _views(results)[-1]
    table = table[["threshold", f"expected_cost{end}"]].dropna()
    cost = (results.prior or results.held_out)["expected_cost"]

    def painter(ax: Axes) -> None:
        ax.plot(table["threshold"], table[f"expected_cost{end}"], color=ACCENT, label=label)
        ax.axvline(results.threshold, color=INK, linewidth=0.8, linestyle="--")
        name = f"policy: {percent(results.threshold)}, cost {number(cost)}"
        ax.plot([results.threshold], [cost], "o", color=ACCENT, markeredgecolor=PAPER, markersize=7, label=name)
        ax.set(xlabel="refused from this probability of default on", ylabel="expected cost per applicant", xlim=(0, 1))
        ax.set_ylim(0, 1.08 * table[f"expected_cost{end}"].max())
        ax.legend(loc="lower right")
        _percent_axis(ax.xaxis)

    words = (
        f"Expected cost per applicant against the threshold. The policy refuses from {percent(results.threshold)} on and costs"
        f" {number(cost)}."
    )
    return draw("cost_curve", "Cost curve", words, painter)


def importance(results: Results) -> Drawing:
    table = results.tables["importance"].head(15)

    def painter(ax: Axes) -> None:
        places = _rows(ax, [results.column(name) for name in table["feature"]])
        ax.barh(places, table["importance"], height=0.62, color=ACCENT, alpha=0.85, linewidth=0)
        ax.errorbar(table["importance"], places, xerr=table["std"], fmt="none", ecolor=INK, elinewidth=0.9)
        ax.axvline(0, color=MUTED, linewidth=0.8)
        ax.set_xlabel("fall of ROC-AUC when shuffled")

    first = table.iloc[0]
    words = (
        f"How much ROC-AUC falls when one column is shuffled, with the standard deviation over the shuffles. Most for"
        f" {results.column(first['feature'])}: {number(first['importance'])}."
    )
    return draw("importance", "Feature importance", words, painter, height=0.8 + 0.3 * len(table))


def _board_rows(results: Results, ax: Axes, value: str, spread: str) -> np.ndarray:
    """Draw one row per model; return their places."""
    places = _rows(ax, [name.replace("_", " ") for name in results.board["models"]])
    for place, (name, entry) in zip(places, results.board["models"].items(), strict=True):
        colour, size = (ACCENT, 6) if name == results.board["picked"] else (MUTED, 4.5)
        ax.errorbar(entry[value], place, xerr=entry[spread], fmt="o", color=colour, markersize=size, elinewidth=1.2)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    return places


def leaderboard(results: Results) -> Drawing:
    board = results.board
    metric = title(board["metric"])

    def painter(ax: Axes) -> None:
        _board_rows(results, ax, "mean", "std")
        ax.set_xlabel(f"{metric}, mean ± s.d.")

    words = f"{metric} over the folds, mean and standard deviation. {board['picked'].replace('_', ' ').capitalize()} is the pick."
    return draw("leaderboard", "Leaderboard", words, painter, height=0.8 + 0.3 * len(board["models"]))


def differences(results: Results) -> Drawing:
    models = results.board["models"]
    best = next(iter(models))

    def painter(ax: Axes) -> None:
        places = _board_rows(results, ax, "difference", "standard_error")
        ax.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        # A column of its own on the right: beside the marks the texts would lie on each other.
        for place, (name, entry) in zip(places, models.items(), strict=True):
            p = entry["p_value"]
            words = "best" if name == best else "p < 0.01" if p < 0.01 else f"p {p:.2f}"
            ax.annotate(words, (1.03, place), xycoords=("axes fraction", "data"), va="center", color=MUTED)
        ax.set_xlabel("difference ± s.e.")

    words = f"Paired difference to {best.replace('_', ' ')} over the same folds, with its standard error and p-value."
    return draw("differences", "Difference to the best", words, painter, height=0.8 + 0.3 * len(models))


def approval_rates(results: Results) -> Drawing:
    table = results.tables["fairness"].query("rows > 0")
    by_column = [(str(name), groups) for name, groups in table.groupby("column", sort=False)]
    # A heading, then its groups: (label, rate, compared), without a rate for the heading.
    rows: list[tuple[str, float | None, int]] = []
    for name, groups in by_column:
        rows.append((results.column(name), None, 0))
        rows += groups[["group", "approval_rate", "compared"]].itertuples(index=False, name=None)

    def painter(ax: Axes) -> None:
        for place, (_, rate, compared) in zip(_rows(ax, [str(label) for label, *_ in rows]), rows, strict=True):
            if rate is None:
                ax.get_yticklabels()[place].set_fontweight("bold")
                ax.axhline(place - 0.5, color=GRID, linewidth=0.8)
                continue
            colour, fill = (ACCENT, ACCENT) if compared else (MUTED, PAPER)
            ax.plot([0, rate], [place, place], color=colour, linewidth=1.1)
            ax.plot([rate], [place], "o", markersize=5, color=colour, markerfacecolor=fill, clip_on=False)
        ax.set(xlabel="approval rate", xlim=(0, min(1, 1.15 * float(table["approval_rate"].max()) + 0.02)))
        _percent_axis(ax.xaxis)

    words = "Approval rate of each group of the protected columns. Hollow grey marks are not compared: too few rows, or missing."
    return draw("approval_rates", "Approval rates of protected groups", words, painter, height=0.7 + 0.29 * len(rows))


def disparity(results: Results) -> Drawing:
    found = {name: entry for name, entry in results.held_out["fairness"].items() if entry["disparity_ratio"] is not None}

    def painter(ax: Axes) -> None:
        places = _rows(ax, [results.column(name) for name in found])
        for place, entry in zip(places, found.values(), strict=True):
            ratio = entry["disparity_ratio"]
            spread = [[max(ratio - entry["low"], 0)], [max(entry["high"] - ratio, 0)]]
            ax.errorbar(ratio, place, xerr=spread, fmt="o", color=ACCENT, markersize=6, elinewidth=1.3)
        ax.axvline(FOUR_FIFTHS, color=INK, linewidth=1, linestyle="--", label="four fifths")
        ax.axvline(1, color=MUTED, linewidth=0.8, label="equal")
        top = max([1.0, *(entry["high"] for entry in found.values())])
        ax.set(xlabel="lowest rate over the highest", xlim=(0, 1.05 * top))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)

    ratios = ", ".join(f"{name} {number(entry['disparity_ratio'], 2)}" for name, entry in found.items())
    words = f"Disparity ratios with their intervals; the four-fifths rule asks for {FOUR_FIFTHS:g}: {ratios}."
    return draw("disparity", "Disparity ratios", words, painter, height=1.3 + 0.42 * len(found))
