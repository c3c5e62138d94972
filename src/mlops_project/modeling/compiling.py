"""From a fitted model to a plan, and the proof that both give the same answers."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from mlops_project.errors import PipelineError
from mlops_project.modeling.calibration import Calibrated, Sigmoid
from mlops_project.modeling.compiled import FORMAT, CompiledScorer, contract_to_plan
from mlops_project.modeling.ensemble import SoftVote
from mlops_project.modeling.forms import Tables
from mlops_project.modeling.scorecard import Scorecard
from mlops_project.preprocessing import encoding_of, value_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from sklearn.pipeline import Pipeline
    from xgboost import Booster

    from mlops_project.features import FeaturePreprocessor, OutlierHandler
    from mlops_project.modeling.model import RiskModel
    from mlops_project.modeling.policy import Policy
    from mlops_project.schema import Contract

    Arrays = dict[str, np.ndarray]

# Largest difference of P(good) and of contributions between a model and its plan. XGBoost computes in single precision.
TOLERANCE = {"sum": 1e-9, "kernel": 1e-9, "forest": 1e-6, "boosted": 1e-6}


# What may stand in any column; texts are written as people and machines write.
STRANGE = (
    None, "", " ", "nan", "NaN", "<NA>", "None", math.nan, math.inf, -math.inf, "inf", "-Infinity", "1e400", True, False, "true",
    0, -1, -3.5, 1e15, -1e15, 10**30, 2**64, "1,5", "1.5", "1.000,5", "1 000", "1_000", "0x1", "+1", "1.", ".5", "1e1", "--1",
    "١", "?", "x" * 100, "\x00", "'; DROP TABLE applicants; --", "2.0.0",
)  # fmt: skip
N_CLEAN = 40
# Splits per tree up to which contributions are tabulated: those of a full tree of depth 3, which have 128 patterns.
MAX_SPLITS = 7
# Log-odds by which XGBoost's SHAP values may be off: it works in single precision, and divides by how few rows went a way. 600
# trees are off by 2e-5, a thousand that learn fast by 4e-3 and more; there XGBoost is asked, so that the answers stay its own.
CLOSE = 1e-4
# Log-odds by which a split must move a contribution to count: less is rounding.
ROUNDING = 1e-12


class NotCompilable(PipelineError):  # noqa: N818 - it is no fault
    """The model has no compiled form; the pipeline inside it must be asked."""


def compile_model(model: RiskModel, policy: Policy | None = None, version: str = "") -> CompiledScorer:
    """Compile a fitted model.

    Parameters
    ----------
    model : RiskModel
    policy : Policy, optional
        What is decided from P(good); without it the scorer decides nothing.
    version : str
        SHA-256 of the model file.

    Raises
    ------
    NotCompilable
        If a part of the model is none that has a compiled form.
    """
    pipeline = model.pipeline
    classifier = pipeline[-1]
    arrays = {f"view.{key}": array for key, array in _view(pipeline).items()}
    features: FeaturePreprocessor | None
    if isinstance(classifier, SoftVote):
        features = classifier.features
        found = [_member(member, view, features, pipeline) for view, member in classifier.members]
    else:
        features = pipeline.named_steps.get("features")
        found = [_member(classifier, "values" if features is None else "encoded", features, pipeline)]
    members = [header for header, _ in found]
    for i, (_, of_member) in enumerate(found):
        arrays |= {f"member{i}.{key}": np.asarray(array) for key, array in of_member.items()}
    encoded = any(member["view"] == "encoded" for member in members)
    if encoded and features is not None:
        arrays |= {f"encoding.{key}": array for key, array in encoding_of(features).items()}
    can_explain = model.reference is not None and len(members) == 1 and members[0]["form"] in ("sum", "boosted")
    if can_explain and model.reference is not None:
        arrays |= {"reference.typical": model.reference.typical, "reference.mean": model.reference.mean}
    header = {
        "format": FORMAT,
        "name": model.name,
        "model_version": version,
        "contract": contract_to_plan(model.contract),
        "policy": None if policy is None else json.loads(policy.to_json()),
        "scale": list(model.scale),
        "columns": list(model.feature_names_in_),
        "value_columns": value_columns(pipeline).names,
        "encoded": encoded,
        "can_explain": can_explain,
        "members": members,
        "params": model.params,
        "training_data_hash": model.training_data_hash,
        "sample_default_rate": model.sample_default_rate,
        "library_versions": model.library_versions,
    }
    # Through JSON, so that a scorer that was never written is the one that would be read.
    scorer = CompiledScorer(json.loads(json.dumps(msgspec.to_builtins(header))), arrays)
    if can_explain and _tabulated(scorer) and _apart(model, scorer, reference_rows(model.contract)) > CLOSE:
        arrays = {name: array for name, array in arrays.items() if ".tables." not in name}
        return CompiledScorer(scorer.header, arrays)
    return scorer


def parity(model: RiskModel, scorer: CompiledScorer, table: pd.DataFrame) -> float:
    """Return the largest difference between a model and its plan over raw rows, in P(good) and in contributions.

    The plan is asked for all rows at once, for each row by itself, and by columns, once more when it remembers their cells.
    Infinite if one knows a number where the other does not. Of tabulated contributions only what is beyond `CLOSE` counts.
    """
    expected = model.predict_proba(table)[:, 1]
    records: list[Any] = table[scorer.columns].to_dict("records")
    parsed = scorer.parse(records)
    found = [scorer.p_good(parsed.values)]
    found.append(np.concatenate([scorer.p_good(scorer.parse([record]).values) for record in records]))
    for _ in range(2):
        by_columns = scorer.parse_columns({name: table[name].tolist() for name in scorer.columns})
        found.append(scorer.p_good(by_columns.values, by_columns.places))
    worst = max(_difference(expected, p_good) for p_good in found)
    if scorer.can_explain:
        worst = max(worst, _apart(model, scorer, table) - (CLOSE if _tabulated(scorer) else 0.0))
    return worst


def _tabulated(scorer: CompiledScorer) -> bool:
    return any(".tables." in name for name in scorer.arrays)


def _apart(model: RiskModel, scorer: CompiledScorer, table: pd.DataFrame) -> float:
    """Return the largest difference in base and contributions; the plan is asked for all rows and for one."""
    values, worst = scorer.parse(table[scorer.columns].to_dict("records")).values, 0.0  # type: ignore[arg-type]
    base, parts = model.contributions(table)
    for rows in (values, values[:1]):
        found_base, found_parts = scorer.contributions(rows)
        worst = max(worst, abs(base - found_base), _difference(parts.to_numpy()[: len(rows)], found_parts))
    return worst


def reference_rows(contract: Contract) -> pd.DataFrame:
    """Return rows to compare on: clean, dirty, missing, unseen, negative, huge and infinite ones, as numbers and as text.

    Every kind of cell stands once in every column beside clean ones, and then again among all others.

    Returns
    -------
    DataFrame of shape (some hundred, n features)
        Cells of any type.
    """
    import pandas as pd

    rng = np.random.default_rng(0)
    names = contract.features
    clean = [_clean_cells(contract, name, rng) for name in names]
    strange = [[*_edges(contract, name), *contract.missing_tokens, *STRANGE] for name in names]
    rows = [[cells[i] for cells in clean] for i in range(N_CLEAN)]
    for column, cells in enumerate(strange):
        for i, cell in enumerate([*cells, *clean[column]]):
            rows.append([*rows[i % N_CLEAN][:column], cell, *rows[i % N_CLEAN][column + 1 :]])
    # Shuffled, each column by itself: strange cells meet.
    rows += [[cells[rng.integers(len(cells))] for cells in strange] for _ in range(max(map(len, strange)))]
    rows += [[cell] * len(names) for cell in (None, "", *contract.missing_tokens)]
    return pd.DataFrame(rows, columns=names, dtype=object)


def tolerance(scorer: CompiledScorer) -> float:
    """Return the largest `parity` to accept: 1e-9, or 1e-6 where trees vote."""
    return max(TOLERANCE[member["form"]] for member in scorer.header["members"])


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if not np.array_equal(np.isnan(expected), np.isnan(found)):
        return math.inf
    return float(np.nanmax(np.abs(expected - found), initial=0.0))


def _clean_cells(contract: Contract, name: str, rng: np.random.Generator) -> list[Any]:
    column = contract.columns[name]
    if column.codes:
        codes = column.code_list
        return [codes[i % len(codes)] for i in range(N_CLEAN)]
    low, high = column.range or (-1e6, 1e6)
    return [round(float(number), 2) for number in rng.uniform(low, high, N_CLEAN)]


def _edges(contract: Contract, name: str) -> list[Any]:
    """Return what is just inside and just outside a column's domain, in several ways of writing."""
    column = contract.columns[name]
    if column.has_text_codes:
        written = [way(str(code)) for code in column.code_list for way in (str.upper, str.lower, " {} ".format)]
        return [*written, "no such code", 1, 1.0]
    numbers = column.code_list if column.codes else list(column.range or (-1e6, 1e6))
    edges = [number + step for number in (min(numbers), max(numbers)) for step in (-1, -0.5, 0, 0.5, 1)]  # type: ignore[operator]
    every = [float(number) for number in [*numbers, *edges]]
    texts = [f"{number:g}".replace(".", contract.decimal) for number in every]
    return [*every, *texts, *(f" +{text}\t" for text in texts), *(int(number) for number in every)]


