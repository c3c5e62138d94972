"""Drift of each column by two methods, missing values, and of all together, as nannyml's guide has it.

For `benchmarks/drift_speed.py`, in an environment of its own.
"""

import sys
import warnings

import nannyml
import pandas as pd

warnings.simplefilter("ignore")  # of one chunk it says that there are too few
reference, window = (pd.read_csv(path) for path in sys.argv[1:3])
names, coded = list(reference), sys.argv[3].split(",")
missing = nannyml.MissingValuesCalculator(column_names=names, chunk_number=1)
missing.fit(reference)
found = [missing.calculate(window)]
for table in (reference, window):
    table[coded] = table[coded].astype(str).astype("category")
calculators = [
    nannyml.UnivariateDriftCalculator(
        column_names=names,
        treat_as_categorical=coded,
        continuous_methods=["kolmogorov_smirnov", "jensen_shannon"],
        categorical_methods=["chi2", "jensen_shannon"],
        chunk_number=1,
    ),
    nannyml.DataReconstructionDriftCalculator(column_names=names, chunk_number=1),
]
for calculator in calculators:
    calculator.fit(reference)
    found.append(calculator.calculate(window))
print(sum(len(result.to_df().columns) for result in found), "figures")
