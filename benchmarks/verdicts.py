"""Measure what verdicts of `mlops-compare` are worth: how often a verdict is false, and how often a real change is seen.

Tables of 673 development and 308 held-out rows are drawn from a population that is known, so the true ROC-AUC of every
fitted model is measured on 20,000 more rows. Two procedures are exchangeable if swapping them changes nothing but chance; any
verdict of better or worse about them is false. Near-identical procedures differ by less than 0.002; any verdict counts as
false there too, though some have the right sign. The bars: at most 7 % false, at least 90 % of differences of 0.04 seen.

Simulated learners are logistic regressions in NumPy, ten times as fast as the pipeline; --real takes the project's models
on rows of the German credit data, with outcomes drawn anew from known probabilities. Exit code 1 if a bar is missed.

    python benchmarks/verdicts.py            1,000 tables per kind, about 7 minutes on two cores
    python benchmarks/verdicts.py --real 100
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from multiprocessing import Pool
from typing import TYPE_CHECKING

# Before NumPy: a thread per process.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

from common import CLEAN_FILE, ROOT, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from mlops_project.review.verdict import Predictions

DEVELOPMENT, HELD_OUT, FRESH = 673, 308, 20_000
FOLDS, REPEATS = 5, 3
FALSE, SEEN, SMALLEST = 0.07, 0.90, 0.003
NULL, POWER, INFORMATION = "false", "seen", ""
# Pairs of equally strong features, from strong to none.
STRENGTHS = (0.6, 0.5, 0.4, 0.35, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0)
HEADER = (
    "pair",
    "what",
    "n",
    "true difference",
    "s.d. of it",
    "found",
    "better",
    "worse",
    "rate",
    "95 % of it",
    "bar",
    "verdict",
)


def expit(z):
    import numpy as np

    return 1 / (1 + np.exp(-np.clip(z, -30, 30)))


def fit_logistic(X, y, penalty, weight=None):
    """Coefficients of a ridge-penalised logistic regression (the first column is the constant) by Newton's method."""
    import numpy as np

    weight = np.ones(len(y)) if weight is None else weight
    ridge = np.full(X.shape[1], penalty)
    ridge[0] = 1e-6
    found = np.zeros(X.shape[1])
    for _ in range(6):
        p = expit(X @ found)
        curvature = (X.T * (weight * p * (1 - p))) @ X + np.diag(ridge)
        found += np.linalg.solve(curvature, X.T @ (weight * (y - p)) - ridge * found)
    return found


class Learner:
    """A procedure: rows and outcomes in, a scoring function out. ``weight`` and ``flip`` belong to the development rows."""

    def __init__(self, penalty=1.0, columns=None, weight=None, flip=None, hidden=0):
        self.penalty, self.columns, self.weight, self.flip, self.hidden = penalty, columns, weight, flip, hidden

    def fit(self, X, y, rows, rng) -> Callable[[np.ndarray], np.ndarray]:
        import numpy as np

        view = (lambda Z: Z) if self.columns is None else (lambda Z: Z[:, self.columns])
        if self.hidden:  # random features: a learner whose seed matters, much
            mix = rng.standard_normal((X.shape[1], self.hidden))
            view = lambda Z: np.c_[np.ones(len(Z)), np.maximum(Z @ mix, 0) / 4]  # noqa: E731
        outcome = y[rows] if self.flip is None else np.where(self.flip[rows], 1 - y[rows], y[rows])
        found = fit_logistic(view(X[rows]), outcome, self.penalty, None if self.weight is None else self.weight[rows])
        return lambda Z: expit(view(Z) @ found)


def pairs(rng) -> dict[str, tuple[str, Learner, Learner, bool]]:
    """Kind → what it is for, base, head, and whether the head has other folds."""
    import numpy as np

    def counts():
        return rng.multinomial(DEVELOPMENT, np.full(DEVELOPMENT, 1 / DEVELOPMENT)).astype(float)

    def without(*columns):
        return Learner(columns=np.delete(np.arange(2 * len(STRENGTHS) + 1), columns))

    def ninety():
        return Learner(weight=(rng.random(DEVELOPMENT) < 0.9).astype(float))

    return {
        "exchangeable: other seed and folds": (NULL, Learner(3.0, hidden=25), Learner(3.0, hidden=25), True),
        "exchangeable: other bootstrap": (NULL, Learner(weight=counts()), Learner(weight=counts()), True),
        "exchangeable: another 90 % of the rows": (NULL, ninety(), ninety(), False),
        "exchangeable: other, equally good features": (NULL, without(4, 6), without(3, 5), False),
        "near-identical: penalty 5 and 10": (NULL, Learner(5.0), Learner(10.0), False),
        "near-identical: penalty 1 and 60": (NULL, Learner(1.0), Learner(60.0), False),
        "near-identical: without a useless feature": (NULL, Learner(), without(20), False),
        "weaker: without two features": (POWER, Learner(), without(4, 6), False),
        "weaker: 15 % of training outcomes flipped": (
            INFORMATION,
            Learner(),
            Learner(flip=rng.random(DEVELOPMENT) < 0.15),
            False,
        ),
        "weaker: 30 % of training outcomes flipped": (POWER, Learner(), Learner(flip=rng.random(DEVELOPMENT) < 0.30), False),
    }