# --- parts


def _view(pipeline: Pipeline) -> Arrays:
    rows = pipeline.named_steps["rows"]
    position = {name: i for i, name in enumerate(rows.contract.features)}
    outliers: OutlierHandler | None = pipeline.named_steps.get("outliers")
    return {
        "lower": np.empty(0) if outliers is None else outliers.lower_,
        "upper": np.empty(0) if outliers is None else outliers.upper_,
        "numerators": np.array([position[ratio.numerator] for ratio in rows.ratios], dtype=int),
        "denominators": np.array([position[ratio.denominator] for ratio in rows.ratios], dtype=int),
        "logs": np.array([position[name] for name in rows.log], dtype=int),
    }


def _member(
    classifier: Any, view: str, features: FeaturePreprocessor | None, pipeline: Pipeline
) -> tuple[dict[str, Any], Arrays]:
    """Return header and arrays of one classifier, its calibration included."""
    calibration, of_calibration = "none", {}
    if isinstance(classifier, Calibrated):
        calibrator = classifier.calibrator
        classifier = classifier.classifier
        if isinstance(calibrator, Sigmoid):
            calibration, first, second = "sigmoid", [calibrator.slope_], [calibrator.intercept_]
        else:
            calibration, first, second = "isotonic", calibrator.X_thresholds_, calibrator.y_thresholds_
        of_calibration = {"calibration.first": np.array(first, dtype=float), "calibration.second": np.array(second, dtype=float)}
    if isinstance(classifier, Scorecard):
        form, arrays = "sum", _scorecard(classifier, pipeline)
    elif isinstance(classifier, LogisticRegression) and features is not None:
        form, arrays = "sum", _regression(classifier, features, pipeline)
        view = "values"
    elif isinstance(classifier, (DecisionTreeClassifier, RandomForestClassifier)):
        form, arrays = "forest", _forest(getattr(classifier, "estimators_", [classifier]))
    elif isinstance(classifier, (SVC, CalibratedClassifierCV)):
        form, arrays = "kernel", _kernel(classifier)
    elif hasattr(classifier, "get_booster"):
        n_columns = len(value_columns(pipeline).names)
        source = np.arange(n_columns) if features is None else features.source_columns()
        to_columns = source[:, np.newaxis] == np.arange(n_columns)
        form, arrays = "boosted", _boosted(classifier.get_booster(), to_columns, exact=calibration == "isotonic")
    else:
        raise _not_compilable(classifier)
    return {"form": form, "view": view, "calibration": calibration}, arrays | of_calibration


