"""Diagnosis of a training while it runs and afterwards: feeds the detectors, and acts on their findings."""
