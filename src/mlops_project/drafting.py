"""`mlops-draft-contract`: propose a commented data contract for a table of which nothing is known yet."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_project.dataset import DataLoader
from mlops_project.errors import DataError
from mlops_project.files import APPLICANT_ID
from mlops_project.profiling import Guess, Profile, guess, listed, profile, scalar, shown, spellings

if TYPE_CHECKING:
    from mlops_project.schema import Code

GOOD_WORD = re.compile(
    r"good|gut|(fully |re)?paid( off)?|settled|performing|(no|non|not) ?default|solvent|approved|accepted|ok|low risk|\+"
)
BAD_WORD = re.compile(
    r"bad|schlecht|default(ed)?|(not |un)paid|(charged|written) off|(in )?arrears|late|overdue|delinquent|non ?performing"
    r"|insolvent|rejected|denied|ausfall|high risk"
)
YES, NO = re.compile(r"1|y|yes|true|t|ja?"), re.compile(r"0|n|no|false|f|nein")
# An outcome is often called so; the names after the first line also say which outcome yes and 1 mean.
OUTCOME_NAME = re.compile(r"target|label|class|status|outcome|response|y|risk|credit_?risk|loan_?status|good_?bad")
BAD_NAME = re.compile(r"default|bad|delinq|dlq|late|arrears|charge_?off|overdue|unpaid|ausfall")
GOOD_NAME = re.compile(r"good|kredit|paid|credit(abil|worth)|approved|performing|bonit")
MAX_NAME = 500  # a YAML key may have 1,024 characters

HEADER = """\
# Draft of a data contract for {file}: {rows} rows, {columns} columns.
# Every line is a guess from the data, and its comment says why; a line marked CHECK needs somebody who knows the data.
# data/schema.yaml as this repository was cloned is a finished example: it adds meanings, units and directions."""


def draft(path: str | Path, *, target: str | None = None, good: str | None = None) -> str:
    """Propose a data contract for a CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
        As `DataLoader.load` takes it.
    target : str, optional
        The outcome column; guessed by default.
    good : str, optional
        The outcome's value that means good; guessed by default.

    Returns
    -------
    str
        YAML that `load_contract` accepts, each guess with a comment.

    Raises
    ------
    DataError
        If the file cannot be read, no column can be the outcome, or none can be a feature.
    """
    table = DataLoader().load(path)
    source = "standard input" if str(path) == "-" else str(path)
    names = [str(name) for name in table.columns]
    texts = [spellings(table.iloc[:, i]) for i in range(len(names))]
    decimal, why_decimal = _decimal([text.strip() for spelt in texts for text in list(spelt)[:200]])
    tokens: Counter[str] = Counter()
    unusable = {name: Guess("drop", reason) for name in names if (reason := _unusable(name, names.count(name)))}
    columns = [profile(name, spelt, decimal, tokens) for name, spelt in zip(names, texts, strict=True) if name not in unusable]

    outcome, outcome_lines = _outcome([c for c in columns if c.name != APPLICANT_ID], target, good, source)
    guesses = {column.name: guess(column, decimal) for column in columns if column is not outcome} | unusable
    applicant_id = _applicant_id(columns, guesses, len(table))
    if not any(found.kind in ("numeric", "ordinal", "nominal") for found in guesses.values()):
        others = "; ".join(f"{shown(name)}: {found.kind} ({found.comment})" for name, found in list(guesses.items())[:3])
        raise DataError(f"{source}: no column beside {outcome.name!r} can be a feature; found {others or 'no other column'}")
    applicant_line = f"{scalar(applicant_id)}  # CHECK: another value in every row; null if it does not name the applicant"
    lines = [
        HEADER.format(file=shown(Path(source).name), rows=len(table), columns=len(names)),
        f'decimal: "{decimal}"  # {why_decimal}',
        f"missing_tokens: [{', '.join(map(scalar, tokens))}]  # {listed(tokens, 20) or 'none found'}; empty cells and nan too",
        f"applicant_id: {applicant_line if applicant_id else 'null  # no identifier column has another value in every row'}",
        *outcome_lines,
    ]
    dropped = [f"  - {scalar(name)}  # {found.comment}" for name, found in guesses.items() if found.kind == "drop"]
    lines += ["drop:", *dropped, "columns:"] if dropped else ["drop: []", "columns:"]
    for name, found in guesses.items():
        if found.kind != "drop":
            lines += [f"  {scalar(name)}:", f"    kind: {found.kind}  # {found.comment}"]
            lines += [f"    {found.detail}"] if found.detail else []
    return "\n".join(lines) + "\n"