def _not_compilable(classifier: Any) -> NotCompilable:
    return NotCompilable(f"{type(classifier).__name__}: has no compiled form; ask the model itself")


def _codes(pipeline: Pipeline) -> list[np.ndarray | None]:
    """Return for each column of the values view its parsed codes in rising order, None where it holds any number."""
    columns = value_columns(pipeline)
    labels = columns.contract.code_labels
    return [np.array(sorted(labels[name])) if name in labels else None for name in columns.names]


def _scorecard(card: Scorecard, pipeline: Pipeline) -> Arrays:
    """Each bin is a step; of codes each is one, as no other values reach a model."""
    columns = []
    for bins, coefficient, codes in zip(card.encoder_.bins_, card.coef_[0], _codes(pipeline), strict=True):
        if bins.kind == "nominal" and codes is not None:
            starts, levels = np.r_[-np.inf, codes[1:]], bins.woe[bins.assign(codes)]
        else:
            starts, levels = np.r_[-np.inf, bins.points], bins.woe[: bins.n]
        columns.append((starts, coefficient * levels, coefficient * bins.woe[bins.n], 0.0, 0.0))
    return _sum(columns, card.intercept_)


def _regression(model: LogisticRegression, features: FeaturePreprocessor, pipeline: Pipeline) -> Arrays:
    """Numbers are straight lines; codes and what is missing are steps, each as high as the encoder and the coefficients say."""
    encoding = encoding_of(features)
    n_columns = features.n_features_in_
    coefficients, source = model.coef_[0], features.source_columns()
    slopes, centers = np.zeros(n_columns), np.zeros(n_columns)
    for i, column in enumerate(encoding["numbers"]):
        if not features.empty_[column]:
            slopes[column], centers[column] = coefficients[i] / encoding["spread"][i], encoding["center"][i]

    def added(column: int, value: float) -> float:
        row = np.full((1, n_columns), np.nan)
        row[0, column] = value
        return float((features.transform(row)[0] * coefficients)[source == column].sum())

    columns = []
    for i, codes in enumerate(_codes(pipeline)):
        missing = added(i, np.nan)
        if i in encoding["coded"] and codes is not None:
            levels = [added(i, code) for code in codes]
            starts = np.r_[-np.inf, codes[1:]]
        else:
            # A number's line is added by itself.
            levels, starts = [missing if features.empty_[i] else added(i, centers[i])], np.array([-np.inf])
        columns.append((starts, np.array(levels), missing, slopes[i], centers[i]))
    return _sum(columns, model.intercept_)


