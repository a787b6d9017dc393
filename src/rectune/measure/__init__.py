"""Metrics, intervals and calibration: pure functions of labels and scores, below every other room."""