def _applicant_id(columns: list[Profile], guesses: dict[str, Guess], rows: int) -> str:
    """Choose an identifier with another value in every row, "" for none; drop a column that wrongly has the reserved name."""
    unique = [c.name for c in columns if len(c.counts) == c.filled == rows and c.name in guesses]
    unique = [name for name in unique if guesses[name].kind == "identifier"]
    if APPLICANT_ID in guesses and APPLICANT_ID not in unique:
        reason = "CHECK: the name is reserved for an identifier with another value in every row; rename it to use it"
        guesses[APPLICANT_ID] = Guess("drop", reason)
    return APPLICANT_ID if APPLICANT_ID in unique else next(iter(unique), "")


def _unusable(name: str, times: int) -> str:
    if not name:
        return "has no name"
    if len(scalar(name)) > MAX_NAME:
        return "CHECK: its name is too long; rename it to use it"
    return f"CHECK: stands {times} times in the header; rename to use them" if times > 1 else ""


def _decimal(texts: list[str]) -> tuple[str, str]:
    commas = [text for text in texts if re.fullmatch(r"[-+]?\d+,\d+", text)]
    points = [text for text in texts if re.fullmatch(r"[-+]?\d*\.\d+", text)]
    if not commas:
        return ".", "no number has a comma"
    if len(commas) <= len(points) or all(re.fullmatch(r"[-+]?\d{1,3},\d{3}", text) for text in commas):
        return ".", f"CHECK: cells such as {commas[0]} were not read as numbers"
    return ",", f"numbers such as {commas[0]}" + (
        f"; CHECK: cells such as {points[0]} were not read as numbers" if points else ""
    )


def _outcome(columns: list[Profile], target: str | None, good: str | None, source: str) -> tuple[Profile, list[str]]:
    """Choose the outcome column and say which of its two values is good."""
    if target is not None:
        chosen, pair = _as_told(columns, target, source)
        reason = "as told by --target"
    else:
        two = [(column, _pair(column)) for column in columns]
        pairs = [(column, found) for column, found in two if found and (good is None or _match(found, good) is not None)]
        if not pairs:
            held = f", one of them {good!r} (--good)," if good is not None else ""
            raise DataError(f"{source}: found no column of two values{held} that could be the outcome; name it with --target")
        # The last one wins a tie: outcomes stand at the end.
        ranked = sorted(range(len(pairs)), key=lambda i: (_likeness(*pairs[i]), i), reverse=True)
        chosen, pair = pairs[ranked[0]]
        others = ", ".join(shown(pairs[i][0].name) for i in ranked[1:6])
        reason = "CHECK: by its name, values and place" + (f"; two values stand in {others} too (--target)" if others else "")
    good_value, bad_value, why = _orient(chosen, pair, good, source)
    others = listed({value: rows for value, rows in chosen.counts.items() if value not in pair} | chosen.stray)
    rows = {value: f"{chosen.counts[value]} rows, {chosen.counts[value] / chosen.filled:.1%}" for value in pair}
    return chosen, [
        "target:",
        f"  name: {scalar(chosen.name)}  # {reason}; {chosen.evidence}"
        + (f"; CHECK: without outcome are {others}" if others else ""),
        f"  good: {scalar(good_value)}  # {rows[good_value]}; {why}",
        f"  bad: {scalar(bad_value)}  # {rows[bad_value]}",
    ]


