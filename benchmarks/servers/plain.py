"""What people write first: FastAPI, pydantic and pandas around the pipeline. For `benchmarks/serving.py`, run by uvicorn."""

import os

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import create_model

model = joblib.load(os.environ["MODEL"])
fields = dict.fromkeys(model.feature_names_in_, (float | str | None, None))
Applicant = create_model("Applicant", **fields)
app = FastAPI()


# Not in a thread: one process, and nothing to wait for. It is faster so.
@app.post("/predict")
async def predict(applicants: list[Applicant]) -> list[float]:
    table = pd.DataFrame([applicant.model_dump() for applicant in applicants])
    return model.predict_proba(table)[:, 1].tolist()
