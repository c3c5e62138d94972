"""A FastAPI endpoint that does nothing: what the framework costs by itself. For `benchmarks/serving.py`, run by uvicorn."""

from fastapi import FastAPI

app = FastAPI()


@app.post("/predict")
async def nothing() -> dict[str, str]:
    return {}
