"""The forecaster as torch modules."""