def population(rng, rows):
    import numpy as np

    signs = np.random.default_rng(5).choice([-1, 1], 2 * len(STRENGTHS))
    X = np.c_[np.ones(rows), rng.standard_normal((rows, 2 * len(STRENGTHS)))]
    return X, (rng.random(rows) < expit(X @ np.r_[1.05, np.repeat(STRENGTHS, 2) * signs])).astype(int)


def predictions(fit, X, y, X_new, y_new, rng, seed) -> tuple[Predictions, Callable]:
    """Out-of-fold and held-out predictions of a procedure, and its final model."""
    import numpy as np
    import pandas as pd

    from mlops_project.review.verdict import Predictions

    draw, parts, n = np.random.default_rng(seed), [], len(y)
    for repeat in range(REPEATS):
        fold = np.empty(n, dtype=int)
        for label in (0, 1):
            rows = draw.permutation(np.flatnonzero(y == label))
            fold[rows] = np.arange(len(rows)) % FOLDS
        p_good = np.empty(n)
        for number in range(FOLDS):
            p_good[fold == number] = fit(np.flatnonzero(fold != number), rng)(X[fold == number])
        parts.append(pd.DataFrame({"repeat": repeat, "fold": fold, "y_true": y, "y_proba": p_good}))
    model = fit(np.arange(n), rng)
    held_out = pd.DataFrame({"y_true": y_new, "y_proba": model(X_new)}, index=np.arange(n, n + len(y_new)))
    return Predictions(held_out, pd.concat(parts)), model


def simulated(seed: int) -> dict[str, tuple[float, float, str]]:
    """One table: kind → true difference of the two final models, found difference, verdict."""
    import numpy as np

    from mlops_project.modeling.metrics import ranking_metrics
    from mlops_project.review.verdict import judge

    rng = np.random.default_rng(seed)
    X, y = population(rng, DEVELOPMENT)
    X_new, y_new = population(rng, HELD_OUT)
    X_fresh, y_fresh = population(np.random.default_rng(2**31), FRESH)
    found = {}
    for kind, (_, base, head, refold) in pairs(rng).items():
        sides, truth = [], []
        for learner, folds in ((base, seed), (head, seed + 10**6 * refold)):
            fit = partial(learner.fit, X, y)
            evidence, model = predictions(fit, X, y, X_new, y_new, rng, folds)
            sides.append(evidence)
            truth.append(ranking_metrics(y_fresh, model(X_fresh))["roc_auc"][0])
        verdict = judge(*sides, smallest=SMALLEST)
        found[kind] = (truth[1] - truth[0], verdict.difference, verdict.verdict)
    return found


REAL = {
    "exchangeable: random_forest of 20 trees, other seed": (NULL, "random_forest", "random_forest", "seed"),
    "exchangeable: xgboost, other bootstrap": (NULL, "xgboost", "xgboost", "bootstrap"),
    "exchangeable: decision_tree, other bootstrap": (NULL, "decision_tree", "decision_tree", "bootstrap"),
    "exchangeable: scorecard, other bootstrap": (NULL, "scorecard", "scorecard", "bootstrap"),
    "near-identical: logistic_regression, C 0.1 and 0.2": (NULL, "logistic_regression", "logistic_regression", "C"),
    "weaker: scorecard, 30 % of training outcomes flipped": (INFORMATION, "scorecard", "scorecard", "flip"),
}


