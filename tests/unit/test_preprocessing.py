"""The preprocessor as params.yaml joins it, on the default data."""

import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from imblearn.over_sampling import RandomOverSampler
from imblearn.pipeline import Pipeline as SamplingPipeline
from msgspec.structs import replace
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_project.config import FeaturizeParams, Params, Ratio
from mlops_project.dataset import Applicants
from mlops_project.errors import ParamsError, PipelineError
from mlops_project.manifest import dump
from mlops_project.preprocessing import build_preprocessor, feature_table, load_preprocessor
from mlops_project.schema import Contract

VARIANTS = [
    {},
    {"missing_indicators": True, "ordinals": "one_hot"},
    {"log": ["hoehe"], "ratios": [Ratio(name="instalment", numerator="hoehe", denominator="laufzeit")]},
    {"outliers": "iqr", "scale": "robust"},
    {"outliers": "percentiles", "scale": "none", "numeric_imputation": "mean"},
]


@pytest.fixture(params=VARIANTS, ids=["default", "wide", "derived", "iqr", "percentiles"])
def featurize(request: pytest.FixtureRequest, params: Params) -> FeaturizeParams:
    return replace(params.featurize, **request.param)


def test_names_match_columns_and_nothing_is_missing(
    featurize: FeaturizeParams, contract: Contract, applicants: Applicants
) -> None:
    preprocessor = build_preprocessor(contract, featurize).fit(applicants.table[:500])
    found = preprocessor.transform(applicants.table)
    names = preprocessor.get_feature_names_out()
    assert found.shape == (len(applicants.table), len(names))
    assert len(set(names)) == len(names)
    assert found.dtype == float
    assert np.isfinite(found).all()
    table = feature_table(preprocessor, applicants.table)
    pd.testing.assert_frame_equal(
        table, pd.DataFrame(found, index=applicants.table.index, columns=list(names)), check_names=False
    )


def test_raw_text_gives_what_cleaned_rows_give(featurize: FeaturizeParams, contract: Contract, raw_table, applicants) -> None:
    preprocessor = build_preprocessor(contract, featurize).fit(applicants.table)
    numbers = raw_table.apply(pd.to_numeric, errors="coerce")
    np.testing.assert_array_equal(preprocessor.transform(raw_table), preprocessor.transform(numbers))
    np.testing.assert_array_equal(preprocessor.transform(raw_table.head(1)), preprocessor.transform(raw_table)[:1])


def test_clones_pickles_and_set_output(featurize: FeaturizeParams, contract: Contract, applicants: Applicants) -> None:
    table = applicants.table[:300]
    preprocessor = build_preprocessor(contract, featurize).fit(table)
    expected = preprocessor.transform(table)
    for copy in (pickle.loads(pickle.dumps(preprocessor)), clone(preprocessor).fit(table)):
        np.testing.assert_array_equal(copy.transform(table), expected)
    as_frame = clone(preprocessor).set_output(transform="pandas").fit(table).transform(table)
    pd.testing.assert_frame_equal(as_frame, feature_table(preprocessor, table), check_names=False)


def test_fitting_twice_writes_the_same_bytes(contract: Contract, params: Params, applicants: Applicants) -> None:
    written = []
    for _ in range(2):
        buffer = io.BytesIO()
        joblib.dump(build_preprocessor(contract, params.featurize).fit(applicants.table), buffer, compress=("zlib", 3))
        written.append(buffer.getvalue())
    assert written[0] == written[1]


def test_capping_is_off_by_default_and_touches_numeric_columns_only(
    contract: Contract, params: Params, applicants: Applicants
) -> None:
    assert "outliers" not in build_preprocessor(contract, params.featurize).named_steps
    capped = build_preprocessor(contract, replace(params.featurize, outliers="percentiles", upper_percentile=90.0, scale="none"))
    plain = build_preprocessor(contract, replace(params.featurize, scale="none"))
    one, two = (feature_table(p.fit(applicants.table), applicants.table) for p in (plain, capped))
    changed = (one != two).any()
    assert set(changed.index[changed]) == {"laufzeit", "hoehe", "alter"}
    assert (two["hoehe"].max() < one["hoehe"].max()) & (two["hoehe"].min() > one["hoehe"].min())


