"""Measurements on the local disk, until MLflow has them."""
