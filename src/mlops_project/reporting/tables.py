"""The tables of the report, as texts and bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_project.modeling.fairness import FOUR_FIFTHS
from mlops_project.reporting.results import absent, count, interval, number, percent, show, title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlops_project.reporting.results import Results


class Bar(NamedTuple):
    """A cell with a bar behind its text; ``share`` of the full width, ``mark`` a thin line at another share."""

    text: str
    share: float
    mark: float | None = None


class Table(NamedTuple):
    """A table of the page. The first column heads its rows; ``words`` are the other columns that hold text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    words: Sequence[int] = ()
    note: str = ""


def page_tables(results: Results) -> dict[str, Any]:
    """Return every table by the name that the template knows; None or empty where there is nothing to show."""
    builders = (
        leaderboard, metrics, at_prior, confusion, bins, strategies, conformal, ratios, groups, stability, information, scorecard,
        rows, split, cells,
    )  # fmt: skip
    return {builder.__name__: builder(results) for builder in builders}


def leaderboard(results: Results) -> Table:
    board = results.board
    rows: list[list[str | Bar]] = [
        [
            f"{name} (picked)" if name == board["picked"] else name,
            f"{number(entry['mean'])} ± {number(entry['std'])}",
            *(("–", "–") if entry["rank"] == 1 else (
                f"{number(entry['difference'], 4)} ± {number(entry['standard_error'], 4)}", _p_value(entry["p_value"]))),
        ]
        for name, entry in board["models"].items()
    ]  # fmt: skip
    caption = f"Models by {title(board['metric'])} over the folds"
    return Table(caption, ["model", "mean ± standard deviation", "difference to the best ± standard error", "p"], rows)


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else number(p)


def metrics(results: Results) -> Table:
    found, folds = results.held_out, results.train
    names = [name for name, value in found.items() if isinstance(value, float) and name != "threshold"]
    rows: list[list[str | Bar]] = []
    for name in names:
        summary = folds.get(name)
        validated, train = ("", "")
        # The folds decide at 0.5, the policy elsewhere: only what needs no threshold can stand side by side.
        if summary and name in ("roc_auc", "average_precision", "ks", "brier", "log_loss"):
            validated, train = f"{number(summary['mean'])} ± {number(summary['std'])}", number(summary["train_mean"])
        rows.append([title(name), show(name, found[name]), interval(name, found), validated, train])
    share = f"{results.params.evaluate.confidence * 100:g} %"
    return Table(
        f"{count(found['rows'])} held-out applicants",
        ["metric", "held out", f"{share} interval", "cross-validated", "on training rows"],
        rows,
        note="Cross-validated: mean ± standard deviation over the folds, of what needs no threshold.",
    )


def at_prior(results: Results) -> Table | None:
    found, prior = results.held_out, results.prior
    if not prior:
        return None
    names = [name for name in prior if name in prior["interval"]]
    rows = [
        [title(name), show(name, found[name]), interval(name, found), show(name, prior[name]), interval(name, prior)]
        for name in names
    ]
    return Table(
        f"What depends on the share of bad, at a default rate of {percent(prior['default_rate'])}",
        ["metric", "sample", "interval", "at the prior", "interval"],
        rows,
    )


def confusion(results: Results) -> Table:
    found = results.held_out
    rows: list[list[str | Bar]] = []
    for label in ("good", "bad"):
        counts = [found[f"{label}_{decision}"] for decision in ("approved", "refused")]
        total = sum(counts)
        rows.append([
            label,
            *(Bar(f"{count(n)} ({percent(n / total if total else None)})", n / total if total else 0) for n in counts),
            count(total),
        ])  # fmt: skip
    totals = [found[f"good_{decision}"] + found[f"bad_{decision}"] for decision in ("approved", "refused")]
    rows.append(["all", *(f"{count(n)} ({percent(n / sum(totals))})" for n in totals), count(sum(totals))])
    caption = f"Outcome and decision, refused from {percent(found['threshold'])} on"
    if results.prior:
        caption += ", before the prior is applied"
    return Table(caption, ["outcome", "approved", "refused", "all"], rows)


def bins(results: Results) -> Table:
    end = "_at_prior" if results.prior else ""
    table = results.tables["calibration"][[f"{name}{end}" for name in ("predicted", "observed", "low", "high", "rows")]].dropna()
    rows = [
        [percent(predicted), percent(observed), f"{100 * low:.1f} to {percent(high)}", count(n)]
        for predicted, observed, low, high, n in table.itertuples(index=False)
    ]
    return Table("Probabilities of default, and what came of them", ["predicted", "observed", "95 % interval", "rows"], rows)


def strategies(results: Results) -> Table:
    end = "_at_prior" if results.prior else ""
    names = [f"{name}{end}" for name in ("approval_rate", "bad_rate_approved", "bad_caught", "expected_cost", "chosen")]
    # The thresholds of the sample's own policy are rows too.
    table = results.tables["strategy"][["threshold", *names]].dropna(subset=[names[-1]])
    rows: list[list[str | Bar]] = [
        [
            f"{percent(threshold)}{' (policy)' if chosen == 1 else ''}",
            Bar(percent(approved), approved),
            percent(bad),
            percent(caught),
            number(cost),
        ]
        for threshold, approved, bad, caught, cost, chosen in table.to_numpy().tolist()
    ]
    head = ["refused from", "approved", "bad among the approved", "bad refused", "cost per applicant"]
    at = f", at a default rate of {percent(results.prior['default_rate'])}" if results.prior else ""
    return Table(f"What other thresholds would do{at}", head, rows)