def _as_told(columns: list[Profile], target: str, source: str) -> tuple[Profile, list[Code]]:
    chosen = next((column for column in columns if column.name == target), None)
    if chosen is None:
        names = [column.name for column in columns]
        near = difflib.get_close_matches(target, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"found {', '.join(map(shown, names[:20]))}"
        raise DataError(f"{source}: no column {target!r} (--target) that can be the outcome; {hint}")
    if (pair := _pair(chosen)) is None:
        # Of several values, one may say good and one bad: the other rows, such as running credits, have no outcome yet.
        words = [[v for v in chosen.counts if word.fullmatch(_plain(v))] for word in (GOOD_WORD, BAD_WORD)]
        if [len(found) for found in words] != [1, 1]:
            held = f"{len(chosen.counts)} values: {listed(chosen.counts)}" if chosen.counts else "no value"
            raise DataError(f"{source}: --target {target} holds {held}; expected two, good and bad; choose another or recode it")
        pair = [words[0][0], words[1][0]]
    return chosen, pair


def _pair(column: Profile) -> list[Code] | None:
    """Return the two values that (nearly, as cells may be corrupted) all rows have, the more frequent one first."""
    rows = [*column.counts.values(), 0]
    few_others = (
        rows[2] < 0.1 * rows[1] and rows[2] <= 0.01 * sum(rows) and sum(rows[:2]) >= 0.95 * sum(rows) if len(rows) > 3 else True
    )
    return list(column.counts)[:2] if len(column.counts) >= 2 and few_others else None


def _plain(value: Code) -> str:
    return re.sub(r"[\W_]+", " ", str(value).casefold()).strip() or str(value)


def _likeness(column: Profile, pair: list[Code]) -> int:
    name = re.sub(r"\W", "_", column.name.casefold())
    parts = [name, *re.split("_+", name)]
    named = [
        bool(word.search(name) if word is not OUTCOME_NAME else any(map(word.fullmatch, parts)))
        for word in (OUTCOME_NAME, BAD_NAME, GOOD_NAME)
    ]
    words = [_plain(value) for value in pair]
    whole = any(word.fullmatch(name) for word in (OUTCOME_NAME, BAD_NAME, GOOD_NAME))
    judged = any(GOOD_WORD.fullmatch(word) or BAD_WORD.fullmatch(word) for word in words)
    yes_no = any(map(YES.fullmatch, words)) and any(map(NO.fullmatch, words))
    return 2 * any(named) + 2 * whole + 3 * judged + yes_no


def _match(pair: list[Code], good: str) -> Code | None:
    wanted = good.strip().casefold()
    return next((v for v in pair if wanted == str(v).casefold() or (not isinstance(v, str) and wanted == str(float(v)))), None)


def _orient(column: Profile, pair: list[Code], good: str | None, source: str) -> tuple[Code, Code, str]:
    """Return the good value, the bad value and the reason."""
    frequent, rare = pair
    if good is not None:
        if (value := _match(pair, good)) is None:
            raise DataError(
                f"{source}: {column.name} holds no {good!r} (--good); found {listed({v: column.counts[v] for v in pair})}"
            )
        return value, rare if value == frequent else frequent, "as told by --good"
    words = {value: _plain(value) for value in pair}
    for value, other in ((frequent, rare), (rare, frequent)):
        if GOOD_WORD.fullmatch(words[value]) or BAD_WORD.fullmatch(words[other]):
            return value, other, "CHECK: by the words"
    name = column.name.casefold()
    for word, sign, says in ((GOOD_NAME, YES, "good"), (BAD_NAME, NO, "bad")):
        if word.search(name) and not (GOOD_NAME.search(name) and BAD_NAME.search(name)):
            for value, other in ((frequent, rare), (rare, frequent)):
                if sign.fullmatch(words[value]):
                    return value, other, f"CHECK: the name {shown(column.name)} seems to ask for the {says} outcome"
    return frequent, rare, "CHECK: the more frequent value, as most applicants are good; swap the two if it is not"
