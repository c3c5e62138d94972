"""The pipeline behind BentoML, as its guide has it. For `benchmarks/serving.py`, run by ``bentoml serve``."""

import os

import bentoml
import joblib
import pandas as pd


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class CreditRisk:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])

    @bentoml.api
    def predict(self, applicants: pd.DataFrame) -> list[float]:
        return self.model.predict_proba(applicants)[:, 1].tolist()
