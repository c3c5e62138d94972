"""Drift of all columns and a page, as evidently's guide has it. For `benchmarks/drift_speed.py`, in an environment of its own."""

import sys

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

reference, window = (pd.read_csv(path) for path in sys.argv[1:3])
coded, page = sys.argv[3].split(","), sys.argv[4]
definition = DataDefinition(categorical_columns=coded, numerical_columns=[name for name in reference if name not in coded])
sides = [Dataset.from_pandas(table, data_definition=definition) for table in (window, reference)]
report = Report([DataDriftPreset()]).run(*sides)
report.save_html(page)
print(len(report.dict()["metrics"]), "metrics")