def conformal(results: Results) -> Table:
    found = results.held_out["conformal"]
    rows: list[list[str | Bar]] = [
        [f"{label} applicants whose set holds “{label}”", percent(found["level"]), percent(found[f"coverage_{label}"])]
        for label in ("good", "bad")
    ]
    rows += [[name, "", Bar(percent(found[name]), found[name])] for name in ("approved", "rejected", "referred")]
    return Table("Conformal sets on the held-out applicants", ["share", "aimed at", "measured"], rows)


def ratios(results: Results) -> Table:
    words = {True: "yes", False: "no", None: "not compared"}
    rows: list[list[str | Bar]] = [
        [
            results.column(name),
            number(found["disparity_ratio"], 2),
            "–" if absent(found["low"]) else f"{number(found['low'], 2)} to {number(found['high'], 2)}",
            words[found["passes_four_fifths"]],
            found["lowest"] or "–",
            found["reference"] or "–",
        ]
        for name, found in results.held_out["fairness"].items()
    ]
    head = ["column", "ratio", "interval", f"at least {FOUR_FIFTHS:g}", "lowest approval rate", "highest"]
    return Table("Disparity ratios", head, rows, words=(3, 4, 5))


def groups(results: Results) -> Table:
    table = results.tables["fairness"]
    names = ("approval_rate", "bad_rate", "predicted_bad_rate", "false_refusal_rate", "missed_bad_rate")
    rows = [
        [
            row["column"],
            row["group"],
            count(row["rows"]),
            *(percent(row[name]) for name in names),
            "yes" if row["compared"] else "no",
        ]
        for row in table.to_dict("records")
    ]
    head = ["column", "group", "rows", "approved", "bad", "bad, predicted", "good refused", "bad approved", "compared"]
    return Table("Groups of the protected columns", head, rows, words=(1, 8))


def stability(results: Results) -> Table:
    table = results.tables["stability"]
    full = max(0.3, float(table["psi"].max()))
    rows = [
        [
            "score" if place == 0 else results.column(row["name"]),
            Bar(number(row["psi"]), row["psi"] / full, row["by_chance"] / full),
            number(row["by_chance"]),
            row["reading"],
        ]
        for place, row in enumerate(table.to_dict("records"))
    ]
    return Table("Population stability index, development to held-out", ["what", "PSI", "by chance", "reading"], rows, words=(3,))


def information(results: Results) -> Table | None:
    table = results.tables.get("information_value")
    if table is None:
        return None
    full = max(float(table["iv"].max()), 1e-9)
    rows = [
        [
            results.column(row["attribute"]),
            Bar(number(row["iv"]), row["iv"] / full),
            row["kind"],
            count(row["bins"]),
            percent(row["missing"]),
            "–" if absent(row["bad_rate"]) else row["bad_rate"],
        ]
        for row in table.to_dict("records")
    ]
    head = ["attribute", "information value", "kind", "bins", "missing", "bad rate as the value rises"]
    return Table("Information values", head, rows, words=(2, 5))


def scorecard(results: Results) -> list[Table]:
    """One table of points per attribute, the most informative first."""
    if "scorecard" not in results.tables:
        return []
    points = results.tables["scorecard"]
    shapes = results.tables["information_value"].set_index("attribute")
    full = max(float(points["bad_rate"].max()), 1e-9)
    tables = []
    for name in (name for name in [None, *shapes.index] if name is not None or points["attribute"].isna().any()):
        bins = points[points["attribute"].isna() if name is None else points["attribute"] == name]
        rows = [
            [
                row["bin"],
                number(row["rounded"], 0),
                "–" if absent(row["bad_rate"]) else Bar(percent(row["bad_rate"]), row["bad_rate"] / full),
                "–" if absent(row["rows"]) else count(row["rows"]),
            ]
            for row in bins.to_dict("records")
        ]
        note = ""
        if name is not None:
            note = f"Information value {number(shapes.loc[name, 'iv'])}; {_shape(shapes.loc[name, 'bad_rate'])}."
            if not float(bins["coefficient"].iloc[0]) > 0:
                note += " Left out of the card: its coefficient is 0."
        tables.append(
            Table("Base" if name is None else results.column(name), ["bin", "points", "bad rate", "rows"], rows, note=note)
        )
    return tables


def _shape(found: Any) -> str:
    words = {
        "rises": "the bad rate rises with the value",
        "falls": "the bad rate falls as the value rises",
        "constant": "the bad rate is constant",
        "both": "the bad rate rises and falls: not monotone",
    }
    return "codes without an order" if absent(found) else words[found]


def rows(results: Results) -> Table:
    return Table("Rows", ["step", "rows"], [[title(name), count(n)] for name, n in results.prepare["rows"].items()])


def cells(results: Results) -> Table:
    read = results.prepare["rows"]["read"]
    columns = results.prepare["columns"]
    full = max((sum(found.values()) for found in columns.values()), default=0) or 1
    rows: list[list[str | Bar]] = []
    for name, found in columns.items():
        bad = sum(found.values())
        bar = Bar(f"{bad} ({percent(bad / read)})", bad / full)
        rows.append([results.column(name), *(count(found[kind]) for kind in ("missing", "tokens", "out_of_contract")), bar])
    head = ["column", "empty", "missing-value words", "out of contract", "all that became missing"]
    return Table(f"Cells of the {count(read)} rows read", head, rows)


def split(results: Results) -> Table:
    found = results.prepare["split"]
    rows: list[list[str | Bar]] = [
        [title(name), count(value) if isinstance(value, int) else show(name, value)] for name, value in found.items()
    ]
    return Table("Split", ["what", "value"], rows)
