"""Models: building, cross-validation, metrics and the saved risk model."""