def _sum(columns: list[tuple[np.ndarray, np.ndarray, float, float, float]], intercept: np.ndarray) -> Arrays:
    """Join columns, each: starts of steps, levels, level where missing, slope and center."""
    return {
        "column": np.repeat(np.arange(len(columns)), [len(starts) for starts, *_ in columns]),
        "start": np.concatenate([starts for starts, *_ in columns]),
        "rise": np.concatenate([np.diff(levels, prepend=missing) for _, levels, missing, _, _ in columns]),
        "missing": np.array([missing for _, _, missing, _, _ in columns]),
        "slope": np.array([slope for *_, slope, _ in columns]),
        "center": np.array([center for *_, center in columns]),
        "intercept": np.asarray(intercept, dtype=float).ravel(),
    }


def _forest(trees: list[DecisionTreeClassifier]) -> Arrays:
    """Left is what is at most the threshold, in double precision, of numbers in single precision."""
    parts = []
    for tree in (estimator.tree_ for estimator in trees):
        threshold = tree.threshold.astype(np.float32)
        threshold = np.where(threshold > tree.threshold, np.nextafter(threshold, np.float32(-np.inf)), threshold)
        below = np.nextafter(threshold, np.float32(np.inf))
        missing_left = tree.missing_go_to_left.astype(bool)
        parts.append((tree.children_left, tree.children_right, tree.feature, below, missing_left, tree.value[:, 0, 1]))
    return _trees(parts)


