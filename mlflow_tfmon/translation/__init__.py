"""Conversion of records to the points and files that MLflow gets."""
