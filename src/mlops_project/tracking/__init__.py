"""A view of the record in an MLflow tracking server (needs the extra ``mlflow``).

Git and DVC are the record: whatever is on the server can be pushed again. No stage and no other room imports this one.
"""
