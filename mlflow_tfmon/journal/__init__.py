"""What was measured, on the local disk, until MLflow has it."""