def _boosted(booster: Booster, to_columns: np.ndarray, *, exact: bool) -> Arrays:
    learner = json.loads(booster.save_raw("json"))["learner"]
    trees = learner["gradient_booster"]["model"]["trees"]
    parts, asked = [], []
    for tree in trees:
        if any(tree["split_type"]):
            raise NotCompilable("XGBoost: has splits by category, which have no compiled form; ask the model itself")
        # Of a leaf, the condition is its value.
        condition = np.array(tree["split_conditions"], dtype=np.float32)
        left, right = (np.array(tree[f"{side}_children"]) for side in ("left", "right"))
        parts.append((left, right, np.array(tree["split_indices"]), condition, np.array(tree["default_left"], bool), condition))
        asked.append(np.array(tree["sum_hessian"]))
    # A probability, in brackets from XGBoost 3.1 on.
    start = np.array([learner["learner_model_param"]["base_score"].strip("[]")], dtype=np.float32)
    raw = {"raw": np.frombuffer(bytes(booster.save_raw("ubj")), dtype=np.uint8), "exact": np.array([exact])}
    raw["to_columns"] = to_columns
    arrays = raw | {"start": -np.log(1 / start - 1)} | _trees(parts)
    n_splits = max((left >= 0).sum() for left, *_ in parts)
    if 0 < n_splits <= MAX_SPLITS and not exact:
        tables = _tables(parts, asked, int(n_splits), to_columns, arrays["start"])
        arrays |= {f"tables.{name}": array for name, array in tables.items()}
    return arrays


def _tables(
    trees: Sequence[tuple[np.ndarray, ...]],
    weights: Sequence[np.ndarray],
    n_splits: int,
    to_columns: np.ndarray,
    start: np.ndarray,
) -> Arrays:
    """Tabulate leaves and path-dependent tree SHAP values, as `forms.Tables` takes them; ``weights`` reached each node."""
    comparison = np.zeros((n_splits, len(trees), 2))
    comparison[:, :, 1] = -np.inf  # a split that a tree does not have: nothing is below
    source = to_columns.argmax(axis=1)
    values, base = [], float(start[0])
    parts: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(to_columns.shape[1])]
    for i, ((left, right, feature, threshold, missing_left, value), weight) in enumerate(zip(trees, weights, strict=True)):
        splits = np.flatnonzero(left >= 0)
        comparison[: len(splits), i, 0] = feature[splits] + len(source) * missing_left[splits]
        comparison[: len(splits), i, 1] = threshold[splits]
        expected = _expectations(left, right, feature, value, weight, n_splits)
        base += expected[0, 0]
        values.append(expected[-1])  # all columns are known
        for column, part in zip(np.unique(feature[splits]), _shapley(expected), strict=True):
            parts[source[column]].append((i, part))
    pairs, split = np.unique(comparison.reshape(-1, 2), axis=0, return_inverse=True)
    split = split.reshape(n_splits, len(trees))
    joined = [_joined(split, of_column) for of_column in parts]
    return {
        "column": pairs[:, 0].astype(int) % len(source),
        "threshold": pairs[:, 1].astype(np.float32),
        "missing_left": pairs[:, 0] >= len(source),
        "split": split,
        "value": np.array(values, dtype=np.float32),
        "asked": np.concatenate([asked for asked, _ in joined], axis=1),
        "part": np.concatenate([part for _, part in joined]).astype(np.float32),
        "receiver": np.repeat(np.arange(len(joined)), [len(part) for _, part in joined]),
        "base": np.array([base]),
    }