def test_every_setting_reaches_its_transformer(contract: Contract, params: Params) -> None:
    chosen = replace(
        params.featurize,
        outliers="percentiles",
        iqr_factor=2.5,
        lower_percentile=3.0,
        upper_percentile=90.0,
        ratios=[Ratio(name="q", numerator="hoehe", denominator="alter")],
        log=["hoehe"],
        numeric_imputation="mean",
        missing_indicators=True,
        scale="robust",
        ordinals="one_hot",
    )
    steps = build_preprocessor(contract, chosen).named_steps
    assert list(steps) == ["invalid", "outliers", "rows", "features"]
    capping = {"method": "percentiles", "factor": 2.5, "lower": 3.0, "upper": 90.0, "columns": [1, 4, 12]}
    assert steps["outliers"].get_params() == capping
    assert steps["rows"].get_params() == {"contract": contract, "ratios": chosen.ratios, "log": chosen.log}
    kept = ("numeric_imputation", "missing_indicators", "scale", "ordinals")
    assert steps["features"].get_params() == {"contract": contract, **{name: getattr(chosen, name) for name in kept}}


def test_in_pipelines_of_scikit_learn_and_imbalanced_learn(contract: Contract, params: Params, applicants: Applicants) -> None:
    table, y = applicants.table, applicants.target
    steps = build_preprocessor(contract, params.featurize).steps
    plain = Pipeline([*steps, ("model", LogisticRegression())]).fit(table, y)
    sampling = SamplingPipeline(
        [*map(clone_step, steps), ("over", RandomOverSampler(random_state=0)), ("model", LogisticRegression())]
    )
    sampling.fit(table, y)
    assert plain.score(table, y) > 0.7
    assert sampling.predict_proba(table)[:, 0].mean() > plain.predict_proba(table)[:, 0].mean() + 0.1
    nested = ColumnTransformer([("all", build_preprocessor(contract, params.featurize), contract.features)])
    np.testing.assert_array_equal(nested.fit_transform(table), plain[:-1].transform(table))


def clone_step(step: tuple) -> tuple:
    return step[0], clone(step[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"log": ["moral"]},
            "featurize.log: 'moral' is not a numeric column of the contract; those are ['laufzeit', 'hoehe', 'alter']",
        ),
        ({"log": ["hohe"]}, "featurize.log: 'hohe' is not a numeric column"),
        (
            {"ratios": [Ratio(name="q", numerator="hoehe", denominator="beszeit")]},
            "featurize.ratios: 'beszeit' is not a numeric column",
        ),
        (
            {"ratios": [Ratio(name="wohn", numerator="hoehe", denominator="alter")]},
            "the name(s) ['wohn'] are taken; choose others",
        ),
        ({"ratios": [Ratio(name="q", numerator="hoehe", denominator="alter")] * 2}, "the name(s) ['q', 'q'] are taken"),
    ],
)
def test_features_that_cannot_be_made_are_refused(changes: dict, message: str, contract: Contract, params: Params) -> None:
    with pytest.raises(ParamsError) as caught:
        build_preprocessor(contract, replace(params.featurize, **changes))
    assert message in str(caught.value)


def test_a_saved_preprocessor_is_read_and_anything_else_refused(tmp_path, contract: Contract, params: Params, applicants) -> None:
    preprocessor = build_preprocessor(contract, params.featurize).fit(applicants.table)
    dump(preprocessor, tmp_path / "preprocessor.joblib")
    found = load_preprocessor(tmp_path / "preprocessor.joblib").transform(applicants.table)
    np.testing.assert_array_equal(found, preprocessor.transform(applicants.table))
    dump({"no": "preprocessor"}, tmp_path / "other.joblib")
    with pytest.raises(PipelineError, match=r"other.joblib: found a dict, expected a preprocessor of the featurize stage"):
        load_preprocessor(tmp_path / "other.joblib")