def real(seed: int) -> dict[str, tuple[float, float, str]]:
    """One table of real rows, drawn with replacement, outcomes from known probabilities; the project's own models."""
    import msgspec
    import numpy as np
    import pandas as pd
    from threadpoolctl import threadpool_limits

    from mlops_project.config import load_params
    from mlops_project.modeling.fitting import Fitter
    from mlops_project.modeling.metrics import ranking_metrics
    from mlops_project.modeling.models import build_model
    from mlops_project.preprocessing import build_preprocessor, value_columns
    from mlops_project.review.verdict import judge
    from mlops_project.schema import load_contract

    params, contract = load_params(ROOT / "params.yaml"), load_contract(ROOT / "data/schema.yaml")
    rows = pd.read_csv(CLEAN_FILE)
    known = rows.pop(contract.target.name).to_numpy()
    preprocessor = build_preprocessor(contract, params.featurize)

    def fit(table, outcomes, used, name, change="", number=0):
        settings = getattr(params.models, name)
        if name == "random_forest":
            settings = msgspec.structs.replace(settings, n_estimators=20)
        if change == "C" and number:
            settings = msgspec.structs.replace(settings, C=2 * settings.C)
        train = msgspec.structs.replace(params.train, model=name, seed=2 * seed + number if change == "seed" else seed)
        fitter = Fitter(preprocessor, table, outcomes, used, train)
        return fitter.pipeline(build_model(name, settings, train, value_columns(preprocessor)))

    rng, found = np.random.default_rng(seed), {}
    with threadpool_limits(limits=1):
        # Every real row with its probability is the population, so that a model's true ROC-AUC needs no sample.
        p_true = fit(rows, known, np.arange(len(rows)), "xgboost").predict_proba(rows)[:, 1]
        drawn = rng.integers(len(rows), size=DEVELOPMENT + HELD_OUT)
        outcomes = (rng.random(len(drawn)) < p_true[drawn]).astype(int)
        X, X_new = rows.iloc[drawn[:DEVELOPMENT]], rows.iloc[drawn[DEVELOPMENT:]]
        y, y_new = outcomes[:DEVELOPMENT], outcomes[DEVELOPMENT:]
        for kind, (_, *names, change) in REAL.items():
            sides, truth = [], []
            for number, name in enumerate(names):
                taken = rng.integers(DEVELOPMENT, size=DEVELOPMENT) if change == "bootstrap" else np.arange(DEVELOPMENT)
                flipped = np.where(rng.random(DEVELOPMENT) < 0.3 * number, 1 - y, y) if change == "flip" else y

                def fitted(kept, _, taken=taken, flipped=flipped, name=name, number=number, change=change):
                    model = fit(X, flipped, taken[np.isin(taken, kept)], name, change, number)
                    return lambda Z: model.predict_proba(Z)[:, 1]

                folds = seed + 10**6 * number * (change == "seed")
                evidence, model = predictions(fitted, X, y, X_new, y_new, None, folds)
                sides.append(evidence)
                both = np.r_[np.ones(len(rows)), np.zeros(len(rows))].astype(int)
                weights = np.r_[p_true, 1 - p_true][None]
                truth.append(ranking_metrics(both, np.tile(model(rows), 2), weights)["roc_auc"][0])
            verdict = judge(*sides, smallest=SMALLEST)
            found[kind] = (truth[1] - truth[0], verdict.difference, verdict.verdict)
    return found


def report(results: list[dict[str, tuple[float, float, str]]], purposes: dict[str, str]) -> int:
    """Print the table and return the exit code."""
    import numpy as np

    rows, missed = [], False
    for kind, purpose in purposes.items():
        truth, found = (np.array([result[kind][i] for result in results]) for i in (0, 1))
        verdicts = [result[kind][2] for result in results]
        better, worse, n = verdicts.count("better"), verdicts.count("worse"), len(verdicts)
        hits = better + worse if purpose == NULL else worse
        low, high = wilson(hits, n)
        failed = (purpose == NULL and hits / n > FALSE) or (purpose == POWER and hits / n < SEEN)
        missed |= failed
        bar = {NULL: f"<= {FALSE:.0%}", POWER: f">= {SEEN:.0%}", INFORMATION: ""}[purpose]
        mark = "" if purpose == INFORMATION else "FAIL" if failed else "pass"
        figures = [f"{truth.mean():+.4f}", f"{truth.std():.4f}", f"{found.mean():+.4f}", str(better), str(worse)]
        rows.append([kind, purpose or "seen", str(n), *figures, f"{hits / n:.3f}", f"{low:.3f} to {high:.3f}", bar, mark])
    print_table(HEADER, rows)
    return int(missed)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z2, share = 1.96**2, hits / n
    centre, reach = share + z2 / (2 * n), (z2 * (share * (1 - share) / n + z2 / (4 * n * n))) ** 0.5
    return (centre - reach) / (1 + z2 / n), (centre + reach) / (1 + z2 / n)


def progress(work: Callable, n: int) -> Iterator:
    from tqdm import tqdm

    with Pool(os.cpu_count()) as pool:
        yield from tqdm(pool.imap_unordered(work, range(n), chunksize=2), total=n, disable=not sys.stderr.isatty())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000, help="simulated tables per kind of pair (default: %(default)s)")
    parser.add_argument("--real", type=int, default=0, metavar="TABLES", help="in place of these, the project's models")
    args = parser.parse_args()
    if args.real:
        return report(list(progress(real, args.real)), {kind: purpose for kind, (purpose, *_) in REAL.items()})
    import numpy as np

    purposes = {kind: purpose for kind, (purpose, *_) in pairs(np.random.default_rng(0)).items()}
    return report(list(progress(simulated, args.tables)), purposes)


if __name__ == "__main__":
    sys.exit(main())