def _joined(split: np.ndarray, parts: Sequence[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Join contributions to one column, each: tree and contribution by its pattern, into few tables of more comparisons.

    Returns
    -------
    asked : ndarray of int, shape (BITS, n tables)
    part : ndarray of shape (n tables, 2 ** BITS)
    """
    pattern = np.arange(2 ** len(split))
    moving = [  # the splits that matter to each part
        (tree, [i for i in range(len(split)) if np.abs(part[pattern ^ 1 << i] - part).max() > ROUNDING], part)
        for tree, part in parts
    ]
    tables: list[tuple[list[int], np.ndarray]] = []
    pattern = np.arange(2**Tables.BITS)
    # The largest first, each to the table that it fits best.
    for tree, splits, part in sorted(moving, key=lambda found: -len(found[1])):
        asks = dict.fromkeys(split[splits, tree].tolist())
        grown = [(len(asks.keys() - asked), i) for i, (asked, _) in enumerate(tables)]
        room = [(more, i) for more, i in grown if more + len(tables[i][0]) <= Tables.BITS]
        if not room:
            tables.append(([], np.zeros(len(pattern))))
        asked, joined = tables[min(room)[1] if room else -1]
        asked += [comparison for comparison in asks if comparison not in asked]
        bits = [(pattern >> asked.index(split[i, tree]) & 1) << i for i in splits]
        joined += part[np.sum(bits, axis=0, dtype=int)]
    # What bits say that no part asks does not matter.
    filled = np.array([asked + [0] * (Tables.BITS - len(asked)) for asked, _ in tables], dtype=int)
    return filled.reshape(-1, Tables.BITS).T, np.array([joined for _, joined in tables]).reshape(-1, len(pattern))


def _expectations(
    left: np.ndarray, right: np.ndarray, feature: np.ndarray, value: np.ndarray, weight: np.ndarray, n_splits: int
) -> np.ndarray:
    """Return what a tree expects where some columns are known, shape (2 ** n columns, 2 ** n splits).

    Bits of the first say which columns are known, of the second which splits a row leaves on the left.
    """
    splits = np.flatnonzero(left >= 0)
    columns = np.unique(feature[splits])
    known, pattern = np.arange(2 ** len(columns))[:, np.newaxis], np.arange(2**n_splits)

    def below(node: int) -> np.ndarray:
        if left[node] < 0:
            return np.full((1, 1), float(value[node]))
        on_left, on_right = below(left[node]), below(right[node])
        goes_left = pattern >> splits.searchsorted(node) & 1
        share = weight[left[node]] / weight[node]
        return np.where(
            known >> columns.searchsorted(feature[node]) & 1,
            np.where(goes_left, on_left, on_right),
            share * on_left + (1 - share) * on_right,
        )

    return np.broadcast_to(below(0), (len(known), len(pattern)))


def _shapley(expected: np.ndarray) -> np.ndarray:
    """Return Shapley values of n players, shape (n, …), of what each coalition gets, shape (2 ** n, …)."""
    n = len(expected).bit_length() - 1
    coalitions = np.arange(len(expected))
    sizes = np.array([coalition.bit_count() for coalition in coalitions.tolist()])
    share = np.array([1 / (n * math.comb(n - 1, size)) for size in range(n)])
    out = []
    for player in range(n):
        without = coalitions[coalitions >> player & 1 == 0]
        out.append(share[sizes[without]] @ (expected[without | 1 << player] - expected[without]))
    return np.array(out)


def _trees(parts: Sequence[tuple[np.ndarray, ...]]) -> Arrays:
    """Join trees, each: left and right child (below 0: a leaf), feature, threshold, whether missing goes left, value."""
    sizes = [len(left) for left, *_ in parts]
    roots = np.cumsum([0, *sizes[:-1]])
    out: dict[str, list[np.ndarray]] = {name: [] for name in ("left", "right", "feature", "threshold", "missing_left", "value")}
    for root, (left, right, feature, threshold, missing_left, value) in zip(roots, parts, strict=True):
        leaf, own = left < 0, np.arange(len(left))
        out["left"].append(root + np.where(leaf, own, left))
        out["right"].append(root + np.where(leaf, own, right))
        out["feature"].append(np.where(leaf, 0, feature))
        out["threshold"].append(threshold)
        out["missing_left"].append(missing_left)
        out["value"].append(value.astype(float))
    arrays = {name: np.concatenate(found) for name, found in out.items()}
    return arrays | {"roots": roots, "depth": np.array([max(_depth(left, right) for left, right, *_ in parts)])}


def _depth(left: np.ndarray, right: np.ndarray) -> int:
    depth, level = 0, np.array([0])
    while len(level := np.concatenate([left[level], right[level]])[np.r_[left[level], left[level]] >= 0]):
        depth += 1
    return depth


def _kernel(machine: SVC | CalibratedClassifierCV) -> Arrays:
    platt = np.empty(0)
    if isinstance(machine, CalibratedClassifierCV):
        if machine.ensemble or machine.method != "sigmoid":
            raise _not_compilable(machine)
        (calibrated,) = machine.calibrated_classifiers_
        (calibrator,) = calibrated.calibrators
        machine, platt = calibrated.estimator, np.array([calibrator.a_, calibrator.b_])
    if machine.kernel != "rbf":
        raise _not_compilable(machine)
    return {
        "vectors": machine.support_vectors_,
        "weight": machine.dual_coef_[0],
        "intercept": machine.intercept_,
        "gamma": np.array([machine._gamma]),  # noqa: SLF001 - what `gamma` came to
        "platt": platt,
    }
