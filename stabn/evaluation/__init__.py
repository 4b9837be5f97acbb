"""Predictions, metrics, selection of classes, and the report."""
