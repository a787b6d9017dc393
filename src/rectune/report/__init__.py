"""Predictions in, verdict out: comparison, figures, `metrics.json` and `report.html`."""
